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
