//! Products of quantised weights: quantise the rows, then part the outputs.

use super::activations::{Activations, quantise};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::weights::Quantised;
use super::{Scratch, outputs_of_a_task, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512_row};
use crate::isa::Isa;
use crate::parallel::Parallel;
use crate::shared::Output;

/// What the tasks of a product share.
pub(super) struct Job<'a> {
    pub(super) weights: &'a Quantised<'a>,
    pub(super) activations: &'a Activations,
    out: Output<'a, f32>,
}

impl Job<'_> {
    /// Stores sums of outputs from `output` on, with their bias. Each task
    /// stores outputs of its own.
    #[inline(always)]
    pub(super) fn store(&self, row: usize, output: usize, sums: &[f32]) {
        let outputs = self.weights.outputs;
        // SAFETY: tasks have ranges of outputs that do not overlap, and a
        // kernel stores every output of a row once.
        let out = unsafe { self.out.part(row * outputs + output, sums.len()) };
        match self.weights.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[output..]) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(sums),
        }
    }

    /// Stores all lanes of a register of sums but the first `skip`, as [`Job::store`] does.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn store_lanes<const LANES: usize>(
        &self,
        row: usize,
        output: usize,
        skip: usize,
        sums: &[f32; LANES],
    ) {
        // A length that is known is one instruction; one that is not, a call.
        if skip == 0 {
            self.store(row, output, sums);
        } else {
            self.store(row, output + skip, &sums[skip..]);
        }
    }
}

/// Outputs that a kernel takes at a time.
const UNIT: usize = 16;

pub(super) fn run(
    isa: Isa,
    weights: &Quantised<'_>,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
    par: &dyn Parallel,
) {
    let activations = &mut scratch.activations;
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => activations.fill(weights, x, rows, par, |x, group| {
            // SAFETY: the set was found on this machine.
            unsafe { avx512::quantise_group(x, group) }
        }),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => activations.fill(weights, x, rows, par, |x, group| {
            // SAFETY: as above.
            unsafe { avx2::quantise_group(x, group) }
        }),
        _ => activations.fill(weights, x, rows, par, quantise),
    }
    let job = Job {
        weights,
        activations,
        out: Output::new(out),
    };
    let share = outputs_of_a_task(weights.outputs, UNIT, par.threads());
    par.run(weights.outputs.div_ceil(share), &|task| {
        let from = task * share;
        let to = (from + share).min(weights.outputs);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                let count = avx512_row::share(&job, from, to);
                // SAFETY: the set was found on this machine.
                unsafe {
                    avx512_row::outputs(&job, from, count);
                    avx512::outputs(&job, from + count, to);
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2::outputs(&job, from, to) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon::outputs(&job, from, to) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonDotprod => unsafe { neon::outputs_dotprod(&job, from, to) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonI8mm => unsafe { neon::outputs_i8mm(&job, from, to) },
            _ => scalar::outputs(&job, from, to),
        }
    });
}
