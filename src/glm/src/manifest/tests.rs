use serde_json::{Value, json};

use super::*;
use crate::spec::Hints;
use crate::{Position, TokenId};

fn spec() -> ModelSpec {
    let config = json!({
        "model_type": "glm", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
        "max_sequence_length": 64, "vocab_size": 256, "block_position_encoding": true,
        "relative_encoding": false, "output_predict": true, "layernorm_order": "post",
        "mask_token_id": 4, "sop_token_id": 240, "eop_token_id": 241, "eos_token_id": 0,
        "cls_token_id": 2});
    ModelSpec::from_config(&config, &Hints::default()).unwrap()
}

fn tasks() -> Value {
    json!({
        "severity": {"kind": "classify", "description": "How bad a log line is",
                     "pattern": "{text} Severity: [MASK].",
                     "labels": {"error": ["error", "fatal"], "info": ["info"]},
                     "normalize": "mean", "calibrate": true},
        "fill": {"kind": "infill", "description": "Fills the gap", "pattern": "{text} [MASK]",
                 "max_tokens": 16, "json_schema": {"type": "object"}}})
}

fn manifest() -> Manifest {
    let row: Vec<f32> = (0..256_u16).map(|i| f32::from(i % 101) / 7.0).collect();
    let int8 = Kept {
        number: Number::Int8,
        block: Some(Block::Row),
    };
    let f16 = Kept {
        number: Number::F16,
        block: None,
    };
    let positions = [
        Position::context(0),
        Position::context(1),
        Position::piece(1, 1),
    ];
    Manifest {
        format: FORMAT,
        name: "mini".into(),
        license: Some("Apache-2.0".into()),
        source: Source {
            checkpoint: "glm-post".into(),
            config_sha256: Sha256([0xA5; 32]),
            exporter: "glmd 0.1.0".into(),
            rounded: Vec::new(),
        },
        spec: spec(),
        text_rules: TextRules::ChatGlm { id_offset: 3 },
        context: 64,
        quantisation: Quantisation {
            layers: Kept {
                block: Some(Block::Of(32)),
                ..int8
            },
            head: int8,
            embedding: f16,
        },
        files: BTreeMap::from([(
            "model.onnx".to_owned(),
            FileRecord {
                size: 7,
                sha256: Sha256([0x0F; 32]),
            },
        )]),
        golden: Golden {
            tolerance: 0.125,
            prompts: vec![GoldenPrompt::new(
                [2, 4, 240].map(TokenId).to_vec(),
                &positions,
                2,
                &row,
            )],
        },
        tasks: tasks_from_json(tasks().to_string().as_bytes(), &spec()).unwrap(),
    }
}

fn refused(value: &Value) -> (String, String) {
    match Manifest::from_json(value.to_string().as_bytes()) {
        Err(Error::Manifest { key, reason, .. }) => (key, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_comes_back_as_it_was() {
    let text = manifest().to_json().unwrap();
    assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), manifest());
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        value["quantisation"]["layers"],
        json!({"number": "int8", "block": 32})
    );
    assert_eq!(
        value["quantisation"]["head"],
        json!({"number": "int8", "block": "row"})
    );
    assert_eq!(
        value["files"]["model.onnx"]["sha256"],
        json!("0f".repeat(32))
    );
    assert_eq!(value["tasks"], {
        let mut tasks = tasks();
        tasks["fill"]["json_schema"] = json!({"type": "object"});
        tasks
    });
}

#[test]
fn unknown_and_missing_keys_are_named() {
    for (pointer, key) in [
        ("", "extra"),
        ("/spec", "spec"),
        ("/files/model.onnx", "files"),
        ("/golden", "golden"),
        ("/golden/prompts/0", "golden.prompts[0]"),
        ("/source", "source"),
        ("/quantisation/head", "quantisation.head"),
        ("/tasks/severity", "tasks.severity"),
        ("/spec/biases", "spec.biases"),
    ] {
        let mut value = json!(manifest());
        value.pointer_mut(pointer).unwrap()["extra"] = json!(1);
        let (path, reason) = refused(&value);
        assert!(path.starts_with(key), "{pointer}: {path}");
        assert!(reason.contains("extra"), "{pointer}: {reason}");
    }
    let mut value = json!(manifest());
    value["golden"].as_object_mut().unwrap().remove("tolerance");
    let (path, reason) = refused(&value);
    assert_eq!(path, "golden");
    assert!(reason.contains("tolerance"), "{reason}");
}

