//! A model without weights for tests of the scheduler.
//!
//! Its logits are a hash of exactly what a row may see, so any mistake of the
//! scheduler (a wrong position, a missing token, a mixed-up sequence) changes
//! the answer. Its blocks are counted and shared as in the real pool, and it
//! fails on command.
#![allow(dead_code, unused_imports, reason = "each test target uses a part")]

mod fake;
mod rig;
pub mod told;

use std::sync::Arc;

use glm::manifest::Tasks;
use glm::sampling::SamplingParams;
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{TextRules, Tokenizer};
use glm::{ModelSpec, Position, TokenId};
use glm_engine::backend::{Bytes, Capabilities};
use glm_engine::loading::Report;
use glm_engine::model::{Model, ModelInfo};
use glm_engine::request::{Context, Generate, Next, Placed, ScoreItem, Work, Writer};
use glm_engine::units::{Epoch, Priority};
use glm_engine::{Request, Result};

pub use fake::{END, FakeBackend, Shared, TestClock, VOCABULARY};
pub use rig::{Answer, Rig};

use fake::mix;

/// Capabilities of a small model.
pub fn capabilities() -> Capabilities {
    Capabilities {
        name: "fake",
        vocabulary: VOCABULARY,
        max_tokens: 512,
        block_tokens: 8,
        block_bytes: Bytes(1024),
        blocks: 256,
        max_sequences: 16,
        max_step_tokens: 256,
        chunked_prefill: true,
        fork: true,
    }
}

/// A model source that makes fakes.
pub fn source(
    info: ModelInfo,
    script: Shared,
    clock: Arc<TestClock>,
) -> impl FnMut() -> Result<Model> + Send {
    move || {
        script.lock().unwrap().loads += 1;
        Ok(Model {
            info: info.clone(),
            backend: Box::new(FakeBackend::new(
                info.capabilities.clone(),
                Arc::clone(&script),
                Arc::clone(&clock),
            )),
        })
    }
}

pub fn info(capabilities: Capabilities) -> ModelInfo {
    let config = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/checkpoints/glm-edge/config.json"
    ));
    let config = serde_json::from_str(config).unwrap();
    let hints = Hints {
        family: None,
        tokenizer_config: None,
    };
    ModelInfo {
        id: "fake".into(),
        digest: "fake".into(),
        epoch: Epoch(0),
        spec: ModelSpec::from_config(&config, &hints).unwrap(),
        special: SpecialIds {
            eos: vec![END],
            ..SpecialIds::default()
        },
        tokenizer: Arc::new(tokenizer()),
        chat_template: None,
        tasks: Tasks::default(),
        report: Report::default(),
        capabilities,
    }
}

/// A word for each id: `w0` to `w62`, and `[UNK]` for the end.
fn tokenizer() -> Tokenizer {
    let mut vocab: serde_json::Map<String, serde_json::Value> = (0..VOCABULARY - 1)
        .map(|id| (format!("w{id}"), id.into()))
        .collect();
    vocab.insert("[UNK]".into(), (VOCABULARY - 1).into());
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": false },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab
        }
    });
    Tokenizer::from_json(json.to_string().as_bytes(), TextRules::None).unwrap()
}

/// Writes until [`END`]; positions go on where the prompt ended.
#[derive(Clone, Debug)]
pub struct Plain {
    next: u32,
}

impl Writer for Plain {
    fn blank(&self) -> usize {
        0
    }

    fn is_text(&self, id: TokenId) -> bool {
        id != END
    }

    fn push(&mut self, sampled: TokenId) -> Result<Next> {
        if sampled == END {
            return Ok(Next::Done);
        }
        let position = Position::context(self.next);
        self.next += 1;
        Ok(Next::Feed(vec![Placed {
            id: sampled,
            position,
        }]))
    }

    fn overhead(&self) -> usize {
        0
    }

    fn restarts(&self) -> bool {
        false
    }

    fn fork(&self) -> Box<dyn Writer> {
        Box::new(self.clone())
    }
}

