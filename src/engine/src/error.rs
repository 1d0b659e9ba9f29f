//! The one error type of this crate.

use std::time::Duration;

use crate::backend::BackendError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was refused, or ended without an answer.
///
/// Every variant has a stable [`code`](Error::code) that transports pass on
/// unchanged; those that may pass by themselves say when to try again.
#[expect(
    clippy::error_impl_error,
    reason = "one error enum a crate, named as `std::io::Error` is"
)]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No room now; the same request may be accepted later.
    #[error("overloaded: {reason}; try again in {} ms", retry_after.as_millis())]
    Overloaded {
        /// What is full.
        reason: &'static str,
        /// When there may be room.
        retry_after: Duration,
    },
    /// No model is loaded at the moment.
    #[error("the model is not loaded; try again in {} ms", retry_after.as_millis())]
    NotLoaded {
        /// When it may be back.
        retry_after: Duration,
    },
    /// The request could not run even alone.
    #[error("too large: the request needs {needed} {what}, at most {limit} can be had")]
    TooLarge {
        /// What there is not enough of, with its unit.
        what: &'static str,
        /// How much the request needs.
        needed: usize,
        /// How much there is.
        limit: usize,
    },
    /// A field of the request is unusable.
    #[error("{message}")]
    Invalid {
        /// Stable name of the mistake.
        code: &'static str,
        /// Field, mistake and remedy.
        message: String,
    },
    /// A newer request with the same key took its place.
    #[error("superseded by a newer request with the same coalesce_key")]
    Superseded,
    /// Its owner gave it up.
    #[error("cancelled")]
    Cancelled,
    /// It could not be answered in time.
    #[error("the deadline cannot be met")]
    Deadline,
    /// Its owner does not read the answer.
    #[error("cancelled: {unread} tokens of the answer were not read")]
    SlowReader {
        /// Tokens waiting to be read.
        unread: usize,
    },
    /// The model was replaced by another while the request waited.
    #[error("the model was replaced while the request waited; send it again")]
    ModelChanged,
    /// The engine ends.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The backend failed twice on the step of this request.
    #[error("backend failed: {reason}")]
    Backend {
        /// Message of the backend.
        reason: String,
    },
    /// The backend panicked on the step of this request.
    #[error("backend panicked: {reason}")]
    BackendPanicked {
        /// Message of the panic.
        reason: String,
    },
    /// The constraint of the answer failed or allows no token.
    #[error("constraint: {reason}")]
    Constraint {
        /// What happened.
        reason: String,
    },
    /// A model cannot be loaded.
    #[error("cannot load the model: {reason}")]
    Load {
        /// Message of the loader.
        reason: String,
    },
    /// A promise of the engine to itself is broken; a bug.
    #[error("internal error: {reason}")]
    Internal {
        /// What is inconsistent.
        reason: &'static str,
    },
}

impl Error {
    /// Stable name of the kind of error, the same in HTTP, MQTT and on the command line.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "overloaded",
            Self::NotLoaded { .. } => "model_not_loaded",
            Self::TooLarge { .. } => "too_large",
            Self::Invalid { code, .. } => code,
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline_exceeded",
            Self::SlowReader { .. } => "slow_reader",
            Self::ModelChanged => "model_changed",
            Self::ShuttingDown => "shutting_down",
            Self::Backend { .. } => "backend_failed",
            Self::BackendPanicked { .. } => "backend_panicked",
            Self::Constraint { .. } => "constraint_failed",
            Self::Load { .. } => "load_failed",
            Self::Internal { .. } => "internal",
        }
    }

    /// When the same request may succeed; `None` when waiting does not help.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } | Self::NotLoaded { retry_after } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }
}

impl From<glm::Error> for Error {
    fn from(error: glm::Error) -> Self {
        Self::Invalid {
            code: error.code(),
            message: error.to_string(),
        }
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        Self::Backend {
            reason: error.to_string(),
        }
    }
}
