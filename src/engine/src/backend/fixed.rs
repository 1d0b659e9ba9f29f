//! A graph with fixed shapes in ONNX Runtime: what NPUs compile.
//!
//! There are two sessions on the same weights, one for prompts and one for
//! single tokens. A step is padded to the size of its session; what stands in
//! the padding is seen by nobody. The past of a sequence lies in tensors as
//! long as the longest text, which the system backs page by page as they fill.
//! A step that fails leaves what it wrote beyond the end of its sequence.

use std::collections::BTreeMap;
use std::path::Path;

use glm_onnx::model_dir::STEP_GRAPH;
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, TensorRef};

use super::portable::{
    BLOCK_TOKENS, Cache, LOGITS, NAME, Options, blocks, cache, failed, session, size_beside,
    tensor_of, vocabulary,
};
use super::provider::Placement;
use super::{Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, Row, SeqId, Step};

/// Added to the score of a key that is not seen. Far below any score, and
/// within the range of f16, in which an NPU may add it.
const UNSEEN: f32 = -30_000.0;

/// A session and the tokens of its step.
#[derive(Debug)]
struct Sized {
    session: Session,
    tokens: usize,
}

/// A loaded model.
#[derive(Debug)]
pub struct FixedShapes {
    prompt: Sized,
    step: Sized,
    placement: Option<Placement>,
    capabilities: Capabilities,
    caches: Vec<Cache>,
    /// Tokens of the past that the graph takes.
    past: usize,
    /// Numbers of a position.
    positions: usize,
    weights: Bytes,
    sequences: BTreeMap<SeqId, Kept>,
}

/// `[heads, past, width]` of every cache, of which the first `tokens` are filled.
#[derive(Debug)]
struct Kept {
    tokens: usize,
    caches: Vec<Vec<f32>>,
}

/// What the inputs of a graph say.
struct Shape {
    tokens: usize,
    past: usize,
    positions: usize,
    caches: Vec<Cache>,
}

impl FixedShapes {
    /// Whether a model directory holds such graphs.
    #[must_use]
    pub fn is_in(folder: &Path) -> bool {
        folder.join(STEP_GRAPH).is_file()
    }

    /// Loads `model` and the graph for single tokens beside it.
    ///
    /// # Errors
    /// [`BackendError::Runtime`] naming the input that is not known, or with the message of ONNX Runtime.
    pub fn open(env: &Environment, model: &Path, options: &Options) -> Result<Self, BackendError> {
        let (prompt, placement) = session(env, model, options)?;
        let (step, step_placement) = session(env, &model.with_file_name(STEP_GRAPH), options)?;
        // The account that is given is the worse one: no node is said to run where it does not.
        let placement = [placement, step_placement]
            .into_iter()
            .flatten()
            .max_by_key(Placement::left);
        let (of_prompt, of_step) = (shape(&prompt)?, shape(&step)?);
        if of_step.tokens != 1 || of_step.past != of_prompt.past {
            return Err(failed(format!(
                "`{STEP_GRAPH}` takes {} tokens behind {}, the other graph has {} behind it",
                of_step.tokens, of_step.past, of_prompt.past
            )));
        }
        let vocabulary = vocabulary(&prompt)?;
        let Shape {
            tokens,
            past,
            positions,
            caches,
        } = of_prompt;
        let (block_bytes, blocks) = blocks(&caches, options.kv);
        Ok(Self {
            capabilities: Capabilities {
                name: NAME,
                vocabulary,
                max_tokens: past.min(options.max_tokens),
                block_tokens: BLOCK_TOKENS,
                block_bytes,
                blocks,
                max_sequences: usize::MAX,
                max_step_tokens: tokens,
                chunked_prefill: true,
                fork: false,
            },
            prompt: Sized {
                session: prompt,
                tokens,
            },
            step: Sized {
                session: step,
                tokens: 1,
            },
            placement,
            caches,
            past,
            positions,
            weights: Bytes(size_beside(model)),
            sequences: BTreeMap::new(),
        })
    }

