//! Arithmetic of a forward pass on rows of f32.

/// Elements that are added up side by side, so that a compiler can use vectors.
const LANES: usize = 16;

#[allow(clippy::cast_possible_truncation, reason = "rounding is the point")]
pub(super) const fn narrow(x: f64) -> f32 {
    x as f32
}

#[allow(clippy::cast_precision_loss, reason = "widths stay below 2^24")]
const fn count(n: usize) -> f64 {
    n as f64
}

pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

pub(super) fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y * factor);
}

pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    dots(y, [x])[0]
}

/// Products of one row of weights with some rows of operands.
fn dots<const N: usize>(w: &[f32], x: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0_f32; LANES]; N];
    let (lanes, rest) = w.as_chunks::<LANES>();
    let x_lanes = x.map(|x| x.as_chunks::<LANES>().0);
    for (k, w) in lanes.iter().enumerate() {
        for (sum, x) in sums.iter_mut().zip(x_lanes) {
            let x = &x[k];
            for lane in 0..LANES {
                sum[lane] += w[lane] * x[lane];
            }
        }
    }
    let done = w.len() - rest.len();
    let mut totals = sums.map(|sum| sum.iter().sum::<f32>());
    for (total, x) in totals.iter_mut().zip(x) {
        *total += rest.iter().zip(&x[done..]).map(|(w, x)| w * x).sum::<f32>();
    }
    totals
}

/// `x w^T`: rows of `inputs` elements each, `[rows of x, rows of w]`.
pub(super) fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    const AT_ONCE: usize = 4;
    let width = w.len() / inputs;
    let x: Vec<&[f32]> = x.chunks_exact(inputs).collect();
    let mut y = vec![0.0; x.len() * width];
    for (output, w) in w.chunks_exact(inputs).enumerate() {
        let (fours, rest) = x.as_chunks::<AT_ONCE>();
        for (n, four) in fours.iter().enumerate() {
            for (i, sum) in dots(w, *four).into_iter().enumerate() {
                y[(n * AT_ONCE + i) * width + output] = sum;
            }
        }
        for (n, x) in rest.iter().enumerate() {
            y[(fours.len() * AT_ONCE + n) * width + output] = dot(x, w);
        }
    }
    y
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` of each row.
pub(super) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) {
    for row in x.chunks_exact_mut(weight.len()) {
        let n = count(row.len());
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let square = |x: &f32| (f64::from(*x) - mean).powi(2);
        let factor = 1.0 / (row.iter().map(square).sum::<f64>() / n + eps).sqrt();
        for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
            *x = narrow((f64::from(*x) - mean) * factor) * w + b;
        }
    }
}

/// `x / sqrt(mean square + eps) * weight` of each row.
pub(super) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f64) {
    for row in x.chunks_exact_mut(weight.len()) {
        let squares = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let factor = 1.0 / (squares / count(row.len()) + eps).sqrt();
        for (x, w) in row.iter_mut().zip(weight) {
            *x = narrow(f64::from(*x) * factor) * w;
        }
    }
}

pub(super) fn softmax(x: &mut [f32]) {
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f32 = x.iter().sum();
    scale(x, 1.0 / sum);
}

/// `x Phi(x)`.
pub(super) fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    narrow(0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)))
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    narrow(0.5 * x * (1.0 + inner.tanh()))
}

pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// Symmetric 8 bits with one scale for the row.
pub(super) fn round_to_8_bits(row: &mut [f32]) {
    let scale = row.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
    if scale > 0.0 {
        row.iter_mut()
            .for_each(|x| *x = (*x / scale).round() * scale);
    }
}

pub(super) fn round_to_f16(row: &mut [f32]) {
    row.iter_mut()
        .for_each(|x| *x = half::f16::from_f32(*x).to_f32());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_odd_sizes_are_those_of_a_double_loop() {
        for (tokens, outputs, inputs) in [(1, 1, 1), (3, 2, 7), (4, 5, 8), (9, 3, 37)] {
            let number = |i: usize| narrow(((i * 37 % 101) as f64 - 50.0) / 16.0);
            let x: Vec<f32> = (0..tokens * inputs).map(number).collect();
            let w: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 5)).collect();
            let y = product(&x, &w, inputs);
            for t in 0..tokens {
                for o in 0..outputs {
                    let naive: f64 = (0..inputs)
                        .map(|k| f64::from(x[t * inputs + k]) * f64::from(w[o * inputs + k]))
                        .sum();
                    assert!((f64::from(y[t * outputs + o]) - naive).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn known_values_of_the_activations() {
        // Phi(1) = 0.841344746, to nine digits in any table.
        assert!((gelu_erf(1.0) - 0.841_344_8).abs() < 1e-7);
        assert!((gelu_tanh(1.0) - 0.841_192).abs() < 1e-6);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
        assert_eq!(
            (gelu_erf(-40.0), gelu_tanh(-40.0), silu(-200.0)),
            (-0.0, -0.0, -0.0)
        );
    }
}
