//! JSON as Python writes it: prompts were made by Python's `json.dumps(..., ensure_ascii=False)`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{Error, Result};

/// One line, a space behind `,` and `:`.
pub(super) fn spaced(value: &impl Serialize) -> Result<String> {
    let mut out = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut out, Spaced))
        .map_err(unwritable)?;
    text(out)
}

/// Lines, indented by `width` spaces for each level.
pub(super) fn indented(value: &impl Serialize, width: usize) -> Result<String> {
    let indent = " ".repeat(width);
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    value
        .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .map_err(unwritable)?;
    text(out)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(unwritable)
}

fn unwritable(error: impl std::fmt::Display) -> Error {
    Error::Input {
        field: "messages",
        reason: format!("cannot be written as JSON: {error}"),
    }
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        separate(out, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        separate(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

fn separate<W: ?Sized + Write>(out: &mut W, first: bool) -> io::Result<()> {
    match first {
        true => Ok(()),
        false => out.write_all(b", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_writes_it() {
        let value = json!({"a": [1, 2.5, "灯"], "b": {}, "c": [], "d": null});
        assert_eq!(
            spaced(&value).unwrap(),
            r#"{"a": [1, 2.5, "灯"], "b": {}, "c": [], "d": null}"#
        );
        assert_eq!(
            indented(&json!({"a": [1, 2], "b": []}), 4).unwrap(),
            "{\n    \"a\": [\n        1,\n        2\n    ],\n    \"b\": []\n}"
        );
    }
}
