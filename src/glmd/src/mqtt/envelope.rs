//! What an answer looks like on a topic: `{status, data | error, transaction}`.

use bytes::Bytes;
use glm_wire::error::ErrorDetail;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::message::{Message, Properties, Qos};
use super::request::ReplyTo;

#[derive(Serialize)]
struct Envelope<'a, T> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<&'a Value>,
}

impl<'a, T> Envelope<'a, T> {
    const fn new(status: &'a str, reply: &'a ReplyTo) -> Self {
        Self {
            status,
            data: None,
            error: None,
            seq: None,
            transaction: reply.transaction.as_ref(),
        }
    }
}

/// The body of an answer; `outcome` is the JSON document that HTTP would send.
#[must_use]
pub fn answer(reply: &ReplyTo, outcome: &Result<Vec<u8>, ErrorDetail>) -> Bytes {
    let raw = |document: &[u8]| {
        let text = String::from_utf8_lossy(document).into_owned();
        RawValue::from_string(text).ok()
    };
    let envelope = match outcome {
        Ok(document) => Envelope {
            data: raw(document),
            ..Envelope::new("ok", reply)
        },
        Err(detail) => Envelope {
            error: Some(detail),
            ..Envelope::new("error", reply)
        },
    };
    encode(&envelope)
}

/// The body of a piece of an answer: documents as a stream over HTTP would send them.
#[must_use]
pub fn chunk(reply: &ReplyTo, seq: u64, documents: &[Vec<u8>]) -> Bytes {
    let data: Vec<Box<RawValue>> = documents
        .iter()
        .filter_map(|d| RawValue::from_string(String::from_utf8_lossy(d).into_owned()).ok())
        .collect();
    encode(&Envelope {
        data: Some(data),
        seq: Some(seq),
        ..Envelope::new("chunk", reply)
    })
}

fn encode<T: Serialize>(envelope: &Envelope<'_, T>) -> Bytes {
    // Plain data with string keys cannot fail to be written.
    serde_json::to_vec(envelope).unwrap_or_default().into()
}

/// The message that carries a body to whoever asked. `seq` numbers the pieces of a streamed answer, its end included.
#[must_use]
pub fn message(reply: &ReplyTo, payload: Bytes, qos: Qos, seq: Option<(u64, bool)>) -> Message {
    let user = seq.map_or_else(Vec::new, |(seq, last)| {
        vec![
            ("seq".to_owned(), seq.to_string()),
            ("final".to_owned(), last.to_string()),
        ]
    });
    Message {
        topic: reply.topic.clone(),
        payload,
        qos,
        retain: false,
        properties: Properties {
            json: true,
            correlation: reply.correlation.clone(),
            expiry_s: Some(ANSWER_EXPIRY_S),
            user,
        },
    }
}

/// Seconds for which the broker keeps an answer for a client that is away: an hour, like a session.
const ANSWER_EXPIRY_S: u32 = 3600;

#[cfg(test)]
mod tests {
    use glm_wire::error::ErrorKind;
    use serde_json::json;

    use super::*;

    fn reply() -> ReplyTo {
        ReplyTo {
            topic: "clients/1".to_owned(),
            correlation: Some("c".into()),
            transaction: Some(json!({"n": 1})),
        }
    }

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn an_answer_carries_the_document_and_the_transaction() {
        let body = answer(&reply(), &Ok(br#"{"text":"a"}"#.to_vec()));
        let expected = json!({"status": "ok", "data": {"text": "a"}, "transaction": {"n": 1}});
        assert_eq!(read(&body), expected);
    }

    #[test]
    fn an_error_carries_its_code() {
        let detail = ErrorDetail::new(ErrorKind::Overloaded, "overloaded", "full");
        let body = read(&answer(&reply(), &Err(detail.with_retry_after_ms(5))));
        assert_eq!(body["status"], "error");
        assert_eq!(body["error"]["retry_after_ms"], 5);
    }

    #[test]
    fn pieces_are_numbered_in_the_body_and_beside_it() {
        let body = chunk(&reply(), 3, &[b"{\"delta\":\"x\"}".to_vec()]);
        assert_eq!(read(&body)["seq"], 3);
        assert_eq!(read(&body)["data"][0]["delta"], "x");
        let sent = message(&reply(), body, Qos::AtMostOnce, Some((3, false)));
        assert_eq!(
            sent.properties.user[1],
            ("final".to_owned(), "false".to_owned())
        );
    }
}
