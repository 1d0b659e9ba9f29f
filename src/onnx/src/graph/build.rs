//! The decoder of every family, block by block.

use glm::ModelSpec;
use glm::spec::{Activation, Norm, PositionEncoding, Residual, Rotary, RotaryStyle, Visibility};

use super::nodes::{Builder, EMBEDDING, Linear, MICROSOFT, Value, int, norm_name};
use super::rotation::Rotation;
use super::weights::{Matrix, NormId, Precision, Table, Vector};
use super::{Fixed, Options, Plan, Source};
use crate::proto::{ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::Dimension};

/// Builds the graph of a model.
///
/// The rows of [`Matrix::Qkv`] are expected as [`Source`] says, with one
/// exception: under a two-dimensional rotary embedding the rows of a query or
/// key head are `[a1, b1, a2, b2]`, where `a` turns by the first position
/// number, `b` by the second, and 1 and 2 are the halves that turn together.
/// Scores do not change, and one rotation of the whole head then does both.
#[must_use]
pub fn build(spec: &ModelSpec, options: &Options) -> Plan {
    let mut model = Model {
        spec,
        options,
        b: Builder::default(),
    };
    model.inputs();
    let shared = model.shared();
    let mut stream = Stream {
        residual: model.embed(),
        delta: None,
    };
    for layer in 0..spec.layers {
        let x = model.enter(&mut stream, NormId::Attention(layer));
        let attended = model.attention(layer, &x, &shared);
        stream.delta = Some(model.leave(&attended, NormId::AfterAttention(layer)));
        let x = model.enter(&mut stream, NormId::Mlp(layer));
        let mapped = model.mlp(layer, &x);
        stream.delta = Some(model.leave(&mapped, NormId::AfterMlp(layer)));
    }
    let x = model.enter(&mut stream, NormId::Final);
    model.head(&x);
    model.b.finish()
}

pub(super) struct Model<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) options: &'a Options,
    pub(super) b: Builder,
}

/// The residual stream: what is carried, and what is still to be added to it.
struct Stream {
    residual: String,
    delta: Option<String>,
}

/// What all layers read.
enum Shared {
    /// Lengths for `GroupQueryAttention`, and the tables where it rotates.
    Causal {
        last: String,
        total: String,
        rotary: Option<(String, String, Rotary)>,
    },
    /// Cosines and sines `[B, S, head_dim / 2]` of the tokens, where queries and keys turn.
    Prefix { angles: Option<(String, String)> },
    /// The same for steps of fixed sizes, `[1, 1, S, dims / 2]`.
    Fixed {
        fixed: Fixed,
        angles: Option<(String, String)>,
    },
}

