//! Requests, from the broker's message to its acknowledgement.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glm_engine::Error::ShuttingDown;
use glm_wire::error::{ErrorDetail, ErrorKind};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinError};

use super::super::acks::Delivery;
use super::super::clerk::Written;
use super::super::desk::{Arrival, Target, Turn};
use super::super::envelope;
use super::super::events;
use super::super::journal::{Key, Record};
use super::super::message::{Message, Qos};
use super::super::outbox::{Class, Put};
use super::super::request::{self, Incoming, Read, ReplyTo, Request, Work};
use super::answering::{Ask, Pieces, ask_patiently};
use super::stream::Streamed;
use super::{Answering, Session};

/// How long a client that repeats a request gets the same answer.
const REPEATS_FOR: Duration = Duration::from_secs(600);

/// What the broker's acknowledgement of an answer ends.
#[derive(Debug)]
pub(super) enum Ends {
    Job(Key),
    Delivery(Delivery),
}

impl<A: Answering> Session<A> {
    pub(super) fn on_message(
        &mut self,
        message: &Incoming,
        delivery: Option<Delivery>,
        now: Instant,
    ) {
        if self.options.presence.is_dashboard_birth(message) {
            self.settle(delivery);
            self.announce(now);
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

    pub(super) fn begin(&mut self, turn: Turn) {
        let (op, mut fields) = match turn.work {
            Work::Ask { op, fields } => (op, fields),
            Work::Operate(operation) => {
                let (answering, key) = (self.answering.clone(), turn.key);
                let work = async move { (key, answering.operate(operation).await) };
                let task = self.tasks.spawn(work);
                self.running.insert(key, task);
                return;
            }
            // Was answered when it came.
            Work::Cancel(_) => return,
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
            let streamed = Streamed::new(turn.reply.clone());
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

    /// A task has ended.
    pub(super) fn on_done(&mut self, done: Result<(Key, Result<Vec<u8>, ErrorDetail>), JoinError>) {
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

    /// A job has its answer: on to the journal.
    fn on_outcome(&mut self, key: &Key, outcome: &Result<Vec<u8>, ErrorDetail>) {
        self.running.remove(key);
        let seq = self.end_pieces(key).map(|seq| (seq, true));
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
    pub(super) fn on_written(&mut self, written: &Written) {
        if let Some(reason) = &written.failed {
            // Answered without a copy is better than not answered.
            events::journal_failed(reason);
        }
        if let Some(message) = self.writing.remove(&written.key) {
            self.post(message, Ends::Job(written.key));
        }
    }

    fn post(&mut self, message: Message, ends: Ends) {
        let number = self.next_answer;
        self.next_answer += 1;
        self.ends.insert(number, ends);
        self.outbox.put(Class::Answer(number), message);
    }

    /// The broker has an answer.
    pub(super) fn on_delivered(&mut self, number: u64) {
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

    fn settle(&mut self, delivery: Option<Delivery>) {
        if let Some(delivery) = delivery {
            self.acks.settle(delivery);
        }
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
