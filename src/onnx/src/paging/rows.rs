//! Proof that every node outside attention treats each token by itself.
//!
//! A packed row holds tokens of many sequences, so a node that mixes tokens
//! would mix prompts of different clients. The list below is therefore what is
//! known to be safe, not what is known to be unsafe.

use std::collections::HashSet;

use super::graph::{Graph, attr_int, input, unknown};
use super::{DOMAIN, MATMUL_NBITS, PositionInput, Unknown};
use crate::proto::NodeProto;

/// Element by element, with operands that broadcast over tokens.
const BY_ELEMENT: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "BiasGelu",
    "Cast",
    "Clip",
    "Cos",
    "Div",
    "Equal",
    "Erf",
    "Exp",
    "FastGelu",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Sub",
    "Swish",
    "Tanh",
    "Where",
];
/// Over the last axis alone, unless `axis` says otherwise.
const BY_ROW: &[&str] = &[
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];
/// Change shapes or make constants, and move no number from one token to another.
const SHAPES: &[&str] = &[
    "Constant",
    "ConstantOfShape",
    "Expand",
    "Range",
    "Reshape",
    "RotaryEmbedding",
    "Shape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
/// Cut or join along an axis, which must not be that of the tokens.
const ALONG_AXIS: &[&str] = &["Concat", "Gather", "Slice", "Split"];

pub(super) fn check(graph: &Graph, positions: &PositionInput) -> Result<(), Unknown> {
    // Values made of positions, shapes and constants: the token axis of
    // `[1, 2, N]` is the last, so cutting out one of the two rows is safe.
    let mut light: HashSet<&str> = match positions {
        PositionInput::None | PositionInput::One(_) => HashSet::new(),
        PositionInput::Two(name) => HashSet::from([name.as_str()]),
    };
    for tensor in &graph.graph.initializer {
        light.insert(&tensor.name);
    }
    for node in &graph.graph.node {
        let op = node.op_type.as_str();
        let only_light = node
            .input
            .iter()
            .all(|name| name.is_empty() || light.contains(name.as_str()));
        if op == "Shape" || (only_light && node.domain != DOMAIN) {
            light.extend(node.output.iter().map(String::as_str));
        }
        let safe = node.domain == DOMAIN
            || (node.domain.as_str(), op) == MATMUL_NBITS
            || BY_ELEMENT.contains(&op)
            || SHAPES.contains(&op)
            || (BY_ROW.contains(&op) && last_axis(node))
            || (ALONG_AXIS.contains(&op) && (only_light || inner_axis(graph, node)))
            || (op == "DequantizeLinear" && only_light)
            || (matches!(op, "MatMul" | "Gemm")
                && input(node, 1).is_some_and(|weights| graph.is_constant(weights))
                && attr_int(node, "transA").unwrap_or(0) == 0)
            || (matches!(op, "ReduceMean" | "ReduceSum" | "ReduceMax")
                && axes(graph, node).is_some_and(|axes| axes == [-1]));
        if !safe {
            return Err(unknown(node, "may mix tokens of different sequences"));
        }
    }
    Ok(())
}

fn last_axis(node: &NodeProto) -> bool {
    matches!(attr_int(node, "axis"), None | Some(-1))
}

/// Hidden states are `[1, N, width]` or `[1, N, heads, dim]` or `[1, heads, N, dim]`:
/// only the last axis is never that of the tokens, and ranks are not known here.
fn inner_axis(graph: &Graph, node: &NodeProto) -> bool {
    match node.op_type.as_str() {
        "Slice" => axes(graph, node).is_some_and(|axes| axes.iter().all(|axis| inner(*axis))),
        // A look-up in a constant depends on its own index only.
        "Gather" => {
            let on_constant = input(node, 0).is_some_and(|table| graph.is_constant(table));
            on_constant || attr_int(node, "axis").is_some_and(inner)
        }
        _ => attr_int(node, "axis").is_some_and(inner),
    }
}

const fn inner(axis: i64) -> bool {
    matches!(axis, -1 | 3)
}

fn axes(graph: &Graph, node: &NodeProto) -> Option<Vec<i64>> {
    if let Some(attribute) = node
        .attribute
        .iter()
        .find(|attribute| attribute.name == "axes")
    {
        return Some(attribute.ints.clone());
    }
    let place = if node.op_type == "Slice" { 3 } else { 1 };
    graph.integers(input(node, place)?)
}
