//! What the memory governor tells the engine, and what it needs to know for it.
//!
//! The engine asks once a turn; the [`Control`] looks at the machine as often as
//! it sees fit and answers from memory otherwise. Limits hold until the next
//! answer, orders are carried out once.

use std::fmt;

use glm::Tokens;

use crate::backend::{Bytes, MemoryUse};
use crate::units::{Level, Moment, Priority};

/// The engine as the governor sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tokens of the last step.
    pub step_tokens: usize,
    /// Whether that step was as large as it was allowed to be.
    pub budget_used_up: bool,
    /// Requests that are served.
    pub running: usize,
    /// Requests that wait.
    pub queued: usize,
    /// Memory that the backend holds.
    pub memory: MemoryUse,
    /// Size of a block.
    pub block_bytes: Bytes,
    /// Blocks that the served requests may come to need.
    pub reserved_blocks: usize,
    /// Whether a model is loaded.
    pub loaded: bool,
}

/// Who may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Requests of at least this priority; those below wait, and new ones are refused.
    From(Priority),
    /// Nobody; new requests are refused.
    Nobody,
}

/// What the engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// How short memory is.
    pub level: Level,
    /// Tokens of a step.
    pub step_tokens: Tokens,
    /// Sequences served side by side.
    pub sequences: usize,
    /// Blocks that may be reserved.
    pub blocks: usize,
    /// Who may start.
    pub admit: Admit,
    /// Whether prefixes are kept for reuse; if not, those that are kept go.
    pub keep_prefixes: bool,
    /// Whether the model may be in memory; if not it is unloaded, and whoever is served waits.
    pub loaded: bool,
    /// Order: send the newest request of the lowest priority back to the queue.
    pub preempt_one: bool,
    /// Order: give unused blocks back to the system.
    pub shrink: bool,
}

impl Default for Allowance {
    /// No limits.
    fn default() -> Self {
        Self {
            level: Level::Green,
            step_tokens: Tokens(usize::MAX),
            sequences: usize::MAX,
            blocks: usize::MAX,
            admit: Admit::From(Priority::Low),
            keep_prefixes: true,
            loaded: true,
            preempt_one: false,
            shrink: false,
        }
    }
}

/// Decides what the engine may use: the memory governor, or a test.
pub trait Control: Send + fmt::Debug {
    /// Called once a turn; must be cheap when there is nothing new.
    fn allow(&mut self, now: Moment, load: &Load) -> Allowance;
}

/// No governor: the limits of the configuration alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Control for Unlimited {
    fn allow(&mut self, _: Moment, _: &Load) -> Allowance {
        Allowance::default()
    }
}
