//! The five levels: up at once, down after a time without need.
//!
//! While the figures are better than the level, the worst of them is kept; when
//! the dwell is over the level falls to that one, which may be several levels
//! at once. A level that was left too soon is left later the next time: the
//! dwell doubles when a rise follows soon on a fall, and is forgotten after a
//! long calm.

use std::time::Duration;

use crate::units::{Level, Moment};

/// Longest dwell. Longer than the period of what comes back every few seconds, short enough for a person to wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A rise within so many dwells of a fall shows that the fall was too soon.
const SOON: u32 = 3;

/// The level and what is known about leaving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    level: Level,
    shortest: Duration,
    dwell: Duration,
    /// Since when the figures are better than the level, and the worst of them.
    better: Option<(Moment, Level)>,
    fell: Option<Moment>,
}

impl Ladder {
    /// All is well; levels last for `dwell` at least.
    #[must_use]
    pub const fn new(dwell: Duration) -> Self {
        Self {
            level: Level::Green,
            shortest: dwell,
            dwell,
            better: None,
            fell: None,
        }
    }

    /// Takes new figures: `enter` is the level that they ask for, `leave` the level that may be left to,
    /// which is never lower.
    pub fn observe(&mut self, now: Moment, enter: Level, leave: Level) -> Level {
        let calm = self.fell.is_none_or(|fell| now.since(fell) > LONGEST);
        if calm && self.level == Level::Green && enter == Level::Green {
            self.dwell = self.shortest;
        }
        if enter > self.level {
            let soon = (self.fell).is_some_and(|fell| now.since(fell) < self.dwell * SOON);
            if soon {
                self.dwell = (self.dwell * 2).min(LONGEST);
            }
            self.level = enter;
            self.better = None;
            return enter;
        }
        if leave >= self.level {
            self.better = None;
            return self.level;
        }
        let (since, worst) = self.better.unwrap_or((now, leave));
        let worst = worst.max(leave);
        self.better = Some((since, worst));
        if now.since(since) >= self.dwell {
            self.level = worst;
            self.better = None;
            self.fell = Some(now);
        }
        self.level
    }

    /// Time that figures must be better before the level is left.
    #[must_use]
    pub const fn dwell(&self) -> Duration {
        self.dwell
    }

    /// The level.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}
