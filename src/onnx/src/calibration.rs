//! Ranges of activations, seen while text runs through a model.
//!
//! `QuantizeLinear` of the standard maps a range to 16 bits:
//! `q = round(x / scale) + zero`, `scale = (high - low) / 65535`,
//! `zero = round(-low / scale)`. The range takes in 0, which then is exact.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::graph::{Activation, Matrix, Side};

/// Room around what was seen. With 16 bits it costs half a bit and keeps what
/// is a little larger than in the calibration text from being cut off.
const ROOM: f32 = 1.5;
/// Steps of 16 bits.
const STEPS: f32 = 65_535.0;

/// Smallest and largest values of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    low: f32,
    high: f32,
}

impl Range {
    fn take_in(&mut self, values: &[f32]) {
        for value in values.iter().filter(|value| value.is_finite()) {
            self.low = self.low.min(*value);
            self.high = self.high.max(*value);
        }
    }

    /// Size of a step.
    #[must_use]
    pub fn scale(self) -> f32 {
        // A tensor that was always 0 still needs steps of some size.
        (ROOM * (self.high - self.low) / STEPS).max(f32::MIN_POSITIVE)
    }

    /// The step that stands for 0.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range of the type"
    )]
    pub fn zero(self) -> u16 {
        (-ROOM * self.low / self.scale()).round().clamp(0.0, STEPS) as u16
    }
}

/// The ranges of all activations of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges(BTreeMap<Activation, Range>);

impl Ranges {
    /// The range of an activation; `None` for one that was never seen.
    #[must_use]
    pub fn of(&self, activation: Activation) -> Option<Range> {
        self.0.get(&activation).copied()
    }
}

/// Looks on while a model runs.
#[derive(Debug, Default)]
pub struct Observer(Mutex<Ranges>);

impl Observer {
    /// A linear layer reads `x` and makes `y`.
    pub(crate) fn see(&self, matrix: Matrix, x: &[f32], y: &[f32]) {
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (side, values) in [(Side::Input, x), (Side::Output, y)] {
            let activation = Activation { matrix, side };
            ranges.0.entry(activation).or_default().take_in(values);
        }
    }

    /// What was seen.
    #[must_use]
    pub fn ranges(self) -> Ranges {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(values: &[f32]) -> Range {
        let mut range = Range::default();
        range.take_in(values);
        range
    }

    /// What a runtime does with the two numbers.
    fn back(range: Range, x: f32) -> f32 {
        let zero = f32::from(range.zero());
        let step = ((x / range.scale()).round() + zero).clamp(0.0, STEPS);
        (step - zero) * range.scale()
    }

    #[test]
    fn what_was_seen_and_half_as_much_again_comes_back() {
        for values in [&[-3.0, 5.0][..], &[0.5, 2.0], &[-7.0, -1.0], &[1e-3, -1e4]] {
            let range = range(values);
            for x in values {
                for x in [*x, 1.49 * x, 0.01 * x] {
                    let off = (back(range, x) - x).abs();
                    assert!(off <= 0.51 * range.scale(), "{values:?} {x} {off}");
                }
            }
            assert!(back(range, 0.0).abs() < f32::MIN_POSITIVE);
        }
    }

    #[test]
    fn nothing_and_numbers_that_are_none_do_no_harm() {
        let nothing = range(&[0.0, f32::NAN, f32::INFINITY]);
        assert!(nothing.scale() > 0.0);
        assert_eq!(nothing.zero(), 0);
    }
}
