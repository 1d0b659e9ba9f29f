//! Conversion of a SentencePiece model file.
//!
//! The file is a protocol-buffer message; only the fields that change ids are
//! read. A BPE model stores scores, not merges: the merges are every split of
//! a piece into two known pieces, best score first, ties by ids.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use prost::Message;
use serde_json::{Map, Value, json};

use super::json::{added, bad, bpe, document, id};
use super::sources::Additions;
use crate::Result;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

/// What SentencePiece writes for a space.
const MARK: &str = "\u{2581}";

/// Longest piece that is searched for splits; SentencePiece trains at most 16 characters by default.
const LONGEST_PIECE: usize = 1024;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// Whether the bytes look like a SentencePiece model rather than a text file.
pub(super) fn is_sentencepiece(bytes: &[u8]) -> bool {
    // Field 1 (pieces), length-delimited: the first byte of every such file, and a line feed in text.
    bytes.first() == Some(&0x0A)
}

/// `tokenizer.json` of a SentencePiece BPE or Unigram model.
pub(super) fn convert(file: &str, bytes: &[u8], additions: Additions) -> Result<Value> {
    let model =
        Model::decode(bytes).map_err(|e| bad(file, format!("not a SentencePiece model: {e}")))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    if trainer.whitespace_as_suffix == Some(true) || normalizer.escape_whitespaces == Some(false) {
        return Err(bad(
            file,
            "marks spaces in a way that no GLM tokenizer does",
        ));
    }
    let pieces = model.pieces;
    check(file, &pieces)?;
    let byte_fallback = trainer.byte_fallback == Some(true);
    let mut unknown = pieces.iter().position(|p| p.kind() == UNKNOWN);
    let body = match trainer.model_type.unwrap_or(UNIGRAM) {
        BPE => {
            let mut vocab = Map::new();
            for (index, piece) in pieces.iter().enumerate() {
                vocab.insert(piece.text().to_owned(), json!(id(file, index)?));
            }
            let unk = unknown.map(|u| pieces[u].text());
            bpe(vocab, merges(&pieces), unk, byte_fallback, false)
        }
        UNIGRAM => {
            let unk = *unknown.get_or_insert(0);
            json!({"type": "Unigram", "unk_id": unk, "byte_fallback": byte_fallback,
                   "vocab": lattice(&pieces)})
        }
        other => {
            return Err(bad(
                file,
                format!("model type {other}: expected BPE (2) or Unigram (1)"),
            ));
        }
    };
    let mut specials = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let special = matches!(piece.kind(), CONTROL | UNKNOWN) || is_control_name(piece.text());
        if special || piece.kind() == USER_DEFINED {
            specials.push(added(id(file, index)?, piece.text(), special));
        }
    }
    specials.extend(additions.entries(file, pieces.len())?);
    let prefix = normalizer.dummy_prefix.unwrap_or(true);
    let symbols: Vec<&str> = pieces
        .iter()
        .filter(|p| p.kind() == USER_DEFINED && !is_control_name(p.text()))
        .map(Piece::text)
        .collect();
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": MARK, "split": false, "prepend_scheme": scheme});
    Ok(document(
        specials,
        normalisation(file, &normalizer, prefix, &symbols)?,
        metaspace("never"),
        metaspace(if prefix { "always" } else { "never" }),
        body,
    ))
}

fn check(file: &str, pieces: &[Piece]) -> Result<()> {
    let mut seen = HashSet::new();
    for (index, piece) in pieces.iter().enumerate() {
        let text = piece.text();
        if text.is_empty() || text.len() > LONGEST_PIECE || !piece.score().is_finite() {
            return Err(bad(
                file,
                format!("piece {index} is empty, too long or has no finite score"),
            ));
        }
        if !seen.insert(text) {
            return Err(bad(file, format!("piece {index} repeats `{text}`")));
        }
    }
    match pieces.iter().any(|p| p.kind() == NORMAL) {
        true => Ok(()),
        false => Err(bad(file, "has no pieces; it is not a SentencePiece model")),
    }
}

