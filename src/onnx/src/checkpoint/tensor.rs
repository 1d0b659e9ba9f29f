//! Where the numbers of a tensor lie, and how they become f32.

use std::io;
use std::ops::Range;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::bytes::ReadAt;

/// Bytes read at once. Large enough that a call to the system costs nothing
/// beside the copy, small enough to stay in the cache of the core that converts.
const BUFFER: usize = 256 << 10;

/// Farthest stride, in elements, at which a run is read together with what lies between.
const NEAR: usize = 64;

/// Element type on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of [`Dtype::F32`].
    Bf16,
    /// Anything else: it may be in a checkpoint, but not be a weight.
    Other {
        /// Name in the file format.
        name: &'static str,
        /// Bits of an element.
        bits: u8,
    },
}

impl Dtype {
    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Other { bits, .. } => bits,
        }
    }

    /// Short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other { name, .. } => name,
        }
    }
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each axis.
    pub(super) strides: Vec<usize>,
    /// Byte of the first element in the file.
    pub(super) offset: u64,
}

impl Tensor {
    /// Elements, unless there are more than a machine can count.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        elements(&self.shape)
    }

    /// The tensor as a matrix that can be read, or why not.
    pub(super) fn view(&self) -> Result<View, String> {
        if let Dtype::Other { name, .. } = self.dtype {
            return Err(format!("is {name}; weights are F32, F16 or BF16"));
        }
        let (rows, columns, row_stride, column_stride) =
            match (self.shape.as_slice(), self.strides.as_slice()) {
                (&[n], &[stride]) => (1, n, 0, stride),
                (&[rows, columns], &[a, b]) => (rows, columns, a, b),
                _ => {
                    return Err(format!(
                        "has the shape {:?}; weights have one or two axes",
                        self.shape
                    ));
                }
            };
        let repeats = |length, stride| length > 1 && stride == 0;
        if repeats(columns, column_stride) || repeats(rows, row_stride) {
            return Err("repeats its elements instead of storing them".to_owned());
        }
        Ok(View {
            dtype: self.dtype,
            rows,
            columns,
            row_stride,
            column_stride,
            offset: self.offset,
        })
    }
}

/// Product of sizes, unless it is too large.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the whole empty, whatever the other sizes are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim))
}

/// Strides of a tensor without gaps.
pub(super) fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// A matrix in a file. Header checks have made sure that all of it lies in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    dtype: Dtype,
    pub(super) rows: usize,
    pub(super) columns: usize,
    row_stride: usize,
    column_stride: usize,
    offset: u64,
}

impl View {
    /// Appends rows, whichever way they lie.
    pub(super) fn read(
        &self,
        bytes: &dyn ReadAt,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> io::Result<()> {
        let count = rows.len();
        if count == 0 || self.columns == 0 {
            return Ok(());
        }
        let first = rows.start * self.row_stride;
        let mut reader = Reader {
            bytes,
            dtype: self.dtype,
            offset: self.offset,
            raw: Vec::new(),
            near: Vec::new(),
        };
        if self.column_stride == 1 && (self.row_stride == self.columns || count == 1) {
            return reader.dense(first, count * self.columns, out);
        }
        if count == 1 || self.column_stride <= self.row_stride {
            for row in 0..count {
                let start = first + row * self.row_stride;
                reader.run(start, self.columns, self.column_stride, out)?;
            }
            return Ok(());
        }
        // Columns lie closer together than rows do: read those, and turn them.
        let start = out.len();
        out.resize(start + count * self.columns, 0.0);
        let mut column = Vec::with_capacity(count);
        for index in 0..self.columns {
            column.clear();
            let at = first + index * self.column_stride;
            reader.run(at, count, self.row_stride, &mut column)?;
            let cells = out[start + index..].iter_mut().step_by(self.columns);
            for (cell, value) in cells.zip(&column) {
                *cell = *value;
            }
        }
        Ok(())
    }
}

/// Reads elements of one tensor with buffers that are made once.
struct Reader<'a> {
    bytes: &'a dyn ReadAt,
    dtype: Dtype,
    offset: u64,
    raw: Vec<u8>,
    near: Vec<f32>,
}

impl Reader<'_> {
    /// Appends `count` elements, `stride` apart.
    fn run(
        &mut self,
        first: usize,
        count: usize,
        stride: usize,
        out: &mut Vec<f32>,
    ) -> io::Result<()> {
        if stride == 1 {
            return self.dense(first, count, out);
        }
        if stride > NEAR {
            for index in 0..count {
                self.dense(first + index * stride, 1, out)?;
            }
            return Ok(());
        }
        let mut near = std::mem::take(&mut self.near);
        let together = BUFFER / 4 / NEAR;
        for start in (0..count).step_by(together) {
            let taken = together.min(count - start);
            near.clear();
            let span = (taken - 1) * stride + 1;
            self.dense(first + start * stride, span, &mut near)?;
            out.extend(near.iter().step_by(stride.max(1)).take(taken));
        }
        self.near = near;
        Ok(())
    }

    /// Appends `count` elements that lie side by side.
    fn dense(&mut self, first: usize, count: usize, out: &mut Vec<f32>) -> io::Result<()> {
        let size = usize::from(self.dtype.bits() / 8);
        let together = BUFFER / size;
        out.reserve(count);
        for start in (0..count).step_by(together) {
            let taken = together.min(count - start);
            self.raw.resize(taken * size, 0);
            let at = self.offset + (first + start) as u64 * size as u64;
            self.bytes.read_at(at, &mut self.raw)?;
            append(self.dtype, &self.raw, out);
        }
        Ok(())
    }
}

