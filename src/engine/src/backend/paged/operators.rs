//! Our operators, as functions on slices: what both runtimes call.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use glm_kernels::{
    AttentionParams, KernelError, Kernels, KvCache, KvLayout, KvType, Parallel, Qkv, Rotary,
    RotaryStyle, Scratch,
};
use glm_onnx::paging::{self, AttentionLayer, Description, Paged, PositionInput, QkvLayout};

use super::weights::Weights;
use crate::backend::Bytes;

/// Limits that the graph does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Positions that the model can tell apart.
    pub(crate) max_tokens: usize,
    /// Memory for keys and values.
    pub(crate) kv: Bytes,
    /// How they are kept.
    pub(crate) kv_type: KvType,
}

/// The operators of the domain `glmd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Attention over the caches.
    Attention,
    /// Product with constant weights.
    Product,
    /// Rows of a constant table.
    Rows,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Attention, Self::Product, Self::Rows];

    /// Name of the operator in the graph.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Attention => paging::PAGED_ATTENTION,
            Self::Product => paging::MATMUL,
            Self::Rows => paging::ROWS,
        }
    }
}

/// Weights and caches of one loaded model, shared by its backend and the nodes of its graph.
///
/// Nodes run one after the other, as each needs what the one before it made,
/// so the locks are never waited for.
#[derive(Debug)]
pub(crate) struct Operators {
    kernels: Kernels,
    weights: Weights,
    layers: Vec<AttentionLayer>,
    cache: Mutex<KvCache>,
    scratch: Mutex<Scratch>,
    /// Shape of the caches.
    layout: KvLayout,
    block: usize,
    /// Form of the position input.
    positions: PositionInput,
    vocabulary: usize,
    max_tokens: usize,
}

impl Operators {
    /// Maps the weights of `paged` in `folder` and reserves the caches.
    ///
    /// # Errors
    /// Names what cannot be read, or what the kernels do not support.
    pub(crate) fn new(folder: &Path, paged: &Paged, limits: Limits) -> Result<Self, String> {
        let kernels = Kernels::from_env().map_err(text)?;
        let weights = Weights::map(folder, &paged.constants)?;
        let Description {
            attention,
            positions,
            vocabulary,
            ..
        } = &paged.description;
        let first = attention.first().ok_or("the graph has no attention")?;
        let same = |layer: &AttentionLayer| {
            (layer.kv_heads, layer.head_dim) == (first.kv_heads, first.head_dim)
        };
        if !attention.iter().all(same) {
            return Err("layers differ in key/value heads or their size".to_owned());
        }
        let mut layout = KvLayout {
            layers: attention.len(),
            kv_heads: first.kv_heads,
            head_dim: first.head_dim,
            dtype: limits.kv_type,
            blocks: 1,
        };
        let block = layout.block_bytes().map_err(text)?;
        layout.blocks = usize::try_from(limits.kv.0).unwrap_or(usize::MAX) / block;
        if layout.blocks == 0 {
            return Err(format!(
                "{} bytes for keys and values hold no block, which takes {block}",
                limits.kv.0
            ));
        }
        Ok(Self {
            cache: Mutex::new(KvCache::new(&layout).map_err(text)?),
            kernels,
            weights,
            layers: attention.clone(),
            scratch: Mutex::default(),
            layout,
            block,
            positions: positions.clone(),
            vocabulary: *vocabulary,
            max_tokens: limits.max_tokens,
        })
    }

    /// Name of the instruction set of the kernels.
    pub(crate) const fn isa(&self) -> &'static str {
        self.kernels.isa().name()
    }

    pub(crate) const fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Bytes of a block over all layers.
    pub(crate) const fn block_bytes(&self) -> usize {
        self.block
    }

    pub(crate) const fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(crate) const fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(crate) const fn positions(&self) -> &PositionInput {
        &self.positions
    }

    pub(crate) const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The caches.
    pub(crate) fn cache(&self) -> MutexGuard<'_, KvCache> {
        // A panic leaves an open step behind, which the backend rolls back.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shape of the result of a node whose first input has the shape `input`; sizes may be symbols.
    ///
    /// # Errors
    /// When there is no such node or the input has no axes.
    pub(crate) fn shape<D: Clone + From<usize>>(
        &self,
        operation: Operation,
        index: usize,
        input: &[D],
    ) -> Result<Vec<D>, String> {
        let mut shape = input.to_vec();
        let width = match operation {
            Operation::Rows => {
                shape.push(self.weights.table(index)?.width().into());
                return Ok(shape);
            }
            Operation::Product => self.weights.matrix(index)?.outputs(),
            Operation::Attention => {
                let layer = self.layer(index)?;
                if layer.layout != QkvLayout::Packed {
                    return Ok(shape);
                }
                layer.heads * layer.head_dim
            }
        };
        *shape.last_mut().ok_or("an input without axes")? = width.into();
        Ok(shape)
    }

    fn layer(&self, index: usize) -> Result<&AttentionLayer, String> {
        self.layers
            .get(index)
            .ok_or_else(|| format!("there is no attention layer {index}"))
    }

    /// Attention of layer `index` for the rows of the open step.
    ///
    /// # Errors
    /// When shapes or positions do not fit.
    pub(crate) fn attend(
        &self,
        index: usize,
        inputs: &[&[f32]],
        out: &mut [f32],
        par: &dyn Parallel,
    ) -> Result<(), String> {
        let layer = self.layer(index)?;
        let qkv = match (layer.layout, inputs) {
            (QkvLayout::Packed, [qkv]) => Qkv::Packed(qkv),
            (QkvLayout::Rows, [q, k, v]) => Qkv::Rows { q, k, v },
            (QkvLayout::Heads, [q, k, v]) => Qkv::Heads { q, k, v },
            _ => return Err(format!("{} inputs", inputs.len())),
        };
        let rotary = match &layer.rotary {
            Some(rotary) => Some(Rotary {
                style: if rotary.interleaved {
                    RotaryStyle::Interleaved
                } else {
                    RotaryStyle::Half
                },
                dims: rotary.dims,
                two_dimensional: false,
                cos: self.weights.angles(rotary.cos.0)?,
                sin: self.weights.angles(rotary.sin.0)?,
            }),
            None => None,
        };
        let params = AttentionParams {
            heads: layer.heads,
            scale: layer.scale,
            rotary,
        };
        self.kernels
            .attention(&mut self.cache(), index, &params, qkv, out, par)
            .map_err(text)
    }

    /// `out = x W^T + bias` with the weights `index`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(crate) fn multiply(
        &self,
        index: usize,
        x: &[f32],
        out: &mut [f32],
        par: &dyn Parallel,
    ) -> Result<(), String> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.kernels
            .matmul(&self.weights.matrix(index)?, x, out, &mut scratch, par)
            .map_err(text)
    }

    /// Rows `ids` of the table `index`.
    ///
    /// # Errors
    /// When an id lies outside the table.
    pub(crate) fn look_up(&self, index: usize, ids: &[i64], out: &mut [f32]) -> Result<(), String> {
        self.kernels
            .rows(&self.weights.table(index)?, ids, out)
            .map_err(text)
    }
}

fn text(error: KernelError) -> String {
    error.to_string()
}
