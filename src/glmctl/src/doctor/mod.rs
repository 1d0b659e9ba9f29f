//! `glmctl doctor`: how glmd runs on this machine, what holds it back, and what to type against it.
//!
//! | module | what it does |
//! |---|---|
//! | [`look`] | looks at the daemon and the machine: the only part that does |
//! | [`findings`] | what follows from that: a pure function |
//!
//! With a daemon its own words come first, for it may run with other limits
//! than this program; without one the machine is all there is to look at.

mod findings;
mod look;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;

use findings::{Finding, State};

/// Tell how glmd runs on this machine, what holds it back, and what to type against it
///
/// Exit status 69 when something keeps glmd from working at all.
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// Load this model directory and let it answer its own test prompts [default: that of the packaged service, when glmd is not running]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// libonnxruntime to try, as the key model.onnxruntime names it
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

impl Doctor {
    /// Runs the command.
    pub fn run(&self, socket: &Path, output: Output) -> Result<()> {
        let seen = look::look(self, socket)?;
        let findings = findings::findings(&seen);
        match output {
            Output::Json => {
                let status = seen.daemon.status();
                print::json(&json!({"findings": findings, "status": status}))?;
            }
            Output::Text => print::text(&text(&findings))?,
        }
        match findings
            .iter()
            .filter(|f| f.state == State::Problem)
            .count()
        {
            0 => Ok(()),
            problems => Err(Failure::Unhealthy { problems }),
        }
    }
}

/// One paragraph for each finding.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = finding.state.name();
        text.push_str(&format!(
            "{state:<9}{:<13}{}\n",
            finding.topic, finding.what
        ));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("{:<22}fix: {fix}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_stands_below_its_finding() {
        let finding = Finding {
            topic: "pressure",
            state: State::Note,
            what: "the kernel does not tell".to_owned(),
            fix: Some("add psi=1".to_owned()),
        };
        assert_eq!(
            text(&[finding]),
            "note     pressure     the kernel does not tell\n                      fix: add psi=1\n"
        );
    }
}
