//! The error envelope, as OpenAI writes it, with the code that MQTT and the command line use too.

use serde::{Deserialize, Serialize};

/// `{"error": {...}}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable name of the kind of error.
    pub code: String,
    /// Whose fault it is, in OpenAI's words.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Field of the request at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Classes of errors, each with its HTTP status and exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong: 400.
    InvalidRequestError,
    /// No such route, model or request: 404.
    NotFound,
    /// It contradicts the present state: 409.
    Conflict,
    /// It can never fit: 413.
    TooLarge,
    /// Too much work now: 429 from a limit, 503 from memory.
    Overloaded,
    /// The deadline passed: 504.
    DeadlineExceeded,
    /// A newer request with the same key took its place: 409.
    Superseded,
    /// Somebody cancelled it: 499 in nginx's words.
    Cancelled,
    /// The daemon is at fault: 500.
    ServerError,
    /// The daemon is going down or its model is away: 503.
    Unavailable,
    /// The caller may not do this: 403.
    PermissionDenied,
}

impl ErrorKind {
    /// HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequestError => 400,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Superseded => 409,
            Self::TooLarge => 413,
            Self::Overloaded => 429,
            Self::Cancelled => 499,
            Self::ServerError => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// Exit status of the client, after `sysexits.h`.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::InvalidRequestError | Self::TooLarge | Self::NotFound | Self::Conflict => 65,
            Self::ServerError => 70,
            Self::Overloaded
            | Self::Unavailable
            | Self::DeadlineExceeded
            | Self::Superseded
            | Self::Cancelled => 75,
            Self::PermissionDenied => 77,
        }
    }
}

impl ErrorDetail {
    /// An error of a kind.
    #[must_use]
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            kind,
            message: message.into(),
            param: None,
            retry_after_ms: None,
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, field: impl Into<String>) -> Self {
        self.param = Some(field.into());
        self
    }

    /// Tells when to try again.
    #[must_use]
    pub const fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl From<crate::BadInput> for ErrorDetail {
    fn from(bad: crate::BadInput) -> Self {
        let mut detail = Self::new(ErrorKind::InvalidRequestError, "bad_input", bad.message);
        detail.param = bad.field;
        detail
    }
}
