//! What the memory governor tells the engine, and what it needs to know for it.
//!
//! The engine asks once a turn; the [`Control`] looks at the machine as often as
//! it sees fit and answers from memory otherwise. Limits hold until the next
//! answer, orders are carried out once.

use std::fmt;

use glm::Tokens;

use crate::backend::{Backend, MemoryUse, SeqId};
use crate::units::{Bytes, Level, Margin, Moment, Priority};

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
    /// Blocks that exist, used or not.
    pub blocks: usize,
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
    /// Rest after a step, in percent of the time that it took: fewer tokens a step do not cool a
    /// processor, pauses do.
    pub rest: u32,
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
            rest: 0,
        }
    }
}

/// Decides what the engine may use: the memory governor, or a test.
pub trait Control: Send + fmt::Debug {
    /// Called once a turn; must be cheap when there is nothing new.
    fn allow(&mut self, now: Moment, load: &Load) -> Allowance;

    /// Called when a model was loaded, before its first step: the time to measure what steps cost.
    /// Sequences that it makes it must release; it may name 16 of them, from `first` on.
    fn loaded(&mut self, _now: Moment, _backend: &mut dyn Backend, _first: SeqId) {}

    /// What the last answer rests on, for `status`; `None` when there is no governor.
    fn report(&self) -> Option<Report> {
        None
    }
}

/// Why the governor allows less than everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It allows everything.
    #[default]
    None,
    /// There is little memory left.
    Headroom,
    /// Tasks wait for memory: a pressure trigger fired.
    Stall,
    /// The control group has come to its limit.
    Limit,
    /// The system reads back what it has just dropped, or allocations wait for reclaim.
    Thrash,
    /// Memory was short and has to stay free for a while first.
    Dwell,
    /// The processor is hot or slowed down.
    Heat,
}

impl Cause {
    /// Name as `status` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Headroom => "headroom",
            Self::Stall => "stall",
            Self::Limit => "limit",
            Self::Thrash => "thrash",
            Self::Dwell => "dwell",
            Self::Heat => "heat",
        }
    }
}

/// What the governor knows and why it decides as it does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Memory left above the floor, with the model in memory.
    pub headroom: Margin,
    /// Memory that is never to be used.
    pub floor: Bytes,
    /// What the headroom ends at: `system`, or the path of a control group.
    pub bound: Box<str>,
    /// Memory of this process that no file backs, swapped out or not.
    pub footprint: Bytes,
    /// Memory that a whole step is thought to take.
    pub step: Bytes,
    /// Tokens that a step may have, by memory alone.
    pub memory_budget: usize,
    /// Tokens that a step may have, by heat alone.
    pub heat_budget: usize,
    /// Hottest part, in degrees Celsius.
    pub temperature: Option<f64>,
    /// How the governor learns of pressure at once: `systemd`, `trigger` or `polling`.
    pub watch: &'static str,
    /// Why it allows less than everything.
    pub cause: Cause,
}

/// No governor: the limits of the configuration alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Control for Unlimited {
    fn allow(&mut self, _: Moment, _: &Load) -> Allowance {
        Allowance::default()
    }
}
