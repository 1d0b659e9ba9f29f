//! The fixtures: tiny checkpoints of every family and the logits that
//! implementations of others computed for them.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::path::{Path, PathBuf};

use glm::spec::Hints;
use glm::{ModelSpec, Position, TokenId};
use glm_onnx::checkpoint::{Checkpoint, Format};
use glm_onnx::reference::{Prompt, Rounding};
use serde_json::Value;

/// Folders of the fixtures.
pub const FIXTURES: [&str; 10] = [
    "glm-large",
    "glm-post",
    "chatglm-6b",
    "chatglm2",
    "chatglm3",
    "glm4-old",
    "glm4-hf",
    "glm-edge",
    "glm-edge-untied",
    "glm4-0414",
];

/// Path of a fixture.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(name)
}

/// A JSON file of a fixture.
pub fn json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join(file)).unwrap()).unwrap()
}

/// A prompt and all logits that were computed for it elsewhere.
pub struct Case {
    /// Name within the fixture.
    pub name: String,
    /// What the model is; a case may change the activation.
    pub spec: ModelSpec,
    /// Tokens.
    pub prompt: Prompt,
    /// Tokens to feed at once; the rest goes one by one through the cache.
    pub prompt_len: usize,
    /// `[tokens, vocab_rows]`.
    pub logits: Vec<f32>,
}

/// All cases of a fixture.
pub fn cases(fixture: &str) -> Vec<Case> {
    let path = folder(fixture).join("golden.safetensors");
    let bytes = Box::new(std::fs::read(&path).unwrap());
    let tensors = Checkpoint::from_file(&path, Format::Safetensors, bytes).unwrap();
    let golden = json(fixture, "golden.json");
    let cases = golden["cases"].as_array().unwrap();
    cases
        .iter()
        .map(|case| {
            let mut config = json(fixture, "config.json");
            if let Some(activation) = case.get("hidden_act") {
                config["hidden_act"] = activation.clone();
            }
            let spec = ModelSpec::from_config(&config, &Hints::default()).unwrap();
            let numbers = |value: &Value| -> Vec<u32> {
                let numbers = value.as_array().unwrap();
                numbers
                    .iter()
                    .map(|n| u32::try_from(n.as_u64().unwrap()).unwrap())
                    .collect()
            };
            let ids = numbers(&case["input_ids"]);
            let rows = case["position_ids"].as_array().unwrap();
            let positions = if rows[0].is_array() {
                let (first, second) = (numbers(&rows[0]), rows.get(1).map(numbers));
                let second = second.unwrap_or_else(|| vec![0; ids.len()]);
                let pairs = first.into_iter().zip(second);
                pairs
                    .map(|(first, second)| Position { first, second })
                    .collect()
            } else {
                let numbers = numbers(&case["position_ids"]).into_iter();
                numbers.map(Position::context).collect()
            };
            let mut logits = Vec::new();
            let key = case["logits"].as_str().unwrap();
            tensors.read(key, 0..ids.len(), &mut logits).unwrap();
            Case {
                name: format!("{fixture} {}", case["name"].as_str().unwrap()),
                spec,
                prompt: Prompt {
                    ids: ids.into_iter().map(TokenId).collect(),
                    positions,
                    bidirectional: usize::try_from(case["bidirectional"].as_u64().unwrap())
                        .unwrap(),
                    rounding: Rounding::default(),
                },
                prompt_len: usize::try_from(case["prompt_len"].as_u64().unwrap()).unwrap(),
                logits,
            }
        })
        .collect()
}

/// Largest difference of two rows of numbers.
pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// A folder for what a test writes; in memory where the system has such a
/// place, since every export waits for the disk several times.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Refuses logits whose rows point elsewhere than those of others.
///
/// These models are random and narrow and attend sharply: where two keys score
/// almost the same, rounding moves a row from one to the other. A few rows may
/// therefore fall to 0.99, and the mean may not.
pub fn assert_direction(case: &Case, logits: &[f32]) {
    let width = case.spec.vocab_rows;
    let rows = logits.chunks(width).zip(case.logits.chunks(width));
    let cosines: Vec<f64> = rows.map(|(a, b)| cosine(a, b)).collect();
    let count = f64::from(u32::try_from(cosines.len()).unwrap());
    let mean = cosines.iter().sum::<f64>() / count;
    let lowest = cosines.iter().copied().fold(1.0, f64::min);
    println!("{:<34}mean {mean:.6} lowest {lowest:.6}", case.name);
    assert!(
        mean >= 0.998 && lowest >= 0.99,
        "{}: {mean} {lowest}",
        case.name
    );
}

/// Cosine of the angle between two rows.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
