//! A graph under construction: nodes in order, and constants by name.

use std::collections::HashMap;

use super::weights::{Matrix, NormId, Precision, Quantisation, Vector};
use super::{Constant, Plan, Source};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType,
};

/// Operators of ONNX Runtime beyond the standard.
pub(super) const MICROSOFT: &str = "com.microsoft";
/// The first standard with `Attention` and `RotaryEmbedding`.
const OPSET: i64 = 23;
/// IR version that goes with it.
const IR_VERSION: i64 = 11;

/// Value of an attribute.
pub(super) enum Value {
    Int(i64),
    Float(f32),
    Text(&'static str),
    Ints(&'static [i64]),
}

/// Sizes are far below `i64::MAX`: they fitted a checkpoint.
pub(super) fn int(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[derive(Default)]
pub(super) struct Builder {
    graph: GraphProto,
    constants: Vec<Constant>,
    places: HashMap<String, usize>,
}

impl Builder {
    pub(super) fn input(&mut self, value: ValueInfoProto) {
        self.graph.input.push(value);
    }

    pub(super) fn output(&mut self, value: ValueInfoProto) {
        self.graph.output.push(value);
    }

    /// Adds a constant once; a second one of the same name is the same one.
    pub(super) fn constant(
        &mut self,
        name: &str,
        dtype: DataType,
        dims: &[usize],
        source: Source,
    ) -> String {
        if !self.places.contains_key(name) {
            self.places.insert(name.to_owned(), self.constants.len());
            self.graph.initializer.push(TensorProto {
                name: name.to_owned(),
                data_type: dtype as i32,
                dims: dims.iter().map(|dim| int(*dim)).collect(),
                raw_data: match &source {
                    Source::Bytes(bytes) => bytes.clone(),
                    _ => Vec::new(),
                },
                ..TensorProto::default()
            });
            self.constants.push(Constant {
                name: name.to_owned(),
                dtype,
                dims: dims.to_vec(),
                source,
            });
        }
        name.to_owned()
    }

    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, &[values.len()], Source::Bytes(bytes))
    }

    /// An integer without axes.
    pub(super) fn index(&mut self, name: &str, value: i64) -> String {
        let bytes = value.to_le_bytes().to_vec();
        self.constant(name, DataType::Int64, &[], Source::Bytes(bytes))
    }

    pub(super) fn float(&mut self, name: &str, value: f32) -> String {
        let bytes = value.to_le_bytes().to_vec();
        self.constant(name, DataType::Float, &[], Source::Bytes(bytes))
    }

    pub(super) fn vector(&mut self, name: &str, length: usize, vector: Vector) -> String {
        self.constant(name, DataType::Float, &[length], Source::Vector(vector))
    }

    /// Adds a node named after `output`, its first one, and returns that name.
    pub(super) fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, Value)],
    ) -> String {
        self.node_with(domain, op, inputs, &[output], attributes)
    }

    pub(super) fn node_with(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Value)],
    ) -> String {
        let output = outputs.first().copied().unwrap_or_default();
        self.graph.node.push(NodeProto {
            name: format!("{output}.{op}"),
            op_type: op.to_owned(),
            domain: domain.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            attribute: attributes.iter().map(attribute).collect(),
            ..NodeProto::default()
        });
        output.to_owned()
    }

    /// `x W^T`, and `+ b` where there is a bias.
    pub(super) fn linear(&mut self, x: &str, name: &str, linear: &Linear) -> String {
        let Linear {
            matrix,
            outputs,
            inputs,
            precision,
            bias,
        } = *linear;
        let product = if bias {
            format!("{name}.product")
        } else {
            format!("{name}.sum")
        };
        match precision {
            Precision::Full => {
                let weight = linear.weight_name(name);
                let source = Source::Matrix(matrix);
                self.constant(&weight, DataType::Float, &[outputs, inputs], source);
                let turned = format!("{name}.turned");
                self.node("", "Transpose", &[&weight], &turned, &[]);
                self.node("", "MatMul", &[x, &turned], &product, &[]);
            }
            Precision::Quantised(how) => {
                let block = how.stored_block(inputs);
                let values = [outputs, inputs.div_ceil(block), block * how.bits() / 8];
                let mut operands = vec![x.to_owned()];
                operands.extend(self.quantised(name, matrix, &values, [outputs, inputs], how));
                let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
                self.node(
                    MICROSOFT,
                    "MatMulNBits",
                    &operands,
                    &product,
                    &[
                        ("K", Value::Int(int(inputs))),
                        ("N", Value::Int(int(outputs))),
                        ("bits", Value::Int(int(how.bits()))),
                        ("block_size", Value::Int(int(block))),
                        // Activations in int8: what a small processor is quick at.
                        ("accuracy_level", Value::Int(4)),
                    ],
                );
            }
        }
        self.biased(&product, name, linear)
    }

    /// Adds the bias of a layer, where it has one.
    pub(super) fn biased(&mut self, product: &str, name: &str, linear: &Linear) -> String {
        if !linear.bias {
            return product.to_owned();
        }
        let vector = Vector::Bias(linear.matrix);
        let bias = self.vector(&format!("{name}.bias"), linear.outputs, vector);
        self.node("", "Add", &[product, &bias], &format!("{name}.sum"), &[])
    }

    /// Values, scales and, where there are any, zero points of a quantised matrix `[outputs, inputs]`.
    fn quantised(
        &mut self,
        name: &str,
        matrix: Matrix,
        values: &[usize],
        [outputs, inputs]: [usize; 2],
        how: Quantisation,
    ) -> Vec<String> {
        let blocks = inputs.div_ceil(how.stored_block(inputs));
        let mut operands = vec![
            self.constant(
                &format!("{name}.values"),
                DataType::Uint8,
                values,
                Source::Values(matrix, how),
            ),
            self.constant(
                &format!("{name}.scales"),
                DataType::Float,
                &[outputs, blocks],
                Source::Scales(matrix, how),
            ),
        ];
        if how.zero_points() {
            operands.push(self.constant(
                &format!("{name}.zero_points"),
                DataType::Uint8,
                &[outputs, (blocks * how.bits()).div_ceil(8)],
                Source::ZeroPoints(matrix, how),
            ));
        }
        operands
    }

    /// Rows of a quantised table, f32 `[.., width]`. Rows must be whole blocks.
    pub(super) fn quantised_rows(
        &mut self,
        indices: &str,
        name: &str,
        matrix: Matrix,
        [rows, width]: [usize; 2],
        how: Quantisation,
    ) -> String {
        let values = [rows, width * how.bits() / 8];
        let mut operands = self.quantised(name, matrix, &values, [rows, width], how);
        operands.insert(1, indices.to_owned());
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        self.node(
            MICROSOFT,
            "GatherBlockQuantized",
            &operands,
            &format!("{name}.rows"),
            &[
                ("gather_axis", Value::Int(0)),
                ("quantize_axis", Value::Int(1)),
                ("block_size", Value::Int(int(how.stored_block(width)))),
                ("bits", Value::Int(int(how.bits()))),
            ],
        )
    }

    /// Gives the result of the last node the name of a graph output.
    pub(super) fn rename_last_output(&mut self, from: &str, to: &str) {
        if let Some(node) = self.graph.node.last_mut() {
            for output in node.output.iter_mut().filter(|output| *output == from) {
                to.clone_into(output);
            }
        }
    }

    pub(super) fn finish(self) -> Plan {
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
        };
        Plan {
            model: ModelProto {
                ir_version: IR_VERSION,
                producer_name: "glmd".to_owned(),
                producer_version: env!("CARGO_PKG_VERSION").to_owned(),
                graph: Some(GraphProto {
                    name: "decoder".to_owned(),
                    ..self.graph
                }),
                opset_import: vec![import("", OPSET), import(MICROSOFT, 1)],
                ..ModelProto::default()
            },
            constants: self.constants,
        }
    }
}

