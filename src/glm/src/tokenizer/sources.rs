//! Conversion of the plain-text tokenizer files: WordPiece, byte-level BPE and tiktoken.

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::json::{GLM4_SPLIT, added, bad, bpe, byte_char, document, id, text};
use crate::Result;

/// Special tokens that a family's own code adds behind the vocabulary file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Additions {
    /// None: the file is complete.
    None,
    /// GLM base, large, 410M, 515M.
    GlmBert,
    /// GLM roberta-large, whose mask token is the vocabulary's own `<mask>`.
    GlmRoberta,
    /// GLM 2B and 10B.
    Glm10b,
    /// GLM large-chinese and 10B-chinese.
    GlmChinese,
    /// ChatGLM2-6B.
    ChatGlm2,
    /// ChatGLM3-6B.
    ChatGlm3,
    /// GLM-4-9B.
    Glm4,
}

impl Additions {
    /// The tokens, in id order from the first free id.
    pub(super) const fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::GlmBert | Self::GlmRoberta => &["<|startofpiece|>", "<|endofpiece|>"],
            Self::Glm10b => &[
                "<|startofpiece|>",
                "<|endofpiece|>",
                "[CLS]",
                "[MASK]",
                "[SEP]",
                "[UNUSED]",
                "[gMASK]",
                "[sMASK]",
                "[dBLOCK]",
            ],
            Self::GlmChinese => &[
                "<|endoftext|>",
                "[SEP]",
                "[CLS]",
                "[MASK]",
                "[UNUSED1]",
                "[UNUSED2]",
                "<|startofpiece|>",
                "<|endofpiece|>",
                "[sMASK]",
                "[gMASK]",
                "[dBLOCK]",
            ],
            Self::ChatGlm2 => &["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"],
            Self::ChatGlm3 => &[
                "[MASK]",
                "[gMASK]",
                "[sMASK]",
                "sop",
                "eop",
                "<|system|>",
                "<|user|>",
                "<|assistant|>",
                "<|observation|>",
            ],
            Self::Glm4 => &[
                "<|endoftext|>",
                "[MASK]",
                "[gMASK]",
                "[sMASK]",
                "<sop>",
                "<eop>",
                "<|system|>",
                "<|user|>",
                "<|assistant|>",
                "<|observation|>",
                "<|begin_of_image|>",
                "<|end_of_image|>",
                "<|begin_of_video|>",
                "<|end_of_video|>",
            ],
        }
    }

    /// `added_tokens` entries from `first` on.
    pub(super) fn entries(self, file: &str, first: usize) -> Result<Vec<Value>> {
        self.names()
            .iter()
            .enumerate()
            .map(|(i, name)| Ok(added(id(file, first + i)?, name, true)))
            .collect()
    }
}

/// `vocab.txt` of lower-case BERT: one piece a line.
pub(super) fn wordpiece(bytes: &[u8], additions: Additions) -> Result<Value> {
    const FILE: &str = "vocab.txt";
    let mut vocab = Map::new();
    let mut specials = Vec::new();
    let lines = text(FILE, bytes)?;
    for (index, line) in lines.lines().enumerate() {
        let piece = line.trim_end();
        let id = id(FILE, index)?;
        if vocab.insert(piece.to_owned(), json!(id)).is_some() {
            return Err(bad(FILE, format!("line {} repeats `{piece}`", index + 1)));
        }
        if matches!(piece, "[PAD]" | "[UNK]" | "[CLS]" | "[SEP]" | "[MASK]") {
            specials.push(added(id, piece, true));
        }
    }
    if !vocab.contains_key("[UNK]") {
        return Err(bad(FILE, "has no [UNK]; it is not a WordPiece vocabulary"));
    }
    specials.extend(additions.entries(FILE, vocab.len())?);
    Ok(document(
        specials,
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
               "strip_accents": null, "lowercase": true}),
        json!({"type": "BertPreTokenizer"}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": vocab}),
    ))
}

