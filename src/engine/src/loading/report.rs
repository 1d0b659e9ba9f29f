//! How a model came to run: which backend, and why no better one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::verdict::Verdict;
use crate::backend::provider::{Placement, ProviderKind};

/// A way to run models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// ONNX Runtime on the paged graph.
    OrtPaged,
    /// tract on the paged graph.
    TractPaged,
    /// ONNX Runtime on the unmodified graph.
    OrtPortable,
}

impl BackendKind {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::OrtPaged, Self::TractPaged, Self::OrtPortable];

    /// Name as `status` and the configuration spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OrtPaged => "ort-paged",
            Self::TractPaged => "tract-paged",
            Self::OrtPortable => "ort-portable",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                format!("no backend `{name}`; there are ort-paged, tract-paged and ort-portable")
            })
    }
}

/// A backend that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which.
    pub backend: BackendKind,
    /// The execution provider that it was to run on.
    pub provider: Option<ProviderKind>,
    /// Why not.
    pub reason: String,
}

/// How a model came to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The backend that was taken; `None` for a model that was not loaded from a directory.
    pub backend: Option<BackendKind>,
    /// Where the nodes of the graph run, when it runs on an execution provider.
    pub placement: Option<Placement>,
    /// The ones before it, in order.
    pub attempts: Vec<Attempt>,
    /// The libonnxruntime that works, and what it says of its build.
    pub library: Option<(PathBuf, String)>,
    /// Libraries that do not, and why.
    pub unusable: Vec<(PathBuf, String)>,
    /// Numbers of the weights of the layers, such as `int8/32`; `None` for models without a manifest.
    pub quantisation: Option<String>,
    /// Threads of a step.
    pub threads: usize,
    /// Processors they stay on; empty for all.
    pub cpus: Vec<usize>,
    /// Instruction set of our own kernels, where the backend uses them.
    pub kernels: Option<&'static str>,
    /// Whose quantised products, and why; `None` where there is no choice.
    pub matmul: Option<Verdict>,
    /// Furthest that a golden logit was off, and how far it may be; `None` for models without.
    pub deviation: Option<(f32, f32)>,
    /// Time from the start of loading to a passed self-test.
    pub elapsed: Duration,
}

impl Report {
    /// Why it is this backend and no better one, in one line; `None` for the best.
    #[must_use]
    pub fn backend_reason(&self) -> Option<String> {
        if self.attempts.is_empty() {
            return None;
        }
        let reasons = self.attempts.iter().map(|attempt| match attempt.provider {
            Some(provider) => {
                format!("{} on {provider}: {}", attempt.backend, attempt.reason)
            }
            None => format!("{}: {}", attempt.backend, attempt.reason),
        });
        Some(reasons.collect::<Vec<_>>().join("; "))
    }
}
