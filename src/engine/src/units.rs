//! Newtypes for the numbers of the engine.

use std::fmt;
use std::time::{Duration, Instant};

/// Identity of a request for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which loading of a model: prompts made with an older model's tokenizer mean nothing to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A point in time, counted from the start of the engine's [`Clock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// Time from `earlier` to here; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This much later; the end of time when that is past it.
    #[must_use]
    pub const fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Where the engine learns the time; tests bring their own.
pub trait Clock: Send + Sync {
    /// Now. Never goes back.
    fn now(&self) -> Moment;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }
}

/// How urgent a request is. Waiting makes up for it: see [`Priority::handicap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// May wait; refused first when memory is short.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// How much later than its arrival a request counts as arrived.
    ///
    /// Requests are served in the order of arrival plus handicap, so a request
    /// is overtaken only by those that arrive within its own handicap: a bound
    /// on starvation that needs no bookkeeping.
    #[must_use]
    pub const fn handicap(self, ageing: Duration) -> Duration {
        match self {
            Self::High => Duration::ZERO,
            Self::Normal => ageing,
            Self::Low => ageing.saturating_mul(2),
        }
    }

    /// Name as requests and `status` spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// How short memory is, and so what the engine does without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// All is well.
    #[default]
    Green,
    /// No low priority, smaller steps.
    Yellow,
    /// No prefix cache, one request at a time.
    Orange,
    /// Served requests give up their memory and wait, new ones are refused.
    Red,
    /// The model is unloaded until memory is free again.
    Black,
}

impl Level {
    /// Name as `status` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Yellow => "yellow",
            Self::Orange => "orange",
            Self::Red => "red",
            Self::Black => "black",
        }
    }
}
