//! Whatever a checkpoint folder holds, the answer is its tensors or an error
//! that names file and tensor; nothing in it is executed or believed.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod folders;
mod mutations;
mod safetensors;
#[path = "../support/mod.rs"]
mod support;
mod torch;

use std::path::Path;

use glm_onnx::Result;
use glm_onnx::checkpoint::{Checkpoint, Format};

fn read(format: Format, bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_file(Path::new("weights.file"), format, Box::new(bytes))
}

/// Checks that `bytes` are refused with `code`, as bad input, in words that hold all of `words`.
fn refused(format: Format, bytes: Vec<u8>, code: &str, words: &[&str]) {
    let error = read(format, bytes).map(drop).expect_err("must be refused");
    let text = error.to_string();
    assert_eq!((error.code(), error.exit_status()), (code, 65), "{text}");
    for word in words.iter().chain(&["weights.file"]) {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

fn all(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let shape = &checkpoint.get(name).unwrap().shape;
    let rows = if shape.len() == 2 { shape[0] } else { 1 };
    let mut out = Vec::new();
    checkpoint.read(name, 0..rows, &mut out)?;
    Ok(out)
}

fn refused_somehow(format: Format, bytes: Vec<u8>) {
    let error = read(format, bytes).map(drop).expect_err("must be refused");
    assert_eq!(error.exit_status(), 65, "{error}");
    assert!(error.to_string().contains("weights.file"), "{error}");
}
