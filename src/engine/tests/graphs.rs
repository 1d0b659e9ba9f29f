//! The portable graph of every family gives the logits of implementations from
//! outside this project, prompt at once and then token by token through the cache.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use glm::spec::{Activation, Hints, Visibility};
use glm::{ModelSpec, Position, TokenId};
use glm_engine::backend::portable::{Options, Portable};
use glm_engine::backend::{Backend, Bytes, Row, SeqId, Step};
use glm_onnx::checkpoint::{Checkpoint, FamilyWeights, Format};
use glm_onnx::graph::{self, Precision, Source};
use ort::environment::Environment;
use prost::Message;
use serde_json::Value;

/// Unquantised logits agree with the reference within this.
const TOLERANCE: f32 = 2e-5;

fn environment() -> Option<&'static Environment> {
    static ENVIRONMENT: OnceLock<Option<Environment>> = OnceLock::new();
    let found = ENVIRONMENT.get_or_init(|| {
        let path = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH")?);
        let builder = ort::init_from(path).ok()?;
        Some(builder.with_telemetry(false).build().unwrap())
    });
    if found.is_none() {
        eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
    }
    found.as_ref()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes the unquantised graph of a checkpoint with its weights inside.
fn write_graph(checkpoint: &Path, spec: &ModelSpec, to: &Path) {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let weights = FamilyWeights::new(&checkpoint, spec).unwrap();
    let options = graph::Options {
        layers: Precision::Full,
        head: Precision::Full,
        embedding: graph::Table::Full,
        tied_head: weights.head_is_embedding().unwrap(),
        max_positions: 128,
    };
    let plan = graph::build(spec, &options);
    let mut model = plan.model;
    let initializers = &mut model.graph.as_mut().unwrap().initializer;
    for (tensor, constant) in initializers.iter_mut().zip(&plan.constants) {
        let mut rows = Vec::new();
        match &constant.source {
            Source::Bytes(_) => continue,
            Source::Vector(vector) => rows = weights.vector(*vector).unwrap(),
            Source::Matrix(matrix) => {
                let all = 0..constant.dims[0];
                weights.rows(*matrix, all, &mut rows).unwrap();
            }
            Source::Rotation(table) => rows = graph::rotation_rows(*table, 0, constant.dims[0]),
            other => panic!("{other:?} in an unquantised graph"),
        }
        tensor.raw_data = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
    }
    std::fs::write(to, model.encode_to_vec()).unwrap();
}

/// Rows `range` of a golden case, all in sequence `seq`.
fn step(case: &Value, range: std::ops::Range<usize>, seq: u64) -> Step {
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let bidirectional = number(&case["bidirectional"]);
    let rows = range.map(|at| {
        let index = u32::try_from(at).unwrap();
        let position = |which: usize| {
            case["position_ids"]
                .get(which)
                .map_or(0, |p| number(&p[at]))
        };
        Row {
            seq: SeqId(seq),
            id: TokenId(number(&case["input_ids"][at])),
            position: Position {
                first: position(0),
                second: position(1),
            },
            visible: bidirectional.max(index + 1),
            logits: true,
        }
    });
    Step {
        rows: rows.collect(),
    }
}

fn run(name: &str) {
    run_with(name, None);
}

/// Runs the cases of a fixture that were made with the activation of its
/// configuration, or those made with another one.
fn run_with(name: &str, activation: Option<Activation>) {
    let Some(environment) = environment() else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(name);
    let spec = ModelSpec::from_config(&json(&folder.join("config.json")), &Hints::default());
    let mut spec = spec.unwrap();
    spec.activation = activation.unwrap_or(spec.activation);
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model.onnx");
    write_graph(&folder, &spec, &model);
    let options = Options {
        provider: None,
        threads: 1,
        max_tokens: 128,
        kv: Bytes(16 << 20),
    };
    let mut backend = Portable::open(environment, &model, options).unwrap();

    let golden = json(&folder.join("golden.json"));
    let path = folder.join("golden.safetensors");
    let bytes = Box::new(std::fs::read(&path).unwrap());
    let logits = Checkpoint::from_file(&path, Format::Safetensors, bytes).unwrap();
    let mut seen = 0;
    for (seq, case) in (0..).zip(golden["cases"].as_array().unwrap()) {
        let length = case["input_ids"].as_array().unwrap().len();
        let in_order = (0..length).all(|at| case["position_ids"][0][at] == at);
        // A causal graph counts positions itself.
        if spec.visibility() == Visibility::Causal && !in_order {
            continue;
        }
        let erf = case["name"].as_str().unwrap().ends_with("-erf");
        if erf != (activation == Some(Activation::GeluErf)) {
            continue;
        }
        let mut expected = Vec::new();
        let rows = 0..length;
        let key = case["logits"].as_str().unwrap();
        logits.read(key, rows, &mut expected).unwrap();

        let prompt = usize::try_from(case["prompt_len"].as_u64().unwrap()).unwrap();
        let mut found = backend.forward(&step(case, 0..prompt, seq)).unwrap().values;
        for at in prompt..length {
            let step = step(case, at..at + 1, seq);
            found.extend(backend.forward(&step).unwrap().values);
        }
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert_eq!(found.len(), expected.len(), "{key}");
        assert!(worst <= TOLERANCE, "{key}: off by {worst}");
        println!("{key}: off by {worst:e}");
        seen += 1;
    }
    assert!(seen > 0, "no case of {name} was run");
}

#[test]
fn glm_large() {
    run("glm-large");
}

#[test]
fn glm_large_as_its_hub_code_runs_it() {
    run_with("glm-large", Some(Activation::GeluErf));
}

#[test]
fn glm_post() {
    run("glm-post");
}

#[test]
fn chatglm_6b() {
    run("chatglm-6b");
}

#[test]
fn chatglm2() {
    run("chatglm2");
}

#[test]
fn chatglm3() {
    run("chatglm3");
}

#[test]
fn glm4_old() {
    run("glm4-old");
}

#[test]
fn glm4_hf() {
    run("glm4-hf");
}

#[test]
fn glm_edge() {
    run("glm-edge");
}

#[test]
fn glm_edge_untied() {
    run("glm-edge-untied");
}

#[test]
fn glm4_0414() {
    run("glm4-0414");
}
