//! What can be typed; completions and man pages come from the same definitions.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::Bench;
use crate::commands::chat::Chat;
use crate::commands::classify::Classify;
use crate::commands::generate::Generate;
use crate::commands::infill::Infill;
use crate::commands::tokenize::Tokenize;
use crate::doctor::Doctor;
use crate::eval::Eval;
use crate::export::Export;
use crate::failure::{Failure, Result};
use crate::model::Model;
use crate::options::Output;
use crate::top::Top;

/// Ask glmd, the daemon that serves one GLM, and prepare models for it.
///
/// Exit status: 0 done; 64 usage; 65 bad input; 69 glmd cannot be reached; 70 error in glmd;
/// 74 input or output error; 75 overloaded, try again; 76 it is not glmd that answers;
/// 77 not allowed; 130 Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "glmctl", version, about)]
pub struct Cli {
    /// Socket of glmd [default: /run/glmd/glmd.sock, else glmd/glmd.sock in the user's run-time directory]
    #[arg(long, global = true, env = "GLMD_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to print answers and errors
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Ask(Box<Ask>),
    Export(Box<Export>),
    /// Look after model directories
    #[command(subcommand)]
    Model(Model),
    Bench(Box<Bench>),
    Doctor(Doctor),
    Eval(Box<Eval>),
    /// Tell which GLM a checkpoint folder holds, from its config.json
    Inspect {
        /// Folder with config.json, as downloaded
        checkpoint: PathBuf,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages
    Man {
        /// Folder for them
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Commands that ask the daemon.
#[derive(Debug, Subcommand)]
pub enum Ask {
    Infill(Infill),
    Classify(Classify),
    Generate(Generate),
    Chat(Chat),
    /// Show what is loaded and how it fares
    Status,
    Top(Top),
    Tokenize(Tokenize),
    /// Cancel a request; `status` shows the ids
    Cancel {
        /// Identity of the request
        id: String,
    },
    /// Load configuration and model anew; the old model answers until the new one has passed its test
    Reload,
    /// Take the model out of memory until the next reload
    Unload,
}

/// `glmctl completions SHELL`
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "glmctl", &mut script);
    crate::print::text(&String::from_utf8_lossy(&script))
}

/// `glmctl man --out DIR`: one page for glmctl and one for each command.
pub fn man_pages(out: &Path) -> Result<()> {
    let failed = |e| Failure::io(out.display().to_string(), e);
    fs::create_dir_all(out).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), out).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_page_that_names_its_options() {
        let folder = tempfile::tempdir().expect("a folder");
        man_pages(folder.path()).expect("pages");
        let page = fs::read_to_string(folder.path().join("glmctl-classify.1")).expect("a page");
        assert!(page.contains("calibrate"));
        assert!(folder.path().join("glmctl.1").exists());
    }
}
