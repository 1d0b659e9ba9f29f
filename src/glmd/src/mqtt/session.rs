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

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glm_engine::Error::ShuttingDown;
use glm_wire::error::{ErrorDetail, ErrorKind};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::acks::{Acks, Delivery};
use super::backoff::{Backoff, Ended};
use super::clerk::{Clerk, Written};
use super::desk::{Arrival, Desk, Limits, Target, Turn};
use super::envelope;
use super::events;
use super::journal::{Answers, Key, Record};
use super::link::{Connection, Event, Lost, Meaning, Settings, Terms};
use super::message::{Message, Qos};
use super::outbox::{Class, Outbox, Put};
use super::presence::Presence;
use super::request::{self, Incoming, Read, ReplyTo, Request, Work};
use crate::service::Op;

/// How often the session looks at the time.
const TICK: Duration = Duration::from_millis(100);
/// How often the memory level is looked at, so that a change is told soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pieces of streamed answers between the workers and the session.
const PIECES: usize = 64;
/// Shortest and longest wait before an overloaded engine is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Wait for the last acknowledgement and the farewell.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a client that repeats a request gets the same answer.
const REPEATS_FOR: Duration = Duration::from_secs(600);

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
    key: Key,
    sender: mpsc::Sender<(Key, Vec<u8>)>,
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

    /// Version, model and limits: what `info` says.
    fn info(&self) -> Value;

    /// Level, queue, speed: what `stats` says. Has a string `level`.
    fn stats(&self) -> Value;
}

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

/// What the broker's acknowledgement of an answer ends.
#[derive(Debug)]
enum Ends {
    Job(Key),
    Delivery(Delivery),
}

/// Pieces that wait to be sent together.
#[derive(Debug)]
struct Streamed {
    reply: ReplyTo,
    seq: u64,
    documents: Vec<Vec<u8>>,
}

/// What is known of the present connection.
#[derive(Debug)]
struct Line {
    connection: Connection,
    since: Instant,
    terms: Option<Terms>,
    asked: bool,
    subscribed: bool,
    /// Whether we have said farewell.
    left: bool,
    /// The last time that the broker did what it owes us.
    alive: Instant,
}

