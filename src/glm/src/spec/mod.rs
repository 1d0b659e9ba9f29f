//! What a checkpoint is: one [`ModelSpec`] describes every GLM family.
//!
//! The families differ in data, not in code paths: norm placement, activation,
//! position encoding, biases, visibility and special ids. [`ModelSpec::from_config`] reads
//! them from the keys of `config.json`; the exporter turns them into a graph
//! and the prompt builder into positions.
//!
//! Per layer, with `N` a norm, `A` attention and `M` the MLP:
//!
//! | [`Residual`] | block |
//! |---|---|
//! | `PreNorm` | `x += A(N1 x)`, `x += M(N2 x)` |
//! | `Sandwich` | `x += N2 A(N1 x)`, `x += N4 M(N3 x)` |
//! | `PostNorm { alpha }` | `a = N1 x`, `h = alpha a + A(a)`, `m = N2 h`, `x = alpha m + M(m)` |
//!
//! and a final norm before the head. With `alpha` = 1 the last form is BERT's
//! block, with its embedding norm counted as the first layer's `N1`.

mod classify;
mod keys;
mod special;
#[cfg(test)]
mod tests;
mod vocabulary;

use serde::{Deserialize, Serialize};

pub use classify::Hints;
pub use special::SpecialIds;

/// The GLM families that share one meaning of their configuration keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// The original GLM (ACL 2022): learned 2D positions, blanks of every kind.
    Glm,
    /// ChatGLM-6B, first version: 2D rotary positions, bidirectional prompt.
    #[serde(rename = "chatglm")]
    ChatGlm,
    /// ChatGLM2-6B: causal, multi-query, text rounds.
    #[serde(rename = "chatglm2")]
    ChatGlm2,
    /// ChatGLM3-6B: as ChatGLM2 with role tokens.
    #[serde(rename = "chatglm3")]
    ChatGlm3,
    /// GLM-4-9B in both on-disk layouts.
    Glm4,
    /// GLM-Edge 1.5B and 4B.
    GlmEdge,
    /// GLM-4-9B-0414 and GLM-Z1-9B-0414: sandwich norms.
    #[serde(rename = "glm4-0414")]
    Glm40414,
}

impl Family {
    /// Stable name, as written to `glm.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Glm => "glm",
            Self::ChatGlm => "chatglm",
            Self::ChatGlm2 => "chatglm2",
            Self::ChatGlm3 => "chatglm3",
            Self::Glm4 => "glm4",
            Self::GlmEdge => "glm-edge",
            Self::Glm40414 => "glm4-0414",
        }
    }

    /// Who sees whom in the text that is given.
    #[must_use]
    pub const fn visibility(self) -> Visibility {
        match self {
            Self::Glm | Self::ChatGlm => Visibility::PrefixLm,
            _ => Visibility::Causal,
        }
    }

    /// Whether the family was trained to fill blanks inside a text.
    #[must_use]
    pub const fn fills_blanks(self) -> bool {
        matches!(self.visibility(), Visibility::PrefixLm)
    }

    /// Whether the family has a conversation format.
    #[must_use]
    pub const fn chats(self) -> bool {
        !matches!(self, Self::Glm)
    }
}

/// Which tokens of a prompt see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// The given text (Part A) is bidirectional, what follows is causal.
    PrefixLm,
    /// Every token sees itself and what stands before it.
    Causal,
}

/// How the tensors of a checkpoint are named and fused on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TensorLayout {
    /// `transformer.layers.N.attention...`; fused rows are all Q, all K, all V.
    Glm,
    /// The same names; fused rows are `[q | k | v]` of one head after the other.
    ChatGlm,
    /// `transformer.encoder.layers.N.self_attention...`; fused rows are Q, K groups, V groups.
    Encoder,
    /// `model.layers.N.self_attn.{q,k,v,o}_proj`, `mlp.gate_up_proj` with the gate first.
    Transformers,
}

