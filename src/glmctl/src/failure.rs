//! Why a command failed, and the exit status that says so.

use std::path::PathBuf;
use std::time::Duration;

use glm_wire::error::ErrorKind;
use glm_wire::{ErrorBody, ErrorDetail};

/// Exit status of a command line that cannot be parsed (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// Exit status after Ctrl-C, as shells report it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Result of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed. The statuses are those of `sysexits.h`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Arguments that contradict each other: 64.
    #[error("{0}")]
    Usage(String),
    /// A file or standard input holds what cannot be sent: 65.
    #[error("{0}")]
    BadInput(String),
    /// Nobody answers on the socket: 69.
    #[error(
        "cannot reach glmd at {}: {reason}\nIs it running? Try `systemctl status glmd`, or name its socket with --socket.",
        socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// glmd understood and refused.
    #[error("{}", refusal(.0))]
    Refused(Box<ErrorDetail>),
    /// What came back is not what glmd sends: 76.
    #[error("{what}; is it glmd that listens on {}?", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        what: String,
    },
    /// A file could not be read or written: 74.
    #[error("{what}: {source}")]
    Io {
        /// File or stream.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A part of the project that works on files refused them.
    #[error(transparent)]
    Model(#[from] glm_onnx::Error),
    /// The engine could not load or run a model: 65, for the model or the options are at fault.
    #[error(transparent)]
    Engine(#[from] glm_engine::Error),
    /// A step of a measurement failed: 70.
    #[error("{0}")]
    Measurement(String),
    /// `doctor` found what keeps glmd from working: 69.
    #[error("{problems} of these keep glmd from working")]
    Unhealthy {
        /// How many.
        problems: usize,
    },
    /// Ctrl-C: 130.
    #[error("interrupted")]
    Interrupted,
    /// Some of many prompts failed; each was reported when it did.
    #[error("{failed} of {all} lines failed")]
    Lines {
        /// Lines that failed.
        failed: usize,
        /// Lines that were sent.
        all: usize,
        /// Exit status of the first failure.
        status: u8,
    },
}

impl Failure {
    /// An input or output error on `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    /// Exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::BadInput(_) => 65,
            Self::Unreachable { .. } | Self::Unhealthy { .. } => 69,
            Self::Refused(detail) => detail.kind.exit_status(),
            Self::Engine(_) => 65,
            Self::Measurement(_) => 70,
            Self::Io { .. } => 74,
            Self::Protocol { .. } => 76,
            Self::Model(error) => error.exit_status(),
            Self::Interrupted => INTERRUPTED,
            Self::Lines { status, .. } => *status,
        }
    }

    /// When to try again, if waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(detail) if detail.kind == ErrorKind::Overloaded => Some(
                Duration::from_millis(detail.retry_after_ms.unwrap_or(DEFAULT_RETRY_MS)),
            ),
            _ => None,
        }
    }

    /// The failure as the error envelope of the interface, for `--output json`.
    pub fn envelope(&self) -> ErrorBody {
        let error = match self {
            Self::Refused(detail) => (**detail).clone(),
            other => {
                let (kind, code) = match other {
                    Self::Usage(_) => (ErrorKind::InvalidRequestError, "usage"),
                    Self::BadInput(_) => (ErrorKind::InvalidRequestError, "bad_input"),
                    Self::Unreachable { .. } => (ErrorKind::Unavailable, "unreachable"),
                    Self::Unhealthy { .. } => (ErrorKind::Unavailable, "unhealthy"),
                    Self::Interrupted => (ErrorKind::Cancelled, "interrupted"),
                    Self::Protocol { .. } => (ErrorKind::ServerError, "protocol"),
                    Self::Engine(error) => (ErrorKind::InvalidRequestError, error.code()),
                    Self::Measurement(_) => (ErrorKind::ServerError, "measurement_failed"),
                    Self::Model(error) => (ErrorKind::InvalidRequestError, error.code()),
                    _ => (ErrorKind::ServerError, "io"),
                };
                ErrorDetail::new(kind, code, other.to_string())
            }
        };
        ErrorBody { error }
    }
}

/// Wait before the next try where glmd names none: long enough for a step or two on a small board.
const DEFAULT_RETRY_MS: u64 = 500;

fn refusal(detail: &ErrorDetail) -> String {
    let mut text = detail.message.clone();
    if let Some(param) = &detail.param
        && !text.contains(param.as_str())
    {
        text = format!("{param}: {text}");
    }
    if let Some(ms) = detail.retry_after_ms {
        let seconds = Duration::from_millis(ms).as_secs_f64();
        text.push_str(&format!(" (try again in {seconds:.1} s)"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_field_and_wait() {
        let detail = ErrorDetail::new(ErrorKind::Overloaded, "overloaded", "the queue is full")
            .with_param("priority")
            .with_retry_after_ms(1500);
        let failure = Failure::Refused(Box::new(detail));
        assert_eq!(
            failure.to_string(),
            "priority: the queue is full (try again in 1.5 s)"
        );
        assert_eq!(failure.exit_status(), 75);
        assert_eq!(failure.retry_after(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_unreachable_daemon_says_what_to_do() {
        let failure = Failure::Unreachable {
            socket: PathBuf::from("/run/glmd/glmd.sock"),
            reason: "No such file or directory".to_owned(),
        };
        assert_eq!(failure.exit_status(), 69);
        let text = failure.to_string();
        assert!(text.contains("/run/glmd/glmd.sock") && text.contains("--socket"));
        assert_eq!(failure.envelope().error.code, "unreachable");
    }
}
