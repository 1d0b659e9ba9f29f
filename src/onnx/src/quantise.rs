//! Weights as small integers with scales, in the layout of `MatMulNBits`.
//!
//! | [`Scheme`] | scale `s` of a block `w` | integer | back |
//! |---|---|---|---|
//! | `Int8` | `max abs w / 127` | `round(w / s)`, stored plus 128 | `(q - 128) s` |
//! | `Int4` | `max abs w / 7` | `round(w / s)`, stored plus 8 | `(q - 8) s` |
//! | `Int4ZeroPoint` | `(max w - min w) / 15` | `round(w / s) + z`, `z = round(-min w / s)` | `(q - z) s` |
//!
//! The first two are the absmax quantisation of GLM-130B (section 4), the last
//! is the textbook form; its range always takes in 0, as `z` must be one of the
//! 16 integers. Rounding is to the nearest, so a weight is off by `s / 2` at
//! most. A block whose scale would not be a normal number is all zeros.
//!
//! The first two give the same integers and scales again when what came back is
//! quantised once more: with `x = max abs w` and `u` the unit in the last place
//! of `s`, `127 s` is within `63.5 u` of `x`. Where floats near `x` are `128 u`
//! apart it rounds to `x` itself; where they are `64 u` apart it is off by `32 u`
//! at most, and `1 / 127` of that does not move `s`. (For 7 it is 3.5, 8, 4 and 2.)
//! The last does not where a zero point was rounded from between two integers:
//! such a block uses 15 of its 16 integers, and its range is smaller the next time.

use std::ops::Range;

use crate::graph::{Block, Quantisation, Scheme};
use crate::{Result, parallel};

/// f32 weights that one thread works on at a time: 4 MiB stay within the
/// caches of a small board and make reads long enough for its storage.
const PIECE: usize = 1 << 20;

/// Sizes of a quantised matrix, all for one row of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Weights.
    pub inputs: usize,
    /// Bits of an integer: 8, or 4 with two in a byte, the first in the low half.
    pub bits: usize,
    /// Weights of a stored block; the last one of a row is filled with zeros.
    pub block: usize,
    /// Stored blocks.
    pub blocks: usize,
    /// Whether zero points are stored.
    pub zero_points: bool,
}

impl Layout {
    /// The layout of rows of `inputs` weights.
    #[must_use]
    pub fn new(how: Quantisation, inputs: usize) -> Self {
        let block = how.stored_block(inputs);
        Self {
            inputs,
            bits: how.bits(),
            block,
            blocks: inputs.div_ceil(block),
            zero_points: how.zero_points(),
        }
    }

    /// Bytes of integers.
    #[must_use]
    pub const fn value_bytes(&self) -> usize {
        self.blocks * self.block * self.bits / 8
    }

    /// Bytes of zero points, where they are stored.
    #[must_use]
    pub const fn zero_point_bytes(&self) -> usize {
        (self.blocks * self.bits).div_ceil(8)
    }

    /// Weights of one row from its integers, scales and, where the layout has
    /// them, zero points. `out` has `inputs` elements.
    pub fn dequantise(&self, values: &[u8], scales: &[f32], zero_points: &[u8], out: &mut [f32]) {
        let bytes = self.block * self.bits / 8;
        let middle = 1 << (self.bits - 1);
        for (n, (to, packed)) in out
            .chunks_mut(self.block)
            .zip(values.chunks_exact(bytes))
            .enumerate()
        {
            let scale = scales[n];
            let zero = match (self.zero_points, self.bits) {
                (false, _) => middle,
                (true, 8) => zero_points[n],
                (true, _) => nibble(zero_points, n),
            };
            let back = |q: u8| (f32::from(q) - f32::from(zero)) * scale;
            if self.bits == 8 {
                for (w, q) in to.iter_mut().zip(packed) {
                    *w = back(*q);
                }
            } else {
                for (i, w) in to.iter_mut().enumerate() {
                    *w = back(nibble(packed, i));
                }
            }
        }
    }
}

/// The `n`-th four bits.
const fn nibble(bytes: &[u8], n: usize) -> u8 {
    (bytes[n / 2] >> (4 * (n % 2))) & 15
}

/// Some rows of a quantised matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// `[rows, value_bytes]`.
    pub values: Vec<u8>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// `[rows, zero_point_bytes]`; empty without zero points.
    pub zero_points: Vec<u8>,
}