#[test]
fn values_out_of_range_are_named() {
    for (pointer, bad, key) in [
        ("/format", json!(2), "format"),
        ("/name", json!(" "), "name"),
        ("/context", json!(65), "context"),
        ("/spec/vocab_rows", json!(200), "spec.special"),
        ("/golden/tolerance", json!(0.0), "golden.tolerance"),
        ("/golden/prompts", json!([]), "golden.prompts"),
        (
            "/golden/prompts/0/ids/1",
            json!(256),
            "golden.prompts[0].ids",
        ),
        (
            "/golden/prompts/0/positions",
            json!([]),
            "golden.prompts[0].positions",
        ),
        (
            "/golden/prompts/0/bidirectional",
            json!(4),
            "golden.prompts[0].bidirectional",
        ),
        (
            "/golden/prompts/0/logits/0/id",
            json!(999),
            "golden.prompts[0].logits",
        ),
        (
            "/quantisation/head/block",
            json!("column"),
            "quantisation.head.block",
        ),
        ("/quantisation/head/block", json!(48), "quantisation.head"),
        ("/quantisation/head/block", Value::Null, "quantisation.head"),
        (
            "/quantisation/embedding",
            json!({"number": "f16", "block": 32}),
            "quantisation.embedding",
        ),
        ("/files/model.onnx/sha256", json!("0F".repeat(32)), "files"),
        ("/files/model.onnx/sha256", json!("0f"), "files"),
        (
            "/tasks/severity/pattern",
            json!("[MASK]"),
            "tasks.severity.pattern",
        ),
        (
            "/tasks/severity/pattern",
            json!("{text}"),
            "tasks.severity.pattern",
        ),
        (
            "/tasks/severity/pattern",
            json!("{text} [gMASK]"),
            "tasks.severity.pattern",
        ),
        (
            "/tasks/severity/pattern",
            json!("[MASK] {text} [MASK]"),
            "tasks.severity.pattern",
        ),
        (
            "/tasks/severity/labels/info",
            json!([]),
            "tasks.severity.labels.info",
        ),
        (
            "/tasks/severity/labels",
            json!({"a": ["b"]}),
            "tasks.severity.labels",
        ),
        ("/tasks/fill/max_tokens", json!(0), "tasks.fill.max_tokens"),
        (
            "/tasks/fill/json_schema",
            json!([]),
            "tasks.fill.json_schema",
        ),
    ] {
        let mut value = json!(manifest());
        *value.pointer_mut(pointer).unwrap() = bad;
        let (path, _) = refused(&value);
        assert!(path.starts_with(key), "{pointer}: {path}");
    }
}

#[test]
fn file_names_cannot_leave_the_folder() {
    for name in ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", FILE] {
        let mut manifest = manifest();
        let record = manifest.files["model.onnx"].clone();
        manifest.files.insert(name.to_owned(), record);
        let error = manifest.check().unwrap_err();
        assert!(error.to_string().contains("files"), "{name}: {error}");
    }
}

#[test]
fn tasks_of_a_checkpoint_name_their_own_file() {
    let mut value = tasks();
    value["fill"]["kind"] = json!("write");
    let error = tasks_from_json(value.to_string().as_bytes(), &spec()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("tasks.json") && text.contains("fill") && text.contains("write"),
        "{text}"
    );
    assert_eq!(error.code(), "bad_manifest");
    let named = json!({"a/b": tasks()["fill"]});
    assert!(tasks_from_json(named.to_string().as_bytes(), &spec()).is_err());
}

#[test]
fn golden_logits_keep_the_top_and_look_at_all_of_the_vocabulary() {
    let mut row = vec![0.0_f32; 1000];
    row[777] = 9.0;
    row[3] = 8.0;
    let prompt = GoldenPrompt::new(vec![TokenId(1)], &[Position::context(0)], 0, &row);
    let has = |id: u32, value: f32| {
        prompt.logits.contains(&GoldenLogit {
            id: TokenId(id),
            value,
        })
    };
    assert!(has(777, 9.0) && has(3, 8.0) && has(0, 0.0));
    assert!(prompt.logits.iter().any(|logit| logit.id.0 > 950));
    assert_eq!(prompt.deviation(&row), 0.0);
    row[777] = 9.5;
    assert_eq!(prompt.deviation(&row), 0.5);
    row[3] = f32::NAN;
    assert_eq!(prompt.deviation(&row), f32::INFINITY);
    assert_eq!(prompt.deviation(&row[..700]), f32::INFINITY);
}
