//! A product alone: a model of one node, for whoever wants to time it.

use super::constants::{ACCURACY_LEVEL, Blob, BlobData, ElementType, Quantised};
use super::graph::integer;
use super::{DOMAIN, INDEX, MATMUL, MATMUL_NBITS, Matmul};
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::Dimension;
use crate::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};

/// Format version that ONNX Runtime has read since 1.18.
const IR_VERSION: i64 = 10;
/// Standard operators of the same age; the model has none.
const OPSET: i64 = 21;

/// `y = x W^T` for `x` `[1, N, inputs]` in the kernel of `matmul`.
///
/// Ours has the weights in its own table, at the place `index`; ONNX Runtime's are in the model, as parts of the
/// files that they lie in.
#[must_use]
pub fn alone(weights: &Quantised, matmul: Matmul, index: usize) -> ModelProto {
    let mut input = vec!["x".to_owned()];
    let mut initializer = Vec::new();
    let ((domain, op_type), attribute) = match matmul {
        Matmul::Glmd => ((DOMAIN, MATMUL), vec![integer(INDEX, number(index))]),
        Matmul::OnnxRuntime => {
            let parts = [
                ("values", Some(&weights.values)),
                ("scales", Some(&weights.scales)),
                ("zero_points", weights.zero_points.as_ref()),
                // Reordered groups, which the rewrite does not know.
                ("", None),
                ("bias", weights.bias.as_ref()),
            ];
            for (name, blob) in parts {
                input.push(blob.map_or_else(String::new, |_| name.to_owned()));
                initializer.extend(blob.map(|blob| tensor(name, &dims(name, weights), blob)));
            }
            let attributes = [
                ("K", number(weights.inputs)),
                ("N", number(weights.outputs)),
                ("bits", number(weights.bits)),
                ("block_size", number(weights.block)),
                ACCURACY_LEVEL,
            ];
            let attributes = attributes.map(|(name, value)| integer(name, value));
            (MATMUL_NBITS, attributes.to_vec())
        }
    };
    let row = |name: &str, width: usize| {
        let dims = [
            Dimension::fixed(1),
            Dimension::named("rows"),
            Dimension::fixed(number(width)),
        ];
        ValueInfoProto::tensor(name, DataType::Float, dims)
    };
    ModelProto {
        ir_version: IR_VERSION,
        graph: Some(GraphProto {
            name: "product".to_owned(),
            node: vec![NodeProto {
                name: "product".to_owned(),
                op_type: op_type.to_owned(),
                domain: domain.to_owned(),
                input,
                output: vec!["y".to_owned()],
                attribute,
                ..NodeProto::default()
            }],
            initializer,
            input: vec![row("x", weights.inputs)],
            output: vec![row("y", weights.outputs)],
            ..GraphProto::default()
        }),
        opset_import: [("", OPSET), (domain, 1)]
            .map(|(domain, version)| OperatorSetIdProto {
                domain: domain.to_owned(),
                version,
            })
            .to_vec(),
        ..ModelProto::default()
    }
}

/// Sizes of an operand of `MatMulNBits`, as its documentation gives them.
fn dims(name: &str, weights: &Quantised) -> Vec<usize> {
    let blocks = weights.inputs.div_ceil(weights.block.max(1));
    match name {
        "values" => vec![
            weights.outputs,
            blocks,
            (weights.block * weights.bits).div_ceil(8),
        ],
        "scales" => vec![weights.outputs * blocks],
        "zero_points" => vec![weights.outputs * (blocks * weights.bits).div_ceil(8)],
        _ => vec![weights.outputs],
    }
}

fn tensor(name: &str, dims: &[usize], blob: &Blob) -> TensorProto {
    let dtype = match blob.dtype {
        ElementType::F32 => DataType::Float,
        ElementType::F16 => DataType::Float16,
        ElementType::U8 => DataType::Uint8,
    };
    let tensor = TensorProto {
        name: name.to_owned(),
        dims: dims.iter().copied().map(number).collect(),
        data_type: dtype as i32,
        ..TensorProto::default()
    };
    match &blob.data {
        BlobData::Inline(bytes) => TensorProto {
            raw_data: bytes.clone(),
            ..tensor
        },
        BlobData::External {
            file,
            offset,
            length,
        } => {
            let entries = [
                ("location", file.clone()),
                ("offset", offset.to_string()),
                ("length", length.to_string()),
            ];
            let entry = |(key, value): (&str, String)| StringStringEntryProto {
                key: key.to_owned(),
                value,
            };
            TensorProto {
                external_data: entries.map(entry).to_vec(),
                data_location: 1,
                ..tensor
            }
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
