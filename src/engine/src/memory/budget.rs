//! Tokens of a step by additive increase and multiplicative decrease.
//!
//! As TCP does with its window (Chiu and Jain 1989), with memory as the
//! congestion signal: latency would not do, since a prompt takes a hundred
//! times as long as an answer's token.

use std::time::Duration;

use glm::Tokens;

use crate::units::Moment;

/// The budget is not halved more often than this: one squeeze shows in many signals, and the answer to
/// the first needs a step or two until it shows.
const CUT: Duration = Duration::from_secs(1);
/// The budget grows no more often than this.
const GROWTH: Duration = Duration::from_secs(1);
/// It grows from nothing to all in so many times.
const STEPS: usize = 8;

/// The token budget of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    tokens: usize,
    least: usize,
    most: usize,
    hold: Duration,
    cut: Option<Moment>,
    grown: Option<Moment>,
}

impl Budget {
    /// All of `most`; halved never below `least`, and not grown within `hold` of being halved.
    #[must_use]
    pub fn new(least: Tokens, most: Tokens, hold: Duration) -> Self {
        let most = most.0.max(1);
        Self {
            tokens: most,
            least: least.0.clamp(1, most),
            most,
            hold,
            cut: None,
            grown: None,
        }
    }

    /// Memory is short.
    pub fn cut(&mut self, now: Moment) {
        if self.cut.is_some_and(|cut| now.since(cut) < CUT) {
            return;
        }
        self.tokens = (self.tokens / 2).max(self.least);
        self.cut = Some(now);
    }

    /// No step of more than `fits` tokens has room.
    pub fn limit(&mut self, now: Moment, fits: usize) {
        if self.tokens > fits.max(self.least) {
            self.tokens = fits.max(self.least);
            self.cut = Some(now);
        }
    }

    /// Memory is not short, and there is reason to ask for more; steps of up to `fits` tokens have room.
    pub fn grow(&mut self, now: Moment, fits: usize) {
        let held = self.cut.is_some_and(|cut| now.since(cut) < self.hold);
        let early = self.grown.is_some_and(|grown| now.since(grown) < GROWTH);
        if held || early || self.tokens >= self.most {
            return;
        }
        let more = self.most.div_ceil(STEPS);
        let next = self.tokens.saturating_add(more).min(self.most);
        if next <= fits {
            self.tokens = next;
            self.grown = Some(now);
        }
    }

    /// Tokens that a step may have.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Time that it takes from the last sign of shortage to the whole budget at most, when it is used.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        self.hold + GROWTH * u32::try_from(STEPS).unwrap_or(u32::MAX)
    }
}
