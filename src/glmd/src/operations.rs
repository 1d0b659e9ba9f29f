//! What clients may ask of the daemon rather than of the model, whatever the transport.

use glm_engine::{EngineHandle, Error};
use glm_wire::error::ErrorDetail;
use glm_wire::status::Reloaded;
use tokio::sync::{mpsc, oneshot};

use crate::service::failure;

/// Something to be done to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read configuration and model again.
    Reload,
    /// Give the model's memory back.
    Unload,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Reload, Self::Unload];

    /// Its name in paths and topics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Unload => "unload",
        }
    }
}

/// Answers a reload: `Err` tells why nothing was changed.
pub type ReloadDone = oneshot::Sender<Result<Reloaded, ErrorDetail>>;

/// The way to what operates the daemon. Whether somebody may, a transport decides.
#[derive(Clone, Debug)]
pub struct Operations {
    reloads: mpsc::Sender<ReloadDone>,
    engine: EngineHandle,
}

impl Operations {
    /// Reloads go to the receiver; a second one waits for the first.
    #[must_use]
    pub fn new(engine: EngineHandle) -> (Self, mpsc::Receiver<ReloadDone>) {
        let (reloads, receiver) = mpsc::channel(1);
        (Self { reloads, engine }, receiver)
    }

    /// Reads configuration and model again.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, ErrorDetail> {
        let (done, outcome) = oneshot::channel();
        self.reloads.send(done).await.map_err(|_| shutting_down())?;
        outcome.await.map_err(|_| shutting_down())?
    }

    /// Gives the model's memory back once what runs is answered.
    ///
    /// # Errors
    /// When the engine ends instead.
    pub async fn unload(&self) -> Result<(), ErrorDetail> {
        let (done, outcome) = oneshot::channel();
        self.engine.unload(Box::new(move |result| {
            // Whoever asked may be gone.
            let _ = done.send(result);
        }));
        let outcome = outcome.await.map_err(|_| shutting_down())?;
        outcome.map_err(|error| failure::detail(&error))
    }
}

/// The engine ended before it answered.
fn shutting_down() -> ErrorDetail {
    failure::detail(&Error::ShuttingDown)
}
