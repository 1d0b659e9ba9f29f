//! From a message of the broker to a request: what is asked, and where the answer goes. Pure.

use std::time::Duration;

use bytes::Bytes;
use glm_wire::error::{ErrorDetail, ErrorKind};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::journal::Key;
use super::topics::{Asked, Topics, matches};
use crate::operations::Operation;
use crate::service::Op;

/// Longest response topic that is answered to; the protocol would allow 64 KiB.
const MAX_TOPIC: usize = 1024;
/// Longest correlation data and `transaction`.
const MAX_CORRELATION: usize = 1024;

/// A message as the broker delivered it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Topic.
    pub topic: String,
    /// Content.
    pub payload: Bytes,
    /// Whether it was kept by the broker rather than sent now.
    pub retained: bool,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// Response topic (MQTT 5).
    pub response_topic: Option<String>,
    /// Correlation data (MQTT 5).
    pub correlation: Option<Bytes>,
    /// Seconds until it expires (MQTT 5).
    pub expiry_s: Option<u32>,
}

/// Where an answer goes and how it is told apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// Topic.
    pub topic: String,
    /// Correlation data of MQTT 5.
    pub correlation: Option<Bytes>,
    /// `transaction` of the request's body, echoed as it is.
    pub transaction: Option<Value>,
}

/// What a request wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// An operation with the body that HTTP takes.
    Ask {
        /// The operation.
        op: Op,
        /// Fields of the body.
        fields: Map<String, Value>,
    },
    /// Something to be done to the daemon.
    Operate(Operation),
    /// To end the request of the same client with this correlation data or transaction.
    Cancel(Key),
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it wants.
    pub work: Work,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// The same request delivered again has the same key.
    pub key: Key,
    /// Whether a client can tell answers apart, so that repeating the request means the same one.
    pub identified: bool,
    /// What `cancel` calls it: response topic with correlation data or transaction.
    pub name: Key,
    /// Bytes of the message.
    pub size: usize,
    /// Time in which the answer is wanted.
    pub deadline: Option<Duration>,
}

/// What a message turns out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// A request.
    Request(Box<Request>),
    /// A request that is refused, with where to say so.
    Refused(ReplyTo, Box<ErrorDetail>),
    /// Nothing that can be answered: acknowledged and counted.
    Ignored(&'static str),
}

/// Reads a message. `allowed` are the filters that a response topic must match.
#[must_use]
pub fn read(message: &Incoming, topics: &Topics, allowed: &[String]) -> Read {
    let Some(asked) = topics.asked(&message.topic) else {
        return Read::Ignored("topic");
    };
    // Somebody's old wish, kept by the broker: a device that restarts must not set it off again.
    if message.retained {
        return Read::Ignored("retained");
    }
    let mut fields = match object(&message.payload) {
        Ok(fields) => fields,
        Err(detail) => {
            let reply = ReplyTo {
                topic: topics.response(asked),
                correlation: message.correlation.clone(),
                transaction: None,
            };
            // Where the client wanted the answer may stand in what cannot be read.
            return match &message.response_topic {
                Some(topic) if may_answer(topic, allowed) => Read::Refused(
                    ReplyTo {
                        topic: topic.clone(),
                        ..reply
                    },
                    Box::new(detail),
                ),
                _ => Read::Refused(reply, Box::new(detail)),
            };
        }
    };
    let transaction = fields.remove("transaction");
    let in_body = fields.remove("reply_to");
    let named = match (&message.response_topic, in_body) {
        (Some(topic), _) => Some(topic.clone()),
        (None, Some(Value::String(topic))) => Some(topic),
        (None, Some(_)) => return Read::Ignored("reply_to"),
        (None, None) => None,
    };
    let topic = match named {
        Some(topic) if may_answer(&topic, allowed) => topic,
        // An answer to it would be sent where we are not allowed to; the default topic is nobody's.
        Some(_) => return Read::Ignored("response_topic"),
        None => topics.response(asked),
    };
    let reply = ReplyTo {
        topic,
        correlation: message.correlation.clone(),
        transaction,
    };
    let too_long = reply.correlation.as_ref().map_or(0, Bytes::len) > MAX_CORRELATION
        || (reply.transaction.as_ref()).is_some_and(|t| t.to_string().len() > MAX_CORRELATION);
    if too_long {
        let message =
            format!("correlation data or `transaction` is longer than {MAX_CORRELATION} bytes");
        let reply = ReplyTo {
            correlation: None,
            transaction: None,
            ..reply
        };
        return Read::Refused(reply, Box::new(bad("transaction", message)));
    }
    let identified = reply.correlation.is_some() || reply.transaction.is_some();
    let name = name(&reply);
    let key = digest(&[&name, message.topic.as_bytes(), &message.payload]);
    let work = match asked {
        Asked::Op(op) => Work::Ask { op, fields },
        Asked::Operate(operation) => match fields.keys().next() {
            None => Work::Operate(operation),
            Some(field) => {
                let message = format!("unknown field `{field}`; `{}` takes none", operation.name());
                return Read::Refused(reply, Box::new(bad(field, message)));
            }
        },
        Asked::Cancel => match cancelled(&fields, &reply) {
            Ok(target) => Work::Cancel(target),
            Err(detail) => return Read::Refused(reply, Box::new(detail)),
        },
    };
    Read::Request(Box::new(Request {
        work,
        reply,
        key,
        identified,
        name,
        size: message.topic.len() + message.payload.len(),
        deadline: message.expiry_s.map(|s| Duration::from_secs(s.into())),
    }))
}

