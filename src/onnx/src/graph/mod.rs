//! From a [`ModelSpec`](glm::ModelSpec) to the portable ONNX graph of a decoder.
//!
//! Pure: a [`Plan`] is the graph and, for every constant in it, where its
//! numbers come from. Whoever exports reads the checkpoint and writes them.
//!
//! Inputs and outputs, with `B` sequences, `S` new tokens, `P` past ones and
//! `T = P + S`:
//!
//! | name | shape | causal families | prefix-LM families |
//! |---|---|---|---|
//! | `input_ids` | `[B, S]` | i64 | i64 |
//! | `position_ids` | `[B, 2, S]` | none | i64 |
//! | `attention_mask` | `[B, T]`, `[B, 1, S, T]` | i64, 1 = a token | bool, true = visible |
//! | `past_key_values.N.{key,value}` | `[B, kv_heads, P, head_dim]` | f32 | f32 |
//! | `logits` | `[B, S, vocab_rows]` | f32 | f32 |
//! | `present.N.{key,value}` | `[B, kv_heads, T, head_dim]` | f32 | f32 |
//!
//! Where the shapes are [`Fixed`], inputs and outputs are as that module says.
//! Everywhere else one node stands for one block of meaning, so that a runtime can recognise
//! it: `GroupQueryAttention` or the standard `Attention` (opset 23),
//! `MatMulNBits`, and norms joined with the addition before them.

mod activations;
mod build;
mod fixed;
mod nodes;
mod place;
mod rotation;
#[cfg(test)]
mod tests;
mod weights;

pub use activations::{Activation, Side};
pub use build::build;
pub use fixed::Fixed;
pub(crate) use place::offset_of;
pub use place::{ALIGNMENT, INLINE_LIMIT, place};
pub use rotation::{Rotation, rotation_rows};
pub use weights::{Block, Matrix, NormId, Precision, Quantisation, Scheme, Table, Vector};

use crate::proto::{ModelProto, tensor_proto::DataType};

/// What the graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Precision of the linear layers of the blocks.
    pub layers: Precision,
    /// Precision of the head.
    pub head: Precision,
    /// How the embedding table is kept where the head does not share an f32 one.
    pub embedding: Table,
    /// Whether the embedding table is the head.
    pub tied_head: bool,
    /// Rows of the tables of cosines and sines; the longest text that can run.
    pub max_positions: usize,
    /// Sizes of a step, where they are fixed as NPUs want them; any size otherwise.
    pub fixed: Option<Fixed>,
}

/// A graph whose constants are still to be written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph; its initializers have types and shapes, and data only where it is [`Source::Bytes`].
    pub model: ModelProto,
    /// One for each initializer of the graph, in the same order.
    pub constants: Vec<Constant>,
}

/// A constant of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DataType,
    /// Sizes.
    pub dims: Vec<usize>,
    /// Where its numbers come from.
    pub source: Source,
}

impl Constant {
    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = match self.dtype {
            DataType::Uint8 | DataType::Int8 | DataType::Bool => 1,
            DataType::Float16 | DataType::Uint16 => 2,
            DataType::Int64 | DataType::Double => 8,
            _ => 4,
        };
        self.dims
            .iter()
            .fold(size, |bytes, dim| bytes * *dim as u64)
    }
}

/// Where the numbers of a constant come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// They are here, little-endian.
    Bytes(Vec<u8>),
    /// A vector of the checkpoint.
    Vector(Vector),
    /// A matrix of the checkpoint, `[outputs, inputs]`.
    Matrix(Matrix),
    /// The integers of a quantised matrix, u8 `[outputs, blocks, block * bits / 8]`;
    /// a table has them as `[outputs, inputs * bits / 8]`, which is the same bytes.
    Values(Matrix, Quantisation),
    /// Its scales, f32 `[outputs, blocks]`.
    Scales(Matrix, Quantisation),
    /// Its zero points, u8 `[outputs, blocks * bits / 8 rounded up]`.
    ZeroPoints(Matrix, Quantisation),
    /// Size of a step of an activation, f32 without axes.
    ActivationScale(Activation),
    /// The step of an activation that stands for 0, u16 without axes.
    ActivationZero(Activation),
    /// A table of the rotary embedding, f32 `[positions, dims / 2]`.
    Rotation(Rotation),
}
