//! The product of quantised weights in plain code: the twin of the SIMD
//! kernels, and what runs where there are none.

use super::quantised::Job;
use crate::simd::scalar::fused;

/// Outputs `from..to` of every row.
pub(super) fn outputs(job: &Job<'_>, from: usize, to: usize) {
    let (weights, acts) = (job.weights, job.activations);
    let shape = acts.shape;
    let blocks = weights.blocks();
    let bytes = shape.group / 8 * weights.bits;
    for output in from..to {
        let stored = &weights.values[output * weights.row_bytes()..][..weights.row_bytes()];
        for row in 0..acts.rows {
            let mut sum = 0.0;
            for (group, stored) in stored.chunks_exact(bytes).enumerate() {
                let (chunk, place) = (group / shape.groups, group % shape.groups);
                let at = (chunk * acts.rows + row) * shape.groups + place;
                let values = &acts.values[at * shape.group..][..shape.group];
                let block = group >> shape.block_shift;
                let start = match weights.zero_points {
                    Some(_) => acts.starts[at] * i32::from(weights.zero(output, block)),
                    None => acts.starts[at],
                };
                let dot = start
                    + if weights.bits == 8 {
                        dot(stored, values)
                    } else {
                        dot_of_halves(stored, values)
                    };
                let scale = weights.scales[output * blocks + block] * acts.scales[at];
                sum = fused(exact(dot), scale, sum);
            }
            job.store(row, output, &[sum]);
        }
    }
}

fn dot(stored: &[u8], values: &[i8]) -> i32 {
    let product = |(q, a): (&u8, &i8)| i32::from(*q) * i32::from(*a);
    stored.iter().zip(values).map(product).sum()
}

fn dot_of_halves(stored: &[u8], values: &[i8]) -> i32 {
    let mut sum = 0;
    for (stored, values) in stored.chunks_exact(4).zip(values.chunks_exact(8)) {
        for (i, q) in stored.iter().enumerate() {
            sum += i32::from(q & 0x0f) * i32::from(values[i]);
            sum += i32::from(q >> 4) * i32::from(values[4 + i]);
        }
    }
    sum
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a group sums up to less than 2^24"
)]
const fn exact(dot: i32) -> f32 {
    dot as f32
}
