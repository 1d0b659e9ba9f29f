//! The parts of a `tokenizer.json` that every conversion writes.
//!
//! All sources are turned into this one file form, so the exporter ships one
//! canonical file and a tokenizer is built in one way only.

use serde_json::{Value, json};

use crate::{Error, Result};

/// Splitting rule of GLM-4 and GLM-Edge, published with the GLM-4 tokenizer.
pub(super) const GLM4_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// An error about one tokenizer file.
pub(super) fn bad(file: &str, reason: impl Into<String>) -> Error {
    Error::Tokenizer {
        file: file.to_owned(),
        reason: reason.into(),
    }
}

/// Bytes of a text file as text.
pub(super) fn text<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| bad(file, format!("is not UTF-8: {e}")))
}

/// A count as an id; vocabularies beyond 32 bits do not exist.
pub(super) fn id(file: &str, index: usize) -> Result<u32> {
    u32::try_from(index).map_err(|_| bad(file, "has more tokens than ids"))
}

/// One entry of `added_tokens`.
///
/// `special` tokens are never found in text. The others are found in the
/// normalised text, as SentencePiece does with user-defined symbols.
pub(super) fn added(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special,
    })
}

/// A whole file from its parts.
pub(super) fn document(
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added_tokens, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": decoder, "model": model,
    })
}

/// A byte-pair model.
pub(super) fn bpe(
    vocab: serde_json::Map<String, Value>,
    merges: Vec<Value>,
    unk: Option<&str>,
    byte_fallback: bool,
    ignore_merges: bool,
) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": unk.is_some(), "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
    })
}

/// The printable character that byte-level BPE writes for a byte.
///
/// Printable Latin-1 bytes stand for themselves; the other 68 are numbered
/// from U+0100 on (GPT-2's table).
pub(super) fn byte_char(byte: u8) -> char {
    if is_printable(byte) {
        char::from(byte)
    } else {
        let below = (0..byte).filter(|b| !is_printable(*b)).count();
        u32::try_from(0x100 + below)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that a character of byte-level BPE stands for.
pub(super) fn char_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ 0..=0xFF => u8::try_from(n).ok().filter(|b| is_printable(*b)),
        n @ 0x100..=0x143 => {
            let nth = usize::try_from(n - 0x100).ok()?;
            (0..=u8::MAX).filter(|b| !is_printable(*b)).nth(nth)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_a_bijection() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=u8::MAX {
            let c = byte_char(byte);
            assert_eq!(char_byte(c), Some(byte));
            assert!(seen.insert(c));
        }
        assert_eq!(byte_char(b' '), '\u{120}');
        assert_eq!(byte_char(b'\n'), '\u{10A}');
        assert_eq!(char_byte('\u{144}'), None);
        assert_eq!(char_byte(' '), None);
    }
}
