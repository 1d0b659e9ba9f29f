//! The task that keeps the promise: every accepted prompt is answered, whatever dies in between.
//!
//! One task owns the connection, the desk, the outbox and the book of
//! acknowledgements, and does nothing that waits but wait for the next thing to
//! happen. A request goes
//!
//! 1. from the broker to the [`Desk`], unless it was answered before;
//! 2. in its turn to a task that asks the engine;
//! 3. its answer to the journal, and when it is on the disk
//! 4. through the outbox to the broker, and when the broker has it
//! 5. the request is acknowledged.
//!
//! If the process dies before 5, the broker delivers the request again: before
//! 3 it is computed again and nobody has seen an answer; after 3 the answer
//! comes from the journal, with the same bytes.
//!
//! | module | what it is for |
//! |---|---|
//! | `answering` | who answers, and how they are asked |
//! | `line` | the connection |
//! | `requests` | the way of a request |
//! | `stream` | pieces of answers |
//! | `telling` | what the node says unasked |

mod answering;
mod line;
mod requests;
mod stream;
mod telling;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use glm_wire::error::ErrorDetail;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::acks::Acks;
use super::backoff::Backoff;
use super::clerk::Clerk;
use super::desk::{Desk, Limits};
use super::events;
use super::journal::{Answers, Key, Record};
use super::link::{Connection, Event, Settings};
use super::message::Message;
use super::news::Look;
use super::outbox::{Class, Outbox};
use super::presence::Presence;
pub use answering::{Answering, Ask, Pieces};
use line::{Line, next};
use requests::Ends;
use stream::{Piece, Streamed};

/// How often the session looks at the time.
const TICK: Duration = Duration::from_millis(100);
/// Pieces of streamed answers between the workers and the session.
const PIECES: usize = 64;

/// What a session is told besides where the broker is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of topics, and what is said on them.
    pub presence: Presence,
    /// Filters that a response topic must match.
    pub response_topics: Vec<String>,
    /// Bounds of the requests.
    pub limits: Limits,
    /// Bytes that may wait to be published.
    pub outbox_bytes: usize,
    /// Bytes of answers that are kept for repetitions.
    pub answer_bytes: usize,
    /// Pieces of a streamed answer are sent this often.
    pub chunk_every: Duration,
    /// `stats` is published this often.
    pub stats_every: Duration,
    /// How long an overloaded engine is asked again before the client is told.
    pub patience: Duration,
    /// How long running answers may take when the daemon ends.
    pub drain: Duration,
    /// Makes the jitter of this node differ from that of others.
    pub seed: u64,
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// Two nodes fight for one session.
    #[error(
        "another client has taken over the MQTT session `{0}`: two nodes have the same `mqtt.client_id`; give each its own"
    )]
    TakenOver(String),
}

/// The state of the task.
pub struct Session<A> {
    settings: Settings,
    options: Options,
    answering: A,
    line: Option<Line>,
    retry_at: Instant,
    backoff: Backoff,
    outbox: Outbox,
    acks: Acks<u16>,
    desk: Desk,
    answers: Answers,
    clerk: Clerk,
    /// Answers on their way to the journal.
    writing: HashMap<Key, Message>,
    ends: HashMap<u64, Ends>,
    next_answer: u64,
    tasks: JoinSet<(Key, Result<Vec<u8>, ErrorDetail>)>,
    running: HashMap<Key, AbortHandle>,
    pieces: (mpsc::Sender<Piece>, mpsc::Receiver<Piece>),
    streamed: HashMap<Key, Streamed>,
    chunks_at: Instant,
    /// When to look at the level again, and when to tell everything.
    look_at: Instant,
    /// What `info` said last.
    info: Value,
    stats_at: Instant,
    look: Option<Look>,
    phase: String,
    draining: bool,
}