impl Model<'_> {
    fn causal(&self) -> bool {
        self.spec.visibility() == Visibility::Causal
    }

    fn inputs(&mut self) {
        if let Some(fixed) = self.options.fixed {
            return self.fixed_inputs(fixed);
        }
        let spec = self.spec;
        let named = Dimension::named;
        let ids = [named("batch"), named("tokens")];
        self.b
            .input(ValueInfoProto::tensor("input_ids", DataType::Int64, ids));
        let mask = if self.causal() {
            let dims = [named("batch"), named("total")];
            ValueInfoProto::tensor("attention_mask", DataType::Int64, dims)
        } else {
            let positions = [named("batch"), Dimension::fixed(2), named("tokens")];
            self.b.input(ValueInfoProto::tensor(
                "position_ids",
                DataType::Int64,
                positions,
            ));
            let dims = [
                named("batch"),
                Dimension::fixed(1),
                named("tokens"),
                named("total"),
            ];
            ValueInfoProto::tensor("attention_mask", DataType::Bool, dims)
        };
        self.b.input(mask);
        let logits = [
            named("batch"),
            named("tokens"),
            Dimension::fixed(int(spec.vocab_rows)),
        ];
        self.b
            .output(ValueInfoProto::tensor("logits", DataType::Float, logits));
        for layer in 0..spec.layers {
            for part in ["key", "value"] {
                let cache = |name: &str, length: &str| {
                    let dims = [
                        named("batch"),
                        Dimension::fixed(int(spec.kv_heads)),
                        named(length),
                        Dimension::fixed(int(spec.head_dim)),
                    ];
                    ValueInfoProto::tensor(name, DataType::Float, dims)
                };
                let past = cache(&format!("past_key_values.{layer}.{part}"), "past");
                let present = cache(&format!("present.{layer}.{part}"), "total");
                self.b.input(past);
                self.b.output(present);
            }
        }
    }

    fn embed(&mut self) -> String {
        let spec = self.spec;
        let mut x = self.look_up_tokens();
        if let PositionEncoding::Learned { rows } = spec.positions {
            for (which, (name, matrix)) in [
                ("positions", Matrix::Positions),
                ("block_positions", Matrix::BlockPositions),
            ]
            .into_iter()
            .enumerate()
            {
                let dims = [rows, spec.hidden];
                let table = format!("{name}.weight");
                let table = self
                    .b
                    .constant(&table, DataType::Float, &dims, Source::Matrix(matrix));
                let ids = self.position(which);
                let rows = format!("{name}.rows");
                let rows = self.b.node("", "Gather", &[&table, &ids], &rows, &[]);
                x = self
                    .b
                    .node("", "Add", &[&x, &rows], &format!("{name}.sum"), &[]);
            }
        }
        x
    }

    /// Rows of the embedding table, f32 `[B, S, hidden]`.
    fn look_up_tokens(&mut self) -> String {
        let dims = [self.spec.vocab_rows, self.spec.hidden];
        let source = Source::Matrix(Matrix::Embedding);
        let kept = if self.shares_table() {
            Table::Full
        } else {
            self.options.embedding
        };
        let (dtype, rows) = match kept {
            Table::Full => (DataType::Float, "embedding.rows"),
            Table::Half => (DataType::Float16, "embedding.halves"),
            Table::Quantised(how) => {
                return self.b.quantised_rows(
                    "input_ids",
                    "embedding",
                    Matrix::Embedding,
                    dims,
                    how,
                );
            }
        };
        let table = self.b.constant(EMBEDDING, dtype, &dims, source);
        let x = self.b.node("", "Gather", &[&table, "input_ids"], rows, &[]);
        if dtype == DataType::Float {
            return x;
        }
        let to = [("to", Value::Int(DataType::Float as i64))];
        self.b.node("", "Cast", &[&x], "embedding.rows", &to)
    }

    /// One of the two position numbers, `[B, S]`.
    pub(super) fn position(&mut self, which: usize) -> String {
        let index = self.b.index(&format!("axis.{which}"), int(which));
        let axis = [("axis", Value::Int(1))];
        let name = format!("position_ids.{which}");
        self.b
            .node("", "Gather", &["position_ids", &index], &name, &axis)
    }

    fn shared(&mut self) -> Shared {
        if let Some(fixed) = self.options.fixed {
            let angles = self.fixed_angles(fixed);
            return Shared::Fixed { fixed, angles };
        }
        let rotary = match self.spec.positions {
            PositionEncoding::Rotary(rotary) => {
                let dims = [self.options.max_positions, rotary.dims / 2];
                let mut table = |name: &str, table| {
                    let source = Source::Rotation(table);
                    self.b.constant(name, DataType::Float, &dims, source)
                };
                let cos = table("rotary.cos", Rotation::Cosines(rotary));
                let sin = table("rotary.sin", Rotation::Sines(rotary));
                Some((cos, sin, rotary))
            }
            PositionEncoding::Learned { .. } => None,
        };
        if self.causal() {
            let (last, total) = self.lengths();
            return Shared::Causal {
                last,
                total,
                rotary,
            };
        }
        let angles = rotary.map(|(cos, sin, _)| {
            let (first, second) = (self.position(0), self.position(1));
            let mut both = |table: &str, name: &str| {
                let a = format!("{name}.first");
                let a = self.b.node("", "Gather", &[table, &first], &a, &[]);
                let b = format!("{name}.second");
                let b = self.b.node("", "Gather", &[table, &second], &b, &[]);
                let axis = [("axis", Value::Int(-1))];
                self.b.node("", "Concat", &[&a, &b], name, &axis)
            };
            (both(&cos, "rotary.cosines"), both(&sin, "rotary.sines"))
        });
        Shared::Prefix { angles }
    }

    /// Place of the last token of each row, i32 `[B]`, and the length with the past, i32.
    fn lengths(&mut self) -> (String, String) {
        let to_int32 = || [("to", Value::Int(DataType::Int32 as i64))];
        let axis = self.b.integers("axis.tokens", &[1]);
        let one = self.b.index("axis.1", 1);
        let mask = "attention_mask";
        let keep = [("keepdims", Value::Int(0))];
        let count = self
            .b
            .node("", "ReduceSum", &[mask, &axis], "mask.count", &keep);
        let last = self.b.node("", "Sub", &[&count, &one], "mask.last", &[]);
        let last = self
            .b
            .node("", "Cast", &[&last], "mask.last_i32", &to_int32());
        let shape = self.b.node("", "Shape", &[mask], "mask.shape", &[]);
        let total = self
            .b
            .node("", "Gather", &[&shape, &one], "mask.total", &[]);
        let total = self
            .b
            .node("", "Cast", &[&total], "mask.total_i32", &to_int32());
        (last, total)
    }

    /// Adds what is pending to the residual, normalises, and leaves in the
    /// stream what the next addition goes on.
    fn enter(&mut self, stream: &mut Stream, norm: NormId) -> String {
        let name = norm_name(norm);
        let (weight, bias, eps) = self.norm_operands(norm);
        let layer_norm = bias.is_some();
        let out = format!("{name}.out");
        if self.options.fixed.is_some() {
            let sum = match stream.delta.take() {
                Some(delta) => {
                    let sum = format!("{name}.sum");
                    self.b
                        .node("", "Add", &[&stream.residual, &delta], &sum, &[])
                }
                None => stream.residual.clone(),
            };
            self.spelled_norm(&name, &sum, (&weight, bias.as_deref(), eps));
            self.carry(stream, norm, &name, sum, &out);
            return out;
        }
        let mut operands = vec![stream.residual.as_str()];
        operands.extend(stream.delta.as_deref());
        operands.push(&weight);
        operands.extend(bias.as_deref());
        let attributes = [("epsilon", Value::Float(eps))];
        let sum = if stream.delta.is_some() {
            let op = if layer_norm {
                "SkipLayerNormalization"
            } else {
                "SkipSimplifiedLayerNormalization"
            };
            let sum = format!("{name}.sum");
            let outputs: &[&str] = if norm == NormId::Final || self.alpha().is_some() {
                &[&out]
            } else {
                &[&out, "", "", &sum]
            };
            self.b
                .node_with(MICROSOFT, op, &operands, outputs, &attributes);
            sum
        } else {
            self.plain_norm(layer_norm, &operands, &out, eps);
            stream.residual.clone()
        };
        self.carry(stream, norm, &name, sum, &out);
        out
    }

    /// Leaves in the stream what the next addition goes on: the sum, or in
    /// post-norm blocks what was made of it.
    fn carry(&mut self, stream: &mut Stream, norm: NormId, name: &str, sum: String, out: &str) {
        stream.residual = match self.alpha() {
            None => sum,
            Some(alpha) if (alpha - 1.0).abs() < f32::EPSILON => out.to_owned(),
            Some(_) if norm == NormId::Final => out.to_owned(),
            Some(alpha) => {
                let alpha = self.b.float("residual.alpha", alpha);
                let carried = format!("{name}.carried");
                self.b.node("", "Mul", &[out, &alpha], &carried, &[])
            }
        };
        stream.delta = None;
    }

    /// The norm on the way out of attention or MLP, where the family has one.
    fn leave(&mut self, x: &str, norm: NormId) -> String {
        if self.spec.residual != Residual::Sandwich {
            return x.to_owned();
        }
        let (weight, bias, eps) = self.norm_operands(norm);
        if self.options.fixed.is_some() {
            let name = norm_name(norm);
            return self.spelled_norm(&name, x, (&weight, bias.as_deref(), eps));
        }
        let mut operands = vec![x, weight.as_str()];
        operands.extend(bias.as_deref());
        let out = format!("{}.out", norm_name(norm));
        self.plain_norm(bias.is_some(), &operands, &out, eps)
    }

    fn plain_norm(&mut self, layer_norm: bool, operands: &[&str], out: &str, eps: f32) -> String {
        let op = if layer_norm {
            "LayerNormalization"
        } else {
            "SimplifiedLayerNormalization"
        };
        let attributes = [("axis", Value::Int(-1)), ("epsilon", Value::Float(eps))];
        self.b.node("", op, operands, out, &attributes)
    }

    fn norm_operands(&mut self, norm: NormId) -> (String, Option<String>, f32) {
        let (name, hidden) = (norm_name(norm), self.spec.hidden);
        let weight = format!("{name}.weight");
        let weight = self.b.vector(&weight, hidden, Vector::NormWeight(norm));
        let bias = matches!(self.spec.norm, Norm::LayerNorm { .. }).then(|| {
            let bias = format!("{name}.bias");
            self.b.vector(&bias, hidden, Vector::NormBias(norm))
        });
        (weight, bias, narrow(self.spec.norm.eps()))
    }

    fn alpha(&self) -> Option<f32> {
        match self.spec.residual {
            Residual::PostNorm { alpha } => Some(narrow(alpha)),
            Residual::PreNorm | Residual::Sandwich => None,
        }
    }

    fn attention(&mut self, layer: usize, x: &str, shared: &Shared) -> String {
        let spec = self.spec;
        let name = format!("layers.{layer}.attention");
        let qkv = Linear {
            matrix: Matrix::Qkv(layer),
            outputs: spec.qkv_rows(),
            inputs: spec.hidden,
            precision: self.options.layers,
            bias: spec.biases.qkv,
        };
        let qkv = self.linear(x, &format!("{name}.qkv"), &qkv);
        let out = match shared {
            Shared::Causal {
                last,
                total,
                rotary,
            } => {
                let rotary = rotary.as_ref();
                self.grouped(layer, &qkv, (last, total), rotary)
            }
            Shared::Prefix { angles } => self.masked(layer, &qkv, angles.as_ref()),
            Shared::Fixed { fixed, angles } => {
                self.spelled_out(layer, &qkv, *fixed, angles.as_ref())
            }
        };
        let dense = Linear {
            matrix: Matrix::AttentionOutput(layer),
            outputs: spec.hidden,
            inputs: spec.heads * spec.head_dim,
            precision: self.options.layers,
            bias: spec.biases.linear,
        };
        self.linear(&out, &format!("{name}.output"), &dense)
    }

    /// `GroupQueryAttention` with packed queries, keys and values.
    fn grouped(
        &mut self,
        layer: usize,
        qkv: &str,
        (last, total): (&str, &str),
        rotary: Option<&(String, String, Rotary)>,
    ) -> String {
        let [past_key, past_value, key, value] = cache_names(layer);
        let mut inputs = vec![qkv, "", "", &past_key, &past_value, last, total];
        let mut attributes = vec![
            ("num_heads", Value::Int(int(self.spec.heads))),
            ("kv_num_heads", Value::Int(int(self.spec.kv_heads))),
            ("scale", Value::Float(narrow(self.spec.attention_scale()))),
        ];
        if let Some((cos, sin, rotary)) = rotary {
            inputs.extend([cos.as_str(), sin.as_str()]);
            let interleaved = i64::from(rotary.style == RotaryStyle::Interleaved);
            attributes.push(("do_rotary", Value::Int(1)));
            attributes.push(("rotary_interleaved", Value::Int(interleaved)));
        }
        let out = format!("layers.{layer}.attention.out");
        let outputs = [out.as_str(), &key, &value];
        let op = "GroupQueryAttention";
        self.b
            .node_with(MICROSOFT, op, &inputs, &outputs, &attributes)
    }

    /// The standard `Attention` under an explicit mask.
    fn masked(&mut self, layer: usize, qkv: &str, angles: Option<&(String, String)>) -> String {
        let spec = self.spec;
        let name = format!("layers.{layer}.attention");
        let parts = ["queries", "keys", "values"].map(|part| format!("{name}.{part}"));
        let widths = [spec.heads, spec.kv_heads, spec.kv_heads].map(|n| int(n * spec.head_dim));
        let sizes = self.b.integers("attention.widths", &widths);
        let outputs = parts.each_ref().map(String::as_str);
        let axis = [("axis", Value::Int(-1))];
        self.b
            .node_with("", "Split", &[qkv, &sizes], &outputs, &axis);
        let [mut q, mut k, v] = parts;
        if let Some((cos, sin)) = angles {
            for (x, heads) in [(&mut q, spec.heads), (&mut k, spec.kv_heads)] {
                let turned = format!("{x}.turned");
                let heads = [("num_heads", Value::Int(int(heads)))];
                *x = self
                    .b
                    .node("", "RotaryEmbedding", &[x, cos, sin], &turned, &heads);
            }
        }
        let [past_key, past_value, key, value] = cache_names(layer);
        let out = format!("{name}.out");
        self.b.node_with(
            "",
            "Attention",
            &[&q, &k, &v, "attention_mask", &past_key, &past_value],
            &[&out, &key, &value],
            &[
                ("q_num_heads", Value::Int(int(spec.heads))),
                ("kv_num_heads", Value::Int(int(spec.kv_heads))),
                ("scale", Value::Float(narrow(spec.attention_scale()))),
            ],
        )
    }

    fn mlp(&mut self, layer: usize, x: &str) -> String {
        let spec = self.spec;
        let name = format!("layers.{layer}.mlp");
        let gated = spec.activation.is_gated();
        let inner = Linear {
            matrix: Matrix::MlpIn(layer),
            outputs: spec.ffn * if gated { 2 } else { 1 },
            inputs: spec.hidden,
            precision: self.options.layers,
            bias: spec.biases.linear,
        };
        let inner = self.linear(x, &format!("{name}.in"), &inner);
        let active = format!("{name}.active");
        let active = match spec.activation {
            Activation::GeluErf | Activation::GeluTanh => {
                let form = if spec.activation == Activation::GeluTanh {
                    "tanh"
                } else {
                    "none"
                };
                let form = [("approximate", Value::Text(form))];
                self.b.node("", "Gelu", &[&inner], &active, &form)
            }
            Activation::Silu => {
                let [gate, up, sigmoid, silu] =
                    ["gate", "up", "sigmoid", "silu"].map(|part| format!("{name}.{part}"));
                let halves = [int(spec.ffn); 2];
                let sizes = self.b.integers("mlp.widths", &halves);
                let axis = [("axis", Value::Int(-1))];
                self.b
                    .node_with("", "Split", &[&inner, &sizes], &[&gate, &up], &axis);
                self.b.node("", "Sigmoid", &[&gate], &sigmoid, &[]);
                self.b.node("", "Mul", &[&gate, &sigmoid], &silu, &[]);
                self.b.node("", "Mul", &[&silu, &up], &active, &[])
            }
        };
        let outer = Linear {
            matrix: Matrix::MlpOut(layer),
            outputs: spec.hidden,
            inputs: spec.ffn,
            precision: self.options.layers,
            bias: spec.biases.linear,
        };
        self.linear(&active, &format!("{name}.out"), &outer)
    }

    /// Whether head and embedding are one constant.
    fn shares_table(&self) -> bool {
        self.options.tied_head && self.options.head == Precision::Full
    }

    fn head(&mut self, x: &str) {
        let matrix = if self.options.tied_head {
            Matrix::Embedding
        } else {
            Matrix::Head
        };
        let head = Linear {
            matrix,
            outputs: self.spec.vocab_rows,
            inputs: self.spec.hidden,
            precision: self.options.head,
            bias: false,
        };
        let product = self.linear(x, "head", &head);
        self.b.rename_last_output(&product, "logits");
    }
}

/// Past key, past value, present key, present value.
pub(super) fn cache_names(layer: usize) -> [String; 4] {
    [
        format!("past_key_values.{layer}.key"),
        format!("past_key_values.{layer}.value"),
        format!("present.{layer}.key"),
        format!("present.{layer}.value"),
    ]
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "attributes of ONNX nodes are f32"
)]
pub(super) const fn narrow(x: f64) -> f32 {
    x as f32
}
