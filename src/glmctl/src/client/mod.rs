//! HTTP to glmd over its Unix socket.
//!
//! One connection a request: it costs little on a socket, and closing it is
//! how a request is cancelled, so dropping any future or stream of this module
//! stops the work in the daemon.

pub mod sse;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glm_wire::status::Status;
use glm_wire::{ErrorBody, ErrorDetail, MAX_BODY_BYTES};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::failure::{Failure, Result};

/// A daemon accepts at once or is stuck.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A model that is being loaded is waited for at most so long: a large one from a slow card.
const LOADING_LIMIT: Duration = Duration::from_secs(120);
/// Time between two looks whether it is loaded.
const LOADING_LOOK: Duration = Duration::from_millis(250);
/// Largest whole answer that is read: `n` long answers with their log-probabilities.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A way to glmd.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Talks to the daemon behind `socket`.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.whole(response).await
    }

    /// `DELETE path`, whatever it answers on success.
    pub async fn delete(&self, path: &str) -> Result<()> {
        let response = self.send(Method::DELETE, path, Bytes::new()).await?;
        self.bytes(response).await.map(drop)
    }

    /// `POST path` without a body.
    pub async fn order<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(Method::POST, path, Bytes::new()).await?;
        self.whole(response).await
    }

    /// `POST path` with a request, for one whole answer.
    pub async fn ask<Q: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        request: &Q,
    ) -> Result<T> {
        let response = self.post(path, encode(request)?).await?;
        self.whole(response).await
    }

    /// `POST path` with a request, for an answer in events.
    pub async fn stream<Q: Serialize + Sync>(&self, path: &str, request: &Q) -> Result<Events> {
        let response = self.post(path, encode(request)?).await?;
        Ok(Events {
            socket: self.socket.clone(),
            body: response.into_body(),
            decoder: sse::Decoder::default(),
            ready: VecDeque::new(),
        })
    }

    /// Asks, and asks again while the model is being loaded: the first question may have started glmd.
    async fn post(&self, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let start = Instant::now();
        loop {
            match self.send(Method::POST, path, body.clone()).await {
                Err(Failure::Refused(detail))
                    if detail.code == "model_not_loaded"
                        && start.elapsed() < LOADING_LIMIT
                        && self.is_loading().await =>
                {
                    sleep(LOADING_LOOK).await;
                }
                done => return done,
            }
        }
    }

    async fn is_loading(&self) -> bool {
        let status = self.get::<Status>("/v1/status").await;
        status.is_ok_and(|status| status.phase == "loading")
    }

    /// Sends a request and returns the head of a successful answer.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let unreachable = |reason: String| Failure::Unreachable {
            socket: self.socket.clone(),
            reason,
        };
        let stream = timeout(CONNECT_LIMIT, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| unreachable(format!("no answer in {} s", CONNECT_LIMIT.as_secs())))?
            .map_err(|e| unreachable(e.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|e| self.broken(&e))?;
        // It ends with the answer, or when the answer is dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "glmd")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::Usage(format!("`{path}` cannot be asked for: {e}")))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.bytes(response).await?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error }) => Err(Failure::Refused(Box::new(error))),
            Err(_) => Err(self.protocol(format!("it answered {status} without the usual error"))),
        }
    }

    async fn whole<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T> {
        let body = self.bytes(response).await?;
        serde_json::from_slice(&body)
            .map_err(|e| self.protocol(format!("its answer cannot be read ({e})")))
    }

    async fn bytes(&self, response: Response<Incoming>) -> Result<Bytes> {
        Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|e| self.protocol(format!("its answer broke off ({e})")))
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        self.protocol(format!("the connection broke ({error})"))
    }

    fn protocol(&self, what: String) -> Failure {
        Failure::Protocol {
            socket: self.socket.clone(),
            what,
        }
    }
}

fn encode<Q: Serialize>(request: &Q) -> Result<Bytes> {
    let body = serde_json::to_vec(request)
        .map_err(|e| Failure::BadInput(format!("the request cannot be written as JSON: {e}")))?;
    if body.len() > MAX_BODY_BYTES {
        return Err(Failure::BadInput(format!(
            "the request has {} bytes, glmd reads at most {MAX_BODY_BYTES}",
            body.len()
        )));
    }
    Ok(Bytes::from(body))
}

/// An answer that comes in events. Dropping it cancels the request.
#[derive(Debug)]
pub struct Events {
    socket: PathBuf,
    body: Incoming,
    decoder: sse::Decoder,
    ready: VecDeque<String>,
}

impl Events {
    /// The next event, or `None` after the last one.
    ///
    /// # Errors
    /// The error that ended the answer, or a stream that breaks off or is none.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return self.read(&event);
            }
            let protocol = |what: String| Failure::Protocol {
                socket: self.socket.clone(),
                what,
            };
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        let events = self
                            .decoder
                            .push(bytes)
                            .map_err(|e| protocol(e.to_string()))?;
                        self.ready.extend(events);
                    }
                }
                Some(Err(e)) => return Err(protocol(format!("the stream broke off ({e})"))),
                None => {
                    return Err(protocol(
                        "the stream ended before the answer did".to_owned(),
                    ));
                }
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, event: &str) -> Result<Option<T>> {
        if event == "[DONE]" {
            return Ok(None);
        }
        if let Ok(ErrorBody { error }) = serde_json::from_str::<ErrorBody>(event) {
            return Err(Failure::Refused(Box::<ErrorDetail>::new(error)));
        }
        serde_json::from_str(event)
            .map(Some)
            .map_err(|e| Failure::Protocol {
                socket: self.socket.clone(),
                what: format!("an event cannot be read ({e})"),
            })
    }
}
