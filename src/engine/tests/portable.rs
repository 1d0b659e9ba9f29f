//! The unmodified graph keeps what it was told, sequence by sequence.
//!
//! The model here adds up: its one "key" of a token is the token id, and its
//! logits are the sum of all keys held, so that any mistake in past, present,
//! truncation or roll-back shows in a number one can work out by hand.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use glm::{Position, TokenId};
use glm_engine::backend::portable::{Options, Portable};
use glm_engine::backend::{Backend, BackendError, Bytes, Row, SeqId, Step};
use glm_onnx::proto::tensor_shape_proto::Dimension;
use glm_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use ort::environment::Environment;
use prost::Message;

fn environment() -> Option<&'static Environment> {
    static ENVIRONMENT: OnceLock<Option<Environment>> = OnceLock::new();
    let found = ENVIRONMENT.get_or_init(|| {
        let path = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH")?);
        Some(
            ort::init_from(path)
                .ok()?
                .with_telemetry(false)
                .build()
                .unwrap(),
        )
    });
    if found.is_none() {
        eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
    }
    found.as_ref()
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Option<(&str, i64)>) -> NodeProto {
    NodeProto {
        name: output.into(),
        op_type: op.into(),
        input: inputs.iter().map(|name| (*name).into()).collect(),
        output: vec![output.into()],
        attribute: attribute
            .into_iter()
            .map(|(name, i)| AttributeProto {
                name: name.into(),
                i,
                r#type: AttributeType::Int as i32,
                ..AttributeProto::default()
            })
            .collect(),
        ..NodeProto::default()
    }
}

fn axes(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: DataType::Int64 as i32,
        dims: vec![i64::try_from(values.len()).unwrap()],
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// `present = past ++ ids`, `logits[.., t, 0] = sum(present)`.
fn write_model(folder: &Path) -> PathBuf {
    let n = Dimension::named;
    let key = |length| [n("b"), Dimension::fixed(1), n(length), Dimension::fixed(1)];
    let info = |name: &str, dtype, dims: Vec<Dimension>| ValueInfoProto::tensor(name, dtype, dims);
    let graph = GraphProto {
        name: "sum".into(),
        node: vec![
            node("Cast", &["input_ids"], "floats", Some(("to", 1))),
            node("Unsqueeze", &["floats", "outer"], "key", None),
            node(
                "Concat",
                &["past_key_values.0.key", "key"],
                "present.0.key",
                Some(("axis", 2)),
            ),
            node(
                "ReduceSum",
                &["present.0.key", "tokens"],
                "sum",
                Some(("keepdims", 0)),
            ),
            node("Unsqueeze", &["floats", "last"], "column", None),
            node("Sub", &["column", "column"], "zero", None),
            node("Add", &["zero", "sum"], "logits", None),
        ],
        initializer: vec![
            axes("outer", &[1, 3]),
            axes("tokens", &[2]),
            axes("last", &[2]),
        ],
        input: vec![
            info("input_ids", DataType::Int64, vec![n("b"), n("s")]),
            info(
                "past_key_values.0.key",
                DataType::Float,
                key("past").to_vec(),
            ),
        ],
        output: vec![
            info(
                "logits",
                DataType::Float,
                vec![n("b"), n("s"), Dimension::fixed(1)],
            ),
            info("present.0.key", DataType::Float, key("total").to_vec()),
        ],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 21,
        }],
        ..ModelProto::default()
    };
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

/// Two blocks of 32 tokens at 4 bytes each.
const OPTIONS: Options = Options {
    provider: None,
    threads: 1,
    max_tokens: 60,
    kv: Bytes(256),
};

/// `(sequence, tokens held, ids)`; the logits of each last row are wanted.
fn step(parts: &[(u64, u32, &[u32])]) -> Step {
    let rows = parts.iter().flat_map(|(seq, held, ids)| {
        (*held..).zip(ids.iter()).map(move |(index, id)| Row {
            seq: SeqId(*seq),
            id: TokenId(*id),
            position: Position::context(index),
            visible: index + 1,
            logits: (index - held) as usize + 1 == ids.len(),
        })
    });
    Step {
        rows: rows.collect(),
    }
}

#[test]
fn sequences_are_kept_apart_truncated_and_released() {
    let Some(environment) = environment() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut backend = Portable::open(environment, &write_model(folder.path()), OPTIONS).unwrap();
    assert_eq!(backend.capabilities().blocks, 2);

    let logits = backend
        .forward(&step(&[(1, 0, &[5, 7]), (2, 0, &[100])]))
        .unwrap();
    assert_eq!(logits.values, [12.0, 100.0]);
    let logits = backend
        .forward(&step(&[(2, 1, &[1]), (1, 2, &[3])]))
        .unwrap();
    assert_eq!(logits.values, [101.0, 15.0]);
    assert_eq!((backend.len(SeqId(1)), backend.len(SeqId(2))), (3, 2));

    backend.truncate(SeqId(1), 1);
    let logits = backend.forward(&step(&[(1, 1, &[2])])).unwrap();
    assert_eq!(logits.values, [7.0]);

    backend.release(SeqId(1));
    assert_eq!(backend.len(SeqId(1)), 0);
    assert_eq!(backend.memory().free_blocks, 1);
    assert_eq!(
        backend.forward(&step(&[(1, 0, &[9])])).unwrap().values,
        [9.0]
    );
}

#[test]
fn a_refused_step_leaves_every_sequence_as_it_was() {
    let Some(environment) = environment() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut backend = Portable::open(environment, &write_model(folder.path()), OPTIONS).unwrap();
    backend.forward(&step(&[(1, 0, &[5, 7])])).unwrap();

    let long = [1; 33];
    let refused = backend.forward(&step(&[(1, 2, &[1]), (2, 0, &long)]));
    assert!(matches!(
        refused,
        Err(BackendError::OutOfBlocks { needed: 2, free: 1 })
    ));
    let mut broken = step(&[(1, 2, &[1]), (2, 0, &[1])]);
    broken.rows[1].visible = 2;
    assert!(matches!(
        backend.forward(&broken),
        Err(BackendError::BadStep(_))
    ));
    let too_long = [1; 59];
    let refused = backend.forward(&step(&[(1, 2, &too_long)]));
    assert!(matches!(refused, Err(BackendError::BadStep(_))));

    assert_eq!((backend.len(SeqId(1)), backend.len(SeqId(2))), (2, 0));
    assert_eq!(
        backend.forward(&step(&[(1, 2, &[1])])).unwrap().values,
        [13.0]
    );
}

#[test]
fn a_graph_with_an_unknown_input_is_refused_by_name() {
    let Some(environment) = environment() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = write_model(folder.path());
    let mut model = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph
        .input
        .push(ValueInfoProto::tensor("speaker", DataType::Int64, []));
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let error = Portable::open(environment, &path, OPTIONS).unwrap_err();
    assert!(error.to_string().contains("speaker"), "{error}");
}