    /// Where the nodes run, when a provider was asked for.
    #[must_use]
    pub const fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Refuses rows that are out of order or too many, before anything runs.
    fn check(&self, parts: &[&[Row]]) -> Result<(), BackendError> {
        let mut needed = 0;
        for (index, part) in parts.iter().enumerate() {
            let seq = part[0].seq;
            let bad = |reason: &str| Err(BackendError::BadStep(format!("{seq} {reason}")));
            if parts[..index].iter().any(|other| other[0].seq == seq) {
                return bad("does not stand together");
            }
            let held = self.len(seq);
            let total = held + part.len();
            let limit = self.capabilities.max_tokens;
            if total > limit {
                return bad(&format!("would hold {total} of {limit} tokens"));
            }
            for (at, chunk) in (0..)
                .step_by(self.prompt.tokens)
                .zip(part.chunks(self.prompt.tokens))
            {
                let end = held + at + chunk.len();
                if (chunk.iter()).any(|row| row.visible == 0 || row.visible as usize > end) {
                    return bad("sees keys that its step does not have");
                }
            }
            needed += total.div_ceil(BLOCK_TOKENS) - held.div_ceil(BLOCK_TOKENS);
        }
        let free = self.free_blocks();
        if needed > free {
            return Err(BackendError::OutOfBlocks { needed, free });
        }
        Ok(())
    }

    fn used_blocks(&self) -> usize {
        let blocks = |kept: &Kept| kept.tokens.div_ceil(BLOCK_TOKENS);
        self.sequences.values().map(blocks).sum()
    }

    fn free_blocks(&self) -> usize {
        self.capabilities.blocks.saturating_sub(self.used_blocks())
    }

    fn empty(&self) -> Kept {
        let caches = self.caches.iter();
        Kept {
            tokens: 0,
            caches: caches
                .map(|cache| vec![0.0; cache.heads * self.past * cache.width])
                .collect(),
        }
    }

    /// Runs rows that one step holds, behind the `held` first tokens of `kept`.
    fn run(
        &mut self,
        rows: &[Row],
        held: usize,
        kept: &mut Kept,
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let sized = match rows.len() {
            1 => &mut self.step,
            _ => &mut self.prompt,
        };
        let (size, past) = (sized.tokens, self.past);
        let padded = |values: &mut dyn Iterator<Item = u32>| -> Vec<i32> {
            let mut values: Vec<i32> = values
                .map(|x| i32::try_from(x).unwrap_or(i32::MAX))
                .collect();
            values.resize(size, 0);
            values
        };
        let ids = padded(&mut rows.iter().map(|row| row.id.0));
        let mut positions = padded(&mut rows.iter().map(|row| row.position.first));
        if self.positions == 2 {
            positions.extend(padded(&mut rows.iter().map(|row| row.position.second)));
        }
        let position_shape: Vec<usize> = match self.positions {
            2 => vec![1, 2, size],
            _ => vec![1, size],
        };
        let mut mask = vec![UNSEEN; size * (past + size)];
        for (row, seen) in rows.iter().zip(mask.chunks_exact_mut(past + size)) {
            let visible = row.visible as usize;
            let (before, new) = seen.split_at_mut(past);
            before[..visible.min(held)].fill(0.0);
            new[..visible.saturating_sub(held)].fill(0.0);
        }
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = vec![
            ("input_ids", Tensor::from_array(([1, size], ids))?.into()),
            (
                "position_ids",
                Tensor::from_array((position_shape, positions))?.into(),
            ),
            (
                "attention_mask",
                Tensor::from_array(([1, 1, size, past + size], mask))?.into(),
            ),
        ];
        for (cache, values) in self.caches.iter().zip(&kept.caches) {
            let shape = [1, cache.heads, past, cache.width];
            let values = TensorRef::from_array_view((shape, values.as_slice()))?;
            inputs.push((cache.past.as_str(), values.into()));
        }
        let outputs = sized.session.run(inputs)?;
        let taken = |name: &str, expected: usize| -> ort::Result<&[f32]> {
            let (_, values) = outputs[name].try_extract_tensor::<f32>()?;
            if values.len() == expected {
                return Ok(values);
            }
            let found = values.len();
            Err(ort::Error::new(format!(
                "`{name}` holds {found} numbers, expected {expected}"
            )))
        };
        for (cache, kept) in self.caches.iter().zip(&mut kept.caches) {
            let width = cache.width;
            let new = taken(&cache.present, cache.heads * size * width)?;
            let heads = kept.chunks_exact_mut(past * width);
            for (kept, new) in heads.zip(new.chunks_exact(size * width)) {
                let filled = rows.len() * width;
                kept[held * width..][..filled].copy_from_slice(&new[..filled]);
            }
        }
        let width = self.capabilities.vocabulary;
        let values = taken(LOGITS, size * width)?;
        for (row, values) in rows.iter().zip(values.chunks_exact(width)) {
            if row.logits {
                logits.extend_from_slice(values);
            }
        }
        Ok(())
    }
}

