//! From the engine's errors to the envelope that every transport sends.

use std::time::Duration;

use glm_engine::Error;
use glm_wire::error::{ErrorDetail, ErrorKind};

/// When a client that found the daemon busy should come back, if nothing better is known.
pub const RETRY: Duration = Duration::from_secs(1);

/// The envelope's view of an engine error.
#[must_use]
pub fn detail(error: &Error) -> ErrorDetail {
    let kind = match error {
        Error::Overloaded { .. } => ErrorKind::Overloaded,
        Error::NotLoaded { .. } | Error::ShuttingDown => ErrorKind::Unavailable,
        Error::TooLarge { .. }
        | Error::Invalid {
            code: "prompt_too_long",
            ..
        } => ErrorKind::TooLarge,
        Error::Invalid { .. } => ErrorKind::InvalidRequestError,
        Error::Superseded => ErrorKind::Superseded,
        Error::Cancelled | Error::SlowReader { .. } => ErrorKind::Cancelled,
        Error::Deadline => ErrorKind::DeadlineExceeded,
        Error::ModelChanged => ErrorKind::Conflict,
        // The rest is the daemon's fault, and so is what later versions of the engine add.
        _ => ErrorKind::ServerError,
    };
    let mut detail = ErrorDetail::new(kind, error.code(), error.to_string());
    if let Error::Invalid { message, .. } = error {
        detail.param = named(message);
    }
    if let Some(time) = error.retry_after() {
        detail = detail.with_retry_after_ms(millis(time));
    }
    detail
}

/// A field that the request must have or must not have.
#[must_use]
pub fn bad_input(field: &str, message: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(ErrorKind::InvalidRequestError, "bad_input", message).with_param(field)
}

/// Too much at once for a limit of the transport.
#[must_use]
pub fn busy(message: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(ErrorKind::Overloaded, "overloaded", message)
        .with_retry_after_ms(millis(RETRY))
}

/// Whole milliseconds, rounded up so that nobody comes back too early.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The field that a message names first between backticks.
fn named(message: &str) -> Option<String> {
    let (_, rest) = message.split_once('`')?;
    let (field, _) = rest.split_once('`')?;
    (!field.is_empty()).then(|| field.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_the_engine_is_passed_on_with_the_field_and_the_time() {
        let invalid = detail(&Error::Invalid {
            code: "bad_input",
            message: "`top_p`: 2 is not above 0 and at most 1".into(),
        });
        assert_eq!(invalid.param.as_deref(), Some("top_p"));
        assert_eq!(invalid.kind.http_status(), 400);
        let busy = detail(&Error::Overloaded {
            reason: "too many requests wait",
            retry_after: Duration::from_micros(1500),
        });
        assert_eq!(
            (busy.code.as_str(), busy.retry_after_ms),
            ("overloaded", Some(2))
        );
        let too_large = detail(&Error::TooLarge {
            what: "positions (prompt and answer)",
            needed: 900,
            limit: 512,
        });
        assert_eq!(too_large.kind.http_status(), 413);
        assert!(too_large.message.contains("900") && too_large.message.contains("512"));
    }
}