/// Quantises a matrix of `outputs` rows of `inputs` weights, a few rows at a
/// time on `threads` threads.
///
/// `read` appends rows as f32, `write` takes them quantised; both are called
/// from all threads, for ranges that do not overlap and come in no certain order.
///
/// # Errors
/// The first that `read` or `write` reports.
pub fn quantise_matrix(
    how: Quantisation,
    [outputs, inputs]: [usize; 2],
    threads: usize,
    read: impl Fn(Range<usize>, &mut Vec<f32>) -> Result<()> + Sync,
    write: impl Fn(Range<usize>, &Packed) -> Result<()> + Sync,
) -> Result<()> {
    let rows = rows_of_a_piece(inputs);
    parallel::for_each(threads, outputs.div_ceil(rows), |piece| {
        let range = piece * rows..((piece + 1) * rows).min(outputs);
        let mut weights = Vec::with_capacity(range.len() * inputs);
        read(range.clone(), &mut weights)?;
        write(range, &quantise(how, inputs, &weights))
    })
}

/// Rows of `inputs` weights that make a piece of work.
pub(crate) const fn rows_of_a_piece(inputs: usize) -> usize {
    let rows = PIECE / if inputs == 0 { 1 } else { inputs };
    if rows == 0 { 1 } else { rows }
}

/// Quantises rows of `inputs` weights.
#[must_use]
pub fn quantise(how: Quantisation, inputs: usize, weights: &[f32]) -> Packed {
    let layout = Layout::new(how, inputs);
    let rows = weights.len() / inputs.max(1);
    let mut packed = Packed {
        values: Vec::with_capacity(rows * layout.value_bytes()),
        scales: Vec::with_capacity(rows * layout.blocks),
        zero_points: Vec::new(),
    };
    let mut codes = vec![0_u8; layout.blocks * layout.block];
    let mut zeros = Vec::with_capacity(layout.blocks + 1);
    for row in weights.chunks_exact(inputs.max(1)) {
        let whole = match how.block {
            Block::Row => Some(Grid::of(how.scheme, row)),
            Block::Of(_) => None,
        };
        zeros.clear();
        for (weights, codes) in row
            .chunks(layout.block)
            .zip(codes.chunks_exact_mut(layout.block))
        {
            let grid = whole.unwrap_or_else(|| Grid::of(how.scheme, weights));
            grid.encode(weights, codes);
            codes[weights.len()..].fill(grid.zero);
            packed.scales.push(grid.scale);
            zeros.push(grid.zero);
        }
        push(layout.bits, &codes, &mut packed.values);
        if layout.zero_points {
            push(layout.bits, &zeros, &mut packed.zero_points);
        }
    }
    packed
}

/// Appends codes as bytes, or two to a byte.
fn push(bits: usize, codes: &[u8], out: &mut Vec<u8>) {
    if bits == 8 {
        out.extend_from_slice(codes);
    } else {
        out.extend(
            codes
                .chunks(2)
                .map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)),
        );
    }
}

/// The values that a block can take: `(q - zero) scale` for codes `q`.
#[derive(Clone, Copy, Debug)]
struct Grid {
    scale: f32,
    zero: u8,
    last: u8,
}

/// 1.5 x 2^23: adding it rounds a small f32 to the nearest integer, ties to
/// even, and leaves that integer in the low bits. Unlike `f32::round` this
/// takes one instruction for a whole vector on every processor.
const ROUND: f32 = 12_582_912.0;

impl Grid {
    fn of(scheme: Scheme, weights: &[f32]) -> Self {
        let (low, high) = range(weights);
        let (scale, last) = match scheme {
            Scheme::Int8 => (high.max(-low) / 127.0, 255),
            Scheme::Int4 => (high.max(-low) / 7.0, 15),
            // Each half first: the difference of the ends may overflow.
            Scheme::Int4ZeroPoint => (high / 15.0 - low / 15.0, 15),
        };
        let scale = if scale.is_normal() { scale } else { 0.0 };
        let zero = match scheme {
            Scheme::Int8 => 128,
            Scheme::Int4 => 8,
            Scheme::Int4ZeroPoint if scale == 0.0 => 0,
            Scheme::Int4ZeroPoint => nearest(-low / scale, 0, last),
        };
        Self { scale, zero, last }
    }

    /// Codes of `weights`; those of an all-zero block are `zero`.
    fn encode(self, weights: &[f32], codes: &mut [u8]) {
        if self.scale == 0.0 {
            codes.fill(self.zero);
            return;
        }
        for (code, w) in codes.iter_mut().zip(weights) {
            *code = nearest(w / self.scale, self.zero, self.last);
        }
    }
}