impl Backend for FixedShapes {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let parts: Vec<&[Row]> = step.rows.chunk_by(|a, b| a.seq == b.seq).collect();
        self.check(&parts)?;
        let mut values = Vec::new();
        let mut lengths = Vec::with_capacity(parts.len());
        for part in parts {
            let seq = part[0].seq;
            let mut kept = match self.sequences.remove(&seq) {
                Some(kept) => kept,
                None => self.empty(),
            };
            let mut held = kept.tokens;
            let mut ran = Ok(());
            for rows in part.chunks(self.prompt.tokens) {
                ran = self.run(rows, held, &mut kept, &mut values);
                held += rows.len();
                if ran.is_err() {
                    break;
                }
            }
            // What was written behind the end is not there until all parts have run.
            if kept.tokens > 0 || ran.is_ok() {
                self.sequences.insert(seq, kept);
            }
            lengths.push((seq, held));
            if let Err(error) = ran {
                self.sequences.retain(|_, kept| kept.tokens > 0);
                return Err(failed(error));
            }
        }
        for (seq, tokens) in lengths {
            if let Some(kept) = self.sequences.get_mut(&seq) {
                kept.tokens = tokens;
            }
        }
        Ok(Logits {
            values,
            vocabulary: self.capabilities.vocabulary,
        })
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.get(&seq).map_or(0, |kept| kept.tokens)
    }

    fn fork(&mut self, _parent: SeqId, child: SeqId, _tokens: usize) -> Result<(), BackendError> {
        Err(BackendError::BadStep(format!(
            "{child} cannot share: {NAME} has no blocks to share"
        )))
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        if let Some(kept) = self.sequences.get_mut(&seq) {
            kept.tokens = kept.tokens.min(tokens);
        }
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn memory(&self) -> MemoryUse {
        let used = Bytes(self.used_blocks() as u64 * self.capabilities.block_bytes.0);
        MemoryUse {
            weights: self.weights,
            // A provider copies them into memory of its own form.
            mapped: Bytes(0),
            kv_used: used,
            kv_resident: used,
            free_blocks: self.free_blocks(),
        }
    }

    fn shrink(&mut self) -> Bytes {
        // Pages behind the end of a sequence were never touched, or will be again.
        Bytes(0)
    }
}

/// Reads the sizes of a step off the inputs of its graph.
fn shape(session: &Session) -> Result<Shape, BackendError> {
    let (mut tokens, mut past, mut positions) = (0, 0, 0);
    let mut caches = Vec::new();
    for input in session.inputs() {
        let (ty, dims) = tensor_of(input)?;
        match (input.name(), ty, dims.as_slice()) {
            ("input_ids", TensorElementType::Int32, [1, n]) => tokens = *n,
            ("position_ids", TensorElementType::Int32, [1, _]) => positions = 1,
            ("position_ids", TensorElementType::Int32, [1, 2, _]) => positions = 2,
            ("attention_mask", TensorElementType::Float32, [1, 1, _, _]) => {}
            (name, TensorElementType::Float32, [1, _, n, _]) if name.starts_with("past") => {
                past = *n;
                caches.push(cache(session, name, &dims)?);
            }
            (name, ty, dims) => {
                return Err(failed(format!(
                    "input `{name}` ({ty:?}, {dims:?}) is not known"
                )));
            }
        }
    }
    if tokens == 0 || past == 0 || positions == 0 {
        return Err(failed("the graph does not say how long its steps are"));
    }
    Ok(Shape {
        tokens,
        past,
        positions,
        caches,
    })
}