/// A linear layer.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) precision: Precision,
    pub(super) bias: bool,
}

impl Linear {
    /// A tied head reads the very table that tokens are looked up in.
    fn weight_name(&self, name: &str) -> String {
        match self.matrix {
            Matrix::Embedding => EMBEDDING.to_owned(),
            _ => format!("{name}.weight"),
        }
    }
}

/// Name of the embedding table.
pub(super) const EMBEDDING: &str = "embedding.weight";

/// Name of a norm in the graph.
pub(super) fn norm_name(norm: NormId) -> String {
    match norm {
        NormId::Attention(n) => format!("layers.{n}.attention_norm"),
        NormId::AfterAttention(n) => format!("layers.{n}.after_attention_norm"),
        NormId::Mlp(n) => format!("layers.{n}.mlp_norm"),
        NormId::AfterMlp(n) => format!("layers.{n}.after_mlp_norm"),
        NormId::Final => "final_norm".to_owned(),
    }
}

fn attribute((name, value): &(&str, Value)) -> AttributeProto {
    let mut attribute = AttributeProto {
        name: (*name).to_owned(),
        ..AttributeProto::default()
    };
    match value {
        Value::Int(i) => {
            attribute.i = *i;
            attribute.set_type(AttributeType::Int);
        }
        Value::Float(f) => {
            attribute.f = *f;
            attribute.set_type(AttributeType::Float);
        }
        Value::Ints(list) => {
            attribute.ints = list.to_vec();
            attribute.set_type(AttributeType::Ints);
        }
        Value::Text(s) => {
            attribute.s = s.as_bytes().to_vec();
            attribute.set_type(AttributeType::String);
        }
    }
    attribute
}
