//! Activations of a product as bytes.
//!
//! Everything is cut into chunks of 64 columns, which is what a kernel takes at
//! a time, and lies chunk by chunk for all rows: a kernel that holds a chunk of
//! weights in registers walks through memory in order.

use super::Quantised;
use crate::parallel::Parallel;
use crate::shared::Output;

/// Columns of a chunk: for sixteen outputs its weights fill sixteen registers of
/// 64 bytes.
pub(super) const CHUNK: usize = 64;
/// Below this the reciprocal of a scale overflows; such groups become zeros.
const SMALLEST: f32 = 1e-30;
/// Elements that are worth a task: waking a thread costs as much as 16 Ki of them.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Rows of activations, quantised for weights of one shape.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// i8 `[chunks][rows][64]`. For weights of four bits every
    /// run of eight columns is stored as its even, then its odd columns, so
    /// that the low and the high halves of four bytes each meet four neighbours.
    pub(super) values: Vec<i8>,
    /// What a byte is worth, f32 `[chunks][rows][groups of a chunk]`.
    pub(super) scales: Vec<f32>,
    /// What an integer sum starts with, i32 `[chunks][rows][groups of a chunk]`:
    /// minus the sum of the group, times the zero where all blocks have the same.
    pub(super) starts: Vec<i32>,
    pub(super) rows: usize,
    pub(super) shape: Shape,
}

/// How the columns of weights are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Columns of a group.
    pub(super) group: usize,
    /// Groups of a chunk: 1, 2 or 4.
    pub(super) groups: usize,
    /// Chunks of a row, the last perhaps partly filled.
    pub(super) chunks: usize,
    /// Binary logarithm of the groups that share a scale.
    pub(super) block_shift: u32,
}

impl Shape {
    pub(super) fn of(weights: &Quantised<'_>) -> Self {
        let group = weights.block.min(CHUNK);
        Self {
            group,
            groups: CHUNK / group,
            chunks: (weights.blocks() * weights.block).div_ceil(CHUNK),
            block_shift: (weights.block / group).ilog2(),
        }
    }
}

/// The nearest byte, even ones on ties; for numbers within -127.5..=127.5.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the low byte of the sum is the number"
)]
pub(crate) fn nearest(x: f32) -> i8 {
    // Adding 1.5 * 2^23 leaves the rounded number in the low bits.
    (x + 12_582_912.0).to_bits() as i8
}

impl Activations {
    /// Quantises `x` `[rows, inputs]`.
    pub(super) fn fill(
        &mut self,
        weights: &Quantised<'_>,
        x: &[f32],
        rows: usize,
        par: &dyn Parallel,
        quantise: impl Fn(&[f32], Group<'_>) + Sync,
    ) {
        let shape = Shape::of(weights);
        self.rows = rows;
        self.shape = shape;
        let groups = shape.chunks * rows * shape.groups;
        self.values.resize(groups * shape.group, 0);
        self.scales.resize(groups, 0.0);
        self.starts.resize(groups, 0);
        let zero = match weights.zero_points {
            Some(_) => 1,
            None => 1 << (weights.bits - 1),
        };
        let values = Output::new(&mut self.values[..groups * shape.group]);
        let scales = Output::new(&mut self.scales[..groups]);
        let starts = Output::new(&mut self.starts[..groups]);
        let inputs = weights.inputs;
        let row = |row: usize| {
            let x = &x[row * inputs..(row + 1) * inputs];
            for group in 0..shape.chunks * shape.groups {
                let (chunk, place) = (group / shape.groups, group % shape.groups);
                let at = (chunk * rows + row) * shape.groups + place;
                let from = (group * shape.group).min(inputs);
                let to = (from + shape.group).min(inputs);
                // SAFETY: a row is one task's, and groups of a row differ in place.
                let (values, scale, start) = unsafe {
                    (
                        values.part(at * shape.group, shape.group),
                        &mut scales.part(at, 1)[0],
                        &mut starts.part(at, 1)[0],
                    )
                };
                quantise(
                    &x[from..to],
                    Group {
                        values,
                        scale,
                        start,
                        zero,
                        halves: weights.bits == 4,
                    },
                );
            }
        };
        if par.threads() > 1 && rows * inputs >= 2 * TASK_ELEMENTS {
            let rows_of_a_task = TASK_ELEMENTS.div_ceil(inputs);
            par.run(rows.div_ceil(rows_of_a_task), &|task| {
                (task * rows_of_a_task..((task + 1) * rows_of_a_task).min(rows)).for_each(row);
            });
        } else {
            (0..rows).for_each(row);
        }
    }
}

/// Where a group of a row goes.
#[derive(Debug)]
pub(super) struct Group<'a> {
    values: &'a mut [i8],
    scale: &'a mut f32,
    start: &'a mut i32,
    zero: i32,
    /// Whether even and odd columns are parted.
    halves: bool,
}

/// Quantises one group symmetrically by its largest magnitude. `x` is shorter
/// than the group at the end of a row. A number that is not finite makes the
/// scale NaN, so that the fault shows in every output.
#[inline(always)]
pub(super) fn quantise(x: &[f32], group: Group<'_>) {
    let values = group.values;
    // The bits of magnitudes are ordered as they are, NaN above all.
    let largest = x.iter().fold(0, |most, x| most.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() || largest < SMALLEST {
        values.fill(0);
        *group.scale = if largest.is_finite() { 0.0 } else { f32::NAN };
        *group.start = 0;
        return;
    }
    let inverse = 127.0 / largest;
    let mut bytes = [0_i8; CHUNK];
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = nearest(x * inverse);
    }
    let bytes = &bytes[..values.len()];
    let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
    if group.halves {
        for (values, bytes) in values.chunks_exact_mut(8).zip(bytes.chunks_exact(8)) {
            for i in 0..4 {
                values[i] = bytes[2 * i];
                values[4 + i] = bytes[2 * i + 1];
            }
        }
    } else {
        values.copy_from_slice(bytes);
    }
    *group.scale = largest / 127.0;
    *group.start = -group.zero * sum;
}
