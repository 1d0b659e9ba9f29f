//! The daemon: transports and process life around one engine.
//!
//! | module | what it is for |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`config`] | what an operator can set, and where it was set |
//! | [`daemon`] | start, signals, reload, drain |
//! | [`service`] | operations: bytes of a request to bytes of its answer, whatever the transport |
//! | [`operations`] | what is asked of the daemon rather than of the model |
//! | [`http`] | HTTP on the Unix socket and on TCP |
//! | [`mqtt`] | prompts over MQTT |
//! | [`metrics`] | figures for Prometheus |
//! | [`logging`] | where log lines go |
//! | [`process`] | what the system says about this process |
//! | [`systemd`] | what a service manager is told: readiness, state, signs of life |
//! | [`activation`] | the socket that a service manager hands over |
//! | [`error`] | why the daemon does not run |

pub mod activation;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
mod events;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod mqtt;
pub mod operations;
pub mod process;
pub mod service;
pub mod systemd;

pub use daemon::{Daemon, Parts, Signal};
pub use error::Error;
