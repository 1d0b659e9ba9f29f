//! The numbers of a model by what they mean, wherever they lie.

use std::ops::Range;

use crate::Result;
use crate::checkpoint::FamilyWeights;
use crate::graph::{Matrix, Vector};

/// Weights in the rows and order that the graph wants; see [`graph::build`](crate::graph::build).
pub trait Weights: Sync {
    /// Outputs and inputs of a matrix.
    fn shape(&self, matrix: Matrix) -> (usize, usize);

    /// Rows of a matrix as f32, `[rows.len(), inputs]`; `out` is cleared first.
    /// A head that is not kept apart is the embedding table.
    ///
    /// # Errors
    /// Of the file that holds them.
    fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// A vector as f32.
    ///
    /// # Errors
    /// Of the file that holds it.
    fn vector(&self, vector: Vector) -> Result<Vec<f32>>;
}

/// Values compared at once when a head is held against the embedding table.
const COMPARED: usize = 1 << 20;

/// Whether the output head is equal to the embedding table, value for value.
pub(crate) fn head_is_embedding(weights: &dyn Weights) -> Result<bool> {
    let (outputs, inputs) = weights.shape(Matrix::Head);
    let step = (COMPARED / inputs.max(1)).max(1);
    let (mut head, mut table) = (Vec::new(), Vec::new());
    for start in (0..outputs).step_by(step) {
        let rows = start..outputs.min(start + step);
        weights.rows(Matrix::Head, rows.clone(), &mut head)?;
        weights.rows(Matrix::Embedding, rows, &mut table)?;
        if head != table {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Weights for FamilyWeights<'_> {
    fn shape(&self, matrix: Matrix) -> (usize, usize) {
        FamilyWeights::shape(self, matrix)
    }

    fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        FamilyWeights::rows(self, matrix, rows, out)
    }

    fn vector(&self, vector: Vector) -> Result<Vec<f32>> {
        FamilyWeights::vector(self, vector)
    }
}
