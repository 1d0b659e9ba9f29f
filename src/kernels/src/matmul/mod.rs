//! Products with constant weights: `y = x W^T + bias`.
//!
//! Quantised weights are multiplied as integers. Activations are quantised to
//! INT8 a row and a group of columns at a time (a group is a block of weights,
//! at most 64 columns of it), so a row never depends on another. The result of an
//! output is
//!
//! ```text
//! y = sum over groups in order of  f32(sum of (q - zero) a) * (scale_w scale_a)
//! ```
//!
//! with an exact integer sum and one fused multiply-add a group. All kernels
//! keep to that order, for one row and for a thousand, so they agree bit for bit.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_row;
mod dense;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peak;
mod quantised;
mod scalar;
mod weights;

use activations::Activations;
pub(crate) use activations::nearest;
pub use weights::{Dense, DenseLayout, Matrix, Quantised};

use crate::error::{KernelError, expect_size};
use crate::isa::Kernels;
use crate::parallel::Parallel;

/// Working memory that products reuse; one a caller and thread.
#[derive(Debug, Default)]
pub struct Scratch {
    activations: Activations,
}

impl Kernels {
    /// `out = x W^T + bias` for `x` `[m, inputs]` and `out` `[m, outputs]`.
    ///
    /// # Errors
    /// When the slices are no such matrices.
    pub fn matmul(
        self,
        weights: &Matrix<'_>,
        x: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
        par: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let rows = x.len() / weights.inputs();
        expect_size("operand", Some(rows * weights.inputs()), x.len())?;
        expect_size("product", Some(rows * weights.outputs()), out.len())?;
        if rows == 0 {
            return Ok(());
        }
        match weights {
            Matrix::Quantised(weights) => {
                quantised::run(self.isa(), weights, x, rows, out, scratch, par);
            }
            Matrix::Dense(weights) => dense::run(self.isa(), weights, x, rows, out, par),
        }
        Ok(())
    }
}

/// Outputs of a task: whole groups of `unit`, several tasks a thread so that a
/// slow core does not hold up the others.
fn outputs_of_a_task(outputs: usize, unit: usize, threads: usize) -> usize {
    /// Four parts a thread leave the last thread at most a quarter behind.
    const PARTS: usize = 4;
    if threads <= 1 {
        return outputs;
    }
    outputs.div_ceil(threads * PARTS).next_multiple_of(unit)
}
