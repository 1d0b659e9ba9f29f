use std::collections::HashSet;

use prost::Message;

use super::*;
use crate::proto::{
    AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::Dimension,
};

const HIDDEN: usize = 64;
const VOCABULARY: usize = 96;

fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: format!("/{op}/{}", outputs[0]),
        op_type: op.into(),
        domain: domain.into(),
        input: inputs.iter().map(|name| (*name).into()).collect(),
        output: outputs.iter().map(|name| (*name).into()).collect(),
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, attributes: &[(&str, i64)]) -> NodeProto {
    node.attribute = attributes
        .iter()
        .map(|(name, value)| graph::integer(name, *value))
        .collect();
    node
}

fn tensor(name: &str, dtype: DataType, dims: &[usize], size: usize) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: dtype as i32,
        dims: dims
            .iter()
            .map(|dim| i64::try_from(*dim).unwrap())
            .collect(),
        raw_data: vec![0; dims.iter().product::<usize>() * size],
        ..TensorProto::default()
    }
}

fn value(name: &str, dtype: DataType, dims: &[Result<i64, &str>]) -> ValueInfoProto {
    let dims = dims.iter().map(|dim| match dim {
        Ok(size) => Dimension::fixed(*size),
        Err(name) => Dimension::named(name),
    });
    ValueInfoProto::tensor(name, dtype, dims)
}

/// One layer: embedding, norm, packed 8-bit projection, attention, head.
fn causal() -> ModelProto {
    let nbits = |x: &str, w: &str, y: &str, n: usize| {
        let n_attr = i64::try_from(n).unwrap();
        with(
            node(
                "MatMulNBits",
                "com.microsoft",
                &[x, &format!("{w}.q"), &format!("{w}.s")],
                &[y],
            ),
            &[("K", 64), ("N", n_attr), ("bits", 8), ("block_size", 32)],
        )
    };
    let weights = |w: &str, n: usize| {
        [
            tensor(&format!("{w}.q"), DataType::Uint8, &[n, 2, 32], 1),
            tensor(&format!("{w}.s"), DataType::Float, &[n, 2], 4),
        ]
    };
    let mut initializer = vec![
        tensor("embed", DataType::Float, &[VOCABULARY, HIDDEN], 4),
        tensor("norm", DataType::Float, &[HIDDEN], 4),
        tensor("cos", DataType::Float, &[128, 8], 4),
        tensor("sin", DataType::Float, &[128, 8], 4),
        tensor("one", DataType::Int64, &[1], 8),
    ];
    initializer.extend(weights("qkv", 128));
    initializer.extend(weights("head", VOCABULARY));
    let past = [Err("batch"), Ok(2), Err("past"), Ok(16)];
    let graph = GraphProto {
        name: "main".into(),
        node: vec![
            node("ReduceSum", "", &["attention_mask", "one"], &["total"]),
            node("Cast", "", &["total"], &["seqlens"]),
            node("Gather", "", &["embed", "input_ids"], &["x"]),
            node("SimplifiedLayerNormalization", "", &["x", "norm"], &["h"]),
            nbits("h", "qkv", "qkv", 128),
            with(
                node(
                    "GroupQueryAttention",
                    "com.microsoft",
                    &[
                        "qkv",
                        "",
                        "",
                        "past.0.key",
                        "past.0.value",
                        "seqlens",
                        "total",
                        "cos",
                        "sin",
                    ],
                    &["a", "present.0.key", "present.0.value"],
                ),
                &[
                    ("num_heads", 4),
                    ("kv_num_heads", 2),
                    ("do_rotary", 1),
                    ("rotary_interleaved", 1),
                ],
            ),
            node("Add", "", &["x", "a"], &["y"]),
            nbits("y", "head", "logits", VOCABULARY),
        ],
        input: vec![
            value("input_ids", DataType::Int64, &[Err("batch"), Err("n")]),
            value(
                "attention_mask",
                DataType::Int64,
                &[Err("batch"), Err("total")],
            ),
            value("past.0.key", DataType::Float, &past),
            value("past.0.value", DataType::Float, &past),
        ],
        output: vec![
            value("logits", DataType::Float, &[Err("batch"), Err("n"), Ok(96)]),
            value("present.0.key", DataType::Float, &past),
            value("present.0.value", DataType::Float, &past),
        ],
        initializer,
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 10,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 21,
        }],
        ..ModelProto::default()
    }
}

