//! Attention nodes of the common exports, and what they become.
//!
//! Known are `GroupQueryAttention` and `MultiHeadAttention` of ONNX Runtime and
//! the standard `Attention` (opset 23), with keys and values from past inputs
//! or joined to them by a `Concat`. Visibility is data of a step, so a mask is
//! dropped; it must come from an input that says it is one, since an additive
//! bias with a meaning of its own (ALiBi) would be lost.

use std::collections::HashSet;

use super::constants::{Constant, ConstantId, ElementType, table_of};
use super::graph::{self, Graph, attr_count, attr_float, attr_int, input, unknown};
use super::{PAGED_ATTENTION, Unknown};
use crate::proto::NodeProto;

/// One attention layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionLayer {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on scores.
    pub scale: f32,
    /// How queries, keys and values arrive, and how the result leaves.
    pub layout: QkvLayout,
    /// Rotation of queries and keys inside the node.
    pub rotary: Option<RotaryTables>,
}

/// Shapes of the inputs and the output of a paged attention node. `N` counts tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// One input `[1, N, (heads + 2 kv_heads) head_dim]`: queries, keys, values; out `[1, N, heads head_dim]`.
    Packed,
    /// Three inputs `[1, N, heads head_dim]`, `[1, N, kv_heads head_dim]` twice; out as the first.
    Rows,
    /// Three inputs `[1, heads, N, head_dim]`, `[1, kv_heads, N, head_dim]` twice; out as the first.
    Heads,
}

/// Cosines and sines `[positions, dims / 2]` of the rotation by the first position number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryTables {
    /// Whether elements `(2i, 2i + 1)` turn together, rather than `(i, i + dims / 2)`.
    pub interleaved: bool,
    /// Elements of a head that turn.
    pub dims: usize,
    /// Cosines.
    pub cos: ConstantId,
    /// Sines.
    pub sin: ConstantId,
}

/// Replaces every attention node, in order, and forgets the present outputs.
pub(super) fn replace(graph: &mut Graph) -> Result<Vec<AttentionLayer>, Unknown> {
    let mut layers = Vec::new();
    let mut present = HashSet::new();
    for place in 0..graph.graph.node.len() {
        let node = graph.graph.node[place].clone();
        let found = match (node.domain.as_str(), node.op_type.as_str()) {
            ("com.microsoft", "GroupQueryAttention") => group_query(graph, &node)?,
            ("com.microsoft", "MultiHeadAttention") => multi_head(graph, &node)?,
            ("" | "ai.onnx", "Attention") => standard(graph, &node)?,
            _ => continue,
        };
        present.extend(found.present);
        graph.graph.node[place] = graph::own(&node, PAGED_ATTENTION, layers.len(), found.inputs);
        layers.push(found.layer);
    }
    if layers.is_empty() {
        let first = graph
            .graph
            .node
            .iter()
            .find(|node| node.op_type == "Softmax");
        return Err(first.map_or_else(
            || graph.outside("graph", "no attention node was found"),
            |node| unknown(node, "attention in single steps is not known"),
        ));
    }
    graph.drop_outputs(&present);
    Ok(layers)
}

struct Found {
    layer: AttentionLayer,
    inputs: Vec<String>,
    present: Vec<String>,
}

