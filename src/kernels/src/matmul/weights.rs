//! Weights as they lie in a model file.

use crate::error::{KernelError, expect_size};
use crate::shared::Floats;

/// Weights of a product.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// Integers with scales.
    Quantised(Quantised<'a>),
    /// Floats.
    Dense(Dense<'a>),
}

impl Matrix<'_> {
    /// Elements of a result row.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        match self {
            Self::Quantised(weights) => weights.outputs,
            Self::Dense(weights) => weights.outputs,
        }
    }

    /// Elements of an operand row.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        match self {
            Self::Quantised(weights) => weights.inputs,
            Self::Dense(weights) => weights.inputs,
        }
    }
}

/// Weights in blocks along the input, `w = (q - zero) scale`, in the layout of
/// ONNX Runtime's `MatMulNBits`.
///
/// Four-bit values lie two in a byte, the first in the low half. A row of
/// inputs that is no multiple of the block is stored as if it were.
#[derive(Clone, Copy, Debug)]
pub struct Quantised<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) bits: usize,
    pub(super) block: usize,
    pub(super) values: &'a [u8],
    pub(super) scales: &'a [f32],
    pub(super) zero_points: Option<&'a [u8]>,
    pub(super) bias: Option<&'a [f32]>,
}

impl<'a> Quantised<'a> {
    /// Weights of 8 or 4 bits with the zero `2^(bits - 1)`.
    ///
    /// `values` is `[outputs, blocks, block bits / 8]`, `scales` `[outputs, blocks]`,
    /// where `blocks` is `inputs / block`, rounded up.
    ///
    /// # Errors
    /// When a slice has another size, or bits or block are not supported.
    pub fn new(
        outputs: usize,
        inputs: usize,
        bits: usize,
        block: usize,
        values: &'a [u8],
        scales: &'a [f32],
    ) -> Result<Self, KernelError> {
        if bits != 4 && bits != 8 {
            return Err(KernelError::Unsupported {
                what: "bits",
                value: bits,
                reason: "weights have 8 or 4 bits",
            });
        }
        if block < 16 || !block.is_power_of_two() {
            return Err(KernelError::Unsupported {
                what: "block",
                value: block,
                reason: "it must be a power of two of at least 16",
            });
        }
        check_sizes(outputs, inputs)?;
        let blocks = inputs.div_ceil(block);
        let cells = outputs.checked_mul(blocks);
        let bytes = cells.and_then(|cells| cells.checked_mul(block / 8 * bits));
        expect_size("weights", bytes, values.len())?;
        expect_size("scales", cells, scales.len())?;
        Ok(Self {
            outputs,
            inputs,
            bits,
            block,
            values,
            scales,
            zero_points: None,
            bias: None,
        })
    }

    /// With a zero for each block, u8 `[outputs, blocks bits / 8 rounded up]`.
    ///
    /// # Errors
    /// When the slice has another size.
    pub fn with_zero_points(mut self, zero_points: &'a [u8]) -> Result<Self, KernelError> {
        let expected = self.outputs.checked_mul(self.zero_row());
        expect_size("zero points", expected, zero_points.len())?;
        self.zero_points = Some(zero_points);
        Ok(self)
    }

    /// With a number for each output, added to the product.
    ///
    /// # Errors
    /// When the slice has another size.
    pub fn with_bias(mut self, bias: &'a [f32]) -> Result<Self, KernelError> {
        expect_size("bias", Some(self.outputs), bias.len())?;
        self.bias = Some(bias);
        Ok(self)
    }

    /// Rows of the matrix.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes that a product reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.len()
            + size_of_val(self.scales)
            + self.zero_points.map_or(0, <[u8]>::len)
            + self.bias.map_or(0, size_of_val)
    }

    pub(super) const fn blocks(&self) -> usize {
        self.inputs.div_ceil(self.block)
    }

    /// Bytes of the values of an output.
    pub(super) const fn row_bytes(&self) -> usize {
        self.blocks() * (self.block / 8 * self.bits)
    }

    /// Bytes of the zero points of an output.
    pub(super) const fn zero_row(&self) -> usize {
        (self.blocks() * self.bits).div_ceil(8)
    }

    /// The zero of a block.
    pub(super) fn zero(&self, output: usize, block: usize) -> u8 {
        let Some(zeros) = self.zero_points else {
            return 1 << (self.bits - 1);
        };
        let row = &zeros[output * self.zero_row()..];
        if self.bits == 8 {
            row[block]
        } else {
            row[block / 2] >> (block % 2 * 4) & 0x0f
        }
    }

    /// Writes the weights of one output as floats, `inputs` elements.
    pub(crate) fn expand(&self, output: usize, out: &mut [f32]) {
        let values = &self.values[output * self.row_bytes()..];
        for (block, out) in out.chunks_mut(self.block).enumerate() {
            let scale = self.scales[output * self.blocks() + block];
            let zero = i16::from(self.zero(output, block));
            for (i, out) in out.iter_mut().enumerate() {
                let at = block * self.block + i;
                let q = if self.bits == 8 {
                    values[at]
                } else {
                    values[at / 2] >> (at % 2 * 4) & 0x0f
                };
                *out = f32::from(i16::from(q) - zero) * scale;
            }
        }
    }
}

/// How plain weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseLayout {
    /// `[outputs, inputs]`.
    ByOutput,
    /// `[inputs, outputs]`.
    ByInput,
}

/// Plain weights.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) layout: DenseLayout,
    pub(super) data: Floats<'a>,
    pub(super) bias: Option<&'a [f32]>,
}

impl<'a> Dense<'a> {
    /// Weights in `layout`.
    ///
    /// # Errors
    /// When the slice has another size.
    pub fn new(
        outputs: usize,
        inputs: usize,
        layout: DenseLayout,
        data: Floats<'a>,
    ) -> Result<Self, KernelError> {
        check_sizes(outputs, inputs)?;
        expect_size("weights", outputs.checked_mul(inputs), data.len())?;
        Ok(Self {
            outputs,
            inputs,
            layout,
            data,
            bias: None,
        })
    }

    /// With a number for each output, added to the product.
    ///
    /// # Errors
    /// When the slice has another size.
    pub fn with_bias(mut self, bias: &'a [f32]) -> Result<Self, KernelError> {
        expect_size("bias", Some(self.outputs), bias.len())?;
        self.bias = Some(bias);
        Ok(self)
    }
}

fn check_sizes(outputs: usize, inputs: usize) -> Result<(), KernelError> {
    for (what, value) in [("outputs", outputs), ("inputs", inputs)] {
        if value == 0 {
            return Err(KernelError::Unsupported {
                what,
                value,
                reason: "it must be at least 1",
            });
        }
    }
    Ok(())
}