fn paged(model: &ModelProto) -> Paged {
    match page(model) {
        Outcome::Paged(paged) => *paged,
        Outcome::Unmodified(unknown) => panic!("not rewritten: {unknown}"),
    }
}

fn refused(model: &ModelProto) -> Unknown {
    match page(model) {
        Outcome::Paged(_) => panic!("rewritten"),
        Outcome::Unmodified(unknown) => unknown,
    }
}

fn graph_of(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

#[test]
fn a_causal_graph_loses_past_present_mask_and_weights() {
    let result = paged(&causal());
    let graph = result.model.graph.as_ref().unwrap();
    let inputs: Vec<_> = graph
        .input
        .iter()
        .map(|input| input.name.as_str())
        .collect();
    assert_eq!(inputs, ["input_ids", WANTED_ROWS]);
    let outputs: Vec<_> = graph
        .output
        .iter()
        .map(|output| output.name.as_str())
        .collect();
    assert_eq!(outputs, ["logits"]);
    let ops: Vec<_> = graph
        .node
        .iter()
        .map(|node| node.op_type.as_str())
        .collect();
    let norm = "SimplifiedLayerNormalization";
    assert_eq!(
        ops,
        [ROWS, norm, MATMUL, PAGED_ATTENTION, "Add", "Gather", MATMUL]
    );
    let initializers: Vec<_> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(initializers, ["norm"]);
    assert!(
        result
            .model
            .opset_import
            .iter()
            .any(|import| import.domain == DOMAIN)
    );
}

#[test]
fn the_description_says_what_attention_needs() {
    let result = paged(&causal());
    let description = &result.description;
    assert_eq!(description.vocabulary, VOCABULARY);
    assert_eq!(description.positions, PositionInput::None);
    let [layer] = &description.attention[..] else {
        panic!("one layer")
    };
    assert_eq!((layer.heads, layer.kv_heads, layer.head_dim), (4, 2, 16));
    assert_eq!(layer.scale, 0.25);
    assert_eq!(layer.layout, QkvLayout::Packed);
    let rotary = layer.rotary.unwrap();
    assert!(rotary.interleaved);
    assert_eq!(rotary.dims, 16);
    let Constant::Table(cos) = &result.constants[rotary.cos.0] else {
        panic!("a table")
    };
    assert_eq!(
        (cos.rows, cos.width, cos.data.name.as_str()),
        (128, 8, "cos")
    );
}

#[test]
fn every_reader_of_a_rewritten_graph_finds_its_tensor() {
    let result = paged(&causal());
    let graph = result.model.graph.unwrap();
    let mut known: HashSet<String> = graph.input.iter().map(|input| input.name.clone()).collect();
    known.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
    for node in &graph.node {
        for input in node.input.iter().filter(|name| !name.is_empty()) {
            assert!(known.contains(input), "{input} is read before it is made");
        }
        known.extend(node.output.iter().cloned());
    }
    assert!(known.contains("logits"));
}

/// Prefix-LM with two learned position tables, `Attention` of opset 23 and a tied head.
fn prefix_lm() -> ModelProto {
    let mut model = causal();
    let graph = graph_of(&mut model);
    graph.input.push(value(
        "position_ids",
        DataType::Int64,
        &[Err("batch"), Ok(2), Err("n")],
    ));
    graph.initializer.extend([
        tensor("zero", DataType::Int64, &[], 8),
        tensor("pos", DataType::Float, &[65, HIDDEN], 4),
        tensor("w", DataType::Float, &[HIDDEN, 3 * HIDDEN], 4),
    ]);
    let attributes = [("q_num_heads", 4), ("kv_num_heads", 2), ("is_causal", 0)];
    graph.node = vec![
        node("Gather", "", &["embed", "input_ids"], &["e"]),
        with(
            node("Gather", "", &["position_ids", "zero"], &["p0"]),
            &[("axis", 1)],
        ),
        node("Gather", "", &["pos", "p0"], &["pe"]),
        node("Add", "", &["e", "pe"], &["x"]),
        node("Cast", "", &["attention_mask"], &["mask"]),
        node("MatMul", "", &["x", "w"], &["qkv"]),
        with(
            node("Split", "", &["qkv"], &["q", "k", "v"]),
            &[("axis", -1), ("num_outputs", 3)],
        ),
        with(
            node(
                "Attention",
                "",
                &["q", "k", "v", "mask", "past.0.key", "past.0.value"],
                &["a", "present.0.key", "present.0.value"],
            ),
            &attributes,
        ),
        node("Transpose", "", &["embed"], &["embed.t"]),
        node("MatMul", "", &["a", "embed.t"], &["logits"]),
    ];
    model
}

#[test]
fn a_prefix_lm_keeps_its_two_position_numbers_and_shares_its_table() {
    let result = paged(&prefix_lm());
    assert_eq!(
        result.description.positions,
        PositionInput::Two("position_ids".into())
    );
    assert_eq!(result.description.attention[0].layout, QkvLayout::Rows);
    let head = result.constants.iter().find_map(|constant| match constant {
        Constant::Dense(dense) if dense.by_output => Some(dense),
        _ => None,
    });
    let head = head.unwrap();
    assert_eq!((head.inputs, head.outputs), (HIDDEN, VOCABULARY));
    assert_eq!(head.data.name, "embed");
}

#[test]
fn past_joined_by_concat_is_known() {
    let mut model = prefix_lm();
    let graph = graph_of(&mut model);
    let attention = graph
        .node
        .iter()
        .position(|node| node.op_type == "Attention")
        .unwrap();
    graph.node[attention].input = ["q", "present.0.key", "present.0.value", "mask"]
        .map(String::from)
        .to_vec();
    graph.node[attention].output.truncate(1);
    for (past, new, present) in [
        ("past.0.key", "k", "present.0.key"),
        ("past.0.value", "v", "present.0.value"),
    ] {
        let concat = with(node("Concat", "", &[past, new], &[present]), &[("axis", 2)]);
        graph.node.insert(attention, concat);
    }
    let result = paged(&model);
    let graph = result.model.graph.unwrap();
    let attention = graph
        .node
        .iter()
        .find(|node| node.op_type == PAGED_ATTENTION)
        .unwrap();
    assert_eq!(attention.input, ["q", "k", "v"]);
}

#[test]
fn an_unknown_node_is_named() {
    let mut model = causal();
    graph_of(&mut model).node[6].op_type = "CumSum".into();
    let unknown = refused(&model);
    assert_eq!(
        (unknown.node.as_str(), unknown.op_type.as_str()),
        ("/Add/y", "CumSum")
    );
}

#[test]
fn a_slice_along_tokens_is_refused() {
    // Axis 2 is that of the tokens once heads stand before them.
    for along in [1_i64, 2] {
        let mut model = causal();
        let graph = graph_of(&mut model);
        let mut axis = tensor("axis", DataType::Int64, &[1], 8);
        axis.raw_data = along.to_le_bytes().to_vec();
        graph.initializer.push(axis);
        graph.node[6] = node("Slice", "", &["a", "one", "one", "axis"], &["y"]);
        assert_eq!(refused(&model).op_type, "Slice", "axis {along}");
    }
}

#[test]
fn a_mask_read_outside_attention_is_refused() {
    let mut model = causal();
    graph_of(&mut model).node[6].input[1] = "total".into();
    let unknown = refused(&model);
    assert!(unknown.reason.contains("attention_mask"), "{unknown}");
}

#[test]
fn attention_forms_that_change_the_numbers_are_refused() {
    let float = |name: &str, value: f32| AttributeProto {
        name: name.into(),
        f: value,
        r#type: AttributeType::Float as i32,
        ..AttributeProto::default()
    };
    for attribute in [
        graph::integer("local_window_size", 128),
        graph::integer("smooth_softmax", 1),
        float("softcap", 30.0),
    ] {
        let mut model = causal();
        graph_of(&mut model).node[5].attribute.push(attribute);
        assert_eq!(refused(&model).op_type, "GroupQueryAttention");
    }
    let mut model = prefix_lm();
    graph_of(&mut model)
        .initializer
        .push(tensor("alibi", DataType::Float, &[4, 1, 1], 4));
    graph_of(&mut model).node[7].input[3] = "alibi".into();
    assert!(refused(&model).reason.contains("alibi"));
}

#[test]
fn weights_of_the_wrong_size_are_refused() {
    for (name, len) in [("qkv.q", 8191), ("qkv.s", 1020), ("head.q", 1)] {
        let mut model = causal();
        let tensor = graph_of(&mut model)
            .initializer
            .iter_mut()
            .find(|tensor| tensor.name == name);
        tensor.unwrap().raw_data = vec![0; len];
        assert_eq!(refused(&model).op_type, "MatMulNBits", "{name}");
    }
}

#[test]
fn external_data_is_described_and_not_read() {
    let mut model = causal();
    let embed = &mut graph_of(&mut model).initializer[0];
    embed.raw_data.clear();
    embed.data_location = 1;
    embed.external_data = [("location", "model.onnx.data"), ("offset", "4096")]
        .map(|(key, value)| crate::proto::StringStringEntryProto {
            key: key.into(),
            value: value.into(),
        })
        .to_vec();
    let result = paged(&model);
    let table = result.constants.iter().find_map(|constant| match constant {
        Constant::Table(table) if table.data.name == "embed" => Some(&table.data.data),
        _ => None,
    });
    let expected = BlobData::External {
        file: "model.onnx.data".into(),
        offset: 4096,
        length: 96 * 64 * 4,
    };
    assert_eq!(table, Some(&expected));
}

#[test]
fn a_rewritten_model_survives_the_wire() {
    let model = paged(&causal()).model;
    let again = ModelProto::decode(model.encode_to_vec().as_slice()).unwrap();
    assert_eq!(model, again);
}

#[test]
fn products_stay_for_the_kernel_of_onnxruntime() {
    let model = causal();
    let (Outcome::Paged(ours), Outcome::Paged(kept)) =
        (page(&model), page_for(&model, Matmul::OnnxRuntime))
    else {
        panic!("unmodified");
    };
    let products = |paged: &Paged| -> Vec<NodeProto> {
        let nodes = &paged.model.graph.as_ref().unwrap().node;
        let product = |node: &&NodeProto| node.op_type == "MatMulNBits";
        nodes.iter().filter(product).cloned().collect()
    };
    let quantised = |paged: &Paged| {
        let of = |constant: &&Constant| matches!(constant, Constant::Quantised(_));
        paged.constants.iter().filter(of).count()
    };
    assert!(ours.kept.is_empty() && products(&ours).is_empty());
    assert_eq!(kept.kept.len(), quantised(&ours));
    assert_eq!(products(&kept).len(), quantised(&ours));
    assert_eq!(quantised(&kept), 0);
    for node in products(&kept) {
        assert_eq!(graph::attr_int(&node, "accuracy_level"), Some(4));
        let weights = node.input[1..].iter().filter(|name| !name.is_empty());
        let graph = kept.model.graph.as_ref().unwrap();
        for name in weights {
            assert!(graph.initializer.iter().any(|t| t.name == *name), "{name}");
        }
    }
    // All else is the same: wanted rows before the head, caches outside.
    assert_eq!(kept.description.vocabulary, ours.description.vocabulary);
    assert_eq!(kept.description.attention.len(), 1);
}

#[test]
fn a_product_alone_has_the_first_of_its_outputs() {
    let external = |dtype: ElementType, offset, length| Blob {
        name: "w".into(),
        dtype,
        data: BlobData::External {
            file: "model.onnx.data".into(),
            offset,
            length,
        },
    };
    let weights = Quantised {
        outputs: 96,
        inputs: 64,
        bits: 4,
        block: 32,
        values: external(ElementType::U8, 4096, 96 * 32),
        scales: external(ElementType::F32, 8192, 96 * 2 * 4),
        zero_points: Some(external(ElementType::U8, 12288, 96)),
        bias: Some(Blob {
            name: "b".into(),
            dtype: ElementType::F32,
            data: BlobData::Inline(vec![0; 96 * 4]),
        }),
    };
    assert_eq!(weights.first_outputs(1000).bytes(), weights.bytes());
    let part = weights.first_outputs(32);
    assert_eq!((part.outputs, part.bytes()), (32, weights.bytes() / 3));
    let theirs = alone(&part, Matmul::OnnxRuntime, 7).graph.unwrap();
    assert_eq!(
        theirs.node[0].input,
        ["x", "values", "scales", "zero_points", "", "bias"]
    );
    let sizes: Vec<&[i64]> = (theirs.initializer.iter()).map(|t| &*t.dims).collect();
    assert_eq!(sizes, [&[32, 2, 16][..], &[64], &[32], &[32]]);
    assert_eq!(theirs.initializer[3].raw_data.len(), 32 * 4);
    let entries = &theirs.initializer[0].external_data;
    assert_eq!((&*entries[1].value, &*entries[2].value), ("4096", "1024"));
    let ours = alone(&part, Matmul::Glmd, 7).graph.unwrap();
    assert!(ours.initializer.is_empty());
    assert_eq!(graph::attr_int(&ours.node[0], INDEX), Some(7));
    assert_eq!(ours.node[0].op_type, MATMUL);
}