fn group_query(graph: &mut Graph, node: &NodeProto) -> Result<Found, Unknown> {
    refuse_softcap(node)?;
    if attr_int(node, "local_window_size").is_some_and(|size| size > 0) {
        return Err(unknown(node, "a local window is not known"));
    }
    if attr_int(node, "smooth_softmax") == Some(1) || input(node, 11).is_some() {
        return Err(unknown(node, "attention sinks are not known"));
    }
    if let Some(bias) = input(node, 10) {
        require_mask(graph, node, bias)?;
    }
    let heads = required(node, "num_heads")?;
    let kv_heads = required(node, "kv_num_heads")?;
    let head_dim = head_dim(graph, node, input(node, 3))?;
    let rotary = if attr_int(node, "do_rotary") == Some(1) {
        Some(rotary(graph, node, head_dim)?)
    } else {
        None
    };
    let (layout, inputs) = match (input(node, 0), input(node, 1), input(node, 2)) {
        (Some(qkv), None, None) => (QkvLayout::Packed, vec![qkv.to_owned()]),
        (Some(q), Some(k), Some(v)) => (QkvLayout::Rows, [q, k, v].map(str::to_owned).to_vec()),
        _ => return Err(unknown(node, "neither one packed input nor three")),
    };
    Ok(Found {
        layer: AttentionLayer {
            heads,
            kv_heads,
            head_dim,
            scale: scale(node, head_dim),
            layout,
            rotary,
        },
        inputs,
        present: outputs(node, &[1, 2]),
    })
}

fn multi_head(graph: &Graph, node: &NodeProto) -> Result<Found, Unknown> {
    if input(node, 3).is_some() {
        return Err(unknown(
            node,
            "a bias on queries, keys and values is not known",
        ));
    }
    for mask in [4, 5].into_iter().filter_map(|index| input(node, index)) {
        require_mask(graph, node, mask)?;
    }
    let heads = required(node, "num_heads")?;
    let (Some(q), Some(k), Some(v)) = (input(node, 0), input(node, 1), input(node, 2)) else {
        return Err(unknown(
            node,
            "queries, keys and values are packed in a way that is not known",
        ));
    };
    let head_dim = head_dim(graph, node, input(node, 6))?;
    Ok(Found {
        layer: AttentionLayer {
            heads,
            kv_heads: heads,
            head_dim,
            scale: scale(node, head_dim),
            layout: QkvLayout::Rows,
            rotary: None,
        },
        inputs: [q, k, v].map(str::to_owned).to_vec(),
        present: outputs(node, &[1, 2]),
    })
}

fn standard(graph: &Graph, node: &NodeProto) -> Result<Found, Unknown> {
    refuse_softcap(node)?;
    if let Some(mask) = input(node, 3) {
        require_mask(graph, node, mask)?;
    }
    let (Some(q), Some(k), Some(v)) = (input(node, 0), input(node, 1), input(node, 2)) else {
        return Err(unknown(node, "queries, keys or values are missing"));
    };
    let mut present = outputs(node, &[1, 2]);
    let (k, v, past) = if let Some(past) = input(node, 4) {
        (k.to_owned(), v.to_owned(), past.to_owned())
    } else {
        let (new_k, past) = joined(graph, node, k)?;
        let (new_v, _) = joined(graph, node, v)?;
        present.extend([k.to_owned(), v.to_owned()]);
        (new_k, new_v, past)
    };
    let info = graph.input(&past).and_then(graph::dims).unwrap_or_default();
    let head_dim = head_dim(graph, node, Some(&past))?;
    let (layout, heads, kv_heads) = match (
        attr_count(node, "q_num_heads"),
        attr_count(node, "kv_num_heads"),
    ) {
        (Some(heads), Some(kv_heads)) => (QkvLayout::Rows, heads, kv_heads),
        _ => {
            let kv_heads = info
                .get(1)
                .copied()
                .flatten()
                .ok_or_else(|| unknown(node, "the past does not say how many heads it has"))?;
            let heads = split_heads(graph, q)
                .ok_or_else(|| unknown(node, "no reshape says how many query heads there are"))?;
            (QkvLayout::Heads, heads, kv_heads)
        }
    };
    Ok(Found {
        layer: AttentionLayer {
            heads,
            kv_heads,
            head_dim,
            scale: scale(node, head_dim),
            layout,
            rotary: None,
        },
        inputs: vec![q.to_owned(), k, v],
        present,
    })
}

