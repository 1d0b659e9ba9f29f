//! What the node says unasked: that it is there, what is loaded, how it fares.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::message::{Message, Qos};
use super::super::news::Look;
use super::super::outbox::Class;
use super::{Answering, Session};

/// How soon after an announcement `stats` follows: whoever learned of us by it needs a moment to subscribe.
const STATS_AFTER: Duration = Duration::from_secs(3);
/// How often level and phase are looked at, so that a change is told soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl<A: Answering> Session<A> {
    /// Publishes what subscribers should find: that we are here, what is loaded, what can be shown.
    pub(super) fn announce(&mut self, now: Instant) {
        let soon = now + STATS_AFTER;
        self.stats_at = if self.stats_at > now {
            self.stats_at.min(soon)
        } else {
            soon
        };
        let info = self.answering.info();
        self.info = info.clone();
        for message in self.options.presence.birth(&info) {
            self.outbox.put(Class::State, message);
        }
    }

    pub(super) fn tell_stats(&mut self, now: Instant) {
        let heard = self.line.as_ref().is_some_and(|line| line.subscribed);
        if !heard || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        if self.answering.info() != self.info {
            // The model was loaded, exchanged or unloaded.
            self.announce(now);
        }
        let mut stats = self.answering.stats();
        let look = Look::new(&self.info, &stats);
        let phase = stats["phase"].as_str().unwrap_or_default().to_owned();
        let news = match &self.look {
            Some(before) => look.news(before),
            None => Vec::new(),
        };
        let changed = phase != self.phase || !news.is_empty();
        for event in news {
            let topic = self.options.presence.topics().event();
            let mut message = Message::passing(topic, event.to_string());
            message.qos = Qos::AtLeastOnce;
            // Each is told, but answers go first when there is too much.
            self.outbox.put(Class::Chunk, message);
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
        self.look = Some(look);
        self.phase = phase;
    }
}
