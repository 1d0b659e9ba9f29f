//! What Home Assistant finds of a node: a device with its entities (MQTT integration, "Device discovery payload"). Pure.

use glm_engine::status::Phase;
use serde_json::{Map, Value, json};

use super::message::Message;
use super::topics::{Asked, Topics};
use crate::operations::Operation;
use crate::service::Op;

/// Longest state of an entity, in characters (Home Assistant, `MAX_LENGTH_STATE_STATE`).
const MAX_STATE: usize = 255;

/// What `stats` says of the engine; Home Assistant refuses any other word.
const PHASES: [&str; 6] = [
    Phase::Loading.name(),
    Phase::Ready.name(),
    Phase::Unloaded.name(),
    Phase::Idle.name(),
    Phase::Draining.name(),
    Phase::Stopped.name(),
];

/// A node as Home Assistant knows it.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// Where Home Assistant looks.
    prefix: String,
    /// Name of the node, as people see it.
    node: String,
}

impl Discovery {
    /// `node`, for a Home Assistant that looks below `prefix`.
    #[must_use]
    pub fn new(prefix: &str, node: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            node: node.to_owned(),
        }
    }

    /// Where Home Assistant says that it has come back.
    #[must_use]
    pub fn status(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// The message that stays with the broker. `None` without a model: what can be asked is not known then, and
    /// what was said before stays.
    #[must_use]
    pub fn message(&self, topics: &Topics, info: &Value) -> Option<Message> {
        let topic = format!("{}/device/{}/config", self.prefix, self.object_id());
        let device = self.device(topics, info)?;
        Some(Message::retained(topic, device.to_string(), true))
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

    fn device(&self, topics: &Topics, info: &Value) -> Option<Value> {
        let model = info["model"]["id"].as_str()?;
        let id = self.object_id();
        let mut components = Map::new();
        let mut add = |key: &str, mut component: Value| {
            component["unique_id"] = format!("{id}_{key}").into();
            components.insert(key.to_owned(), component);
        };
        figures(topics, &mut add);
        questions(topics, &mut add);
        for operation in topics.operations() {
            let name = match operation {
                Operation::Reload => "Reload the model",
                Operation::Unload => "Unload the model",
            };
            add(
                operation.name(),
                json!({
                    "p": "button", "name": name, "entity_category": "config",
                    "command_topic": topics.request(Asked::Operate(*operation)),
                    "payload_press": "{}",
                }),
            );
        }
        Some(json!({
            "dev": {
                "ids": [id], "name": format!("glmd {}", self.node), "mf": "glmd",
                "mdl": model, "sw": info["version"],
            },
            "o": {"name": "glmd", "sw": info["version"]},
            "avty_t": topics.state(),
            // What is asked may wait in the broker like anything else; at QoS 0 it might be lost.
            "qos": 1,
            "cmps": components,
        }))
    }
}

/// Sensors of what `stats` says.
fn figures(topics: &Topics, add: &mut impl FnMut(&str, Value)) {
    let stats = topics.stats();
    let mut sensor = |key: &str, name: &str, template: &str, more: Value| {
        let mut component = json!({
            "p": "sensor", "name": name, "state_topic": stats, "value_template": template,
            "entity_category": "diagnostic",
        });
        merge(&mut component, more);
        add(key, component);
    };
    sensor(
        "level",
        "Memory level",
        "{{ value_json.level }}",
        json!({"device_class": "enum", "options": ["green", "yellow", "orange", "red", "black"]}),
    );
    sensor(
        "phase",
        "Phase",
        "{{ value_json.phase }}",
        json!({"device_class": "enum", "options": PHASES}),
    );
    sensor(
        "queue",
        "Queue",
        "{{ value_json.requests.queued }}",
        json!({"unit_of_measurement": "requests", "state_class": "measurement"}),
    );
    sensor(
        "speed",
        "Speed",
        "{{ value_json.tokens_per_second | round(1) }}",
        json!({"unit_of_measurement": "tokens/s", "state_class": "measurement"}),
    );
    sensor(
        "headroom",
        "Free memory",
        "{{ (value_json.memory.headroom / 1048576) | round(0) }}",
        json!({"device_class": "data_size", "unit_of_measurement": "MiB", "state_class": "measurement"}),
    );
    // Not every board can tell; an empty value leaves the sensor unknown.
    sensor(
        "temperature",
        "Temperature",
        "{{ value_json.temperature_c | default('') }}",
        json!({"device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement"}),
    );
    add(
        "problem",
        json!({
            "p": "binary_sensor", "name": "Short of memory", "state_topic": stats,
            "device_class": "problem", "entity_category": "diagnostic",
            "value_template": "{{ 'OFF' if value_json.level in ['green', 'yellow'] else 'ON' }}",
        }),
    );
}

/// Ways to ask, and where the answer is seen.
fn questions(topics: &Topics, add: &mut impl FnMut(&str, Value)) {
    let infill = Asked::Op(Op::Infill);
    let ask = json!({
        "command_topic": topics.request(infill),
        "command_template": "{\"text\": {{ value | tojson }}}",
    });
    // For automations: `notify.send_message` takes texts of any length.
    let mut notify = json!({"p": "notify", "name": "Fill blanks"});
    merge(&mut notify, ask.clone());
    add("ask", notify);
    // For people: a field on a dashboard.
    let mut text = json!({"p": "text", "name": "Text with blanks", "max": MAX_STATE});
    merge(&mut text, ask);
    add("type", text);
    let answer = format!(
        "{{{{ (value_json.data.text if value_json.status == 'ok' else value_json.error.message)[:{MAX_STATE}] }}}}"
    );
    add(
        "answer",
        json!({
            "p": "sensor", "name": "Last answer",
            "state_topic": topics.response(infill), "value_template": answer,
            // A state is short; the attributes have all of it.
            "json_attributes_topic": topics.response(infill),
            "json_attributes_template": "{{ (value_json.data or value_json.error) | tojson }}",
        }),
    );
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `make test-home-assistant` holds to Home Assistant's own schemas.
    const CHECKED: &str = include_str!("../../../../tests/home_assistant/device.json");

    fn topics(admin: bool) -> Topics {
        Topics::new("glmd", "kitchen", None).with_admin(admin)
    }

    fn said(admin: bool, info: &Value) -> Option<Value> {
        let message = Discovery::new("homeassistant", "kitchen").message(&topics(admin), info)?;
        assert_eq!(message.topic, "homeassistant/device/glmd_kitchen/config");
        Some(serde_json::from_slice(&message.payload).expect("JSON"))
    }

    #[test]
    fn what_is_published_is_what_home_assistant_has_checked() {
        let checked: Value = serde_json::from_str(CHECKED).expect("JSON");
        let info = json!({"version": checked["dev"]["sw"], "model": {"id": checked["dev"]["mdl"]}});
        let published = said(true, &info).expect("a device");
        let (checked, published) = (
            serde_json::to_string_pretty(&checked).expect("JSON"),
            serde_json::to_string_pretty(&published).expect("JSON"),
        );
        assert_eq!(published, checked);
    }

    #[test]
    fn buttons_are_for_daemons_that_obey_them() {
        let info = json!({"version": "1", "model": {"id": "m"}});
        let platforms = |admin: bool| -> Vec<String> {
            let device = said(admin, &info).expect("a device");
            let components = device["cmps"].as_object().expect("components").values();
            components.map(|c| c["p"].to_string()).collect()
        };
        assert!(!platforms(false).contains(&"\"button\"".to_owned()));
        assert_eq!(platforms(true).len(), platforms(false).len() + 2);
    }

    #[test]
    fn ids_of_entities_differ() {
        let info = json!({"version": "1", "model": {"id": "m"}});
        let device = said(true, &info).expect("a device");
        let components = device["cmps"].as_object().expect("components");
        let ids: std::collections::HashSet<String> = components
            .values()
            .map(|c| c["unique_id"].to_string())
            .collect();
        assert_eq!(ids.len(), components.len());
    }

    #[test]
    fn without_a_model_nothing_new_is_said() {
        assert_eq!(said(true, &json!({"version": "1", "model": null})), None);
    }

    #[test]
    fn a_name_with_other_letters_becomes_an_id() {
        let topics = Topics::new("glmd", "küche 1", None);
        let info = json!({"version": "1", "model": {"id": "m"}});
        let message = Discovery::new("ha", "küche 1").message(&topics, &info);
        let message = message.expect("a device");
        assert_eq!(message.topic, "ha/device/glmd_k_che_1/config");
    }
}
