//! Who answers, and how a request is put to them.

use std::time::Duration;

use glm_wire::error::{ErrorDetail, ErrorKind};
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::journal::Key;
use super::now;
use crate::operations::Operation;
use crate::service::Op;

/// Shortest and longest wait before an overloaded engine is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A question to whoever answers.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The operation.
    pub op: Op,
    /// Its JSON body.
    pub body: Vec<u8>,
    /// Who asks.
    pub client: Box<str>,
    /// Where pieces go while the answer is written, when the body wants a stream.
    pub pieces: Option<Pieces>,
}

/// Takes the pieces of one answer.
#[derive(Clone, Debug)]
pub struct Pieces {
    pub(super) key: Key,
    pub(super) sender: mpsc::Sender<(Key, Vec<u8>)>,
}

impl Pieces {
    /// Hands a JSON document on; waits while there are too many.
    pub async fn send(&self, document: Vec<u8>) {
        // The session is going away: the final answer will tell all.
        let _ = self.sender.send((self.key, document)).await;
    }
}

/// Answers requests; the daemon's service, or a test.
pub trait Answering: Clone + Send + Sync + 'static {
    /// The JSON document that answers. Dropping the future cancels the request.
    fn answer(&self, ask: Ask) -> impl Future<Output = Result<Vec<u8>, ErrorDetail>> + Send;

    /// Does something to the daemon; the JSON document says what was done.
    fn operate(
        &self,
        operation: Operation,
    ) -> impl Future<Output = Result<Vec<u8>, ErrorDetail>> + Send;

    /// Version, model and limits: what `info` says.
    fn info(&self) -> Value;

    /// Level, queue, speed: what `stats` says. Has strings `level` and `phase`.
    fn stats(&self) -> Value;
}

/// Asks again while the engine has no room: the broker holds the request meanwhile.
pub(super) async fn ask_patiently<A: Answering>(
    answering: A,
    ask: Ask,
    patience: Duration,
) -> Result<Vec<u8>, ErrorDetail> {
    let until = now() + patience;
    loop {
        let outcome = answering.answer(ask.clone()).await;
        let Err(detail) = &outcome else {
            return outcome;
        };
        let passing = matches!(detail.kind, ErrorKind::Overloaded | ErrorKind::Unavailable);
        let wait =
            Duration::from_millis(detail.retry_after_ms.unwrap_or(0)).clamp(RETRY.0, RETRY.1);
        if !passing || now() + wait >= until {
            return outcome;
        }
        tokio::time::sleep(wait).await;
    }
}
