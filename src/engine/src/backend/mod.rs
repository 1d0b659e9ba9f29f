//! What runs a step: the contract between the scheduler and a model runtime.
//!
//! A [`Step`] packs tokens of many sequences into one row. A [`Backend`] runs
//! it, keeps the keys and values of every sequence it has seen, and returns
//! the logits of the rows that were asked for. It decides nothing: which
//! tokens run, who may start and who must go is the scheduler's business.
//!
//! A step is a transaction. When [`Backend::forward`] fails, the sequences are
//! as long as they were before the call.

mod assignment;
mod compiled;
pub mod fixed;
pub mod library;
pub mod ort_paged;
pub(crate) mod paged;
pub mod portable;
pub mod provider;
pub mod threads;
#[cfg(feature = "tract")]
pub mod tract_paged;

use std::fmt;

use glm::{Position, TokenId};

pub use crate::units::Bytes;

/// Identity of a sequence inside one backend, chosen by the caller and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// One token to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Sequence the token belongs to.
    pub seq: SeqId,
    /// The token.
    pub id: TokenId,
    /// Where the model is told that it sits.
    pub position: Position,
    /// Keys of its own sequence that the token sees, counted from the first:
    /// its own index + 1 for causal tokens, the length of Part A inside Part A.
    pub visible: u32,
    /// Whether its logits are wanted.
    pub logits: bool,
}

/// Tokens of many sequences for one run.
///
/// Rows of a sequence stand together and in order, and continue where the
/// sequence ended; a sequence that the backend has not seen starts empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The tokens.
    pub rows: Vec<Row>,
}

/// Logits of the wanted rows of a step, in the order of the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// `[wanted rows, vocabulary]`, row major.
    pub values: Vec<f32>,
    /// Length of one row.
    pub vocabulary: usize,
}

impl Logits {
    /// The `index`-th wanted row, or `None` past the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        let start = index.checked_mul(self.vocabulary)?;
        self.values.get(start..start.checked_add(self.vocabulary)?)
    }
}

/// What a loaded model and its runtime can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the backend as `status` shows it: `ort-paged`, `tract-paged`, `ort-portable`.
    pub name: &'static str,
    /// Length of a row of logits.
    pub vocabulary: usize,
    /// Positions that the model can tell apart; no sequence grows longer.
    pub max_tokens: usize,
    /// Tokens in one block of the key/value cache.
    pub block_tokens: usize,
    /// Size of one block over all layers.
    pub block_bytes: Bytes,
    /// Blocks that exist; no step can use more.
    pub blocks: usize,
    /// Most sequences and most tokens of one step; `usize::MAX` where nothing limits them.
    pub max_sequences: usize,
    /// Most tokens of one step.
    pub max_step_tokens: usize,
    /// Whether a prompt may be run in several steps.
    pub chunked_prefill: bool,
    /// Whether [`Backend::fork`] shares blocks.
    pub fork: bool,
}

/// Memory that a backend holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights, mapped from the model file or copied.
    pub weights: Bytes,
    /// Of these, bytes that are mapped from the model file. The system counts such clean pages as
    /// available although every step needs them; the memory governor corrects for it.
    pub mapped: Bytes,
    /// Blocks of the key/value cache that hold tokens.
    pub kv_used: Bytes,
    /// Blocks of the key/value cache that are resident, used or not.
    pub kv_resident: Bytes,
    /// Blocks that no sequence uses.
    pub free_blocks: usize,
}

/// Why a step or an operation on a sequence did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The step needs more blocks than are free. Nothing was run.
    #[error("the key/value cache has {free} free blocks, the step needs {needed}")]
    OutOfBlocks {
        /// Blocks that the step needs.
        needed: usize,
        /// Blocks that are free.
        free: usize,
    },
    /// The step breaks the contract: rows out of order, a token past the model's last position.
    #[error("the step is not runnable: {0}")]
    BadStep(String),
    /// The runtime failed. The sequences are as before the step.
    #[error("{backend}: {reason}")]
    Runtime {
        /// Name of the backend.
        backend: &'static str,
        /// Message of the runtime.
        reason: String,
    },
}

/// A loaded model that runs steps.
pub trait Backend: Send {
    /// What it can do; constant for the life of the backend.
    fn capabilities(&self) -> &Capabilities;

    /// Runs every row of `step` and returns the wanted logits.
    ///
    /// # Errors
    /// See [`BackendError`]; the sequences are then as before the call.
    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError>;

    /// Tokens that `seq` holds; 0 when it is unknown.
    fn len(&self, seq: SeqId) -> usize;

    /// Makes `child` a copy of the first `tokens` tokens of `parent`, sharing its blocks.
    ///
    /// # Errors
    /// When `child` exists, `parent` is shorter, or the backend cannot share.
    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError>;

    /// Forgets what `seq` holds from `tokens` on; nothing happens when it is shorter or unknown.
    fn truncate(&mut self, seq: SeqId, tokens: usize);

    /// Forgets `seq`; nothing happens when it is unknown.
    fn release(&mut self, seq: SeqId);

    /// Memory held now.
    fn memory(&self) -> MemoryUse;

    /// Gives unused blocks back to the system; returns how much that was.
    fn shrink(&mut self) -> Bytes;
}
