//! The unmodified graph in ONNX Runtime, one sequence after the other.
//!
//! For models whose graph cannot be rewritten for paged caches. The keys and
//! values of a sequence are tensors that go in as past and come out as present;
//! they are kept when every sequence of the step has run, so a failed step
//! leaves all of them as they were. Memory is counted in blocks of
//! [`BLOCK_TOKENS`] as the scheduler expects, though nothing is shared.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ort::environment::Environment;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue};
use ort::value::{Outlet, Tensor, TensorElementType, TensorRef, ValueType};

use super::compiled::Compiled;
use super::provider::{self, Placement, Provider};
use super::{Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, Row, SeqId, Step};
use crate::events;

/// Name of this backend.
pub const NAME: &str = "ort-portable";
/// Name of the output that both kinds of graph have.
pub(super) const LOGITS: &str = "logits";
/// Tokens of one block in the accounts.
pub const BLOCK_TOKENS: usize = 32;

/// Limits that the graph does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Execution provider to run on; the CPU's own where it is `None`.
    pub provider: Option<Provider>,
    /// Threads of one step.
    pub threads: usize,
    /// Positions that the model can tell apart.
    pub max_tokens: usize,
    /// Memory for keys and values.
    pub kv: Bytes,
}

/// Past and present of one layer's keys or values.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) past: String,
    pub(super) present: String,
    pub(super) heads: usize,
    pub(super) width: usize,
}

/// How the graph takes the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    None,
    /// i64 `[1, total]` of ones: the graph is causal by itself.
    Ones,
    /// bool `[1, .., tokens, total]`, true where a key is seen.
    Seen(usize),
    /// f32 `[1, .., tokens, total]`, added to scores.
    Added(usize),
}

/// A loaded model.
#[derive(Debug)]
pub struct Portable {
    session: Session,
    /// Where the nodes run, when a provider was asked for.
    placement: Option<Placement>,
    capabilities: Capabilities,
    caches: Vec<Cache>,
    mask: Mask,
    /// Numbers of a position; 0 when the graph takes none.
    positions: usize,
    weights: Bytes,
    sequences: BTreeMap<SeqId, Kept>,
}

/// What is kept of a sequence: `[heads, tokens, width]` of every cache.
#[derive(Clone, Debug, Default)]
struct Kept {
    tokens: usize,
    caches: Vec<Vec<f32>>,
}

pub(super) fn failed(reason: impl ToString) -> BackendError {
    BackendError::Runtime {
        backend: NAME,
        reason: reason.to_string(),
    }
}

