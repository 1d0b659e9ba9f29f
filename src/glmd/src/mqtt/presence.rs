//! What a node says about itself: state, last will, and what Home Assistant can discover.

use serde_json::{Value, json};

use super::message::Message;
use super::request::Incoming;
use super::topics::{Asked, Topics};
use crate::service::Op;

/// Names of a node and what it publishes unasked.
#[derive(Clone, Debug)]
pub struct Presence {
    topics: Topics,
    /// Name of the node, as people see it.
    node: String,
    /// Where Home Assistant looks; `None` = not told.
    discovery: Option<String>,
}

impl Presence {
    /// A node; `discovery` is Home Assistant's prefix when it is to be told.
    #[must_use]
    pub fn new(topics: Topics, node: &str, discovery: Option<String>) -> Self {
        Self {
            topics,
            node: node.to_owned(),
            discovery,
        }
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
        filters.extend(self.dashboard_status());
        filters
    }

    /// Where Home Assistant says that it has come back.
    fn dashboard_status(&self) -> Option<String> {
        Some(format!("{}/status", self.discovery.as_ref()?))
    }

    /// Whether a message says that Home Assistant has come back and wants to hear everything again.
    #[must_use]
    pub fn is_dashboard_birth(&self, message: &Incoming) -> bool {
        self.dashboard_status()
            .is_some_and(|topic| topic == message.topic)
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
        if let Some(prefix) = &self.discovery {
            let topic = format!("{prefix}/device/{}/config", self.object_id());
            messages.push(Message::retained(
                topic,
                self.device(info).to_string(),
                true,
            ));
        }
        // Last, so that whoever waits for it finds the rest.
        messages.push(Message::retained(self.topics.state(), "online", false));
        messages
    }

    /// Home Assistant allows letters, digits, `_` and `-`.
    fn object_id(&self) -> String {
        let clean = |c: char| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        };
        format!("glmd_{}", self.node.chars().map(clean).collect::<String>())
    }

    /// Device discovery (Home Assistant, MQTT integration, "Device discovery payload").
    fn device(&self, info: &Value) -> Value {
        let id = self.object_id();
        let stats = self.topics.stats();
        let sensor = |name: &str, key: &str, template: &str, more: Value| {
            let mut component = json!({
                "p": "sensor", "name": name, "unique_id": format!("{id}_{key}"),
                "state_topic": stats, "value_template": template,
                "entity_category": "diagnostic",
            });
            merge(&mut component, more);
            component
        };
        let level = "{{ value_json.level }}";
        let answer = "{{ (value_json.data.text if value_json.status == 'ok' else value_json.error.message)[:255] }}";
        let ask = Asked::Op(Op::Infill);
        json!({
            "dev": {
                "ids": [id], "name": format!("glmd {}", self.node), "mf": "glmd",
                "mdl": info["model"]["id"], "sw": info["version"],
            },
            "o": {"name": "glmd", "sw": info["version"]},
            "avty_t": self.topics.state(),
            "cmps": {
                "level": sensor("Memory level", "level", level, json!({
                    "device_class": "enum",
                    "options": ["green", "yellow", "orange", "red", "black"],
                })),
                "queue": sensor("Queue", "queue", "{{ value_json.requests.queued }}", json!({
                    "unit_of_measurement": "requests", "state_class": "measurement",
                })),
                "speed": sensor("Speed", "speed", "{{ value_json.tokens_per_second | round(1) }}", json!({
                    "unit_of_measurement": "tokens/s", "state_class": "measurement",
                })),
                "headroom": sensor("Free memory", "headroom", "{{ (value_json.memory.headroom / 1048576) | round(0) }}", json!({
                    "device_class": "data_size", "unit_of_measurement": "MiB", "state_class": "measurement",
                })),
                "temperature": sensor("Temperature", "temperature", "{{ value_json.temperature_c }}", json!({
                    "device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement",
                })),
                "problem": {
                    "p": "binary_sensor", "name": "Short of memory", "unique_id": format!("{id}_problem"),
                    "state_topic": stats, "device_class": "problem", "entity_category": "diagnostic",
                    "value_template": "{{ 'OFF' if value_json.level in ['green', 'yellow'] else 'ON' }}",
                },
                "ask": {
                    "p": "notify", "name": "Fill blanks", "unique_id": format!("{id}_ask"),
                    "command_topic": self.topics.request(ask),
                    "command_template": "{\"text\": {{ value | tojson }}}",
                },
                "answer": {
                    "p": "sensor", "name": "Last answer", "unique_id": format!("{id}_answer"),
                    "state_topic": self.topics.response(ask), "value_template": answer,
                },
            },
        })
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Qos;
    use super::*;

    fn presence() -> Presence {
        let topics = Topics::new("glmd", "küche 1", None);
        Presence::new(topics, "küche 1", Some("homeassistant".to_owned()))
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
        let silent = Presence::new(Topics::new("glmd", "n", None), "n", None);
        assert!(!silent.is_dashboard_birth(&message));
        assert_eq!(silent.birth(&info()).len(), 2);
    }

    #[test]
    fn ids_of_entities_differ() {
        let device = presence().device(&info());
        let mut ids: Vec<&Value> = device["cmps"]
            .as_object()
            .expect("components")
            .values()
            .map(|c| &c["unique_id"])
            .collect();
        let count = ids.len();
        ids.sort_by_key(|id| id.to_string());
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