/// The time of the run-time, which a test may hold and wind.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl<A> std::fmt::Debug for Session<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl<A: Answering> Session<A> {
    /// A session that has not connected yet; `records` are what the journal held.
    #[must_use]
    pub fn new(
        settings: Settings,
        options: Options,
        answering: A,
        clerk: Clerk,
        records: Vec<Record>,
    ) -> Self {
        let now = now();
        Self {
            line: None,
            retry_at: now,
            backoff: Backoff::new(options.seed),
            outbox: Outbox::new(options.outbox_bytes),
            acks: Acks::default(),
            desk: Desk::new(options.limits),
            answers: Answers::new(options.answer_bytes, records),
            clerk,
            writing: HashMap::new(),
            ends: HashMap::new(),
            next_answer: 0,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            pieces: mpsc::channel(PIECES),
            streamed: HashMap::new(),
            chunks_at: now,
            look_at: now,
            info: Value::Null,
            stats_at: now,
            look: None,
            phase: String::new(),
            draining: false,
            settings,
            options,
            answering,
        }
    }

    /// Runs until `stop` is true and what was begun is finished.
    ///
    /// # Errors
    /// See [`Fatal`].
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Fatal> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leave_at = None;
        loop {
            tokio::select! {
                event = next(&mut self.line) => self.on_event(event)?,
                Some(done) = self.tasks.join_next() => self.on_done(done),
                Some(written) = self.clerk.written() => self.on_written(&written),
                Some(piece) = self.pieces.1.recv() => self.on_piece(piece),
                _ = ticks.tick() => self.on_tick(now()),
                changed = stop.changed(), if !self.draining => {
                    if changed.is_err() || *stop.borrow() {
                        self.draining = true;
                        leave_at = Some(now() + self.options.drain);
                    }
                }
            }
            self.pump(now());
            if let Some(at) = leave_at {
                let done = self.running.is_empty() && self.writing.is_empty();
                if (done && self.outbox.is_empty()) || now() >= at {
                    self.farewell().await;
                    return Ok(());
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), Fatal> {
        let now = now();
        match event {
            Event::Connected(terms) => {
                if let Some(line) = &mut self.line {
                    line.terms = Some(terms);
                    line.alive = now;
                }
                events::connected(&self.settings.address, terms.session_present);
            }
            Event::Subscribed(granted) => self.on_subscribed(&granted, now),
            Event::Message { message, ack } => match ack {
                // The broker keeps it.
                Some(_) if self.acks.postponing() => {}
                Some(ack) => {
                    let delivery = self.acks.delivered(ack);
                    self.on_message(&message, Some(delivery), now);
                }
                None => self.on_message(&message, None, now),
            },
            Event::Acknowledged { index, refused } => {
                if let Some(line) = &mut self.line {
                    line.alive = now;
                }
                if let Some(Class::Answer(number)) = self.outbox.acknowledged(index) {
                    if let Some(reason) = refused {
                        events::answer_refused(&reason);
                    }
                    self.on_delivered(number);
                }
            }
            Event::Progress => {}
            Event::Lost(lost) => self.on_lost(&lost, now)?,
        }
        Ok(())
    }

    fn on_tick(&mut self, now: Instant) {
        if self.line.is_none() && now >= self.retry_at && !self.draining {
            self.line = Some(Line::new(Connection::open(&self.settings), now));
        }
        self.watch(now);
        if now >= self.chunks_at {
            self.chunks_at = now + self.options.chunk_every;
            self.flush_all_pieces();
        }
        self.tell_stats(now);
    }

    /// Begins what may begin and hands over what the connection takes.
    fn pump(&mut self, now: Instant) {
        while !self.draining
            && let Some(turn) = self.desk.next(now)
        {
            self.begin(turn);
        }
        let limit = self.packet_limit();
        let Some(line) = &mut self.line else { return };
        let Some(terms) = line.terms else { return };
        while let Some(ack) = self.acks.due() {
            if line.connection.acknowledge(*ack).is_err() {
                return;
            }
            self.acks.sent();
        }
        if !line.subscribed {
            let filters = self.options.presence.filters();
            if !line.asked && line.connection.subscribe(&filters).is_ok() {
                line.asked = true;
            }
        }
        // What was postponed comes again on the next connection; a farewell leaves nothing unsent.
        if self.acks.postponing() && self.acks.open() == 0 && self.desk.is_roomy() && !line.left {
            line.left = line.connection.disconnect().is_ok();
        }
        if line.left {
            return;
        }
        while let Some(message) = self.outbox.next(terms.in_flight) {
            if message.size() > limit {
                events::dropped("too large for the broker");
                if let Some(Class::Answer(number)) = self.outbox.discard() {
                    self.on_delivered(number);
                    // The loop's borrow of the line ends here; the rest waits for the next event.
                    return;
                }
                continue;
            }
            if line.connection.publish(message).is_err() {
                return;
            }
            self.outbox.sent();
        }
    }
}
