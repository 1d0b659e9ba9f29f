//! Rows of a table by number: token embeddings and learned positions.

use crate::error::{KernelError, expect_size};
use crate::isa::Kernels;
use crate::matmul::Quantised;
use crate::shared::Floats;

/// A table `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Floats.
    Floats {
        /// Elements of a row.
        width: usize,
        /// Row by row.
        data: Floats<'a>,
    },
    /// Integers with scales: an output of the weights is a row.
    Quantised(Quantised<'a>),
}

impl Table<'_> {
    /// Elements of a row.
    #[must_use]
    pub const fn width(&self) -> usize {
        match self {
            Self::Floats { width, .. } => *width,
            Self::Quantised(weights) => weights.inputs(),
        }
    }

    /// Rows; none where the width is 0.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Floats { width, data } => data.len().checked_div(*width).unwrap_or(0),
            Self::Quantised(weights) => weights.outputs(),
        }
    }
}

impl Kernels {
    /// Writes the rows `ids` of `table`, one after the other, to `out`
    /// `[ids, width]`. A negative number counts from the end, as in ONNX `Gather`.
    ///
    /// # Errors
    /// When `out` has another size or a number lies outside the table.
    pub fn rows(self, table: &Table<'_>, ids: &[i64], out: &mut [f32]) -> Result<(), KernelError> {
        let (rows, width) = (table.rows(), table.width());
        expect_size("rows", ids.len().checked_mul(width), out.len())?;
        let place = |id: i64| {
            let count = i64::try_from(rows).unwrap_or(i64::MAX);
            usize::try_from(if id < 0 { id + count } else { id })
                .ok()
                .filter(|row| *row < rows)
                .ok_or(KernelError::Outside {
                    what: "row",
                    index: id.unsigned_abs(),
                    rows,
                })
        };
        if width == 0 {
            return Ok(());
        }
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            let row = place(*id)?;
            match table {
                Table::Floats {
                    data: Floats::F32(data),
                    ..
                } => out.copy_from_slice(&data[row * width..(row + 1) * width]),
                Table::Floats {
                    data: Floats::F16(data),
                    ..
                } => {
                    let data = &data[row * width..(row + 1) * width];
                    for (out, x) in out.iter_mut().zip(data) {
                        *out = x.to_f32();
                    }
                }
                Table::Quantised(weights) => weights.expand(row, out),
            }
        }
        Ok(())
    }
}