/// `vocab.json` and `merges.txt` of GPT-2 or RoBERTa.
pub(super) fn byte_bpe(vocab: &[u8], merges: &[u8], additions: Additions) -> Result<Value> {
    const VOCAB: &str = "vocab.json";
    const MERGES: &str = "merges.txt";
    let mut vocab: Map<String, Value> =
        serde_json::from_slice(vocab).map_err(|e| bad(VOCAB, e.to_string()))?;
    if additions == Additions::GlmRoberta
        && let Some(mask) = vocab.remove("<mask>")
    {
        vocab.insert("[MASK]".to_owned(), mask);
    }
    let mut specials = Vec::new();
    let mut next = 0;
    for (piece, value) in &vocab {
        let number = value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| bad(VOCAB, format!("`{piece}` has no id but {value}")))?;
        next = next.max(number as usize + 1);
        if matches!(
            piece.as_str(),
            "<|endoftext|>" | "<s>" | "</s>" | "<pad>" | "<unk>" | "[MASK]"
        ) {
            specials.push((number, added(number, piece, true)));
        }
    }
    specials.sort_by_key(|(number, _)| *number);
    let mut specials: Vec<Value> = specials.into_iter().map(|(_, entry)| entry).collect();
    specials.extend(additions.entries(VOCAB, next)?);
    let mut pairs = Vec::new();
    for (index, line) in text(MERGES, merges)?.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        let pair = line
            .split_once(' ')
            .filter(|(l, r)| vocab.contains_key(*l) && vocab.contains_key(*r));
        let Some((left, right)) = pair else {
            return Err(bad(
                MERGES,
                format!("line {} is not a pair of known pieces", index + 1),
            ));
        };
        pairs.push(json!([left, right]));
    }
    Ok(document(
        specials,
        Value::Null,
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        bpe(vocab, pairs, None, false, false),
    ))
}

/// A tiktoken file: `base64(token bytes) rank` a line, ranks 0.. without gaps.
///
/// Tiktoken merges the adjacent pair whose union has the lowest rank, so every
/// split of a token into two tokens is a merge of that token's rank; a word
/// that is a token as a whole is never merged at all.
pub(super) fn tiktoken(bytes: &[u8], additions: Additions) -> Result<Value> {
    const FILE: &str = "tokenizer.model";
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut tokens: Vec<Option<Vec<u8>>> = Vec::new();
    for (index, line) in text(FILE, bytes)?.lines().enumerate() {
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &str| bad(FILE, format!("line {}: {what}", index + 1));
        let (token, rank) = line
            .split_once(' ')
            .ok_or_else(|| wrong("expected base64, a space and a rank"))?;
        let token = base64::engine::general_purpose::STANDARD
            .decode(token)
            .map_err(|_| wrong("the token is not base64"))?;
        let rank: u32 = rank
            .trim()
            .parse()
            .map_err(|_| wrong("the rank is not a number"))?;
        // A rank beyond the number of bytes of the file cannot be without gaps.
        let place = rank as usize;
        if token.is_empty() || place >= bytes.len() {
            return Err(wrong("empty token, or a rank that leaves a gap"));
        }
        if tokens.len() <= place {
            tokens.resize(place + 1, None);
        }
        if tokens[place].replace(token.clone()).is_some() || ranks.insert(token, rank).is_some() {
            return Err(wrong("repeats a token or a rank"));
        }
    }
    let mut vocab = Map::new();
    let mut merges = Vec::new();
    for (rank, token) in tokens.iter().enumerate() {
        let token = token
            .as_ref()
            .ok_or_else(|| bad(FILE, format!("rank {rank} is missing")))?;
        vocab.insert(spell(token), json!(id(FILE, rank)?));
        let mut splits: Vec<(u32, u32, usize)> = (1..token.len())
            .filter_map(|cut| {
                let (left, right) = token.split_at(cut);
                Some((*ranks.get(left)?, *ranks.get(right)?, cut))
            })
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, cut)| {
            let (left, right) = token.split_at(cut);
            json!([spell(left), spell(right)])
        }));
    }
    if let Some(byte) = (0..=u8::MAX).find(|b| !ranks.contains_key([*b].as_slice())) {
        return Err(bad(FILE, format!("byte {byte:#04x} has no token")));
    }
    let specials = additions.entries(FILE, tokens.len())?;
    Ok(document(
        specials,
        Value::Null,
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GLM4_SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        bpe(vocab, merges, None, false, true),
    ))
}

fn spell(token: &[u8]) -> String {
    token.iter().map(|b| byte_char(*b)).collect()
}
