//! Standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::{Failure, Result};

/// Writes text as it is, at once: whoever reads sees it now.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::io("standard output", e))
}

/// Writes a line.
pub fn line(content: &str) -> Result<()> {
    text(&format!("{content}\n"))
}

/// Writes a value as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<()> {
    line(&format!("{:#}", serde_json::json!(value)))
}

/// Writes a value as one line of JSON.
pub fn json_line<T: Serialize>(value: &T) -> Result<()> {
    line(&serde_json::json!(value).to_string())
}

/// One line of text from an answer that may hold several: line breaks are written as `\n`, `\` as `\\`.
pub fn one_line(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\r', "\\r")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_several_lines_fit_on_one() {
        assert_eq!(one_line("a\nb\\n\r"), "a\\nb\\\\n\\r");
    }
}
