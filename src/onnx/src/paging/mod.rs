//! From a portable decoder graph to one that runs packed rows on paged caches.
//!
//! Stands between a model file and a CPU runtime. A portable graph takes the
//! past keys and values of every layer and gives them back longer; a paged
//! graph keeps them outside. [`page`] rewrites the first into the second:
//!
//! * an attention node becomes `glmd.PagedAttention`, whose keys and values
//!   live in the pool of the runtime, so past, present and mask vanish;
//! * a product with constant weights becomes `glmd.MatMul`, a look-up in a
//!   constant table becomes `glmd.Rows`; their weights leave the graph and are
//!   described in [`Paged::constants`], so that a runtime reads them where
//!   they lie in the mapped file;
//! * the rows whose logits are wanted are gathered before the head.
//!
//! The paged graph takes tokens of many sequences as one row: `input_ids`
//! `[1, N]`, positions `[1, N]` or `[1, 2, N]`, [`WANTED_ROWS`] `[M]`, and
//! returns logits `[1, M, vocabulary]`. That is only right when every node
//! outside attention treats each token by itself; a node that may not, or that
//! is not known, leaves the model unmodified and is named in [`Unknown`].

mod alone;
mod attention;
mod constants;
mod graph;
mod rows;
#[cfg(test)]
mod tests;

pub use alone::alone;
pub use attention::{AttentionLayer, QkvLayout, RotaryTables};
pub use constants::{Blob, BlobData, Constant, ConstantId, Dense, ElementType, Quantised, Table};

use crate::proto::ModelProto;
use graph::Graph;

/// Domain of the nodes that the rewrite writes.
pub const DOMAIN: &str = "glmd";
/// Attention over the pool; attribute `index` is a place in [`Description::attention`].
pub const PAGED_ATTENTION: &str = "PagedAttention";
/// Product with constant weights; attribute `index` is a [`ConstantId`].
///
/// Named apart from the standard operator because some runtimes look operators
/// up by name alone.
pub const MATMUL: &str = "GlmdMatMul";
/// Rows of a constant table; attribute `index` is a [`ConstantId`].
pub const ROWS: &str = "GlmdRows";
/// Attribute of every `glmd` node.
pub const INDEX: &str = "index";
/// Input that names the rows whose logits are wanted, i64 `[M]`.
pub const WANTED_ROWS: &str = "glmd_wanted_rows";
/// ONNX Runtime's product with quantised weights, and the domain that it is in.
const MATMUL_NBITS: (&str, &str) = ("com.microsoft", "MatMulNBits");

/// Whose kernel computes products with quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Matmul {
    /// Ours: weights are read where they lie in the file.
    #[default]
    Glmd,
    /// ONNX Runtime's: `MatMulNBits` nodes stay in the graph, and the runtime packs their weights into memory of
    /// its own.
    OnnxRuntime,
}

impl Matmul {
    /// Name as the configuration and `status` spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Glmd => "glmd",
            Self::OnnxRuntime => "onnxruntime",
        }
    }
}

impl std::fmt::Display for Matmul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a model.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The model was rewritten.
    Paged(Box<Paged>),
    /// The model must run as it is.
    Unmodified(Unknown),
}

/// The node that kept a model from being rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Name of the node, or of its first output where it has none; a graph input or output otherwise.
    pub node: String,
    /// Operator, empty for an input or output of the graph.
    pub op_type: String,
    /// What is not known about it.
    pub reason: String,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.op_type.is_empty() {
            write!(f, "`{}`: {}", self.node, self.reason)
        } else {
            write!(
                f,
                "node `{}` ({}): {}",
                self.node, self.op_type, self.reason
            )
        }
    }
}

/// A rewritten model.
#[derive(Clone, Debug)]
pub struct Paged {
    /// The graph, without the weights that moved to `constants`.
    pub model: ModelProto,
    /// Weights by [`ConstantId`].
    pub constants: Vec<Constant>,
    /// Weights of the products that stay in the graph.
    pub kept: Vec<Quantised>,
    /// What the runtime must know.
    pub description: Description,
}

/// Inputs, output and attention layers of a rewritten model.
#[derive(Clone, Debug)]
pub struct Description {
    /// Name of the token input.
    pub input_ids: String,
    /// Name and form of the position input, if the graph still reads it.
    pub positions: PositionInput,
    /// Name of the logits.
    pub logits: String,
    /// Length of a row of logits.
    pub vocabulary: usize,
    /// Layers in the order in which they run.
    pub attention: Vec<AttentionLayer>,
}

/// How the rewritten graph takes positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PositionInput {
    /// It does not: only attention looks at them.
    None,
    /// One number a token, `[1, N]`.
    One(String),
    /// Two numbers a token, `[1, 2, N]`.
    Two(String),
}

/// Rewrites `model` if every node of it is known; all products become ours.
#[must_use]
pub fn page(model: &ModelProto) -> Outcome {
    page_for(model, Matmul::Glmd)
}

/// As [`page`], with quantised products for the kernel of `matmul`.
#[must_use]
pub fn page_for(model: &ModelProto, matmul: Matmul) -> Outcome {
    match rewrite(model, matmul) {
        Ok(paged) => Outcome::Paged(Box::new(paged)),
        Err(unknown) => Outcome::Unmodified(unknown),
    }
}

fn rewrite(model: &ModelProto, matmul: Matmul) -> Result<Paged, Unknown> {
    let mut graph = Graph::new(model)?;
    let attention = attention::replace(&mut graph)?;
    let logits = graph.only_output()?;
    graph.sweep();
    let kept = constants::replace_products(&mut graph, matmul)?;
    constants::replace_tables(&mut graph)?;
    graph.sweep();
    let input_ids = graph.token_input()?;
    let positions = graph.position_input(&input_ids)?;
    rows::check(&graph, &positions)?;
    let vocabulary = graph.gather_wanted(&logits)?;
    let (model, constants) = graph.finish(&logits);
    Ok(Paged {
        model,
        constants,
        kept,
        description: Description {
            input_ids,
            positions,
            logits,
            vocabulary,
            attention,
        },
    })
}
