//! Operations: from the bytes of a request to the bytes of its answer, whatever the transport.
//!
//! A transport calls [`Service::prepare`] with a body and [`Service::run`]
//! with what comes out; it gets a [`Reply`], whole or as a stream of JSON
//! chunks, or the error envelope. Dropping a reply, or the future that makes
//! it, cancels the request.
//!
//! | module | what it does |
//! |---|---|
//! | [`op`] | names of the operations |
//! | `infill`, `classify`, `systemone`, `completions`, `chat`, `tokenize` | one operation each |
//! | `shape` | from engine events to what clients read |
//! | [`stream`] | an answer in pieces |
//! | [`failure`] | errors as clients see them |
//! | [`registry`] | what is under way |
//! | [`status`] | the daemon at a glance |

mod ask;
mod chat;
mod classify;
mod completions;
pub mod failure;
mod infill;
pub mod op;
pub mod registry;
mod shape;
pub mod status;
pub mod stream;
mod systemone;
mod tokenize;

use std::sync::Arc;
use std::time::Instant;

use glm_engine::ops::{self, Operations};
use glm_engine::{EngineHandle, Error, Event, Request};
use glm_wire::error::{ErrorDetail, ErrorKind};
use glm_wire::{MAX_BODY_BYTES, Priority};

use crate::metrics::Metrics;
use registry::{Entry, Listed, Registry};
use shape::Shape;

pub use op::{Caller, Op, Transport};
pub use stream::Stream;

/// Largest body that is prepared right on the thread of the transports: about a
/// millisecond of work. Larger ones go to a worker thread.
const INLINE_BYTES: usize = 4 << 10;

/// Answers requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: EngineHandle,
    metrics: Metrics,
    registry: Registry,
    step_tokens: usize,
    /// The loaded model, ready to be asked.
    prepared: ops::Prepared,
    started: Instant,
}

/// A request that is understood and can be run.
pub struct Prepared {
    op: Op,
    job: Job,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("op", &self.op)
            .finish_non_exhaustive()
    }
}

/// What is left to do.
enum Job {
    /// Nothing: the model is not needed.
    Done(Vec<u8>),
    /// To ask the engine.
    Ask(Ask),
}

/// A question to the engine and how to tell its answer.
struct Ask {
    request: Request,
    shape: Box<dyn Shape>,
    stream: bool,
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// A JSON document.
    Whole(Vec<u8>),
    /// JSON documents, one after the other.
    Stream(Box<Stream>),
}

impl Service {
    /// A service over an engine whose steps have at most `step_tokens` tokens.
    #[must_use]
    pub fn new(engine: EngineHandle, step_tokens: usize) -> Self {
        Self(Arc::new(Inner {
            metrics: Metrics::new(engine.clone()),
            engine,
            registry: Registry::default(),
            step_tokens,
            prepared: ops::Prepared::default(),
            started: Instant::now(),
        }))
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    /// The daemon's figures.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Requests under way.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Most tokens of a step ever.
    #[must_use]
    pub fn step_tokens(&self) -> usize {
        self.0.step_tokens
    }

    /// When the service began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// Reads a request. Nothing has been asked of the engine yet.
    ///
    /// # Errors
    /// What is wrong with the request, or that no model is there to understand it.
    pub async fn prepare(
        &self,
        op: Op,
        body: Vec<u8>,
        caller: &Caller,
    ) -> Result<Prepared, ErrorDetail> {
        let prepared = self.read(op, body, caller).await;
        if let Err(error) = &prepared {
            let metrics = &self.0.metrics;
            metrics.rejected(op.name(), caller.transport.name(), &error.code);
        }
        prepared
    }

    async fn read(&self, op: Op, body: Vec<u8>, caller: &Caller) -> Result<Prepared, ErrorDetail> {
        let model = self.operations()?;
        let client = caller.client.clone();
        // However short the request is, a grammar may take long to compile, its own or a task's, and
        // each question about a state encodes the state.
        let heavy = body.len() > INLINE_BYTES
            || contains(&body, b"response_format")
            || op == Op::SystemOne
            || op == Op::Infill && contains(&body, b"\"task\"");
        if !heavy {
            return prepare(op, &body, &model, client);
        }
        let work = move || prepare(op, &body, &model, client);
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
            Err(failure::detail(&Error::Internal {
                reason: "reading the request panicked",
            }))
        })
    }

    /// Answers a request. A stream is returned once its request was started, so that a refusal is still an error.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn run(&self, prepared: Prepared, caller: &Caller) -> Result<Reply, ErrorDetail> {
        let Prepared { op, job } = prepared;
        match job {
            Job::Done(body) => {
                (self.0.metrics).ended(op.name(), caller.transport.name(), "ok");
                Ok(Reply::Whole(body))
            }
            Job::Ask(ask) => self.ask(op, ask, caller).await,
        }
    }

    async fn ask(&self, op: Op, ask: Ask, caller: &Caller) -> Result<Reply, ErrorDetail> {
        let Ask {
            request,
            shape,
            stream,
        } = ask;
        let entry = Entry {
            client: caller.client.clone(),
            priority: wire_priority(request.priority),
            since: Instant::now(),
            prompt_tokens: prompt_tokens(&request),
        };
        let metrics = &self.0.metrics;
        let ticket = self.0.engine.submit(request).map_err(|error| {
            metrics.rejected(op.name(), caller.transport.name(), error.code());
            failure::detail(&error)
        })?;
        let listed = self.0.registry.enter(ticket.id(), entry);
        let watch = Watch::new(self.clone(), op, caller.transport, listed);
        let mut answer = Stream::new(ticket, shape, watch, stream);
        if stream {
            answer.begin().await?;
            return Ok(Reply::Stream(Box::new(answer)));
        }
        answer.whole().await.map(Reply::Whole)
    }

    /// Cancels a request; `false` when it is not under way or somebody else's.
    #[must_use]
    pub fn cancel(&self, id: &str, caller: &Caller, is_operator: bool) -> bool {
        let Some(id) = registry::parse(id) else {
            return false;
        };
        let Some(owner) = self.0.registry.client(id) else {
            return false;
        };
        (is_operator || owner == caller.client) && self.0.engine.cancel(id)
    }

    /// The loaded model, ready to be asked.
    fn operations(&self) -> Result<Arc<Operations>, ErrorDetail> {
        let model = self.0.engine.model().ok_or(Error::NotLoaded {
            retry_after: failure::RETRY,
        });
        model
            .and_then(|model| self.0.prepared.get(&model))
            .map_err(|e| failure::detail(&e))
    }
}

