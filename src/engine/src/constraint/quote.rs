//! Strings of a schema that are quoted from the text that is asked about.
//!
//! A small model that copies a name it has never seen may lose a syllable. Where a schema says
//! `{"type": "string", "x-quoted": true}`, the string must be a run of whole words of the text;
//! [`expand`] replaces the key by a `pattern` that accepts the runs. The first word may lose its capital.

use std::ops::Range;

use serde_json::{Map, Value};

use super::escape;

/// The key in a schema.
const KEY: &str = "x-quoted";
/// Most words of a text whose runs are spelt out, and its most bytes: the pattern grows with the square of the
/// words. Sentences that are spoken to a house have ten; in a longer text the string may be any.
const MAX_WORDS: usize = 64;
const MAX_BYTES: usize = 512;

/// `schema` with its quoted strings spelt out for `text`.
#[must_use]
pub fn expand(schema: &Value, text: &str) -> Value {
    let pattern = if mentions(schema) { runs(text) } else { None };
    replace(schema, pattern.as_deref())
}

fn mentions(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.contains_key(KEY) || fields.values().any(mentions),
        Value::Array(items) => items.iter().any(mentions),
        _ => false,
    }
}

fn replace(schema: &Value, pattern: Option<&str>) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut out: Map<String, Value> = (fields.iter())
                .filter(|(key, _)| *key != KEY)
                .map(|(key, value)| (key.clone(), replace(value, pattern)))
                .collect();
            if fields.get(KEY) == Some(&Value::Bool(true))
                && let Some(pattern) = pattern
            {
                out.insert("pattern".to_owned(), pattern.into());
            }
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(|item| replace(item, pattern)).collect(),
        plain => plain.clone(),
    }
}

/// An expression that matches every run of whole words of `text`; `None` where there is none or it would be too long.
fn runs(text: &str) -> Option<String> {
    let words = words(text);
    if words.is_empty() || words.len() > MAX_WORDS || text.len() > MAX_BYTES {
        return None;
    }
    let from = |first: usize| {
        let mut run = word(text, &words[first], first == 0);
        for pair in words[first..].windows(2) {
            let next = text.get(pair[0].end..pair[1].end).unwrap_or_default();
            run.push_str("(?:");
            run.push_str(&escape(next));
        }
        run + &")?".repeat(words.len() - first - 1)
    };
    let runs: Vec<String> = (0..words.len()).map(from).collect();
    Some(format!("^(?:{})$", runs.join("|")))
}

/// A word; `first` may be written small.
fn word(text: &str, at: &Range<usize>, first: bool) -> String {
    let word = text.get(at.clone()).unwrap_or_default();
    let mut rest = word.chars();
    match rest.next() {
        Some(c) if first && c.is_uppercase() && c.to_lowercase().count() == 1 => {
            let small: String = c.to_lowercase().collect();
            format!("(?:{c}|{small}){}", escape(rest.as_str()))
        }
        _ => escape(word),
    }
}

/// Where words stand, in bytes: letters and digits in a row, and each character of a script without spaces.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        match c.is_alphanumeric() {
            true if unspaced(c) => {
                words.push(at..end);
                open = false;
            }
            true if open => {
                if let Some(last) = words.last_mut() {
                    last.end = end;
                }
            }
            true => {
                words.push(at..end);
                open = true;
            }
            false => open = false,
        }
    }
    words
}

/// Whether a character's script writes no spaces: Chinese and Japanese.
const fn unspaced(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_are_runs_of_letters_and_single_chinese_characters() {
        let found = |text: &str| -> Vec<String> {
            let words = words(text).into_iter();
            words.map(|at| text[at].to_owned()).collect()
        };
        assert_eq!(
            found(" Lock Anna's side-door (2)."),
            ["Lock", "Anna", "s", "side", "door", "2"]
        );
        assert_eq!(found("开灯 am 9点"), ["开", "灯", "am", "9", "点"]);
    }

    #[test]
    fn a_run_may_begin_at_every_word() {
        assert_eq!(runs("on, b").unwrap(), "^(?:on(?:, b)?|b)$");
        assert_eq!(runs("On (b)").unwrap(), r"^(?:(?:O|o)n(?: \(b)?|b)$");
    }

    #[test]
    fn what_is_not_marked_stays() {
        let schema =
            json!({"anyOf": [{"type": "string", "x-quoted": false}, {"const": "x-quoted"}]});
        let plain = json!({"anyOf": [{"type": "string"}, {"const": "x-quoted"}]});
        assert_eq!(expand(&schema, "a b"), plain);
    }

    #[test]
    fn in_a_text_without_words_or_with_many_the_string_is_free() {
        let schema = json!({"properties": {"name": {"type": "string", "x-quoted": true}}});
        let free = json!({"properties": {"name": {"type": "string"}}});
        for text in ["?!".to_owned(), "word ".repeat(65), "w".repeat(513)] {
            assert_eq!(expand(&schema, &text), free);
        }
    }
}
