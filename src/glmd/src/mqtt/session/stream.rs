//! Pieces of streamed answers, gathered so that a token is not a packet.

use super::super::envelope;
use super::super::events;
use super::super::journal::Key;
use super::super::message::Qos;
use super::super::outbox::{Class, Put};
use super::super::request::ReplyTo;
use super::{Answering, Session};

/// Pieces that wait to be sent together.
#[derive(Debug)]
pub(super) struct Streamed {
    reply: ReplyTo,
    seq: u64,
    documents: Vec<Vec<u8>>,
}

/// A piece of the answer to a request.
pub(super) type Piece = (Key, Vec<u8>);

impl Streamed {
    /// No piece yet.
    pub(super) const fn new(reply: ReplyTo) -> Self {
        Self {
            reply,
            seq: 0,
            documents: Vec::new(),
        }
    }
}

impl<A: Answering> Session<A> {
    pub(super) fn on_piece(&mut self, (key, document): Piece) {
        if let Some(streamed) = self.streamed.get_mut(&key) {
            streamed.documents.push(document);
        }
    }

    /// Sends what the requests have gathered.
    pub(super) fn flush_all_pieces(&mut self) {
        let keys: Vec<Key> = self.streamed.keys().copied().collect();
        for key in keys {
            self.flush_pieces(&key);
        }
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

    /// Sends the rest and forgets the request: the number of its final message, if it wanted a stream.
    pub(super) fn end_pieces(&mut self, key: &Key) -> Option<u64> {
        // What it sent before it ended is in the channel already.
        while let Ok(piece) = self.pieces.1.try_recv() {
            self.on_piece(piece);
        }
        self.flush_pieces(key);
        self.streamed.remove(key).map(|streamed| streamed.seq)
    }
}
