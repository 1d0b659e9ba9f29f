//! The parts of the graph that differ where every shape is fixed.
//!
//! An NPU compiles a graph for one shape and knows the standard's small
//! operators, not the fused ones. So here a step has `S` tokens behind a past
//! of `P`, padded to both; attention is spelled out; and what comes out of the
//! cache is the keys and values of the new tokens alone, which the caller puts
//! where they belong.
//!
//! | name | shape | |
//! |---|---|---|
//! | `input_ids` | `[1, S]` | i32 |
//! | `position_ids` | `[1, S]`, or `[1, 2, S]` for two numbers | i32 |
//! | `attention_mask` | `[1, 1, S, P + S]` | f32, added to scores: past first, then new |
//! | `past_key_values.N.{key,value}` | `[1, kv_heads, P, head_dim]` | f32 |
//! | `logits` | `[1, S, vocab_rows]` | f32 |
//! | `present.N.{key,value}` | `[1, kv_heads, S, head_dim]` | f32 |

use glm::spec::{PositionEncoding, Rotary, RotaryStyle};

use super::build::{Model, cache_names, narrow};
use super::nodes::{Value, int};
use super::{Rotation, Source};
use crate::proto::{ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::Dimension};

/// Sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// New tokens.
    pub tokens: usize,
    /// Past ones.
    pub past: usize,
}

