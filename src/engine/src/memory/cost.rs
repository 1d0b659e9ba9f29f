//! What a step takes beyond weights and blocks: `fixed + token * tokens + row * rows of logits`.
//!
//! Measured at two sizes when a model was loaded, since no formula knows what a
//! runtime keeps; raised when a step took more. Blocks need no model: their
//! size is known.

use crate::units::Bytes;

/// What a token takes until it was measured: more than any of the models that fit a small box.
const GUESS: Bytes = Bytes(128 << 10);
/// Observations up to this many percent of the prediction are no news.
const TOLERANCE: u64 = 120;
/// And make the model forget so many percent of what was learned.
const FORGETTING: u64 = 5;
/// One observation raises the model at most so many times: it may be somebody else's memory.
const STEEPEST: u64 = 2;

/// Memory that a step takes while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepCost {
    fixed: Bytes,
    token: Bytes,
    row: Bytes,
    /// What a token took when it was measured.
    measured: Bytes,
}

/// A step that was watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its tokens.
    pub tokens: usize,
    /// Rows of logits that it yielded.
    pub rows: usize,
    /// How much memory rose above what it was before and after.
    pub peak: Bytes,
}

impl Default for StepCost {
    fn default() -> Self {
        Self {
            fixed: Bytes(0),
            token: GUESS,
            row: Bytes(0),
            measured: GUESS,
        }
    }
}

impl StepCost {
    /// The line through two steps of different size; rows of logits are `f32` and held twice, by the
    /// runtime and by us.
    #[must_use]
    pub fn fit(small: &Observed, large: &Observed, vocabulary: usize) -> Self {
        let row = Bytes((vocabulary as u64).saturating_mul(8));
        let rest = |step: &Observed| step.peak.less(times(row, step.rows));
        let (low, high) = (rest(small), rest(large));
        let apart = large.tokens.saturating_sub(small.tokens).max(1) as u64;
        let token = Bytes(high.less(low).0.div_ceil(apart));
        Self {
            fixed: low.less(times(token, small.tokens)),
            token,
            row,
            measured: token,
        }
    }

    /// What a step takes.
    #[must_use]
    pub fn of(&self, tokens: usize, rows: usize) -> Bytes {
        (self.fixed)
            .plus(times(self.token, tokens))
            .plus(times(self.row, rows))
    }

    /// Most tokens of a step with `rows` rows of logits that takes at most `room`.
    #[must_use]
    pub fn tokens_in(&self, room: Bytes, rows: usize) -> usize {
        let left = room.less(self.fixed).less(times(self.row, rows));
        match self.token.0 {
            0 => usize::MAX,
            token => usize::try_from(left.0 / token).unwrap_or(usize::MAX),
        }
    }

    /// Learns from a step; `true` when it took more than expected.
    ///
    /// What was learned is forgotten again while steps take less, since other memory of the process may have
    /// been mistaken for theirs; what was measured is not.
    pub fn correct(&mut self, step: &Observed) -> bool {
        let expected = self.of(step.tokens, step.rows).0.max(1);
        let seen = step.peak.0;
        if step.tokens == 0 {
            return false;
        }
        if seen / TOLERANCE <= expected / 100 {
            let less = Bytes(self.token.0 / 100 * (100 - FORGETTING));
            self.token = less.max(self.measured).min(self.token);
            return false;
        }
        let most = expected.saturating_mul(STEEPEST);
        let missing = Bytes(seen.min(most) - expected.min(seen));
        // By the token: what is fixed was measured with the model alone in memory.
        let more = missing.0.div_ceil(step.tokens as u64);
        self.token = self.token.plus(Bytes(more));
        more > 0
    }
}

const fn times(bytes: Bytes, count: usize) -> Bytes {
    Bytes(bytes.0.saturating_mul(count as u64))
}
