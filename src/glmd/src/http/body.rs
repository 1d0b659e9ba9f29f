//! Bodies: requests read within bounds of size, time and memory; answers whole or as server-sent events.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use glm_wire::ErrorBody;
use glm_wire::error::{ErrorDetail, ErrorKind};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::Refusal;
use super::peer::Share;
use crate::service::{Stream, failure};

/// Silence after which a stream says that it lives, below the minute after which proxies give up.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes of a refused body that are read and dropped: a client that still writes would not see the answer.
const SKIPPED: u64 = 8 << 20;
/// A comment in server-sent events; clients skip it.
const COMMENT: &[u8] = b": waiting\n\n";
/// How OpenAI ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// A request body with its share of the memory for all bodies.
#[derive(Debug)]
pub(super) struct Received {
    pub bytes: Vec<u8>,
    /// Returned when the request has been understood.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// Bounds of request bodies.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// Most bytes of one body.
    pub bytes: usize,
    /// Time for all of it.
    pub time: Duration,
    /// Bytes that all bodies together may still take.
    pub memory: Arc<Semaphore>,
}

/// Reads a body.
pub(super) async fn receive(body: Incoming, bounds: &Bounds) -> Result<Received, Refusal> {
    match tokio::time::timeout(bounds.time, read(body, bounds)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Refusal::with_status(
            408,
            ErrorDetail::new(
                ErrorKind::InvalidRequestError,
                "body_timeout",
                format!(
                    "the body did not come within {} s; check Content-Length",
                    bounds.time.as_secs()
                ),
            ),
        )),
    }
}

async fn read(mut body: Incoming, bounds: &Bounds) -> Result<Received, Refusal> {
    let declared = body.size_hint().exact().unwrap_or(0);
    let mut received = Received {
        bytes: Vec::new(),
        memory: None,
    };
    let mut refusal = match declared > bounds.bytes as u64 {
        true => Some(too_large(declared, bounds.bytes)),
        false => None,
    };
    let mut skipped = 0;
    while refusal.is_none() || (skipped < SKIPPED && declared < SKIPPED) {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else {
            break;
        };
        let frame = frame.map_err(|e| {
            Refusal::from(ErrorDetail::new(
                ErrorKind::InvalidRequestError,
                "bad_body",
                format!("the body ended early or is badly framed: {e}"),
            ))
        })?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        skipped += data.len() as u64;
        if refusal.is_none() {
            refusal = received.take(&data, bounds).err();
        }
    }
    refusal.map_or(Ok(received), Err)
}

impl Received {
    fn take(&mut self, data: &[u8], bounds: &Bounds) -> Result<(), Refusal> {
        let size = self.bytes.len() + data.len();
        if size > bounds.bytes {
            return Err(too_large(size as u64, bounds.bytes));
        }
        let more = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let memory = Arc::clone(&bounds.memory)
            .try_acquire_many_owned(more)
            .map_err(|_| Refusal::from(failure::busy("too many large requests are being read")))?;
        match &mut self.memory {
            Some(all) => all.merge(memory),
            None => self.memory = Some(memory),
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

fn too_large(bytes: u64, limit: usize) -> Refusal {
    ErrorDetail::new(
        ErrorKind::TooLarge,
        "body_too_large",
        format!("the body has {bytes} bytes or more, at most {limit} are read"),
    )
    .into()
}

/// An answer on its way out.
pub(super) enum Body {
    /// All at once.
    Whole(Option<Bytes>),
    /// Server-sent events.
    Events(Box<Events>),
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A stream of events that counts for its user until it ends.
    pub(super) fn events(stream: Stream, share: Share) -> Self {
        Self::Events(Box::new(Events {
            stream,
            state: State::Telling,
            heartbeat: Box::pin(tokio::time::sleep(HEARTBEAT)),
            _share: share,
        }))
    }
}

/// Server-sent events in OpenAI's manner: `data:` lines, `[DONE]` at the end.
pub(super) struct Events {
    stream: Stream,
    state: State,
    heartbeat: Pin<Box<Sleep>>,
    _share: Share,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Telling,
    /// Only `[DONE]` is left.
    Closing,
    Ended,
}

impl Events {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.state {
            State::Ended => return Poll::Ready(None),
            State::Closing => {
                self.state = State::Ended;
                return Poll::Ready(Some(Bytes::from_static(DONE)));
            }
            State::Telling => {}
        }
        let event = match self.stream.poll_next(cx) {
            Poll::Ready(Some(Ok(json))) => data(&json),
            Poll::Ready(Some(Err(error))) => {
                self.state = State::Closing;
                data(&envelope(error))
            }
            Poll::Ready(None) => {
                self.state = State::Ended;
                return Poll::Ready(Some(Bytes::from_static(DONE)));
            }
            Poll::Pending => {
                if self.heartbeat.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.rest();
                // The new timer has to know whom to wake.
                let _ = self.heartbeat.as_mut().poll(cx);
                return Poll::Ready(Some(Bytes::from_static(COMMENT)));
            }
        };
        self.rest();
        Poll::Ready(Some(event))
    }

    fn rest(&mut self) {
        self.heartbeat.as_mut().reset(Instant::now() + HEARTBEAT);
    }
}

/// One event. JSON as serde writes it has no line breaks, so one `data:` line is enough.
fn data(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The error envelope as JSON.
pub(super) fn envelope(error: ErrorDetail) -> Vec<u8> {
    // Strings and numbers only: it cannot fail.
    serde_json::to_vec(&ErrorBody { error }).unwrap_or_default()
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty())),
            Self::Events(events) => events.poll_event(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Events(events) => events.state == State::Ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}