impl Portable {
    /// Loads `model`, which takes `input_ids`, an `attention_mask`, `position_ids` and the past of every layer.
    ///
    /// # Errors
    /// [`BackendError::Runtime`] naming the input or output that is not known, or with the message of ONNX Runtime.
    pub fn open(env: &Environment, model: &Path, options: Options) -> Result<Self, BackendError> {
        let (session, placement) = session(env, model, &options)?;
        let mut caches = Vec::new();
        let mut mask = Mask::None;
        let mut positions = 0;
        for input in session.inputs() {
            let (ty, dims) = tensor_of(input)?;
            match (input.name(), ty, dims.len()) {
                ("input_ids", TensorElementType::Int64, 2) => {}
                ("position_ids", TensorElementType::Int64, 2) => positions = 1,
                ("position_ids", TensorElementType::Int64, 3) => positions = 2,
                ("attention_mask", TensorElementType::Int64, 2) => mask = Mask::Ones,
                ("attention_mask", TensorElementType::Bool, rank @ 2..=4) => {
                    mask = Mask::Seen(rank)
                }
                ("attention_mask", TensorElementType::Float32, rank @ 2..=4) => {
                    mask = Mask::Added(rank);
                }
                (name, TensorElementType::Float32, 4) if name.starts_with("past") => {
                    caches.push(cache(&session, name, &dims)?);
                }
                (name, ty, rank) => {
                    return Err(failed(format!(
                        "input `{name}` ({ty:?}, rank {rank}) is not known"
                    )));
                }
            }
        }
        let vocabulary = vocabulary(&session)?;
        let (block_bytes, blocks) = blocks(&caches, options.kv);
        Ok(Self {
            capabilities: Capabilities {
                name: NAME,
                vocabulary,
                max_tokens: options.max_tokens,
                block_tokens: BLOCK_TOKENS,
                block_bytes,
                blocks,
                max_sequences: usize::MAX,
                max_step_tokens: usize::MAX,
                chunked_prefill: positions < 2,
                fork: false,
            },
            session,
            placement,
            caches,
            mask,
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
            if parts[..index].iter().any(|other| other[0].seq == seq) {
                return Err(BackendError::BadStep(format!(
                    "rows of {seq} do not stand together"
                )));
            }
            let held = self.len(seq);
            let total = held + part.len();
            if total > self.capabilities.max_tokens {
                let limit = self.capabilities.max_tokens;
                return Err(BackendError::BadStep(format!(
                    "{seq} would hold {total} of {limit} tokens"
                )));
            }
            if part
                .iter()
                .any(|row| row.visible == 0 || row.visible as usize > total)
            {
                return Err(BackendError::BadStep(format!(
                    "{seq} sees keys that it does not have"
                )));
            }
            let causal = (held + 1..)
                .zip(*part)
                .all(|(own, row)| row.visible as usize == own);
            if !causal && matches!(self.mask, Mask::None | Mask::Ones) {
                return Err(BackendError::BadStep(format!(
                    "{seq} is not causal, the graph is"
                )));
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
        self.sequences
            .values()
            .map(|kept| kept.tokens.div_ceil(BLOCK_TOKENS))
            .sum()
    }

    fn free_blocks(&self) -> usize {
        self.capabilities.blocks.saturating_sub(self.used_blocks())
    }

    /// Runs the rows of one sequence; returns what it then holds and appends the wanted logits.
    fn run(&mut self, part: &[Row], logits: &mut Vec<f32>) -> ort::Result<Kept> {
        let empty = Kept {
            tokens: 0,
            caches: vec![Vec::new(); self.caches.len()],
        };
        let kept = self.sequences.get(&part[0].seq).unwrap_or(&empty);
        let (new, total) = (part.len(), kept.tokens + part.len());
        let ids: Vec<i64> = part.iter().map(|row| row.id.into()).collect();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![(
            "input_ids".into(),
            Tensor::from_array(([1, new], ids))?.into(),
        )];
        let first = part.iter().map(|row| i64::from(row.position.first));
        match self.positions {
            0 => {}
            1 => {
                let values: Vec<i64> = first.collect();
                inputs.push((
                    "position_ids".into(),
                    Tensor::from_array(([1, new], values))?.into(),
                ));
            }
            _ => {
                let second = part.iter().map(|row| i64::from(row.position.second));
                let values: Vec<i64> = first.chain(second).collect();
                inputs.push((
                    "position_ids".into(),
                    Tensor::from_array(([1, 2, new], values))?.into(),
                ));
            }
        }
        let seen = part
            .iter()
            .flat_map(|row| (0..total).map(|key| key < row.visible as usize));
        let shape = |rank: usize| {
            let mut shape = vec![1; rank.saturating_sub(2)];
            shape.extend([new, total]);
            shape
        };
        let mask: Option<SessionInputValue<'_>> = match self.mask {
            Mask::None => None,
            Mask::Ones => Some(Tensor::from_array(([1, total], vec![1_i64; total]))?.into()),
            Mask::Seen(rank) => {
                Some(Tensor::from_array((shape(rank), seen.collect::<Vec<_>>()))?.into())
            }
            Mask::Added(rank) => {
                let values = seen
                    .map(|seen| if seen { 0.0 } else { f32::MIN })
                    .collect::<Vec<_>>();
                Some(Tensor::from_array((shape(rank), values))?.into())
            }
        };
        inputs.extend(mask.map(|mask| ("attention_mask".into(), mask)));
        for (cache, values) in self.caches.iter().zip(&kept.caches) {
            let shape = [1, cache.heads, kept.tokens, cache.width];
            let past: SessionInputValue<'_> = if kept.tokens == 0 {
                // A view of nothing is refused; an allocated tensor without elements is not.
                Tensor::<f32>::new(self.session.allocator(), shape)?.into()
            } else {
                TensorRef::from_array_view((shape, values.as_slice()))?.into()
            };
            inputs.push((cache.past.as_str().into(), past));
        }
        let outputs = self.session.run(inputs)?;
        let mut after = Kept {
            tokens: total,
            caches: Vec::with_capacity(self.caches.len()),
        };
        for cache in &self.caches {
            let (_, values) = outputs[cache.present.as_str()].try_extract_tensor::<f32>()?;
            if values.len() != cache.heads * total * cache.width {
                let name = &cache.present;
                return Err(ort::Error::new(format!(
                    "`{name}` does not hold {total} tokens"
                )));
            }
            after.caches.push(values.to_vec());
        }
        let (_, values) = outputs[LOGITS].try_extract_tensor::<f32>()?;
        let width = self.capabilities.vocabulary;
        if values.len() != new * width {
            return Err(ort::Error::new(format!(
                "`logits` does not hold {new} rows of {width}"
            )));
        }
        for (row, values) in part.iter().zip(values.chunks_exact(width)) {
            if row.logits {
                logits.extend_from_slice(values);
            }
        }
        Ok(after)
    }
}

impl Backend for Portable {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let parts: Vec<&[Row]> = step.rows.chunk_by(|a, b| a.seq == b.seq).collect();
        self.check(&parts)?;
        let mut values = Vec::new();
        let mut after = Vec::with_capacity(parts.len());
        for part in parts {
            after.push((part[0].seq, self.run(part, &mut values).map_err(failed)?));
        }
        self.sequences.extend(after);
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
        let Some(kept) = self
            .sequences
            .get_mut(&seq)
            .filter(|kept| kept.tokens > tokens)
        else {
            return;
        };
        for (cache, values) in self.caches.iter().zip(&mut kept.caches) {
            let head = (kept.tokens * cache.width).max(1);
            *values = values
                .chunks_exact(head)
                .flat_map(|head| &head[..tokens * cache.width])
                .copied()
                .collect();
        }
        kept.tokens = tokens;
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn memory(&self) -> MemoryUse {
        let used = Bytes(self.used_blocks() as u64 * self.capabilities.block_bytes.0);
        MemoryUse {
            weights: self.weights,
            // The runtime packs most of them anew, into memory of its own.
            mapped: Bytes(0),
            kv_used: used,
            kv_resident: used,
            free_blocks: self.free_blocks(),
        }
    }