/// Fills `blanks` blanks, each until [`END`]; each piece after the first begins with two tokens of its own.
#[derive(Clone, Debug)]
pub struct Pieces {
    blanks: usize,
    blank: usize,
    /// Whether the context is read again, with what was written, before each blank.
    restart: bool,
    context: Context,
    offset: u32,
}

impl Writer for Pieces {
    fn blank(&self) -> usize {
        self.blank
    }

    fn is_text(&self, id: TokenId) -> bool {
        id != END
    }

    fn push(&mut self, sampled: TokenId) -> Result<Next> {
        let mask = u32::try_from(self.blank).unwrap();
        self.offset += 1;
        let placed = |id, offset| Placed {
            id,
            position: Position::piece(mask, offset),
        };
        let token = placed(sampled, self.offset);
        if sampled != END {
            self.context.tokens.push(token);
            return Ok(Next::Feed(vec![token]));
        }
        self.blank += 1;
        if self.blank == self.blanks {
            return Ok(Next::Done);
        }
        self.offset = 0;
        if self.restart {
            return Ok(Next::Restart(self.context.clone()));
        }
        Ok(Next::Feed(vec![token, placed(TokenId(62), 1)]))
    }

    fn overhead(&self) -> usize {
        self.blanks - 1
    }

    fn restarts(&self) -> bool {
        self.restart
    }

    fn fork(&self) -> Box<dyn Writer> {
        Box::new(self.clone())
    }
}

/// A request to fill blanks.
pub fn infill(prompt: &Arc<Context>, blanks: usize, restart: bool, n: usize, seed: u64) -> Request {
    let mut request = generate(prompt, n, 60, seed);
    if let Work::Generate(work) = &mut request.work {
        work.writer = Box::new(Pieces {
            blanks,
            blank: 0,
            restart,
            context: Context::clone(prompt),
            offset: 1,
        });
    }
    request
}

/// A prompt of `ids`, the first `bidirectional` of which see each other.
pub fn context(ids: &[u32], bidirectional: usize) -> Arc<Context> {
    let tokens = (0u32..).zip(ids).map(|(index, id)| Placed {
        id: TokenId(*id),
        position: Position::context(index),
    });
    Arc::new(Context {
        tokens: tokens.collect(),
        bidirectional,
    })
}

/// `length` ids that depend on `seed`, never [`END`].
pub fn ids(seed: u64, length: usize) -> Vec<u32> {
    (0..length as u64)
        .map(|i| u32::try_from(mix(seed, i) % 60).unwrap())
        .collect()
}

/// A number that depends on both.
pub const fn dice(a: u64, b: u64) -> u64 {
    mix(a, b)
}

/// A request to write.
pub fn generate(prompt: &Arc<Context>, n: usize, max_tokens: usize, seed: u64) -> Request {
    let next = u32::try_from(prompt.tokens.len()).unwrap();
    request(Work::Generate(Box::new(Generate {
        prompt: Arc::clone(prompt),
        writer: Box::new(Plain { next }),
        sampling: SamplingParams {
            seed,
            logprobs: Some(1),
            ..SamplingParams::default()
        },
        n,
        max_tokens,
        constraint: None,
        prompt_logprobs: None,
    })))
}

/// A request to score candidates after a prompt.
pub fn score(items: &[(Arc<Context>, Vec<Vec<u32>>)]) -> Request {
    let items = items.iter().map(|(prompt, candidates)| ScoreItem {
        prompt: Arc::clone(prompt),
        candidates: candidates
            .iter()
            .map(|c| {
                let first = u32::try_from(prompt.tokens.len()).unwrap();
                let tokens = (first..).zip(c).map(|(index, id)| Placed {
                    id: TokenId(*id),
                    position: Position::context(index),
                });
                tokens.collect()
            })
            .collect(),
    });
    request(Work::Score(items.collect()))
}

pub fn request(work: Work) -> Request {
    Request {
        work,
        epoch: Epoch(1),
        priority: Priority::Normal,
        deadline: None,
        coalesce_key: None,
        client: "test".into(),
    }
}
