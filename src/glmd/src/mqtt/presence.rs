//! What a node says about itself: state, last will, what is loaded.

use serde_json::Value;

use super::discovery::Discovery;
use super::message::Message;
use super::request::Incoming;
use super::topics::Topics;

/// Names of a node and what it publishes unasked.
#[derive(Clone, Debug)]
pub struct Presence {
    topics: Topics,
    /// `None` = Home Assistant is not told.
    discovery: Option<Discovery>,
}

impl Presence {
    /// A node, and how Home Assistant is told of it.
    #[must_use]
    pub const fn new(topics: Topics, discovery: Option<Discovery>) -> Self {
        Self { topics, discovery }
    }

    /// Names of topics.
    #[must_use]
    pub const fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Filters to subscribe to.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let mut filters = self.topics.filters();
        filters.extend(self.discovery.as_ref().map(Discovery::status));
        filters
    }

    /// Whether a message says that Home Assistant has come back and wants to hear everything again.
    #[must_use]
    pub fn is_dashboard_birth(&self, message: &Incoming) -> bool {
        (self.discovery.as_ref()).is_some_and(|discovery| discovery.status() == message.topic)
    }

    /// What the broker says for us when we are gone, and we say when we leave.
    #[must_use]
    pub fn offline(&self) -> Message {
        Message::retained(self.topics.state(), "offline", false)
    }

    /// What new subscribers find.
    #[must_use]
    pub fn birth(&self, info: &Value) -> Vec<Message> {
        let mut messages = vec![Message::retained(
            self.topics.info(),
            info.to_string(),
            true,
        )];
        let discovery = self.discovery.as_ref();
        messages.extend(discovery.and_then(|d| d.message(&self.topics, info)));
        // Last, so that whoever waits for it finds the rest.
        messages.push(Message::retained(self.topics.state(), "online", false));
        messages
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::message::Qos;
    use super::*;

    fn presence() -> Presence {
        let topics = Topics::new("glmd", "küche 1", None);
        let discovery = Discovery::new("homeassistant", "küche 1");
        Presence::new(topics, Some(discovery))
    }

    fn info() -> Value {
        json!({"version": "0.1.0", "model": {"id": "glm-mini"}})
    }

    #[test]
    fn online_is_said_last_and_everything_stays_with_the_broker() {
        let messages = presence().birth(&info());
        assert!(
            messages
                .iter()
                .all(|m| m.retain && m.qos == Qos::AtLeastOnce)
        );
        let last = messages.last().expect("messages");
        assert_eq!(
            (last.topic.as_str(), &last.payload[..]),
            ("glmd/küche 1/state", &b"online"[..])
        );
        assert_eq!(
            messages[1].topic,
            "homeassistant/device/glmd_k_che_1/config"
        );
    }

    #[test]
    fn the_dashboard_hears_everything_again_when_it_comes_back() {
        let message = Incoming {
            topic: "homeassistant/status".to_owned(),
            payload: "online".into(),
            ..Incoming::default()
        };
        assert!(presence().is_dashboard_birth(&message));
        let silent = Presence::new(Topics::new("glmd", "n", None), None);
        assert!(!silent.is_dashboard_birth(&message));
        assert_eq!(silent.birth(&info()).len(), 2);
    }
}