/// Tokens whose name says that they are not text, whatever type the file gives them.
pub(super) fn is_control_name(text: &str) -> bool {
    matches!(
        text,
        "[MASK]"
            | "[gMASK]"
            | "[sMASK]"
            | "[CLS]"
            | "[SEP]"
            | "[PAD]"
            | "[dBLOCK]"
            | "<sop>"
            | "<eop>"
            | "<bos>"
            | "<eos>"
            | "<pad>"
            | "<ENC>"
            | "<dBLOCK>"
            | "<|startofpiece|>"
            | "<|endofpiece|>"
            | "<|endoftext|>"
            | "<|system|>"
            | "<|user|>"
            | "<|assistant|>"
            | "<|observation|>"
    )
}

/// Every way to make a piece of two pieces, in the order in which SentencePiece would.
fn merges(pieces: &[Piece]) -> Vec<Value> {
    let known: HashMap<&str, usize> = pieces
        .iter()
        .enumerate()
        .filter(|(_, p)| p.kind() == NORMAL)
        .map(|(index, p)| (p.text(), index))
        .collect();
    let mut found = Vec::new();
    for (&text, &index) in &known {
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(&l), Some(&r)) = (known.get(left), known.get(right)) {
                found.push((pieces[index].score(), l, r));
            }
        }
    }
    found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found
        .into_iter()
        .map(|(_, l, r)| json!([pieces[l].text(), pieces[r].text()]))
        .collect()
}

/// Pieces and scores of a Unigram model.
///
/// SentencePiece keeps pieces that are not text out of its lattice; here they
/// get a score so low that no path through the text prefers them.
fn lattice(pieces: &[Piece]) -> Vec<Value> {
    let lowest = pieces
        .iter()
        .filter(|p| p.kind() == NORMAL)
        .map(|p| f64::from(p.score()))
        .fold(0.0, f64::min);
    pieces
        .iter()
        .map(|p| match p.kind() {
            NORMAL | USER_DEFINED => json!([p.text(), p.score()]),
            _ => json!([p.text(), lowest - 1000.0]),
        })
        .collect()
}

fn normalisation(file: &str, spec: &Normalizer, prefix: bool, symbols: &[&str]) -> Result<Value> {
    let mut steps = Vec::new();
    if let Some(map) = spec.charsmap.as_ref().filter(|m| !m.is_empty()) {
        check_charsmap(file, map)?;
        let coded = base64::engine::general_purpose::STANDARD.encode(map);
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": coded}));
    }
    if spec.remove_extra_whitespaces.unwrap_or(true) {
        steps.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    if prefix {
        // Before everything except nothing, and except a symbol that is normalised by itself:
        // the prefix would become part of the symbol.
        let symbols: Vec<String> = symbols.iter().map(|s| format!("|{}", escape(s))).collect();
        let pattern = format!("^(?!(?:{})$)", symbols.concat());
        steps.push(json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": MARK}));
    }
    Ok(json!({"type": "Sequence", "normalizers": steps}))
}

/// A literal as a regular expression.
fn escape(literal: &str) -> String {
    literal
        .chars()
        .flat_map(|c| {
            let special = r"\.+*?()|[]{}^$#&-~".contains(c);
            special.then_some('\\').into_iter().chain([c])
        })
        .collect()
}

/// The map is a length in bytes, a double-array trie of that length, then the replacements.
fn check_charsmap(file: &str, map: &[u8]) -> Result<()> {
    let trie = map
        .first_chunk::<4>()
        .map(|b| u32::from_le_bytes(*b) as usize)
        .filter(|len| len.is_multiple_of(4) && *len >= 1024 && len + 4 < map.len());
    match trie {
        Some(len) if std::str::from_utf8(&map[4 + len..]).is_ok() => Ok(()),
        _ => Err(bad(file, "the normaliser's character map is damaged")),
    }
}