/// `Concat(past, new)` -> (new, past).
fn joined(graph: &Graph, node: &NodeProto, tensor: &str) -> Result<(String, String), Unknown> {
    graph
        .producer(tensor)
        .filter(|concat| concat.op_type == "Concat" && concat.input.len() == 2)
        .filter(|concat| graph.input(&concat.input[0]).is_some())
        .map(|concat| (concat.input[1].clone(), concat.input[0].clone()))
        .ok_or_else(|| unknown(node, "keys and values do not continue a past input"))
}

/// Heads of `[1, heads, N, head_dim]`, from the reshape to `[.., .., heads, head_dim]` before the transpose.
fn split_heads(graph: &Graph, tensor: &str) -> Option<usize> {
    let mut at = tensor;
    // Rotation in single steps may stand between; the reshape is near.
    for _ in 0..12 {
        let node = graph.producer(at)?;
        if node.op_type == "Reshape" {
            let shape = graph.integers(input(node, 1)?)?;
            if let [_, _, heads, _] = shape[..] {
                return usize::try_from(heads).ok().filter(|heads| *heads > 0);
            }
        }
        at = input(node, 0)?;
    }
    None
}

fn rotary(graph: &mut Graph, node: &NodeProto, head_dim: usize) -> Result<RotaryTables, Unknown> {
    let mut table = |index: usize| {
        let name = input(node, index)
            .ok_or_else(|| unknown(node, "rotation without tables of cosines and sines"))?
            .to_owned();
        let table = table_of(graph, &name)
            .filter(|table| table.data.dtype == ElementType::F32)
            .ok_or_else(|| unknown(node, "the tables of cosines and sines are no f32 constants"))?;
        let width = table.width;
        Ok((graph.add_table(&name, Constant::Table(table)), width))
    };
    let (cos, width) = table(7)?;
    let (sin, sin_width) = table(8)?;
    if width != sin_width || width * 2 > head_dim {
        return Err(unknown(
            node,
            "the tables of cosines and sines do not fit the head",
        ));
    }
    Ok(RotaryTables {
        interleaved: attr_int(node, "rotary_interleaved") == Some(1),
        dims: width * 2,
        cos,
        sin,
    })
}

fn head_dim(graph: &Graph, node: &NodeProto, past: Option<&str>) -> Result<usize, Unknown> {
    past.and_then(|past| graph.input(past))
        .and_then(graph::dims)
        .and_then(|dims| *dims.get(3)?)
        .filter(|dim| *dim > 0)
        .ok_or_else(|| {
            unknown(
                node,
                "no past input of shape [batch, heads, past, head_dim] belongs to it",
            )
        })
}

fn required(node: &NodeProto, name: &str) -> Result<usize, Unknown> {
    attr_count(node, name).ok_or_else(|| unknown(node, &format!("attribute `{name}` is missing")))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a head has far fewer than 2^24 elements"
)]
fn scale(node: &NodeProto, head_dim: usize) -> f32 {
    match attr_float(node, "scale") {
        Some(scale) if scale != 0.0 => scale,
        _ => 1.0 / (head_dim as f32).sqrt(),
    }
}

fn refuse_softcap(node: &NodeProto) -> Result<(), Unknown> {
    match attr_float(node, "softcap") {
        Some(cap) if cap != 0.0 => Err(unknown(node, "capped scores are not known")),
        _ => Ok(()),
    }
}

fn require_mask(graph: &Graph, node: &NodeProto, tensor: &str) -> Result<(), Unknown> {
    if graph
        .ancestors(tensor)
        .iter()
        .any(|name| name.contains("mask"))
    {
        Ok(())
    } else {
        Err(unknown(
            node,
            &format!("the bias `{tensor}` does not come from a mask"),
        ))
    }
}

fn outputs(node: &NodeProto, indices: &[usize]) -> Vec<String> {
    indices
        .iter()
        .filter_map(|index| node.output.get(*index))
        .filter(|name| !name.is_empty())
        .cloned()
        .collect()
}