/// A normalisation and its epsilon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Norm {
    /// Mean and variance, weight and bias.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// Root mean square, weight only.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// The value added under the root.
    #[must_use]
    pub const fn eps(self) -> f64 {
        match self {
            Self::LayerNorm { eps } | Self::RmsNorm { eps } => eps,
        }
    }
}

/// Where the norms of a block sit and what the residual carries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Residual {
    /// Norm on the way in.
    PreNorm,
    /// Norm on the way in and on the way out of attention and MLP.
    Sandwich,
    /// The residual carries the normalised tensor times `alpha` (GLM-130B, section 2.1; DeepNorm).
    PostNorm {
        /// Factor on the residual; `sqrt(2 layers)` in GLM-130B, 1 in BERT.
        alpha: f64,
    },
}

/// Non-linearity of the MLP. `Silu` is gated (two input matrices), the others are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x * Phi(x)` with the exact error function.
    GeluErf,
    /// The tanh approximation of GELU that GLM was trained with.
    GeluTanh,
    /// SwiGLU: `silu(gate) * up`, gate rows first on disk.
    Silu,
}

impl Activation {
    /// Whether the first matrix holds gate and up rows.
    #[must_use]
    pub const fn is_gated(self) -> bool {
        matches!(self, Self::Silu)
    }
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotaryStyle {
    /// Pairs `(i, i + dims/2)`.
    HalfSplit,
    /// Pairs `(2i, 2i + 1)`.
    Interleaved,
}

/// Rotary position embedding of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Pairing.
    pub style: RotaryStyle,
    /// Elements of a head that rotate, for each position number.
    pub dims: usize,
    /// Base of the frequencies: `theta^(-2j/dims)`.
    pub theta: f64,
    /// Two position numbers: the first `dims` elements turn by `first`, the next `dims` by `second`.
    pub two_dimensional: bool,
    /// Frequencies are rounded to f16, as ChatGLM-6B's own code does.
    pub f16_frequencies: bool,
}

/// How a model knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum PositionEncoding {
    /// Two learned tables, one a position number, added to the embedding.
    Learned {
        /// Rows of each table: longest text + 1.
        rows: usize,
    },
    /// Rotation of queries and keys.
    Rotary(Rotary),
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Biases {
    /// The fused query, key and value projection.
    pub qkv: bool,
    /// Attention output and both MLP matrices.
    pub linear: bool,
}

/// Everything that the families differ in. Sizes count elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Which family.
    pub family: Family,
    /// Names and fusion on disk.
    pub tensors: TensorLayout,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Inner width of the MLP (of one of the two branches when gated).
    pub ffn: usize,
    /// Rows of the embedding table, padding rows included.
    pub vocab_rows: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// All norms of the model.
    pub norm: Norm,
    /// Form of the block.
    pub residual: Residual,
    /// Form of the MLP.
    pub activation: Activation,
    /// Position encoding.
    pub positions: PositionEncoding,
    /// Biases.
    pub biases: Biases,
    /// What the configuration says of the head: `true` = the embedding table is the head.
    /// A separate head in the checkpoint that differs from the table wins over this flag.
    pub tied_head: bool,
    /// Ids with a meaning.
    pub special: SpecialIds,
}

impl ModelSpec {
    /// Reads the keys of a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a key that is missing or out of range,
    /// [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for a combination that is none of the families.
    pub fn from_config(config: &serde_json::Value, hints: &Hints<'_>) -> crate::Result<Self> {
        classify::classify(config, hints)
    }

    /// Who sees whom.
    #[must_use]
    pub const fn visibility(&self) -> Visibility {
        self.family.visibility()
    }

    /// Rows of the fused query, key and value matrix.
    #[must_use]
    pub const fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Whether tokens carry two position numbers.
    #[must_use]
    pub const fn two_dimensional(&self) -> bool {
        match self.positions {
            PositionEncoding::Learned { .. } => true,
            PositionEncoding::Rotary(r) => r.two_dimensional,
        }
    }

    /// Factor on attention scores: `1 / sqrt(head_dim)`.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn attention_scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}