/// A piece of the answer to a request.
type Piece = (Key, Vec<u8>);

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
    level: String,
    draining: bool,
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
        let now = Instant::now();
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
            level: String::new(),
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
                _ = ticks.tick() => self.on_tick(Instant::now()),
                changed = stop.changed(), if !self.draining => {
                    if changed.is_err() || *stop.borrow() {
                        self.draining = true;
                        leave_at = Some(Instant::now() + self.options.drain);
                    }
                }
            }
            self.pump(Instant::now());
            if let Some(at) = leave_at {
                let done = self.running.is_empty() && self.writing.is_empty();
                if (done && self.outbox.is_empty()) || Instant::now() >= at {
                    self.farewell().await;
                    return Ok(());
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), Fatal> {
        let now = Instant::now();
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

    fn on_subscribed(&mut self, granted: &[bool], now: Instant) {
        let filters = self.options.presence.filters();
        let refused: Vec<&str> = filters
            .iter()
            .zip(granted)
            .filter(|(_, granted)| !**granted)
            .map(|(filter, _)| filter.as_str())
            .collect();
        let Some(line) = &mut self.line else { return };
        line.alive = now;
        if !refused.is_empty() || granted.len() != filters.len() {
            // Half deaf is worse than away: an operator sees a node that is offline.
            events::subscription_refused(&refused.join(", "));
            let lost = Lost {
                reason: "the broker refused a subscription".to_owned(),
                meaning: Meaning::Refused,
            };
            self.drop_line(&lost, now);
            return;
        }
        line.subscribed = true;
        self.announce();
    }

    /// Publishes what subscribers should find: that we are here, what is loaded, what can be shown.
    fn announce(&mut self) {
        let info = self.answering.info();
        self.info = info.clone();
        for message in self.options.presence.birth(&info) {
            self.outbox.put(Class::State, message);
        }
    }

    fn on_message(&mut self, message: &Incoming, delivery: Option<Delivery>, now: Instant) {
        if self.options.presence.is_dashboard_birth(message) {
            self.settle(delivery);
            self.announce();
            return;
        }
        let presence = &self.options.presence;
        match request::read(message, presence.topics(), &self.options.response_topics) {
            Read::Ignored(reason) => {
                events::ignored(reason);
                self.settle(delivery);
            }
            Read::Refused(reply, detail) => self.refuse(&reply, *detail, delivery),
            Read::Request(request) => self.on_request(*request, message.redelivered, delivery, now),
        }
    }

    fn on_request(
        &mut self,
        request: Request,
        redelivered: bool,
        delivery: Option<Delivery>,
        now: Instant,
    ) {
        if let Work::Cancel(name) = request.work {
            let found = self.cancel(&name);
            let document = json!({ "cancelled": found }).to_string().into_bytes();
            let body = envelope::answer(&request.reply, &Ok(document));
            self.reply_once(&request.reply, body, delivery);
            return;
        }
        let repeats = request.identified || redelivered;
        if redelivered {
            events::redelivered();
        }
        if repeats && !self.desk.holds(&request.key) {
            let seconds = unix_seconds();
            if let Some(answer) = self.answers.get(&request.key, redelivered, seconds) {
                events::repeated();
                self.reply_once(&request.reply, answer, delivery);
                return;
            }
        }
        let reply = request.reply.clone();
        match self.desk.arrive(request, delivery, repeats, now) {
            Arrival::Waits | Arrival::UnderWay => {}
            Arrival::NoRoom => match delivery {
                Some(delivery) => self.postpone(delivery),
                // Nobody would deliver it again.
                None => self.refuse(&reply, no_room(self.desk.len()), None),
            },
        }
    }

    /// Leaves a delivery for which there is no room with the broker.
    fn postpone(&mut self, delivery: Delivery) {
        if !self.acks.postponing() {
            events::postponed();
        }
        self.acks.postpone(delivery);
    }

    fn cancel(&mut self, name: &Key) -> bool {
        let (key, running) = match self.desk.find(name) {
            Target::Nothing => return false,
            Target::Waiting(key) => (key, None),
            Target::Running(key) => (key, self.running.remove(&key)),
        };
        if let Some(task) = running {
            task.abort();
        }
        let detail = ErrorDetail::new(ErrorKind::Cancelled, "cancelled", "the client cancelled it");
        self.on_outcome(&key, &Err(detail));
        true
    }

    /// Says no to what would be refused in the same words again.
    fn refuse(&mut self, reply: &ReplyTo, detail: ErrorDetail, delivery: Option<Delivery>) {
        events::refused(&detail.code);
        let body = envelope::answer(reply, &Err(detail));
        self.reply_once(reply, body, delivery);
    }

    /// Publishes an answer that no job stands behind.
    fn reply_once(&mut self, reply: &ReplyTo, body: bytes::Bytes, delivery: Option<Delivery>) {
        // A request at QoS 0 may be lost, and so may the answer that no job stands behind.
        let qos = delivery.map_or(Qos::AtMostOnce, |_| Qos::AtLeastOnce);
        let message = envelope::message(reply, body, qos, None);
        let Some(delivery) = delivery else {
            if self.outbox.put(Class::Chunk, message) == Put::Dropped {
                events::dropped("answer");
            }
            return;
        };
        if self.outbox.bytes() + message.size() > self.options.outbox_bytes && self.acks.open() > 1
        {
            // A broker without a limit of its own could pile these up.
            self.postpone(delivery);
            return;
        }
        self.post(message, Ends::Delivery(delivery));
    }

    fn post(&mut self, message: Message, ends: Ends) {
        let number = self.next_answer;
        self.next_answer += 1;
        self.ends.insert(number, ends);
        self.outbox.put(Class::Answer(number), message);
    }

    fn settle(&mut self, delivery: Option<Delivery>) {
        if let Some(delivery) = delivery {
            self.acks.settle(delivery);
        }
    }

    /// A task has ended.
    fn on_done(&mut self, done: Result<(Key, Result<Vec<u8>, ErrorDetail>), JoinError>) {
        match done {
            Ok((key, outcome)) => self.on_outcome(&key, &outcome),
            // Who cancelled it has answered already.
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                let find =
                    |(key, task): (&Key, &AbortHandle)| (task.id() == error.id()).then_some(*key);
                if let Some(key) = self.running.iter().find_map(find) {
                    let text = "answering the request panicked; the daemon's log says where";
                    let detail = ErrorDetail::new(ErrorKind::ServerError, "internal", text);
                    self.on_outcome(&key, &Err(detail));
                }
            }
        }
    }

    fn on_piece(&mut self, (key, document): (Key, Vec<u8>)) {
        if let Some(streamed) = self.streamed.get_mut(&key) {
            streamed.documents.push(document);
        }
    }

    /// A job has its answer: on to the journal.
    fn on_outcome(&mut self, key: &Key, outcome: &Result<Vec<u8>, ErrorDetail>) {
        self.running.remove(key);
        // What it sent before it ended is in the channel already.
        while let Ok(piece) = self.pieces.1.try_recv() {
            self.on_piece(piece);
        }
        self.flush_pieces(key);
        let seq = self.streamed.remove(key).map(|s| (s.seq, true));
        // The end of the daemon is no answer: the broker was not told of one, and hands the request
        // to the next daemon, or to another node of the pool.
        let cut_off = (outcome.as_ref()).is_err_and(|detail| detail.code == ShuttingDown.code());
        if cut_off && self.desk.is_owed(key) {
            return;
        }
        let Some(reply) = self.desk.answered(key) else {
            return;
        };
        let limit = self.packet_limit();
        let mut body = envelope::answer(&reply, outcome);
        let mut message = envelope::message(&reply, body.clone(), Qos::AtLeastOnce, seq);
        let mut fate = outcome.as_ref().err().map(|detail| detail.kind);
        if message.size() > limit {
            let text = format!(
                "the answer has {} bytes, the broker takes packets of {limit}",
                body.len()
            );
            let detail = ErrorDetail::new(ErrorKind::TooLarge, "answer_too_large", text);
            fate = Some(detail.kind);
            body = envelope::answer(&reply, &Err(detail));
            message = envelope::message(&reply, body.clone(), Qos::AtLeastOnce, seq);
        }
        // A client that asks again after "try again" wants another answer.
        let passing = matches!(fate, Some(ErrorKind::Overloaded | ErrorKind::Unavailable));
        let repeats_for = if passing { Duration::ZERO } else { REPEATS_FOR };
        self.writing.insert(*key, message);
        self.keep(*key, body, repeats_for);
    }

    /// Keeps an answer, in memory and in the journal, for when the request is delivered again.
    fn keep(&mut self, key: Key, answer: bytes::Bytes, repeats_for: Duration) {
        let record = Record {
            key,
            expires: unix_seconds().saturating_add(repeats_for.as_secs()),
            answer,
        };
        self.answers.insert(record.clone());
        self.clerk.write(record);
    }

    /// An answer is on the disk: on to the broker.
    fn on_written(&mut self, written: &Written) {
        if let Some(reason) = &written.failed {
            // Answered without a copy is better than not answered.
            events::journal_failed(reason);
        }
        if let Some(message) = self.writing.remove(&written.key) {
            self.post(message, Ends::Job(written.key));
        }
    }

    /// The broker has an answer.
    fn on_delivered(&mut self, number: u64) {
        match self.ends.remove(&number) {
            Some(Ends::Job(key)) => {
                for delivery in self.desk.finish(&key) {
                    self.acks.settle(delivery);
                }
            }
            Some(Ends::Delivery(delivery)) => self.acks.settle(delivery),
            None => {}
        }
    }

    fn on_lost(&mut self, lost: &Lost, now: Instant) -> Result<(), Fatal> {
        if lost.meaning == Meaning::TakenOver {
            return Err(Fatal::TakenOver(self.settings.client_id.clone()));
        }
        self.drop_line(lost, now);
        Ok(())
    }

    fn drop_line(&mut self, lost: &Lost, now: Instant) {
        let (after, left) = self.line.take().map_or((Duration::ZERO, false), |line| {
            (now.saturating_duration_since(line.since), line.left)
        });
        self.outbox.connection_lost();
        self.acks.connection_lost();
        self.desk.connection_lost();
        let wait = self.backoff.next(match lost.meaning {
            Meaning::Refused => Ended::Refused,
            _ if left => Ended::Left,
            _ => Ended::Lost { after },
        });
        self.retry_at = now + wait;
        events::lost(&self.settings.address, &lost.reason, wait);
    }

    fn on_tick(&mut self, now: Instant) {
        if self.line.is_none() && now >= self.retry_at && !self.draining {
            self.line = Some(Line {
                connection: Connection::open(&self.settings),
                since: now,
                terms: None,
                asked: false,
                subscribed: false,
                left: false,
                alive: now,
            });
        }
        self.watch(now);
        if now >= self.chunks_at {
            self.chunks_at = now + self.options.chunk_every;
            let keys: Vec<Key> = self.streamed.keys().copied().collect();
            for key in keys {
                self.flush_pieces(&key);
            }
        }
        self.tell_stats(now);
    }

    /// Ends a connection on which the broker owes us something for three keep-alives.
    fn watch(&mut self, now: Instant) {
        let Some(line) = &mut self.line else { return };
        let owes = !line.subscribed || line.left || self.outbox.unacknowledged() > 0;
        if !owes {
            line.alive = now;
        } else if now.saturating_duration_since(line.alive) > 3 * self.settings.keep_alive {
            let lost = Lost {
                reason: "the broker owes an acknowledgement for three keep-alives".to_owned(),
                meaning: Meaning::Gone,
            };
            self.drop_line(&lost, now);
        }
    }

    fn tell_stats(&mut self, now: Instant) {
        let heard = self.line.as_ref().is_some_and(|line| line.subscribed);
        if !heard || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        if self.answering.info() != self.info {
            // The model was loaded, exchanged or unloaded.
            self.announce();
        }
        let mut stats = self.answering.stats();
        let level = stats["level"].as_str().unwrap_or_default().to_owned();
        let changed = level != self.level;
        if changed && !self.level.is_empty() {
            let event = json!({"type": "level", "from": self.level, "to": level}).to_string();
            let topic = self.options.presence.topics().event();
            let mut message = Message::passing(topic, event);
            message.qos = Qos::AtLeastOnce;
            self.outbox.put(Class::State, message);
        }
        if changed || now >= self.stats_at {
            self.stats_at = now + self.options.stats_every;
            stats["mqtt"] = json!({
                "held": self.desk.len(), "waiting": self.desk.waiting(),
                "running": self.desk.running(), "unacknowledged": self.acks.open(),
                "outbox_bytes": self.outbox.bytes(), "dropped": self.outbox.dropped(),
            });
            let topic = self.options.presence.topics().stats();
            self.outbox
                .put(Class::State, Message::passing(topic, stats.to_string()));
        }
        self.level = level;
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

    /// Largest message that the broker takes, as far as is known.
    fn packet_limit(&self) -> usize {
        let terms = self.line.as_ref().and_then(|line| line.terms);
        terms.map_or(self.settings.packet_bytes, |t| t.packet_bytes)
    }

    fn begin(&mut self, turn: Turn) {
        let Work::Ask { op, mut fields } = turn.work else {
            return;
        };
        if let Some(left) = turn.left {
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            let asked = fields.get("deadline_ms").and_then(Value::as_u64);
            fields.insert(
                "deadline_ms".to_owned(),
                asked.map_or(left, |a| a.min(left)).into(),
            );
        }
        let streams = fields.get("stream").and_then(Value::as_bool) == Some(true);
        if streams {
            let streamed = Streamed {
                reply: turn.reply.clone(),
                seq: 0,
                documents: Vec::new(),
            };
            self.streamed.insert(turn.key, streamed);
        }
        let ask = Ask {
            op,
            body: Value::Object(fields).to_string().into_bytes(),
            client: format!("mqtt:{}", turn.reply.topic).into(),
            pieces: streams.then(|| Pieces {
                key: turn.key,
                sender: self.pieces.0.clone(),
            }),
        };
        let (answering, patience) = (self.answering.clone(), self.options.patience);
        let patience = turn.left.map_or(patience, |left| left.min(patience));
        let key = turn.key;
        let task = self
            .tasks
            .spawn(async move { (key, ask_patiently(answering, ask, patience).await) });
        self.running.insert(key, task);
    }

    fn flush_pieces(&mut self, key: &Key) {
        let Some(streamed) = self.streamed.get_mut(key) else {
            return;
        };
        if streamed.documents.is_empty() {
            return;
        }
        let documents = std::mem::take(&mut streamed.documents);
        let body = envelope::chunk(&streamed.reply, streamed.seq, &documents);
        let seq = Some((streamed.seq, false));
        streamed.seq += 1;
        let message = envelope::message(&streamed.reply, body, Qos::AtMostOnce, seq);
        if self.outbox.put(Class::Chunk, message) == Put::Dropped {
            events::dropped("chunk");
        }
    }

    /// Says that we are gone before the broker has to notice it.
    async fn farewell(mut self) {
        self.tasks.abort_all();
        let offline = self.options.presence.offline();
        self.outbox.put(Class::State, offline);
        let deadline = tokio::time::sleep(FAREWELL);
        tokio::pin!(deadline);
        let mut parting = false;
        loop {
            self.pump(Instant::now());
            if self.outbox.is_empty() && !parting {
                let sent = self.line.as_ref().map(|line| line.connection.disconnect());
                match sent {
                    Some(Ok(())) => parting = true,
                    Some(Err(_)) => {}
                    None => return,
                }
            }
            tokio::select! {
                event = next(&mut self.line) => {
                    let over = matches!(event, Event::Lost(_));
                    if over || self.on_event(event).is_err() {
                        return;
                    }
                }
                () = &mut deadline => return,
            }
        }
    }
}

/// The next event of the line, or never.
async fn next(line: &mut Option<Line>) -> Event {
    match line {
        Some(line) => line.connection.next().await,
        None => std::future::pending().await,
    }
}

/// Asks again while the engine has no room: the broker holds the request meanwhile.
async fn ask_patiently<A: Answering>(
    answering: A,
    ask: Ask,
    patience: Duration,
) -> Result<Vec<u8>, ErrorDetail> {
    let until = Instant::now() + patience;
    loop {
        let outcome = answering.answer(ask.clone()).await;
        let Err(detail) = &outcome else {
            return outcome;
        };
        let passing = matches!(detail.kind, ErrorKind::Overloaded | ErrorKind::Unavailable);
        let wait =
            Duration::from_millis(detail.retry_after_ms.unwrap_or(0)).clamp(RETRY.0, RETRY.1);
        if !passing || Instant::now() + wait >= until {
            return outcome;
        }
        tokio::time::sleep(wait).await;
    }
}

fn no_room(held: usize) -> ErrorDetail {
    let message = format!("{held} requests are under way over MQTT; at QoS 1 it would have waited");
    ErrorDetail::new(ErrorKind::Overloaded, "overloaded", message).with_retry_after_ms(1000)
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