impl Model<'_> {
    pub(super) fn fixed_inputs(&mut self, fixed: Fixed) {
        let spec = self.spec;
        let dims = |sizes: &[usize]| {
            let dims = sizes.iter().map(|size| Dimension::fixed(int(*size)));
            dims.collect::<Vec<_>>()
        };
        let positions: &[usize] = if spec.two_dimensional() {
            &[1, 2, fixed.tokens]
        } else {
            &[1, fixed.tokens]
        };
        let total = fixed.past + fixed.tokens;
        for (name, dtype, sizes) in [
            ("input_ids", DataType::Int32, &[1, fixed.tokens][..]),
            ("position_ids", DataType::Int32, positions),
            (
                "attention_mask",
                DataType::Float,
                &[1, 1, fixed.tokens, total],
            ),
        ] {
            self.b
                .input(ValueInfoProto::tensor(name, dtype, dims(sizes)));
        }
        let logits = [1, fixed.tokens, spec.vocab_rows];
        self.b.output(ValueInfoProto::tensor(
            "logits",
            DataType::Float,
            dims(&logits),
        ));
        for layer in 0..spec.layers {
            let [past_key, past_value, key, value] = cache_names(layer);
            let cache = |tokens| dims(&[1, spec.kv_heads, tokens, spec.head_dim]);
            for (past, present) in [(past_key, key), (past_value, value)] {
                let past = ValueInfoProto::tensor(&past, DataType::Float, cache(fixed.past));
                self.b.input(past);
                let present =
                    ValueInfoProto::tensor(&present, DataType::Float, cache(fixed.tokens));
                self.b.output(present);
            }
        }
    }

    /// Cosines and sines `[1, 1, S, dims / 2]` of the tokens, where queries and keys turn.
    pub(super) fn fixed_angles(&mut self, fixed: Fixed) -> Option<(String, String)> {
        let PositionEncoding::Rotary(rotary) = self.spec.positions else {
            return None;
        };
        let positions: Vec<String> = if rotary.two_dimensional {
            vec![self.position(0), self.position(1)]
        } else {
            vec!["position_ids".to_owned()]
        };
        let mut angles = |table: Rotation, name: &str| {
            let dims = [self.options.max_positions, rotary.dims / 2];
            let source = Source::Rotation(table);
            let table = format!("rotary.{name}");
            let table = self.b.constant(&table, DataType::Float, &dims, source);
            let rows = positions.iter().enumerate().map(|(which, ids)| {
                let rows = format!("rotary.{name}.rows.{which}");
                self.b.node("", "Gather", &[&table, ids], &rows, &[])
            });
            let rows: Vec<String> = rows.collect();
            let width = rotary.dims / 2 * rows.len();
            let rows = match rows.as_slice() {
                [a, b] => {
                    let axis = [("axis", Value::Int(-1))];
                    let both = format!("rotary.{name}.both");
                    self.b.node("", "Concat", &[a, b], &both, &axis)
                }
                rows => rows.concat(),
            };
            self.reshape(&rows, &[1, 1, fixed.tokens, width])
        };
        Some((
            angles(Rotation::Cosines(rotary), "cos"),
            angles(Rotation::Sines(rotary), "sin"),
        ))
    }

    /// Attention over past and new tokens, in small operators; returns `[1, S, heads * head_dim]`.
    pub(super) fn spelled_out(
        &mut self,
        layer: usize,
        qkv: &str,
        fixed: Fixed,
        angles: Option<&(String, String)>,
    ) -> String {
        let spec = self.spec;
        let name = format!("layers.{layer}.attention");
        let (heads, kv, width) = (spec.heads, spec.kv_heads, spec.head_dim);
        let (tokens, total) = (fixed.tokens, fixed.past + fixed.tokens);
        let parts = ["queries", "keys", "values"].map(|part| format!("{name}.{part}"));
        let widths = [heads, kv, kv].map(|n| int(n * width));
        let sizes = self.b.integers("attention.widths", &widths);
        let outputs = parts.each_ref().map(String::as_str);
        let axis = [("axis", Value::Int(-1))];
        self.b
            .node_with("", "Split", &[qkv, &sizes], &outputs, &axis);
        let [q, k, v] = parts;
        let [past_key, past_value, key, value] = cache_names(layer);

        let mut q = self.by_head(&q, heads, tokens);
        let mut k = self.by_head(&k, kv, tokens);
        if let (Some((cos, sin)), PositionEncoding::Rotary(rotary)) = (angles, spec.positions) {
            q = self.turned(&q, (heads, tokens), (cos, sin), rotary);
            k = self.turned(&k, (kv, tokens), (cos, sin), rotary);
        }
        self.b.rename_last_output(&k, &key);
        let v = self.by_head(&v, kv, tokens);
        self.b.rename_last_output(&v, &value);

        let scale = self
            .b
            .float("attention.scale", narrow(spec.attention_scale()));
        let q = self
            .b
            .node("", "Mul", &[&q, &scale], &format!("{name}.scaled"), &[]);
        let along = [("axis", Value::Int(2))];
        let keys = format!("{name}.all_keys");
        let keys = (self.b).node("", "Concat", &[&past_key, &key], &keys, &along);
        let values = format!("{name}.all_values");
        let values = (self.b).node("", "Concat", &[&past_value, &value], &values, &along);
        // The queries of one key head are the rows of one product.
        let group = heads / kv;
        let q = self.reshape(&q, &[1, kv, group * tokens, width]);
        let turn = [("perm", Value::Ints(&[0, 1, 3, 2]))];
        let keys = (self.b).node("", "Transpose", &[&keys], &format!("{keys}.turned"), &turn);
        let scores = format!("{name}.scores");
        let scores = self.b.node("", "MatMul", &[&q, &keys], &scores, &[]);
        let scores = self.reshape(&scores, &[1, heads, tokens, total]);
        let seen = format!("{name}.seen");
        let seen = (self.b).node("", "Add", &[&scores, "attention_mask"], &seen, &[]);
        let weights = format!("{name}.weights");
        let weights = self.b.node("", "Softmax", &[&seen], &weights, &axis);
        let weights = self.reshape(&weights, &[1, kv, group * tokens, total]);
        let mixed = format!("{name}.mixed");
        let mixed = (self.b).node("", "MatMul", &[&weights, &values], &mixed, &[]);
        let mixed = self.reshape(&mixed, &[1, heads, tokens, width]);
        let turn = [("perm", Value::Ints(&[0, 2, 1, 3]))];
        let rows = format!("{name}.rows");
        let rows = self.b.node("", "Transpose", &[&mixed], &rows, &turn);
        self.reshape(&rows, &[1, tokens, heads * width])
    }

    /// `[1, S, heads * head_dim]` as `[1, heads, S, head_dim]`.
    fn by_head(&mut self, x: &str, heads: usize, tokens: usize) -> String {
        let split = self.reshape(x, &[1, tokens, heads, self.spec.head_dim]);
        let turn = [("perm", Value::Ints(&[0, 2, 1, 3]))];
        self.b
            .node("", "Transpose", &[&split], &format!("{x}.by_head"), &turn)
    }

    /// Rotary embedding of `x` `[1, heads, S, head_dim]`.
    ///
    /// Neighbouring pairs come out as halves: queries and keys do so alike, and
    /// scores only see products of the two.
    fn turned(
        &mut self,
        x: &str,
        (heads, tokens): (usize, usize),
        (cos, sin): (&str, &str),
        rotary: Rotary,
    ) -> String {
        let width = self.spec.head_dim;
        let dims = rotary.dims * if rotary.two_dimensional { 2 } else { 1 };
        let half = dims / 2;
        let axis = || [("axis", Value::Int(-1))];
        let [a, b, rest] = ["a", "b", "rest"].map(|part| format!("{x}.{part}"));
        match rotary.style {
            RotaryStyle::HalfSplit => {
                let (sizes, outputs): (&[i64], &[&str]) = if dims == width {
                    (&[int(half), int(half)], &[&a, &b])
                } else {
                    (&[int(half), int(half), int(width - dims)], &[&a, &b, &rest])
                };
                let sizes = self.b.integers("rotary.widths", sizes);
                self.b
                    .node_with("", "Split", &[x, &sizes], outputs, &axis());
            }
            RotaryStyle::Interleaved => {
                let mut turning = x.to_owned();
                if dims != width {
                    turning = format!("{x}.turning");
                    let sizes = self
                        .b
                        .integers("rotary.parts", &[int(dims), int(width - dims)]);
                    let outputs = [turning.as_str(), rest.as_str()];
                    (self.b).node_with("", "Split", &[x, &sizes], &outputs, &axis());
                }
                let pairs = self.reshape(&turning, &[heads, tokens, half, 2]);
                let sizes = self.b.integers("rotary.pair", &[1, 1]);
                let parts = [format!("{a}.column"), format!("{b}.column")];
                let outputs = parts.each_ref().map(String::as_str);
                (self.b).node_with("", "Split", &[&pairs, &sizes], &outputs, &axis());
                for (column, name) in parts.iter().zip([&a, &b]) {
                    self.reshape_to(column, &[1, heads, tokens, half], name);
                }
            }
        }
        let mut product = |left: &str, right: &str, name: &str| {
            let name = format!("{x}.{name}");
            self.b.node("", "Mul", &[left, right], &name, &[])
        };
        let (ac, bs) = (product(&a, cos, "a_cos"), product(&b, sin, "b_sin"));
        let (bc, as_) = (product(&b, cos, "b_cos"), product(&a, sin, "a_sin"));
        let first = format!("{x}.first");
        let first = self.b.node("", "Sub", &[&ac, &bs], &first, &[]);
        let second = format!("{x}.second");
        let second = self.b.node("", "Add", &[&bc, &as_], &second, &[]);
        let mut parts = vec![first.as_str(), second.as_str()];
        if dims != width {
            parts.push(&rest);
        }
        let out = format!("{x}.turned");
        self.b.node("", "Concat", &parts, &out, &axis())
    }

    /// A norm in operators of the standard.
    pub(super) fn spelled_norm(
        &mut self,
        name: &str,
        x: &str,
        (weight, bias, eps): (&str, Option<&str>, f32),
    ) -> String {
        let out = format!("{name}.out");
        if let Some(bias) = bias {
            let attributes = [("axis", Value::Int(-1)), ("epsilon", Value::Float(eps))];
            let operands = [x, weight, bias];
            return (self.b).node("", "LayerNormalization", &operands, &out, &attributes);
        }
        let axes = self.b.integers("norm.axes", &[-1]);
        let eps = self.b.float("norm.epsilon", eps);
        let step = |b: &mut super::nodes::Builder, op, inputs: &[&str], part: &str| {
            b.node("", op, inputs, &format!("{name}.{part}"), &[])
        };
        let b = &mut self.b;
        let squares = step(b, "Mul", &[x, x], "squares");
        let mean = step(b, "ReduceMean", &[&squares, &axes], "mean");
        let above = step(b, "Add", &[&mean, &eps], "above");
        let size = step(b, "Sqrt", &[&above], "size");
        let rows = step(b, "Div", &[x, &size], "rows");
        b.node("", "Mul", &[&rows, weight], &out, &[])
    }

    fn reshape(&mut self, x: &str, dims: &[usize]) -> String {
        self.reshape_to(x, dims, &format!("{x}.shaped"))
    }

    pub(super) fn reshape_to(&mut self, x: &str, dims: &[usize], out: &str) -> String {
        let names: Vec<String> = dims.iter().map(ToString::to_string).collect();
        let sizes: Vec<i64> = dims.iter().map(|size| int(*size)).collect();
        let shape = self
            .b
            .integers(&format!("shape.{}", names.join("x")), &sizes);
        self.b.node("", "Reshape", &[x, &shape], out, &[])
    }
}
