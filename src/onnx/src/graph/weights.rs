//! The weights of a model by what they mean, and how exactly they are kept.

/// A matrix, as in `y = x W^T`: rows are outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matrix {
    /// Token embedding, `[vocab_rows, hidden]`.
    Embedding,
    /// Output head, `[vocab_rows, hidden]`.
    Head,
    /// First table of learned positions.
    Positions,
    /// Second table of learned positions (place within a blank).
    BlockPositions,
    /// Queries, keys and values of a layer: all queries, all keys, all values.
    Qkv(usize),
    /// Output of attention.
    AttentionOutput(usize),
    /// First matrix of the MLP; gate rows first where it is gated.
    MlpIn(usize),
    /// Second matrix of the MLP.
    MlpOut(usize),
}

/// A vector: a bias, or the weight or bias of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vector {
    /// Bias of a matrix, rows in the order of the matrix.
    Bias(Matrix),
    /// Weight of a norm.
    NormWeight(NormId),
    /// Bias of a norm.
    NormBias(NormId),
}

/// A norm of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormId {
    /// Before attention.
    Attention(usize),
    /// After attention, before the residual (sandwich).
    AfterAttention(usize),
    /// Before the MLP.
    Mlp(usize),
    /// After the MLP, before the residual (sandwich).
    AfterMlp(usize),
    /// Before the head.
    Final,
}

/// How exactly a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As f32.
    Full,
    /// As integers with scales.
    Quantised(Quantisation),
}

/// How a table of rows to look up is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// As f32.
    Full,
    /// As f16.
    Half,
    /// As integers with scales. A tied head of the same quantisation reads the same bytes.
    Quantised(Quantisation),
}

/// Integers and how many of them share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation {
    /// Kind of integer.
    pub scheme: Scheme,
    /// Which weights share a scale.
    pub block: Block,
}

impl Quantisation {
    /// Bits of an integer.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self.scheme {
            Scheme::Int8 => 8,
            Scheme::Int4 | Scheme::Int4ZeroPoint => 4,
        }
    }

    /// Whether zero points are stored; without them zero is `2^(bits - 1)`.
    #[must_use]
    pub const fn zero_points(self) -> bool {
        matches!(self.scheme, Scheme::Int4ZeroPoint)
    }

    /// Weights of a stored block in a row of `inputs`.
    ///
    /// `MatMulNBits` wants a power of two of at least 16, so a scale for a whole
    /// row is stored once for each block of it.
    #[must_use]
    pub fn stored_block(self, inputs: usize) -> usize {
        match self.block {
            Block::Of(size) => size,
            Block::Row => inputs.next_power_of_two().clamp(16, 128),
        }
    }
}

/// Kinds of integers (GLM-130B, section 4; textbook form of the last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Symmetric, -127..=127, stored plus 128.
    Int8,
    /// Symmetric, -7..=7, stored plus 8.
    Int4,
    /// 0..=15 with a zero point for each block.
    Int4ZeroPoint,
}

/// Which weights of a row share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Runs of this length, a power of two of at least 16.
    Of(usize),
    /// All of them.
    Row,
}
