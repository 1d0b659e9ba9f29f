//! Why the daemon does not run.

use std::io;

use crate::activation::ActivationError;
use crate::config::layers::ConfigError;
use crate::http::{SocketError, TokenError};

/// Why the daemon does not start, or ends.
#[expect(
    clippy::error_impl_error,
    reason = "one error enum a crate, named as `std::io::Error` is"
)]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The Unix socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// What the service manager hands over cannot be served.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// TCP cannot be served.
    #[error("http.tcp.listen: {0}")]
    Tcp(io::Error),
    /// The secret for TCP cannot be read.
    #[error("http.tcp.token_file: {0}")]
    Token(#[from] TokenError),
    /// There is no model at the path of the configuration.
    #[error("model.path: {path}: {reason}; export a model with `glmctl export`, or set model.path")]
    NoModel {
        /// The folder.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The model cannot be loaded.
    #[error("{0}")]
    Model(glm_engine::Error),
    /// MQTT cannot be set up as the configuration says.
    #[error(transparent)]
    Mqtt(#[from] crate::mqtt::BadConfig),
    /// MQTT cannot go on.
    #[error(transparent)]
    MqttSession(#[from] crate::mqtt::Fatal),
    /// The system has no thread, signal or timer to give.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
}

/// Exit status of a bad configuration (`EX_CONFIG`, sysexits.h).
pub const EX_CONFIG: u8 = 78;
/// Something that is needed is taken (`EX_UNAVAILABLE`).
const EX_UNAVAILABLE: u8 = 69;
/// The daemon itself failed (`EX_SOFTWARE`).
const EX_SOFTWARE: u8 = 70;
/// The system failed (`EX_OSERR`).
const EX_OSERR: u8 = 71;

impl Error {
    /// Stable name of the kind of error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "bad_config",
            Self::Socket(SocketError::InUse { .. }) => "socket_in_use",
            Self::Socket(_) => "socket_failed",
            Self::Activation(_) => "bad_activation",
            Self::Tcp(_) => "tcp_failed",
            Self::Token(_) => "bad_token_file",
            Self::NoModel { .. } => "no_model",
            Self::Model(error) => error.code(),
            Self::Mqtt(_) => "bad_config",
            Self::MqttSession(_) => "mqtt_session_taken_over",
            Self::System(_) => "system",
        }
    }

    /// Exit status after sysexits.h.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Mqtt(_)
            // Starting again would only throw the other node out in turn.
            | Self::MqttSession(_)
            | Self::Token(_)
            // The unit or the script around it has to change.
            | Self::Activation(_)
            | Self::NoModel { .. }
            | Self::Socket(SocketError::NoGroup { .. }) => EX_CONFIG,
            Self::Socket(_) | Self::Tcp(_) => EX_UNAVAILABLE,
            Self::Model(_) => EX_SOFTWARE,
            Self::System(_) => EX_OSERR,
        }
    }
}
