//! What is still to be published, bounded in bytes. Pure.
//!
//! Answers are never dropped here: their number is bounded by the requests
//! that the broker has handed over. State is worth only its latest value, so a
//! newer message on a topic replaces the one that waits. Pieces of a streamed
//! answer go first when room is short, since the final message holds all.

use std::collections::VecDeque;

use super::message::{Message, Qos};

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Latest value of a topic.
    State,
    /// Answer to a request; reported by this number when the broker has it.
    Answer(u64),
    /// Piece of an answer, or news: what can be missed.
    Chunk,
}

#[derive(Clone, Debug)]
struct Entry {
    class: Class,
    message: Message,
}

/// What became of a message that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It waits for its turn.
    Waits,
    /// There was no room for it.
    Dropped,
}

/// Messages that wait, and those that the broker has not acknowledged.
#[derive(Debug)]
pub struct Outbox {
    limit: usize,
    waiting: VecDeque<Entry>,
    /// Sent at QoS 1, in the order in which they were sent.
    unacknowledged: VecDeque<Entry>,
    bytes: usize,
    dropped: u64,
}

impl Outbox {
    /// An outbox of at most `limit` bytes of state and chunks; answers may exceed it.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            waiting: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            bytes: 0,
            dropped: 0,
        }
    }

    /// Bytes that it holds.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that were dropped for want of room.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Messages that the broker has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Whether nothing waits and nothing is unacknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.unacknowledged.is_empty()
    }

    /// Takes a message.
    pub fn put(&mut self, class: Class, message: Message) -> Put {
        if class == Class::State
            && let Some(old) = self
                .waiting
                .iter_mut()
                .find(|e| e.class == Class::State && e.message.topic == message.topic)
        {
            self.bytes = self.bytes - old.message.size() + message.size();
            old.message = message;
            return Put::Waits;
        }
        let size = message.size();
        if self.bytes + size > self.limit {
            self.drop_chunks(size);
            let fits = self.bytes + size <= self.limit;
            if !fits && !matches!(class, Class::Answer(_)) {
                self.dropped += 1;
                return Put::Dropped;
            }
        }
        self.bytes += size;
        self.waiting.push_back(Entry { class, message });
        Put::Waits
    }

    /// Makes room for `size` bytes at the cost of waiting chunks, oldest first.
    fn drop_chunks(&mut self, size: usize) {
        let (limit, mut bytes, mut dropped) = (self.limit, self.bytes, 0);
        self.waiting.retain(|entry| {
            let keep = entry.class != Class::Chunk || bytes + size <= limit;
            if !keep {
                bytes -= entry.message.size();
                dropped += 1;
            }
            keep
        });
        self.bytes = bytes;
        self.dropped += dropped;
    }

    /// The message whose turn it is; `in_flight` bounds those that the broker has not acknowledged.
    #[must_use]
    pub fn next(&self, in_flight: usize) -> Option<&Message> {
        let entry = self.waiting.front()?;
        let free = entry.message.qos == Qos::AtMostOnce || self.unacknowledged.len() < in_flight;
        free.then_some(&entry.message)
    }

    /// The message whose turn it was has been handed to the connection.
    pub fn sent(&mut self) {
        let Some(entry) = self.waiting.pop_front() else {
            return;
        };
        match entry.message.qos {
            Qos::AtMostOnce => self.bytes -= entry.message.size(),
            Qos::AtLeastOnce => self.unacknowledged.push_back(entry),
        }
    }

    /// The message whose turn it is can never be sent.
    pub fn discard(&mut self) -> Option<Class> {
        let entry = self.waiting.pop_front()?;
        self.bytes -= entry.message.size();
        self.dropped += 1;
        Some(entry.class)
    }

    /// The broker has acknowledged the `index`-th of the unacknowledged messages, counted in the order of sending.
    pub fn acknowledged(&mut self, index: usize) -> Option<Class> {
        let entry = self.unacknowledged.remove(index)?;
        self.bytes -= entry.message.size();
        Some(entry.class)
    }

    /// The connection is gone: what was not acknowledged is sent again, in the same order.
    pub fn connection_lost(&mut self) {
        while let Some(entry) = self.unacknowledged.pop_back() {
            self.waiting.push_front(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::Properties;
    use super::*;

    fn message(topic: &str, size: usize, qos: Qos) -> Message {
        Message {
            topic: topic.to_owned(),
            payload: vec![b'x'; size].into(),
            qos,
            retain: false,
            properties: Properties::default(),
        }
    }

    fn topics(outbox: &mut Outbox) -> Vec<String> {
        let mut topics = Vec::new();
        while let Some(message) = outbox.next(usize::MAX) {
            topics.push(message.topic.clone());
            outbox.sent();
        }
        topics
    }

    #[test]
    fn state_is_worth_its_latest_value() {
        let mut outbox = Outbox::new(10_000);
        outbox.put(Class::State, message("stats", 1, Qos::AtMostOnce));
        outbox.put(Class::Answer(1), message("a", 1, Qos::AtLeastOnce));
        outbox.put(Class::State, message("stats", 500, Qos::AtMostOnce));
        assert_eq!(outbox.next(9).map(|m| m.payload.len()), Some(500));
        assert_eq!(topics(&mut outbox), ["stats", "a"]);
    }

    #[test]
    fn chunks_go_first_and_answers_stay() {
        let mut outbox = Outbox::new(1000);
        for _ in 0..3 {
            outbox.put(Class::Chunk, message("chunk", 200, Qos::AtMostOnce));
        }
        outbox.put(Class::Answer(1), message("big", 5000, Qos::AtLeastOnce));
        assert_eq!(outbox.dropped(), 3);
        let late = outbox.put(Class::Chunk, message("chunk", 1, Qos::AtMostOnce));
        assert_eq!(late, Put::Dropped);
        assert_eq!(topics(&mut outbox), ["big"]);
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_in_order() {
        let mut outbox = Outbox::new(10_000);
        for n in 0..4 {
            outbox.put(
                Class::Answer(n),
                message(&n.to_string(), 1, Qos::AtLeastOnce),
            );
        }
        while outbox.next(3).is_some() {
            outbox.sent();
        }
        assert_eq!(outbox.acknowledged(0), Some(Class::Answer(0)));
        outbox.connection_lost();
        assert_eq!(topics(&mut outbox), ["1", "2", "3"]);
        assert_eq!(outbox.acknowledged(1), Some(Class::Answer(2)));
        assert_eq!(outbox.acknowledged(0), Some(Class::Answer(1)));
    }

    proptest! {
        #[test]
        fn every_answer_comes_out_and_the_count_is_right(
            steps in proptest::collection::vec((0_u8..6, 0_usize..400), 0..300)
        ) {
            let mut outbox = Outbox::new(2000);
            let (mut put, mut out) = (0, Vec::new());
            for (step, size) in steps {
                match step {
                    0 => {
                        outbox.put(Class::Answer(put), message("answer", size, Qos::AtLeastOnce));
                        put += 1;
                    }
                    1 => { outbox.put(Class::Chunk, message("chunk", size, Qos::AtMostOnce)); }
                    2 => { outbox.put(Class::State, message("state", size, Qos::AtLeastOnce)); }
                    3 => if outbox.next(4).is_some() { outbox.sent() },
                    4 => if let Some(Class::Answer(n)) = outbox.acknowledged(0) { out.push(n) },
                    _ => outbox.connection_lost(),
                }
                let sum: usize = outbox.waiting.iter().chain(&outbox.unacknowledged).map(|e| e.message.size()).sum();
                prop_assert_eq!(outbox.bytes(), sum);
                prop_assert!(outbox.unacknowledged.len() <= 4);
            }
            outbox.connection_lost();
            while outbox.next(usize::MAX).is_some() { outbox.sent() }
            while let Some(class) = outbox.acknowledged(0) {
                if let Class::Answer(n) = class { out.push(n) }
            }
            prop_assert_eq!(out, (0..put).collect::<Vec<_>>());
            prop_assert_eq!(outbox.bytes(), 0);
        }
    }
}