    fn shrink(&mut self) -> Bytes {
        // Every tensor is as long as its sequence; there is nothing to spare.
        Bytes(0)
    }
}

pub(super) fn session(
    env: &Environment,
    model: &Path,
    options: &Options,
) -> Result<(Session, Option<Placement>), BackendError> {
    let told = |error: String| failed(format!("{}: {error}", model.display()));
    let plain = |error: ort::Error| failed(format!("{}: {error}", model.display()));
    let builder = || builder(env, options.threads).map_err(plain);
    let Some(provider) = &options.provider else {
        let mut builder = provider::on_cpu(env, builder()?).map_err(plain)?;
        return Ok((builder.commit_from_file(model).map_err(plain)?, None));
    };
    let open = |mut builder: SessionBuilder, model: &Path| {
        let session = builder.commit_from_file(model);
        let session = session.map_err(|error| error.to_string())?;
        let placement = provider.judge(&session)?;
        Ok::<_, String>((session, placement))
    };
    // Without a name for it nothing is kept, and the graph is compiled each time.
    let kept = Compiled::of(provider, model).unwrap_or_else(|error| {
        events::not_kept(&error);
        None
    });
    if let Some((graph, nodes)) = kept.as_ref().and_then(Compiled::found) {
        let builder = provider.apply(env, builder()?).map_err(told)?;
        match open(builder, &graph) {
            Ok((session, placement)) if placement.left() == 0 => {
                let taken = nodes;
                return Ok((session, Some(Placement { taken, ..placement })));
            }
            Ok(_) => events::compiled_refused("the provider left a part of it to the CPU"),
            Err(reason) => events::compiled_refused(&reason),
        }
    }
    let mut builder = provider.apply(env, builder()?).map_err(told)?;
    let kept = kept.filter(|kept| match kept.prepare() {
        Ok(()) => true,
        Err(error) => {
            events::not_kept(&error);
            false
        }
    });
    if let Some(kept) = &kept {
        builder = kept.record(builder).map_err(told)?;
    }
    let opened = open(builder, model);
    match (&kept, &opened) {
        (Some(kept), Ok((_, placement))) => {
            // It is only slower at the next start.
            if let Err(error) = kept.keep(placement) {
                events::not_kept(&error);
            }
        }
        (Some(kept), Err(_)) => kept.forget(),
        (None, _) => {}
    }
    let (session, placement) = opened.map_err(told)?;
    Ok((session, Some(placement)))
}

/// Length of a row of logits.
pub(super) fn vocabulary(session: &Session) -> Result<usize, BackendError> {
    let mut outputs = session.outputs().iter();
    let logits = outputs
        .find(|output| output.name() == LOGITS)
        .ok_or_else(|| failed("the graph has no output `logits`"))?;
    match tensor_of(logits)?.1.last() {
        Some(size) if *size > 0 => Ok(*size),
        _ => Err(failed("the graph does not say how long a row of logits is")),
    }
}

/// Bytes of a block of keys and values in f32, and how many of them `kv` holds.
pub(super) fn blocks(caches: &[Cache], kv: Bytes) -> (Bytes, usize) {
    let floats: usize = caches.iter().map(|cache| cache.heads * cache.width).sum();
    let bytes = Bytes((floats * 4 * BLOCK_TOKENS) as u64);
    let count = kv.0 / bytes.0.max(1);
    (bytes, usize::try_from(count).unwrap_or(usize::MAX))
}

fn builder(env: &Environment, threads: usize) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(env)?
        .with_logger(super::ort_paged::quiet())?
        .with_intra_threads(threads)?
        .with_intra_op_spinning(false)?
        .with_memory_pattern(false)?)
}

