//! A model without weights: its logits are a hash of what a row may see.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm::manifest::Tasks;
use glm::spec::Hints;
use glm::tokenizer::{Additions, Tokenizer};
use glm::{ModelSpec, TokenId};
use glm_engine::backend::{
    Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, SeqId, Step,
};
use glm_engine::model::{Model, ModelInfo};
use glm_engine::units::Epoch;

/// Rows of the vocabulary.
const VOCABULARY: usize = 256;
/// Ends a piece.
const END: TokenId = TokenId(241);
/// Tokens of a piece before the model ends it.
const PIECE: usize = 4;
/// Tokens of a block.
const BLOCK: usize = 8;

/// What the fake is told, and what it tells.
#[derive(Debug, Default)]
pub struct Script {
    /// It never ends a piece.
    pub endless: AtomicBool,
    /// Time of a step.
    pub step_time: Mutex<Duration>,
    /// Loading fails.
    pub broken: AtomicBool,
    /// Loading fails, the next time only.
    pub broken_once: AtomicBool,
    /// Sequences that it holds.
    pub sequences: AtomicUsize,
    /// Steps that it ran.
    pub steps: AtomicUsize,
    /// Times that it was loaded.
    pub loads: AtomicUsize,
}

struct Fake {
    capabilities: Capabilities,
    sequences: HashMap<SeqId, Vec<u64>>,
    script: Arc<Script>,
}

impl Fake {
    fn used(&self) -> usize {
        let blocks = |states: &Vec<u64>| states.len().div_ceil(BLOCK);
        self.sequences.values().map(blocks).sum()
    }

    fn report(&self) {
        let count = self.sequences.len();
        self.script.sequences.store(count, Ordering::SeqCst);
    }
}

const fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0xD1B5_4A32_D192_ED03);
    let x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

impl Backend for Fake {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        std::thread::sleep(*self.script.step_time.lock().expect("no panic holds it"));
        self.script.steps.fetch_add(1, Ordering::SeqCst);
        let endless = self.script.endless.load(Ordering::SeqCst);
        let mut values = Vec::new();
        for row in &step.rows {
            let states = self.sequences.entry(row.seq).or_default();
            let before = states.last().copied().unwrap_or(1);
            states.push(mix(before, u64::from(row.id.0)));
            if !row.logits {
                continue;
            }
            let state = mix(before, u64::from(row.id.0));
            let written = row.position.second as usize;
            for token in 0..VOCABULARY as u64 {
                #[allow(clippy::cast_precision_loss)] // 20 bits are exact.
                let noise = (mix(state, token) >> 44) as f32 / 262_144.0;
                let is_end = token == u64::from(END.0);
                // Words of the fixture, not its pieces or punctuation.
                let is_word = (105..240).contains(&token);
                values.push(match (is_end, is_word) {
                    (true, _) if endless => -20.0,
                    (true, _) if written > PIECE => 20.0,
                    (_, true) => noise,
                    _ => noise - 10.0,
                });
            }
        }
        self.report();
        Ok(Logits {
            values,
            vocabulary: VOCABULARY,
        })
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.get(&seq).map_or(0, Vec::len)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        let states = self.sequences.get(&parent).and_then(|s| s.get(..tokens));
        let Some(states) = states.map(<[u64]>::to_vec) else {
            return Err(BackendError::BadStep("the parent is shorter".into()));
        };
        self.sequences.insert(child, states);
        self.report();
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        if let Some(states) = self.sequences.get_mut(&seq) {
            states.truncate(tokens);
        }
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
        self.report();
    }

    fn memory(&self) -> MemoryUse {
        let used = Bytes(self.used() as u64 * self.capabilities.block_bytes.0);
        MemoryUse {
            weights: Bytes(0),
            mapped: Bytes(0),
            kv_used: used,
            kv_resident: used,
            free_blocks: self.capabilities.blocks.saturating_sub(self.used()),
        }
    }

    fn shrink(&mut self) -> Bytes {
        Bytes(0)
    }
}

/// Loads the fake with the tokenizer and shape of a fixture.
pub fn load(script: &Arc<Script>) -> glm_engine::Result<Model> {
    script.loads.fetch_add(1, Ordering::SeqCst);
    if script.broken.load(Ordering::SeqCst) || script.broken_once.swap(false, Ordering::SeqCst) {
        return Err(glm_engine::Error::Load {
            reason: "model.onnx: told to fail".into(),
        });
    }
    let capabilities = Capabilities {
        name: "fake",
        vocabulary: VOCABULARY,
        max_tokens: 4096,
        block_tokens: BLOCK,
        block_bytes: Bytes(1024),
        blocks: 4096,
        max_sequences: 16,
        max_step_tokens: 4096,
        chunked_prefill: true,
        fork: true,
    };
    let info = info(capabilities.clone());
    Ok(Model {
        info,
        backend: Box::new(Fake {
            capabilities,
            sequences: HashMap::new(),
            script: Arc::clone(script),
        }),
    })
}

/// A description after the fixture of a GLM with 2D positions.
fn info(capabilities: Capabilities) -> ModelInfo {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/checkpoints/glm-post/"
    );
    let read = |name: &str| std::fs::read(format!("{folder}{name}")).expect("a fixture");
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    config["max_sequence_length"] = capabilities.max_tokens.into();
    let hints = Hints {
        family: None,
        tokenizer_config: None,
    };
    let spec = ModelSpec::from_config(&config, &hints).expect("a family");
    let tokenizer =
        Tokenizer::from_wordpiece(&read("vocab.txt"), Additions::GlmBert).expect("a tokenizer");
    let special = tokenizer.specials(&spec).expect("special tokens");
    ModelInfo {
        id: "fake".into(),
        digest: "fake".into(),
        epoch: Epoch(0),
        special,
        spec,
        tokenizer: Arc::new(tokenizer),
        chat_template: None,
        tasks: tasks(),
        report: glm_engine::loading::Report::default(),
        capabilities,
    }
}

/// One task of each kind.
fn tasks() -> Tasks {
    serde_json::from_value(serde_json::json!({
        "room": {
            "kind": "classify",
            "description": "Where it is.",
            "pattern": "{text} is in the [MASK].",
            "labels": {"kitchen": ["kitchen"], "garage": ["garage"]},
        },
        "place": {
            "kind": "infill",
            "description": "Where it is.",
            "pattern": "{text} is in the [MASK].",
            "max_tokens": 3,
        },
    }))
    .expect("tasks")
}