/// Counts what becomes of a request, once.
#[derive(Debug)]
pub(crate) struct Watch {
    service: Service,
    op: Op,
    transport: Transport,
    since: Instant,
    listed: Option<Listed>,
}

impl Watch {
    fn new(service: Service, op: Op, transport: Transport, listed: Listed) -> Self {
        Self {
            service,
            op,
            transport,
            since: Instant::now(),
            listed: Some(listed),
        }
    }

    /// Time since the request was accepted.
    pub(crate) fn elapsed(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    /// Looks at an event before it is told to the client.
    pub(crate) fn saw(&mut self, event: &Event) {
        let metrics = &self.service.0.metrics;
        let op = self.op.name();
        match event {
            Event::Started { queued } => metrics.started(op, *queued),
            Event::Finished(finished) => {
                let timing = &finished.timing;
                metrics.answered(op, timing.queued + timing.prefill, self.since.elapsed());
                self.end("ok");
            }
            Event::Failed(error) => {
                self.end(match error {
                    Error::Cancelled | Error::SlowReader { .. } => "cancelled",
                    Error::Deadline => "deadline",
                    Error::Superseded => "superseded",
                    Error::Overloaded { .. } | Error::NotLoaded { .. } | Error::ShuttingDown => {
                        "shed"
                    }
                    _ => "error",
                });
            }
            _ => {}
        }
    }

    fn end(&mut self, outcome: &'static str) {
        if self.listed.take().is_some() {
            let metrics = &self.service.0.metrics;
            metrics.ended(self.op.name(), self.transport.name(), outcome);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Nobody waited for the end.
        self.end("cancelled");
    }
}

fn prepare(
    op: Op,
    body: &[u8],
    model: &Arc<Operations>,
    client: Box<str>,
) -> Result<Prepared, ErrorDetail> {
    debug_assert!(body.len() <= MAX_BODY_BYTES, "bounded by the transports");
    let job = match op {
        Op::Infill => Job::Ask(infill::prepare(body, model, client)?),
        Op::Classify => Job::Ask(classify::prepare(body, model, client)?),
        Op::SystemOne => Job::Ask(systemone::prepare(body, model, client)?),
        Op::Completions => Job::Ask(completions::prepare(body, model, client)?),
        Op::Chat => Job::Ask(chat::prepare(body, model, client)?),
        Op::Tokenize => Job::Done(tokenize::tokenize(body, model)?),
        Op::Detokenize => Job::Done(tokenize::detokenize(body, model)?),
    };
    Ok(Prepared { op, job })
}

/// An answer as JSON.
fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, ErrorDetail> {
    serde_json::to_vec(value).map_err(|e| {
        ErrorDetail::new(
            ErrorKind::ServerError,
            "internal",
            format!("the answer cannot be written: {e}"),
        )
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn prompt_tokens(request: &Request) -> usize {
    use glm_engine::request::Work;
    match &request.work {
        Work::Generate(generate) => generate.prompt.tokens.len(),
        Work::Score(items) => items.iter().map(|item| item.prompt.tokens.len()).sum(),
    }
}

const fn wire_priority(priority: glm_engine::units::Priority) -> Priority {
    use glm_engine::units::Priority as Engine;
    match priority {
        Engine::Low => Priority::Low,
        Engine::Normal => Priority::Normal,
        Engine::High => Priority::High,
    }
}