pub(super) fn tensor_of(outlet: &Outlet) -> Result<(TensorElementType, Vec<usize>), BackendError> {
    match outlet.dtype() {
        // A size that is only known at run time reads as 0 here.
        ValueType::Tensor { ty, shape, .. } => Ok((
            *ty,
            shape
                .iter()
                .map(|size| usize::try_from(*size).unwrap_or(0))
                .collect(),
        )),
        _ => Err(failed(format!("`{}` is no tensor", outlet.name()))),
    }
}

pub(super) fn cache(session: &Session, past: &str, dims: &[usize]) -> Result<Cache, BackendError> {
    let rest = past
        .strip_prefix("past_key_values")
        .or_else(|| past.strip_prefix("past"));
    let present = format!("present{}", rest.unwrap_or_default());
    if !session
        .outputs()
        .iter()
        .any(|output| output.name() == present)
    {
        return Err(failed(format!(
            "`{past}` goes in and `{present}` does not come out"
        )));
    }
    match (dims[1], dims[3]) {
        (heads, width) if heads > 0 && width > 0 => Ok(Cache {
            past: past.to_owned(),
            present,
            heads,
            width,
        }),
        _ => Err(failed(format!(
            "`{past}` does not say how many heads it has and how wide they are"
        ))),
    }
}

/// Size of a model file and of the data beside it.
pub(super) fn size_beside(model: &Path) -> u64 {
    let mut data = model.as_os_str().to_owned();
    data.push(".data");
    [model, Path::new(&data)]
        .into_iter()
        .filter_map(|path| path.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
