//! A model of words without weights, and the operations on it.

use std::path::Path;
use std::sync::Arc;

use glm::ModelSpec;
use glm::manifest::Tasks;
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{TextRules, Tokenizer};
use glm_engine::collect::Collected;
use glm_engine::model::ModelInfo;
use glm_engine::ops::Operations;
use glm_engine::{Config, Request};

use crate::support::{END, Rig, VOCABULARY, capabilities, info};

const SPECIALS: [&str; 7] = [
    "[PAD]",
    "[CLS]",
    "[sMASK]",
    "[gMASK]",
    "[MASK]",
    "<|startofpiece|>",
    "<|endofpiece|>",
];

/// Words from `w0` on, the unknown word, `.`, and special tokens: 64 in all.
pub fn tokenizer(specials: &[&str]) -> Tokenizer {
    let words = VOCABULARY - specials.len();
    let mut vocab: serde_json::Map<String, serde_json::Value> = (0..words - 2)
        .map(|id| (format!("w{id}"), id.into()))
        .collect();
    vocab.insert("[UNK]".into(), (words - 2).into());
    vocab.insert(".".into(), (words - 1).into());
    let mut added = Vec::new();
    for (id, name) in (words..).zip(specials) {
        vocab.insert((*name).into(), id.into());
        added.push(
            serde_json::json!({"id": id, "content": name, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}),
        );
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": { "type": "BertPreTokenizer" }, "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab }
    });
    Tokenizer::from_json(json.to_string().as_bytes(), TextRules::None).unwrap()
}

const TASKS: &str = r#"{
    "severity": {"kind": "classify", "description": "How bad it is.", "pattern": "{text} w50 [MASK].",
                 "labels": {"high": ["w1", "w2"], "low": ["w3"]}},
    "form": {"kind": "infill", "description": "JSON.", "pattern": "{text} [MASK]", "max_tokens": 5,
             "json_schema": {"type": "object"}},
    "intent": {"kind": "infill", "description": "What is wanted.", "pattern": "w51 {text} [gMASK]", "max_tokens": 5}
}"#;

/// The original GLM with all masks.
fn model() -> ModelInfo {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints/glm-post/config.json");
    let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizer = tokenizer(&SPECIALS);
    let mut special = SpecialIds {
        eos: vec![],
        part_a_end: tokenizer.special("[PAD]"),
        tokenizer_size: Some(VOCABULARY),
        ..SpecialIds::default()
    };
    special.complete(|name| tokenizer.special(name));
    assert_eq!(special.eop, Some(END));
    let tasks: Tasks = serde_json::from_str(TASKS).unwrap();
    ModelInfo {
        spec: ModelSpec::from_config(&config, &Hints::default()).unwrap(),
        special,
        tokenizer: Arc::new(tokenizer),
        tasks,
        ..info(capabilities())
    }
}

pub struct Bench {
    pub rig: Rig,
    pub operations: Operations,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(model())
    }

    pub fn with(model: ModelInfo) -> Self {
        let rig = Rig::with(Config::default(), model);
        let operations = Operations::new(rig.handle.model().unwrap()).unwrap();
        Self { rig, operations }
    }

    pub fn run(&mut self, request: Request) -> Collected {
        let mut ticket = self.rig.submit(request);
        self.rig.run();
        let mut collected = Collected::default();
        while let Some(event) = ticket.try_next() {
            if collected.push(event).unwrap() {
                return collected;
            }
        }
        panic!("no last event");
    }
}

pub fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
