//! A message to publish, in the words that both protocol versions share.

use bytes::Bytes;

/// How surely a message is delivered. QoS 2 is not used: at QoS 1 a repeated
/// answer carries the same bytes, and a link that loses a PUBREC keeps no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// At most once.
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Content.
    pub payload: Bytes,
    /// Delivery.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// What MQTT 5 can say besides; 3.1.1 drops it.
    pub properties: Properties,
}

/// Properties of a message in MQTT 5 (section 3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Whether the content is JSON; plain text otherwise.
    pub json: bool,
    /// Correlation data of the request that this answers.
    pub correlation: Option<Bytes>,
    /// Seconds after which the broker drops it.
    pub expiry_s: Option<u32>,
    /// Names and values.
    pub user: Vec<(String, String)>,
}

/// Bytes that a message takes beside topic, content and properties: fixed and
/// variable header with the longest length encodings, and the property tags.
const OVERHEAD: usize = 64;

impl Message {
    /// Plain text that stays with the broker.
    #[must_use]
    pub fn retained(topic: String, payload: impl Into<Bytes>, json: bool) -> Self {
        Self {
            topic,
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: Properties {
                json,
                ..Properties::default()
            },
        }
    }

    /// JSON that is told once and may be lost.
    #[must_use]
    pub fn passing(topic: String, payload: impl Into<Bytes>) -> Self {
        Self {
            topic,
            payload: payload.into(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: Properties {
                json: true,
                ..Properties::default()
            },
        }
    }

    /// Upper bound of its size on the wire and in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        let p = &self.properties;
        let user: usize = p.user.iter().map(|(k, v)| k.len() + v.len() + 5).sum();
        OVERHEAD
            + self.topic.len()
            + self.payload.len()
            + p.correlation.as_ref().map_or(0, Bytes::len)
            + user
    }
}
