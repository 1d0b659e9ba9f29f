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

/// An amount of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// The sum; the largest amount when there is no such number.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left without `other`; nothing when that is more.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// How much more this is than `other`; negative when it is less.
    #[must_use]
    pub const fn over(self, other: Self) -> Margin {
        match self.0.checked_sub(other.0) {
            Some(more) => Margin(clamped(more)),
            None => Margin(-clamped(other.0 - self.0)),
        }
    }

    /// The amount as a difference to nothing.
    #[must_use]
    pub const fn margin(self) -> Margin {
        Margin(clamped(self.0))
    }
}

#[expect(clippy::cast_possible_wrap, reason = "checked just before")]
const fn clamped(bytes: u64) -> i64 {
    if bytes > i64::MAX as u64 {
        i64::MAX
    } else {
        bytes as i64
    }
}

impl fmt::Display for Bytes {
    /// In the largest binary unit that keeps it above one: `1.5 GiB`, `64.0 MiB`, `12 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let bytes = self.0 as f64;
        for (unit, name) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let size = f64::from(1_u32 << unit);
            if bytes >= size {
                return write!(f, "{:.1} {name}", bytes / size);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A difference of amounts of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Margin(pub i64);

impl Margin {
    /// This much more.
    #[must_use]
    pub const fn plus(self, more: Bytes) -> Self {
        Self(self.0.saturating_add(clamped(more.0)))
    }

    /// This much less.
    #[must_use]
    pub const fn less(self, bytes: Bytes) -> Self {
        Self(self.0.saturating_sub(clamped(bytes.0)))
    }

    /// The amount; nothing when negative.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        match self.0 {
            0.. => Bytes(self.0.unsigned_abs()),
            _ => Bytes(0),
        }
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}", Bytes(self.0.unsigned_abs()))
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