/// Appends little-endian elements as f32.
fn append(dtype: Dtype, raw: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => out.extend(raw.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x))),
        Dtype::Bf16 => out.extend(
            raw.as_chunks()
                .0
                .iter()
                .map(|x| bf16::from_le_bytes(*x).to_f32()),
        ),
        Dtype::F16 => {
            let halves: Vec<f16> = raw
                .as_chunks()
                .0
                .iter()
                .map(|x| f16::from_le_bytes(*x))
                .collect();
            let start = out.len();
            out.resize(start + halves.len(), 0.0);
            halves.convert_to_f32_slice(&mut out[start..]);
        }
        // `Tensor::view` lets none of these through.
        Dtype::Other { .. } => {}
    }
}

/// Place of the first value that is infinite or not a number.
pub(crate) fn first_unusable(values: &[f32]) -> Option<usize> {
    // Blocks without a branch inside are checked many values at a time.
    const BLOCK: usize = 1024;
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let all = values.iter().fold(true, |all, x| all & x.is_finite());
        if !all {
            let inside = values.iter().position(|x| !x.is_finite())?;
            return Some(block * BLOCK + inside);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: u8) -> Vec<u8> {
        (0..count)
            .flat_map(|x| f32::from(x).to_le_bytes())
            .collect()
    }

    #[allow(clippy::ptr_arg, reason = "it is the vector that can be read")]
    fn read(tensor: &Tensor, bytes: &Vec<u8>, rows: Range<usize>) -> Vec<f32> {
        let mut out = Vec::new();
        tensor.view().unwrap().read(bytes, rows, &mut out).unwrap();
        out
    }

    #[test]
    fn any_strides_give_the_rows_that_indexing_gives() {
        let bytes = numbers(250);
        for (rows, columns, a, b) in [
            (4, 5, 5, 1),
            (4, 5, 7, 1),
            (5, 4, 1, 5),
            (5, 3, 1, 70),
            (3, 3, 70, 2),
            (2, 3, 65, 66),
            (1, 6, 0, 3),
            (6, 1, 2, 0),
        ] {
            let tensor = Tensor {
                dtype: Dtype::F32,
                shape: vec![rows, columns],
                strides: vec![a, b],
                offset: 8,
            };
            let expected = |range: Range<usize>| -> Vec<f32> {
                range
                    .flat_map(|r| (0..columns).map(move |c| 2 + r * a + c * b))
                    .map(|x| f32::from(u8::try_from(x).unwrap()))
                    .collect()
            };
            for range in [0..rows, 1..rows, 0..1, 1..1] {
                assert_eq!(
                    read(&tensor, &bytes, range.clone()),
                    expected(range),
                    "{tensor:?}"
                );
            }
        }
    }

    #[test]
    fn long_runs_cross_the_buffer() {
        let count = BUFFER / 2;
        let values = |n: usize| f32::from(u16::try_from(n % 5000).unwrap());
        let bytes: Vec<u8> = (0..count).flat_map(|n| values(n).to_le_bytes()).collect();
        for stride in [1, 3] {
            let length = count / stride;
            let tensor = Tensor {
                dtype: Dtype::F32,
                shape: vec![length],
                strides: vec![stride],
                offset: 0,
            };
            let expected: Vec<f32> = (0..length).map(|n| values(n * stride)).collect();
            assert!(read(&tensor, &bytes, 0..1) == expected, "stride {stride}");
        }
    }

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let raw = bits.to_le_bytes();
            let mut out = Vec::new();
            append(Dtype::F16, &raw, &mut out);
            append(Dtype::Bf16, &raw, &mut out);
            let [half, brain] = [
                f16::from_bits(bits).to_f32(),
                f32::from_bits(u32::from(bits) << 16),
            ];
            for (found, expected) in out.iter().zip([half, brain]) {
                assert!(found == &expected || (found.is_nan() && expected.is_nan()));
            }
        }
    }

    #[test]
    fn the_first_bad_value_is_found() {
        let mut values = vec![0.5; 5000];
        assert_eq!(first_unusable(&values), None);
        values[4100] = f32::NAN;
        values[4999] = f32::INFINITY;
        assert_eq!(first_unusable(&values), Some(4100));
    }

    #[test]
    fn repeated_elements_and_odd_shapes_are_refused() {
        let tensor = |dtype, shape: &[usize], strides: &[usize]| Tensor {
            dtype,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset: 0,
        };
        let integers = Dtype::Other {
            name: "I64",
            bits: 64,
        };
        for bad in [
            tensor(Dtype::F32, &[1 << 40, 1 << 20], &[0, 0]),
            tensor(Dtype::F32, &[2, 2, 2], &[4, 2, 1]),
            tensor(Dtype::F32, &[], &[]),
            tensor(integers, &[2], &[1]),
        ] {
            assert!(bad.view().is_err(), "{bad:?}");
        }
    }
}
