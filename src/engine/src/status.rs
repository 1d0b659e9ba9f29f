//! What the engine says about itself: a snapshot that it publishes a few times a second.

use std::time::Duration;

use crate::backend::MemoryUse;
use crate::control::Report;
use crate::units::{Bytes, Level, Priority, RequestId};

/// What the engine is doing with its model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A model is being loaded.
    #[default]
    Loading,
    /// Requests are served.
    Ready,
    /// No model is loaded: on request, under memory pressure, or because loading failed.
    Unloaded,
    /// The model was unloaded because nobody asked anything; the next request loads it.
    Idle,
    /// Accepted requests are finished, no new ones are taken.
    Draining,
    /// The engine thread has ended.
    Stopped,
}

impl Phase {
    /// Name as `status` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unloaded => "unloaded",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// A request that is being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its identity.
    pub id: RequestId,
    /// Who asked.
    pub client: Box<str>,
    /// How urgent it is.
    pub priority: Priority,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens sampled so far.
    pub completion_tokens: usize,
    /// Time since its submission.
    pub age: Duration,
}

/// Counts since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that got a ticket.
    pub accepted: u64,
    /// Requests that did not.
    pub refused: u64,
    /// Requests that ended with an answer.
    pub finished: u64,
    /// Requests that were given up by their owner.
    pub cancelled: u64,
    /// Requests that were replaced by a newer one.
    pub superseded: u64,
    /// Requests that could not be answered in time.
    pub expired: u64,
    /// Requests that ended with another error.
    pub failed: u64,
    /// Steps that ran.
    pub steps: u64,
    /// Steps that the backend failed.
    pub failed_steps: u64,
    /// Tokens computed.
    pub computed_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Times that a request had to give up its memory.
    pub preemptions: u64,
}

/// The prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Prefixes held.
    pub entries: usize,
    /// Tokens held.
    pub tokens: usize,
}

/// The engine at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// Turns of its loop that were begun. They go on while there is nothing to do, so that a number that stays
    /// for seconds means a step, or a load, that does not end.
    pub turns: u64,
    /// How short memory is.
    pub level: Level,
    /// Name of the backend.
    pub backend: Option<&'static str>,
    /// Requests that are being served.
    pub running: Vec<Running>,
    /// Requests that wait.
    pub queued_requests: usize,
    /// What they may cost.
    pub queued_tokens: usize,
    /// Sequences of the last step.
    pub batch: usize,
    /// Tokens of the last step.
    pub step_tokens: usize,
    /// Tokens that a step may have now.
    pub step_budget: usize,
    /// Tokens sampled a second, smoothed.
    pub decode_rate: f64,
    /// Tokens computed a second, smoothed.
    pub compute_rate: f64,
    /// Memory that the backend holds.
    pub memory: MemoryUse,
    /// Memory reserved for accepted requests.
    pub reserved: Bytes,
    /// The prefix cache.
    pub cache: CacheStatus,
    /// What the memory governor knows.
    pub report: Option<Report>,
    /// Counts.
    pub counters: Counters,
}
