//! Products of plain weights, written once for every instruction set.
//!
//! Weights that lie output by output give dot products, whose order is that of
//! the lanes; those that lie input by input are added up row by row. Either way
//! a result depends on its row alone.

use super::outputs_of_a_task;
use super::weights::{Dense, DenseLayout};
use crate::isa::Isa;
use crate::parallel::Parallel;
use crate::shared::{Floats, Output};
use crate::simd::scalar::{Scalar, fused};
use crate::simd::{Element, Simd};

/// Columns that are added up together: with four rows of sums they fill a quarter of an L1 cache.
const COLUMNS: usize = 512;
/// Rows that share a pass over the weights.
const ROWS: usize = 4;

struct Job<'a> {
    weights: &'a Dense<'a>,
    x: &'a [f32],
    rows: usize,
    out: Output<'a, f32>,
}

impl Job<'_> {
    #[inline(always)]
    fn store(&self, row: usize, output: usize, sum: f32) {
        let bias = self.weights.bias.map_or(0.0, |bias| bias[output]);
        // SAFETY: tasks have different outputs and store each of a row once.
        let out = unsafe { self.out.part(row * self.weights.outputs + output, 1) };
        out[0] = sum + bias;
    }
}

pub(super) fn run(
    isa: Isa,
    weights: &Dense<'_>,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    par: &dyn Parallel,
) {
    let job = Job {
        weights,
        x,
        rows,
        out: Output::new(out),
    };
    let share = outputs_of_a_task(weights.outputs, 64, par.threads());
    par.run(weights.outputs.div_ceil(share), &|task| {
        let from = task * share;
        let to = (from + share).min(weights.outputs);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set was found on this machine.
            Isa::Avx512Vnni => unsafe { avx512(&job, from, to) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(&job, from, to) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => unsafe { neon(&job, from, to) },
            // SAFETY: arrays need no instruction set.
            _ => unsafe { outputs::<Scalar>(&job, from, to) },
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the features are those of the vectors.
    unsafe { outputs::<crate::simd::avx512::Avx512>(job, from, to) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the features are those of the vectors.
    unsafe { outputs::<crate::simd::avx2::Avx2>(job, from, to) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the features are those of the vectors.
    unsafe { outputs::<crate::simd::neon::Neon>(job, from, to) }
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn outputs<S: Simd>(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the slices have the sizes that `Dense` checked; half floats are
    // read as their bits.
    unsafe {
        match (job.weights.data, job.weights.layout) {
            (Floats::F32(data), DenseLayout::ByOutput) => by_output::<S, f32>(job, data, from, to),
            (Floats::F32(data), DenseLayout::ByInput) => by_input::<S, f32>(job, data, from, to),
            (Floats::F16(data), layout) => {
                let bits = std::slice::from_raw_parts(data.as_ptr().cast::<u16>(), data.len());
                match layout {
                    DenseLayout::ByOutput => by_output::<S, u16>(job, bits, from, to),
                    DenseLayout::ByInput => by_input::<S, u16>(job, bits, from, to),
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn by_output<S: Simd, E: Element>(job: &Job<'_>, data: &[E], from: usize, to: usize) {
    let mut row = 0;
    while row < job.rows {
        let rows = ROWS.min(job.rows - row);
        let mut output = from;
        while output < to {
            let outputs = if to - output >= 4 { 4 } else { 1 };
            // SAFETY: the promise of the caller.
            unsafe {
                match (rows, outputs) {
                    (ROWS, 4) => dots::<S, E, ROWS, 4>(job, data, row, output),
                    (ROWS, _) => dots::<S, E, ROWS, 1>(job, data, row, output),
                    (rows, 4) => {
                        (row..row + rows).for_each(|row| dots::<S, E, 1, 4>(job, data, row, output))
                    }
                    (rows, _) => {
                        (row..row + rows).for_each(|row| dots::<S, E, 1, 1>(job, data, row, output))
                    }
                }
            }
            output += outputs;
        }
        row += rows;
    }
}

#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const R: usize, const O: usize>(
    job: &Job<'_>,
    data: &[E],
    row: usize,
    output: usize,
) {
    let inputs = job.weights.inputs;
    let whole = inputs / S::LANES * S::LANES;
    let x = &job.x[row * inputs..(row + R) * inputs];
    let w = &data[output * inputs..(output + O) * inputs];
    // SAFETY: vectors end at `whole`, inside every row.
    unsafe {
        let mut sums = [[S::splat(0.0); O]; R];
        for at in (0..whole).step_by(S::LANES) {
            let mut weights = [S::splat(0.0); O];
            for (o, weights) in weights.iter_mut().enumerate() {
                *weights = E::load::<S>(w.as_ptr().add(o * inputs + at));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = S::load(x.as_ptr().add(r * inputs + at));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::fma(weights, x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (o, sum) in sums.iter().enumerate() {
                let mut sum = S::reduce_add(*sum);
                for at in whole..inputs {
                    sum = fused(w[o * inputs + at].get(), x[r * inputs + at], sum);
                }
                job.store(row + r, output + o, sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn by_input<S: Simd, E: Element>(job: &Job<'_>, data: &[E], from: usize, to: usize) {
    let (inputs, outputs) = (job.weights.inputs, job.weights.outputs);
    for first in (0..job.rows).step_by(ROWS) {
        let rows = ROWS.min(job.rows - first);
        for column in (from..to).step_by(COLUMNS) {
            let columns = COLUMNS.min(to - column);
            let whole = columns / S::LANES * S::LANES;
            let mut sums = [[0.0_f32; COLUMNS]; ROWS];
            let mut input = 0;
            while input < inputs {
                let together = if inputs - input >= 4 { 4 } else { 1 };
                for (r, sums) in sums[..rows].iter_mut().enumerate() {
                    let x = &job.x[(first + r) * inputs + input..][..together];
                    let w = &data[input * outputs + column..];
                    // SAFETY: rows of weights hold `columns` elements from here,
                    // and vectors end at `whole`, which is not more.
                    unsafe {
                        if together == 4 {
                            add::<S, E, 4>(sums, x, w, outputs, whole, columns);
                        } else {
                            add::<S, E, 1>(sums, x, w, outputs, whole, columns);
                        }
                    }
                }
                input += together;
            }
            for (r, sums) in sums[..rows].iter().enumerate() {
                for (c, sum) in sums[..columns].iter().enumerate() {
                    job.store(first + r, column + c, *sum);
                }
            }
        }
    }
}

/// Adds N rows of weights times their inputs to the sums.
#[inline(always)]
unsafe fn add<S: Simd, E: Element, const N: usize>(
    sums: &mut [f32; COLUMNS],
    x: &[f32],
    w: &[E],
    stride: usize,
    whole: usize,
    columns: usize,
) {
    // SAFETY: the promise of the caller.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            let mut sum = S::load(sums.as_ptr().add(at));
            for (n, x) in x[..N].iter().enumerate() {
                let weights = E::load::<S>(w.as_ptr().add(n * stride + at));
                sum = S::fma(weights, S::splat(*x), sum);
            }
            S::store(sums.as_mut_ptr().add(at), sum);
        }
    }
    for at in whole..columns {
        for (n, x) in x[..N].iter().enumerate() {
            sums[at] = fused(w[n * stride + at].get(), *x, sums[at]);
        }
    }
}
