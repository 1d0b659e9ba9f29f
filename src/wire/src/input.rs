//! Bytes to requests: bounded, whole, and strict.

use serde::de::DeserializeOwned;

/// Largest body that is read: far more text than any model of this size can take.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Deepest nesting of a body. A JSON schema may be nested, a bomb of brackets may not.
pub const MAX_DEPTH: usize = 64;

/// Why a body is not a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadInput {
    /// Field at fault, where one can be named.
    pub field: Option<String>,
    /// What is wrong and where.
    pub message: String,
}

impl BadInput {
    fn new(message: impl Into<String>) -> Self {
        Self {
            field: None,
            message: message.into(),
        }
    }
}

/// Parses a request body.
///
/// # Errors
/// [`BadInput`] when it is too large, too deep, not UTF-8, not JSON, or does
/// not match the request: the message names the field, line and column.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadInput> {
    if body.len() > MAX_BODY_BYTES {
        return Err(BadInput::new(format!(
            "the body has {} bytes, at most {MAX_BODY_BYTES} are read",
            body.len()
        )));
    }
    let text = std::str::from_utf8(body).map_err(|e| {
        BadInput::new(format!(
            "the body is not UTF-8 from byte {} on",
            e.valid_up_to()
        ))
    })?;
    if text.trim().is_empty() {
        return Err(BadInput::new(
            "the body is empty; a JSON object is expected",
        ));
    }
    if deeper_than(text.as_bytes(), MAX_DEPTH) {
        return Err(BadInput::new(format!(
            "the body is nested deeper than {MAX_DEPTH} levels"
        )));
    }
    serde_json::from_str(text).map_err(|e| {
        let message = e.to_string();
        BadInput {
            field: named_field(&message).map(|field| shortened(field, MAX_FIELD)),
            message: shortened(message, MAX_MESSAGE),
        }
    })
}

/// Longest name of a field that is told back: no field of the contract comes near.
const MAX_FIELD: usize = 100;
/// Longest message: serde's own words, two names and a place.
const MAX_MESSAGE: usize = 500;

/// At most `limit` bytes and an ellipsis: what a client sends is not sent back at length.
fn shortened(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end));
        // Where in the body it is stands at the end of what serde says.
        let place = text.rfind(" at line ").map(|at| text[at..].to_owned());
        text.truncate(end.unwrap_or(0));
        text.push('…');
        text.push_str(&place.filter(|p| p.len() < 60).unwrap_or_default());
    }
    text
}

/// Whether brackets outside strings nest deeper than `limit`.
fn deeper_than(text: &[u8], limit: usize) -> bool {
    let (mut depth, mut string, mut escaped) = (0usize, false, false);
    for &byte in text {
        match (string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => string = false,
            (true, _) => {}
            (false, b'"') => string = true,
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    false
}

/// The field that serde names between backticks, for messages about unknown, missing or doubled fields.
fn named_field(message: &str) -> Option<String> {
    let about_field = ["unknown field `", "missing field `", "duplicate field `"];
    let rest = about_field
        .iter()
        .find_map(|start| message.strip_prefix(start))?;
    Some(rest.split_once('`')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::infill::InfillRequest;

    #[test]
    fn a_field_outside_the_contract_is_refused_by_name() {
        let bad = parse::<InfillRequest>(br#"{"text":"a [MASK]","temprature":1}"#);
        let bad = bad.expect_err("an unknown field");
        assert_eq!(bad.field.as_deref(), Some("temprature"));
        let bad = parse::<InfillRequest>(b"{}").expect_err("no text");
        assert_eq!(bad.field.as_deref(), Some("text"));
    }

    #[test]
    fn hostile_bodies_are_refused_before_they_are_parsed() {
        let deep = vec![b'['; 1 << 20];
        let cases: [(&[u8], &str); 5] = [
            (&deep, "nested deeper"),
            (b"", "empty"),
            (b"\xff\xfe", "not UTF-8"),
            (br#"{"text":"x","seed":1e999}"#, "out of range"),
            (br#"{"text":"x","seed":NaN}"#, "expected"),
        ];
        for (body, expected) in cases {
            let bad = parse::<InfillRequest>(body).expect_err(expected);
            assert!(bad.message.contains(expected), "{bad}");
        }
        let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(MAX_BODY_BYTES));
        assert!(parse::<InfillRequest>(long.as_bytes()).is_err());
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        let body = format!(r#"{{"text":"{}\"["}}"#, "[".repeat(500));
        let request: InfillRequest = parse(body.as_bytes()).expect("brackets are text here");
        assert_eq!(request.text.len(), 502);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse::<InfillRequest>(&body);
        }

        #[test]
        fn what_is_written_is_read_back(text in ".{0,40}", n in proptest::option::of(1usize..9), seed in proptest::option::of(any::<u64>())) {
            let request = InfillRequest { text, n, seed, ..InfillRequest::default() };
            let body = serde_json::to_vec(&request).expect("plain data");
            prop_assert_eq!(parse::<InfillRequest>(&body).expect("own output"), request);
        }
    }
}
