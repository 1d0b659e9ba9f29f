//! How long steps take, learned from those that ran.
//!
//! Decoding reads every weight once however many answers share the step, so a
//! step of decode rows has nearly one price; reading prompts costs by the
//! token. Two smoothed numbers are enough to predict the time of a request and
//! to keep a prompt's pieces small while answers are under way.

use std::time::Duration;

use glm::Tokens;

/// Weight of the newest observation. About ten steps of memory: follows heat and neighbours, not noise.
const SMOOTHING: f64 = 0.1;
/// A piece of a prompt is at least this long, or reading never ends. A multiple of the row tiles of the kernels.
const SMALLEST_PIECE: usize = 8;
/// Piece length until times are known.
const FIRST_PIECE: usize = 32;
/// A step with reading may take this multiple of one without, below the 3 that readers notice.
const STRETCH: f64 = 2.5;

/// A running mean that starts at its first value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 = Some(match self.0 {
            Some(mean) => mean + SMOOTHING * (value - mean),
            None => value,
        });
    }
}

/// What steps and answers have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CostModel {
    /// Seconds of a step without reading.
    step: Mean,
    /// Seconds that each token read adds.
    token: Mean,
    /// Tokens of an answer.
    answer: Mean,
    /// Answers that share a step.
    batch: Mean,
}

impl CostModel {
    /// Learns from a step.
    pub fn observe(&mut self, reading: usize, writing: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if reading == 0 {
            self.step.add(seconds);
            self.batch.add(real(writing));
            return;
        }
        let base = match (writing, self.step.0) {
            (0, _) | (_, None) => 0.0,
            (_, Some(step)) => step,
        };
        self.token.add((seconds - base).max(0.0) / real(reading));
    }

    /// Learns from the length of an answer.
    pub fn answered(&mut self, tokens: usize) {
        self.answer.add(real(tokens));
    }

    /// Tokens of prompts that fit beside answers.
    #[must_use]
    pub fn piece(&self) -> usize {
        match (self.step.0, self.token.0) {
            (Some(step), Some(token)) if token > 0.0 => {
                let tokens = (step * (STRETCH - 1.0) / token).min(f64::from(u16::MAX));
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                // From 0 to 65535, by the line above and by what the means hold.
                let tokens = tokens as usize;
                tokens.max(SMALLEST_PIECE)
            }
            _ => FIRST_PIECE,
        }
    }

    /// Time that a request takes once it runs: reading `read` tokens and writing at most `write`.
    /// Answers rarely use up their limit, so the usual length counts. Zero until times are known.
    #[must_use]
    pub fn service(&self, read: Tokens, write: Tokens) -> Duration {
        let written = match self.answer.0 {
            Some(usual) => real(write.0).min(usual),
            None => real(write.0.min(1)),
        };
        let seconds =
            self.token.0.unwrap_or(0.0) * real(read.0) + self.step.0.unwrap_or(0.0) * written;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Tokens sampled a second when answers are under way; `None` until known.
    #[must_use]
    pub fn decode_rate(&self) -> Option<f64> {
        match (self.step.0, self.batch.0) {
            (Some(step), Some(batch)) if step > 0.0 => Some(batch / step),
            _ => None,
        }
    }
}

#[allow(clippy::cast_precision_loss)] // An estimate.
fn real(count: usize) -> f64 {
    count as f64
}