/// `round(x) + zero` within `0..=last`, for `x` of less than 2^22.
#[inline]
fn nearest(x: f32, zero: u8, last: u8) -> u8 {
    let moved = (x + ROUND) - ROUND + f32::from(zero);
    let clamped = moved.clamp(0.0, f32::from(last));
    // The low byte of the sum is the integer.
    (clamped + ROUND).to_bits().to_le_bytes()[0]
}

/// Lowest and highest of `weights` and 0, in lanes that a compiler can put into vectors.
fn range(weights: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (lanes, rest) = weights.as_chunks::<LANES>();
    for lane in lanes {
        for i in 0..LANES {
            low[i] = if lane[i] < low[i] { lane[i] } else { low[i] };
            high[i] = if lane[i] > high[i] { lane[i] } else { high[i] };
        }
    }
    let low = low.iter().chain(rest).copied().fold(0.0, f32::min);
    let high = high.iter().chain(rest).copied().fold(0.0, f32::max);
    (low, high)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    const SCHEMES: [Scheme; 3] = [Scheme::Int8, Scheme::Int4, Scheme::Int4ZeroPoint];

    fn how(scheme: Scheme, block: Block) -> Quantisation {
        Quantisation { scheme, block }
    }

    /// Row `n` of what was packed.
    fn back(layout: &Layout, packed: &Packed, n: usize) -> Vec<f32> {
        let mut row = vec![f32::NAN; layout.inputs];
        let zeros = if layout.zero_points {
            &packed.zero_points[n * layout.zero_point_bytes()..]
        } else {
            &[]
        };
        layout.dequantise(
            &packed.values[n * layout.value_bytes()..][..layout.value_bytes()],
            &packed.scales[n * layout.blocks..],
            zeros,
            &mut row,
        );
        row
    }

    #[test]
    fn exact_vectors() {
        let mut row = [0.0_f32; 32];
        row[..6].copy_from_slice(&[127.0, -127.0, 63.5, -0.4, 0.6, -64.5]);
        let packed = quantise(how(Scheme::Int8, Block::Of(32)), 32, &row);
        assert_eq!(packed.scales, [1.0]);
        // Ties go to the even integer.
        assert_eq!(packed.values[..7], [255, 1, 192, 128, 129, 64, 128]);
        assert!(packed.zero_points.is_empty());

        let mut row = [0.0_f32; 16];
        row[..4].copy_from_slice(&[-7.0, 7.0, 3.4, -0.6]);
        let packed = quantise(how(Scheme::Int4, Block::Of(16)), 16, &row);
        assert_eq!(packed.scales, [1.0]);
        assert_eq!(packed.values[..3], [0xF1, 0x7B, 0x88]);
        assert_eq!(packed.values.len(), 8);

        let mut row = [0.0_f32; 48];
        row[..3].copy_from_slice(&[-5.0, 10.0, 1.4]);
        row[16..32].fill(30.0);
        row[32..].fill(-15.0);
        let packed = quantise(how(Scheme::Int4ZeroPoint, Block::Of(16)), 48, &row);
        assert_eq!(packed.scales, [1.0, 2.0, 1.0]);
        assert_eq!(packed.zero_points, [0x05, 0x0F]);
        assert_eq!(packed.values[..2], [0xF0, 0x56]);
        assert_eq!((packed.values[8], packed.values[16]), (0xFF, 0x00));
    }

    #[test]
    fn a_short_last_block_is_filled_with_zeros() {
        for scheme in SCHEMES {
            let how = how(scheme, Block::Of(32));
            let layout = Layout::new(how, 40);
            assert_eq!((layout.blocks, layout.block), (2, 32));
            let row: Vec<f32> = (0..40_u8).map(|i| f32::from(i) - 7.0).collect();
            let packed = quantise(how, 40, &row);
            assert_eq!(packed.values.len(), layout.value_bytes());
            let padded = Layout {
                inputs: 64,
                ..layout
            };
            assert!(back(&padded, &packed, 0)[40..].iter().all(|w| *w == 0.0));
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_tiny_blocks_become_zero() {
        for scheme in SCHEMES {
            for tiny in [0.0, 1e-44, -1e-40] {
                let how = how(scheme, Block::Of(16));
                let mut row = [tiny; 32];
                row[20] = 1.0;
                let packed = quantise(how, 32, &row);
                assert_eq!(packed.scales[0], 0.0);
                let row = back(&Layout::new(how, 32), &packed, 0);
                assert!(row[..16].iter().all(|w| *w == 0.0), "{row:?}");
                assert!((row[20] - 1.0).abs() < 0.04);
            }
        }
    }

    #[test]
    fn the_scale_of_a_row_is_repeated_for_its_blocks() {
        for scheme in SCHEMES {
            let row: Vec<f32> = (0..300_u16).map(|i| f32::from(i).sin()).collect();
            let packed = quantise(how(scheme, Block::Row), 300, &row);
            assert_eq!(packed.scales.len(), 3);
            assert!(packed.scales.iter().all(|s| *s == packed.scales[0]));
        }
    }

    #[test]
    fn threads_and_pieces_do_not_change_the_result() {
        let (outputs, inputs) = (700, 4096);
        let weights: Vec<f32> = (0..outputs * inputs)
            .map(|i| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.4)
            .collect();
        for scheme in SCHEMES {
            let how = how(scheme, Block::Of(64));
            let layout = Layout::new(how, inputs);
            let expected = quantise(how, inputs, &weights);
            let got = Mutex::new(vec![0_u8; expected.values.len()]);
            quantise_matrix(
                how,
                [outputs, inputs],
                3,
                |rows, out| {
                    out.extend_from_slice(&weights[rows.start * inputs..rows.end * inputs]);
                    Ok(())
                },
                |rows, packed| {
                    let at = rows.start * layout.value_bytes();
                    let length = packed.values.len();
                    got.lock().unwrap()[at..at + length].copy_from_slice(&packed.values);
                    Ok(())
                },
            )
            .unwrap();
            assert!(got.into_inner().unwrap() == expected.values);
        }
    }

    #[test]
    fn an_error_of_the_reader_ends_the_work() {
        let how = how(Scheme::Int8, Block::Row);
        let fail = |rows: Range<usize>, _: &mut Vec<f32>| {
            Err(Error::tensor("file", "w", format!("row {}", rows.start)))
        };
        let error = quantise_matrix(how, [10, 16], 2, fail, |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("row 0"));
    }

    fn weights() -> impl Strategy<Value = Vec<f32>> {
        let size = prop_oneof![
            Just(1.0_f32),
            Just(1e-6),
            Just(1e20),
            Just(3e38),
            Just(1e-36)
        ];
        let shift = prop_oneof![Just(0.0_f32), Just(1.0), Just(-1.0)];
        (size, shift, prop::collection::vec(-1.0_f32..1.0, 1..200)).prop_map(
            |(size, shift, row)| row.into_iter().map(|w| (w + shift) * 0.5 * size).collect(),
        )
    }

    proptest! {
        #[test]
        fn a_weight_is_off_by_half_a_scale_at_most(
            row in weights(),
            scheme in prop::sample::select(&SCHEMES[..]),
            block in prop_oneof![Just(Block::Row), Just(Block::Of(32)), Just(Block::Of(64)), Just(Block::Of(128))],
        ) {
            let how = how(scheme, block);
            let layout = Layout::new(how, row.len());
            let packed = quantise(how, row.len(), &row);
            prop_assert_eq!(packed.scales.len(), layout.blocks);
            prop_assert_eq!(packed.values.len(), layout.value_bytes());
            for (i, (w, kept)) in row.iter().zip(back(&layout, &packed, 0)).enumerate() {
                let scale = packed.scales[i / layout.block];
                // The quotient, its sum with a zero point and the product back are rounded too.
                let bound = scale * 0.5 + 64.0 * f32::EPSILON * scale;
                let slack = 300.0 * f32::MIN_POSITIVE;
                prop_assert!((w - kept).abs() <= bound + slack, "{} -> {} at scale {}", w, kept, scale);
                prop_assert!(kept.is_finite());
            }
        }

        #[test]
        fn what_was_quantised_once_stays(
            row in weights(),
            scheme in prop::sample::select(&[Scheme::Int8, Scheme::Int4][..]),
            block in prop_oneof![Just(Block::Row), Just(Block::Of(32))],
        ) {
            let how = how(scheme, block);
            let once = quantise(how, row.len(), &row);
            let spread = back(&Layout::new(how, row.len()), &once, 0);
            prop_assert_eq!(quantise(how, row.len(), &spread), once);
        }
    }
}
