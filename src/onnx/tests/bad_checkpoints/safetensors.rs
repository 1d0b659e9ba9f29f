//! Files of safetensors whose headers lie.

use glm_onnx::checkpoint::Format;
use serde_json::json;

use crate::support::{fixture, safetensors_with};
use crate::{all, read, refused, refused_somehow};

#[test]
fn lengths_that_lie_are_not_believed() {
    let whole = std::fs::read(fixture("glm-edge").join("model.safetensors")).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        refused_somehow(Format::Safetensors, whole[..length].to_vec());
    }
    for length in [
        u64::MAX,
        u64::MAX - 8,
        1 << 40,
        17 << 20,
        whole.len() as u64 - 7,
    ] {
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&length.to_le_bytes());
        let words = ["header", &length.to_string()];
        refused(Format::Safetensors, lying, "malformed_file", &words);
    }
    let mut longer = whole;
    longer.extend([0; 3]);
    refused(Format::Safetensors, longer, "malformed_file", &["3 bytes"]);
}

#[test]
fn headers_that_are_no_headers_are_refused() {
    for (header, word) in [
        ("", "header"),
        ("[]", "header"),
        ("{\"a\": 3}", "`a`"),
        (
            r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
            "`a`",
        ),
        (r#"{"a": {"dtype": "F32", "shape": [1]}}"#, "`a`"),
        ("{\"a\": {", "header"),
    ] {
        let file = safetensors_with(header, &[0; 4]);
        refused(Format::Safetensors, file, "malformed_file", &[word]);
    }
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    refused(
        Format::Safetensors,
        safetensors_with(&deep, &[]),
        "malformed_file",
        &[],
    );
}

#[test]
fn tensors_lie_one_after_the_other_and_within_the_file() {
    let entry = |dtype: &str, shape: &[u64], from: u64, to: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]});
    let f = |from, to| entry("F32", &[(to - from) / 4], from, to);
    for (header, word) in [
        (json!({"t": f(0, 20)}), "cut off"),
        (json!({"s": f(0, 8), "t": f(4, 16)}), "overlaps"),
        (json!({"s": f(0, 8), "t": f(0, 8)}), "overlaps"),
        (json!({"s": f(0, 4), "t": f(8, 16)}), "gap"),
        (json!({"t": f(4, 16)}), "gap"),
        (json!({"t": entry("F32", &[5], 0, 16)}), "do not hold"),
        (json!({"t": entry("F16", &[4], 0, 16)}), "do not hold"),
        (
            json!({"t": entry("F32", &[1 << 62, 1 << 62], 0, 16)}),
            "do not hold",
        ),
        (json!({"t": entry("F32", &[4], 16, 0)}), "gap"),
        (json!({"t": entry("F4", &[33], 0, 16)}), "do not hold"),
        (json!({"t": entry("F33", &[4], 0, 16)}), "unknown type"),
    ] {
        let file = safetensors_with(&header.to_string(), &[0; 16]);
        refused(Format::Safetensors, file, "bad_tensor", &["`t`", word]);
    }
    let twice = r#"{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                    "t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    let file = safetensors_with(twice, &[0; 8]);
    refused(Format::Safetensors, file, "bad_tensor", &["`t`", "twice"]);
}

#[test]
fn tensors_that_are_no_weights_may_be_there_but_not_be_read() {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "cube": {"dtype": "F32", "shape": [1, 2, 1], "data_offsets": [8, 16]},
        "w": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
    });
    let data = [&[0; 16][..], &[0x80, 0x3f, 0x00, 0xc0]].concat();
    let file = safetensors_with(&header.to_string(), &data);
    let checkpoint = read(Format::Safetensors, file).unwrap();
    assert_eq!(all(&checkpoint, "w").unwrap(), [1.0, -2.0]);
    for (name, word) in [("ids", "I64"), ("cube", "axes")] {
        let error = all(&checkpoint, name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
    }
    let mut out = Vec::new();
    let beyond = checkpoint.read("w", 0..2, &mut out).unwrap_err();
    assert_eq!(beyond.code(), "bad_tensor");
    let absent = checkpoint.read("x", 0..1, &mut out).unwrap_err();
    assert_eq!(absent.code(), "tensor_missing");
}