fn object(payload: &[u8]) -> Result<Map<String, Value>, ErrorDetail> {
    glm_wire::parse::<Map<String, Value>>(payload).map_err(ErrorDetail::from)
}

fn bad(field: &str, message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorKind::InvalidRequestError, "bad_input", message).with_param(field)
}

/// `{"transaction": ...}` names the request to cancel; in MQTT 5 correlation data may do so.
fn cancelled(fields: &Map<String, Value>, reply: &ReplyTo) -> Result<Key, ErrorDetail> {
    if let Some(field) = fields.keys().next() {
        return Err(bad(
            field,
            format!("unknown field `{field}`; `cancel` takes `transaction` or correlation data"),
        ));
    }
    if reply.correlation.is_none() && reply.transaction.is_none() {
        let message = "`cancel` needs the `transaction` or the correlation data of the request";
        return Err(bad("transaction", message.to_owned()));
    }
    Ok(name(reply))
}

fn name(reply: &ReplyTo) -> Key {
    let transaction = reply.transaction.as_ref().map(Value::to_string);
    digest(&[
        reply.topic.as_bytes(),
        reply.correlation.as_deref().unwrap_or_default(),
        transaction.as_deref().unwrap_or_default().as_bytes(),
    ])
}

/// A digest in which the parts cannot run into each other.
fn digest(parts: &[&[u8]]) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Whether an answer may be published there: no wildcard, not ours to command, and on the list.
fn may_answer(topic: &str, allowed: &[String]) -> bool {
    !topic.is_empty()
        && topic.len() <= MAX_TOPIC
        && !topic.contains(['+', '#', '\0'])
        && !topic.starts_with('$')
        && allowed.iter().any(|filter| matches(filter, topic))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn topics() -> Topics {
        Topics::new("glmd", "kitchen", Some(("glmd", "house")))
    }

    fn allowed() -> Vec<String> {
        vec!["clients/#".to_owned(), "glmd/kitchen/response/+".to_owned()]
    }

    fn asking(body: &Value) -> Incoming {
        Incoming {
            topic: "glmd/kitchen/request/infill".to_owned(),
            payload: body.to_string().into(),
            response_topic: Some("clients/1".to_owned()),
            correlation: Some("c".into()),
            ..Incoming::default()
        }
    }

    fn request(message: &Incoming) -> Request {
        match read(message, &topics(), &allowed()) {
            Read::Request(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_body_is_that_of_http() {
        let body = json!({"text": "a [MASK]", "transaction": 7, "reply_to": "clients/9"});
        let mut message = asking(&body);
        message.expiry_s = Some(30);
        let seen = request(&message);
        let Work::Ask { op, fields } = seen.work else {
            panic!("no cancel")
        };
        assert_eq!(op, Op::Infill);
        assert_eq!(Value::Object(fields), json!({"text": "a [MASK]"}));
        assert_eq!(seen.reply.topic, "clients/1");
        assert_eq!(seen.reply.transaction, Some(json!(7)));
        assert_eq!(seen.deadline, Some(Duration::from_secs(30)));
    }

    #[test]
    fn version_3_names_the_response_topic_in_the_body() {
        let mut message = asking(&json!({"text": "a", "reply_to": "clients/9"}));
        message.response_topic = None;
        assert_eq!(request(&message).reply.topic, "clients/9");
        message.payload = r#"{"text":"a"}"#.into();
        assert_eq!(
            request(&message).reply.topic,
            "glmd/kitchen/response/infill"
        );
    }

    #[test]
    fn nobody_makes_us_publish_where_we_may_not() {
        for topic in [
            "home/door/unlock",
            "clients/+",
            "$SYS/x",
            "",
            "glmd/kitchen/request/infill",
        ] {
            let mut message = asking(&json!({"text": "a"}));
            message.response_topic = Some(topic.to_owned());
            let read = read(&message, &topics(), &allowed());
            assert_eq!(read, Read::Ignored("response_topic"), "{topic}");
        }
    }

    #[test]
    fn a_retained_request_is_ignored() {
        let mut message = asking(&json!({"text": "a"}));
        message.retained = true;
        assert_eq!(
            read(&message, &topics(), &allowed()),
            Read::Ignored("retained")
        );
    }

    #[test]
    fn the_same_request_has_the_same_key_and_no_other_has() {
        let message = asking(&json!({"text": "a"}));
        let key = request(&message).key;
        let again = Incoming {
            redelivered: true,
            ..message.clone()
        };
        assert_eq!(request(&again).key, key);
        let mut other = message.clone();
        other.correlation = Some("d".into());
        assert_ne!(request(&other).key, key);
        let other = asking(&json!({"text": "b"}));
        assert_ne!(request(&other).key, key);
        assert_eq!(request(&other).name, request(&message).name);
    }

    #[test]
    fn cancel_names_a_request_of_the_same_client() {
        let target = request(&asking(&json!({"text": "a", "transaction": "t"})));
        let mut cancel = asking(&json!({"transaction": "t"}));
        cancel.topic = "glmd/kitchen/request/cancel".to_owned();
        assert_eq!(request(&cancel).work, Work::Cancel(target.name));
        cancel.response_topic = Some("clients/2".to_owned());
        assert_ne!(request(&cancel).work, Work::Cancel(target.name));
    }

    #[test]
    fn what_cannot_be_read_is_answered_all_the_same() {
        let mut message = asking(&json!({}));
        message.payload = Bytes::from_static(b"\xff{");
        let Read::Refused(reply, detail) = read(&message, &topics(), &allowed()) else {
            panic!("no refusal")
        };
        assert_eq!(
            (reply.topic.as_str(), detail.code.as_str()),
            ("clients/1", "bad_input")
        );
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(
            topic in "(glmd|x)?/?(kitchen|pool/house)?/?(request)?/?(infill|cancel|y)?",
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                r#"\{("(text|transaction|reply_to)":("a"|1|\[\])(,|))*\}"#.prop_map(String::into_bytes),
            ],
            response_topic in proptest::option::of("[a-z/+#$]{0,12}"),
        ) {
            let message = Incoming { topic, payload: payload.into(), response_topic, ..Incoming::default() };
            if let Read::Request(request) = read(&message, &topics(), &allowed()) {
                prop_assert!(may_answer(&request.reply.topic, &allowed()));
            }
        }
    }
}
