//! From a model directory to a model that runs.
//!
//! A [`Directory`] is what lies on disk; a [`Report`] says how the model in it
//! came to run, for the log, `status` and `doctor`.

mod directory;
mod report;

pub use directory::Directory;
pub use report::{Attempt, BackendKind, Report};
