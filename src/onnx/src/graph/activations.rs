//! Linear layers in integers, for NPUs: `QuantizeLinear` and `DequantizeLinear` around a product.
//!
//! Weights are u8 with a scale for each output, activations u16 with one scale
//! and zero point for a whole tensor, which has to be known before the graph
//! runs: ranges are taken from text ([`Ranges`](crate::calibration::Ranges)). A
//! runtime that has such a product recognises the pattern; another computes in
//! floats what it says. Between these layers the graph keeps floats.

use super::build::Model;
use super::nodes::{Linear, Value};
use super::weights::{Block, Matrix, Precision, Quantisation};
use super::{Fixed, Source};
use crate::proto::tensor_proto::DataType;

/// A tensor whose range is known from calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Activation {
    /// The matrix that it is multiplied with, or comes from; a tied head is [`Matrix::Head`].
    pub matrix: Matrix,
    /// Which of the two.
    pub side: Side,
}

/// A side of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// What it reads.
    Input,
    /// The product, before its bias is added.
    Output,
}

impl Model<'_> {
    /// `x W^T`, and `+ b` where there is a bias.
    pub(super) fn linear(&mut self, x: &str, name: &str, linear: &Linear) -> String {
        match (self.options.fixed, linear.precision) {
            (Some(fixed), Precision::Quantised(how)) => {
                self.linear_of_integers(x, name, linear, how, fixed)
            }
            _ => self.b.linear(x, name, linear),
        }
    }

    fn linear_of_integers(
        &mut self,
        x: &str,
        name: &str,
        linear: &Linear,
        how: Quantisation,
        fixed: Fixed,
    ) -> String {
        let Linear {
            matrix,
            outputs,
            inputs,
            ..
        } = *linear;
        let activation = |side| Activation {
            matrix: match matrix {
                Matrix::Embedding => Matrix::Head,
                matrix => matrix,
            },
            side,
        };
        // One block is the whole row.
        let how = Quantisation {
            block: Block::Of(inputs),
            ..how
        };
        let values = self.b.constant(
            &format!("{name}.values"),
            DataType::Uint8,
            &[outputs, inputs],
            Source::Values(matrix, how),
        );
        let scales = self.b.constant(
            &format!("{name}.scales"),
            DataType::Float,
            &[outputs],
            Source::Scales(matrix, how),
        );
        let zeros = self.b.constant(
            &format!("zeros.{outputs}"),
            DataType::Uint8,
            &[outputs],
            Source::Bytes(vec![128; outputs]),
        );
        let weights = format!("{name}.restored");
        let axis = [("axis", Value::Int(0))];
        let operands = [values.as_str(), &scales, &zeros];
        (self.b).node("", "DequantizeLinear", &operands, &weights, &axis);

        let rows = format!("{name}.rows");
        self.reshape_to(x, &[fixed.tokens, inputs], &rows);
        let rows = self.rounded(&rows, name, activation(Side::Input));
        let product = format!("{name}.integers");
        let turned = [("transB", Value::Int(1))];
        (self.b).node("", "Gemm", &[&rows, &weights], &product, &turned);
        let product = self.rounded(&product, name, activation(Side::Output));
        let out = match linear.bias {
            true => format!("{name}.product"),
            false => format!("{name}.sum"),
        };
        self.reshape_to(&product, &[1, fixed.tokens, outputs], &out);
        self.b.biased(&out, name, linear)
    }

    /// `x` in the steps of its range.
    fn rounded(&mut self, x: &str, name: &str, activation: Activation) -> String {
        let side = match activation.side {
            Side::Input => "input",
            Side::Output => "output",
        };
        let scale = self.b.constant(
            &format!("{name}.{side}.scale"),
            DataType::Float,
            &[],
            Source::ActivationScale(activation),
        );
        let zero = self.b.constant(
            &format!("{name}.{side}.zero"),
            DataType::Uint16,
            &[],
            Source::ActivationZero(activation),
        );
        let steps = format!("{x}.steps");
        (self.b).node("", "QuantizeLinear", &[x, &scale, &zero], &steps, &[]);
        let rounded = format!("{x}.rounded");
        (self.b).node(
            "",
            "DequantizeLinear",
            &[&steps, &scale, &zero],
            &rounded,
            &[],
        )
    }
}
