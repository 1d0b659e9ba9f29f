//! Products as ONNX Runtime's dynamic quantisation writes them.
//!
//! `quantize_dynamic` leaves a graph in which every product quantises its whole
//! operand with one scale (`DynamicQuantizeLinear`), multiplies integers
//! (`MatMulInteger`) and scales each output once. That is coarser than scales
//! for blocks of weights, and the least that a runtime can do for a prompt: what
//! blocks cost shows beside it.

use crate::proto::tensor_proto::DataType;
use crate::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, attribute_proto};

/// Writes every `MatMulNBits` of eight bits in `model` as dynamically quantised product, and returns how many there were.
///
/// Values keep their bytes, read as `[inputs, outputs]`, and the first scales
/// become those of the outputs. So results mean something for random weights
/// only, where any byte is as good as another.
pub fn dynamic_integers(model: &mut ModelProto) -> usize {
    let Some(graph) = model.graph.as_mut() else {
        return 0;
    };
    let mut count = 0;
    let mut nodes = Vec::new();
    for node in std::mem::take(&mut graph.node) {
        match product(&node, &mut graph.initializer) {
            Some(product) => {
                count += 1;
                nodes.extend(product);
            }
            None => nodes.push(node),
        }
    }
    graph.node = nodes;
    count
}

/// The nodes in place of `node`, whose constants change their form.
fn product(node: &NodeProto, constants: &mut [TensorProto]) -> Option<[NodeProto; 5]> {
    let size = |name: &str| {
        let attribute = node.attribute.iter().find(|a| a.name == name)?;
        (attribute.i > 0).then_some(attribute.i)
    };
    let whole = size("K")? % size("block_size")? == 0;
    if node.op_type != "MatMulNBits" || size("bits") != Some(8) || !whole {
        return None;
    }
    let ([x, values, scales], [y]) = (node.input.as_slice(), node.output.as_slice()) else {
        return None;
    };
    let mut reshape = |name: &str, dtype: DataType, dims: &[i64], bytes: i64| {
        let constant = constants.iter_mut().find(|c| c.name == name)?;
        constant.dims = dims.to_vec();
        constant.data_type = dtype as i32;
        constant.raw_data.truncate(usize::try_from(bytes).ok()?);
        for entry in &mut constant.external_data {
            if entry.key == "length" {
                entry.value = bytes.to_string();
            }
        }
        Some(())
    };
    let (inputs, outputs) = (size("K")?, size("N")?);
    reshape(values, DataType::Int8, &[inputs, outputs], inputs * outputs)?;
    reshape(scales, DataType::Float, &[outputs], 4 * outputs)?;
    let make = |op: &str, input: &[&str], output: &[&str]| NodeProto {
        name: format!("{y}.{op}.{}", output[0]),
        op_type: op.to_owned(),
        input: input.iter().map(|&name| name.to_owned()).collect(),
        output: output.iter().map(|&name| name.to_owned()).collect(),
        ..NodeProto::default()
    };
    let [bytes, scale, zero, sums, floats, worth] =
        ["bytes", "scale", "zero", "sums", "floats", "worth"].map(|part| format!("{y}.{part}"));
    let mut cast = make("Cast", &[&sums], &[&floats]);
    cast.attribute.push(AttributeProto {
        name: "to".to_owned(),
        r#type: attribute_proto::AttributeType::Int as i32,
        i: DataType::Float as i64,
        ..AttributeProto::default()
    });
    Some([
        make("DynamicQuantizeLinear", &[x], &[&bytes, &scale, &zero]),
        make("MatMulInteger", &[&bytes, values, &zero], &[&sums]),
        cast,
        make("Mul", &[&scale, scales], &[&worth]),
        make("Mul", &[&floats, &worth], &[y]),
    ])
}
