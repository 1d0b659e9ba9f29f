//! From ids back to text, one id at a time.
//!
//! There is one decoder: the whole-sequence decode feeds the same state, so a
//! stream always adds up to it. A token may end inside a UTF-8 character
//! (byte-level BPE, byte fallback); such bytes wait for their rest.

use tokenizers::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::Tokenizer;
use super::json::{bad, char_byte};
use crate::{Result, TokenId};

/// How the pieces of a vocabulary spell text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character stands for a byte.
    ByteLevel,
    /// `▁` is a space, `<0xNN>` a byte; the first space is the encoder's own.
    Metaspace {
        /// Whether the encoder put a space before the text.
        dummy_prefix: bool,
    },
    /// Words separated by spaces, continuations marked.
    WordPiece {
        /// Mark of a continuation.
        mark: String,
        /// Whether spaces before punctuation are removed.
        cleanup: bool,
    },
}

impl Spelling {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Ok(Self::ByteLevel),
            Some(DecoderWrapper::Metaspace(m)) => Ok(Self::Metaspace {
                dummy_prefix: m.prepend_scheme != PrependScheme::Never,
            }),
            Some(DecoderWrapper::WordPiece(w)) => Ok(Self::WordPiece {
                mark: w.prefix.clone(),
                cleanup: w.cleanup,
            }),
            // Converted SentencePiece models: a space mark, bytes, and a strip of the first space.
            Some(DecoderWrapper::Sequence(s)) => {
                let steps = s.get_decoders();
                let metaspace = steps.iter().find_map(|d| match d {
                    DecoderWrapper::Metaspace(_) => Self::of(Some(d)).ok(),
                    _ => None,
                });
                let replaces = steps
                    .iter()
                    .any(|d| matches!(d, DecoderWrapper::Replace(r) if r.content == " "));
                let strips = steps.iter().any(|d| matches!(d, DecoderWrapper::Strip(_)));
                metaspace
                    .or(replaces.then_some(Self::Metaspace {
                        dummy_prefix: strips,
                    }))
                    .ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

fn unknown() -> crate::Error {
    bad(
        "tokenizer.json",
        "its decoder is none of ByteLevel, Metaspace and WordPiece",
    )
}

/// State of a text under way: the bytes of an unfinished character and whether any text came yet.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    pending: Vec<u8>,
    started: bool,
}

impl Detokenizer {
    /// Adds a token and returns the text that is complete now. Special tokens have no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> String {
        if tokenizer.is_special(id) && !tokenizer.is_unknown(id) {
            return String::new();
        }
        self.add(tokenizer, id);
        self.complete()
    }

    /// Bytes of a token inside a text.
    pub(super) fn bytes(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
        let mut stream = Self {
            pending: Vec::new(),
            started: true,
        };
        stream.add(tokenizer, id);
        stream.pending
    }

    fn add(&mut self, tokenizer: &Tokenizer, id: TokenId) {
        let added = tokenizer.added_text(id);
        let piece = match (&added, tokenizer.piece(id)) {
            (Some(text), _) => text,
            (None, Some(piece)) => &piece.clone(),
            (None, None) => return,
        };
        let first = !std::mem::replace(&mut self.started, true);
        if let Some(text) = tokenizer.rules().after(piece) {
            self.pending.extend(text.bytes());
        } else if added.is_some() && !matches!(tokenizer.spelling(), Spelling::WordPiece { .. }) {
            self.pending.extend(piece.bytes());
        } else {
            self.spell(tokenizer, id, piece, first);
        }
    }

    /// Ends the text: what is left of an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(self).pending;
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn spell(&mut self, tokenizer: &Tokenizer, id: TokenId, piece: &str, first: bool) {
        match tokenizer.spelling() {
            Spelling::ByteLevel => {
                let mut utf8 = [0; 4];
                for c in piece.chars() {
                    match char_byte(c) {
                        Some(byte) => self.pending.push(byte),
                        None => self.pending.extend(c.encode_utf8(&mut utf8).bytes()),
                    }
                }
            }
            Spelling::Metaspace { dummy_prefix } => {
                if tokenizer.is_unknown(id) {
                    // SentencePiece's own surface for what it could not encode.
                    self.pending.extend(" \u{2047} ".bytes());
                } else if let Some(byte) = fallback_byte(piece) {
                    self.pending.push(byte);
                } else {
                    let text = piece.replace('\u{2581}', " ");
                    let text = match text.strip_prefix(' ') {
                        Some(rest) if first && *dummy_prefix => rest,
                        _ => &text,
                    };
                    self.pending.extend(text.bytes());
                }
            }
            Spelling::WordPiece { mark, cleanup } => {
                let text = match piece.strip_prefix(mark.as_str()) {
                    Some(rest) if !rest.is_empty() => rest.to_owned(),
                    _ if first => piece.to_owned(),
                    _ => format!(" {piece}"),
                };
                let text = if *cleanup { tidy(text) } else { text };
                self.pending.extend(text.bytes());
            }
        }
    }

    /// Takes what is decided: whole characters, and U+FFFD for bytes that no continuation can save.
    fn complete(&mut self) -> String {
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(e) => {
                    let valid = e.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(invalid) = e.error_len() else {
                        self.pending.drain(..valid);
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + invalid);
                }
            }
        }
    }
}

/// Value of a `<0xNN>` piece.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Removes the spaces that word-wise tokenisation put before punctuation and English contractions.
fn tidy(piece: String) -> String {
    match piece.as_str() {
        " ." | " ?" | " !" | " ," | " n't" | " 'm" | " 's" | " 've" | " 're" => {
            piece[1..].to_owned()
        }
        _ => piece,
    }
}
