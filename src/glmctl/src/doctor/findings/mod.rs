//! What follows from what was seen: findings, each with what to type.

mod machine;
mod runtime;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::look::Seen;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Good to know; it could be better.
    Note,
    /// It costs speed or memory, or is about to.
    Warning,
    /// glmd cannot work.
    Problem,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub topic: &'static str,
    /// How bad it is.
    pub state: State,
    /// What it is.
    pub what: String,
    /// What to type, or to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Findings about one topic.
struct Topic<'a>(&'static str, &'a mut Vec<Finding>);

impl Topic<'_> {
    fn add(&mut self, state: State, what: impl Into<String>, fix: Option<String>) {
        self.1.push(Finding {
            topic: self.0,
            state,
            what: what.into(),
            fix,
        });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.add(State::Ok, what, None);
    }

    fn note(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Note, what, Some(fix.to_owned()));
    }

    fn warning(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Warning, what, Some(fix.to_owned()));
    }

    fn problem(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Problem, what, Some(fix.to_owned()));
    }
}

/// All findings, from the daemon down to the heat of the processor.
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let mut all = Vec::new();
    runtime::daemon(seen, &mut Topic("daemon", &mut all));
    runtime::backend(seen, &mut Topic("backend", &mut all));
    runtime::library(seen, &mut Topic("onnxruntime", &mut all));
    runtime::kernels(seen, &mut Topic("kernels", &mut all));
    runtime::threads(seen, &mut Topic("threads", &mut all));
    machine::memory(seen, &mut Topic("memory", &mut all));
    machine::groups(seen, &mut Topic("cgroup", &mut all));
    machine::pressure(seen, &mut Topic("pressure", &mut all));
    machine::heat(seen, &mut Topic("heat", &mut all));
    all
}
