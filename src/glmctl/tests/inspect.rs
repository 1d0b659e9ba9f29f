//! `glmctl inspect` from the outside, on the checkpoints of every family.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn inspect(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .args(["inspect", "--output", "json"])
        .arg(folder)
        .output()
        .expect("glmctl starts")
}

/// Folder name of a fixture -> family that must be found.
fn family(folder: &str) -> &'static str {
    [
        ("glm4-0414", "glm4-0414"),
        ("glm4", "glm4"),
        ("glm-edge", "glm-edge"),
        ("chatglm2", "chatglm2"),
        ("chatglm3", "chatglm3"),
        ("chatglm", "chatglm"),
        ("glm", "glm"),
    ]
    .into_iter()
    .find(|(prefix, _)| folder.starts_with(prefix))
    .map_or("", |(_, family)| family)
}

/// Ids of the tokens that end an answer in the GLM-4 vocabularies.
fn answer_ends(tokenizer: &serde_json::Value) -> Vec<u64> {
    let added = tokenizer["added_tokens"].as_array().expect("added tokens");
    ["<|endoftext|>", "<|user|>", "<|observation|>"]
        .iter()
        .map(|text| {
            let token = added
                .iter()
                .find(|t| t["content"] == *text)
                .expect("special token");
            token["id"].as_u64().expect("id")
        })
        .collect()
}

#[test]
fn every_fixture_is_recognised() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let mut seen = 0;
    for entry in fs::read_dir(root).expect("fixtures") {
        let folder = entry.expect("entry").path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let name = folder
            .file_name()
            .and_then(|n| n.to_str())
            .expect("name")
            .to_owned();
        let output = inspect(&folder);
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let spec: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(spec["family"], family(&name), "{name}");
        if let Ok(file) = fs::read(folder.join("tokenizer.json")) {
            let tokenizer: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
            assert_eq!(
                spec["special"]["eos"],
                serde_json::json!(answer_ends(&tokenizer)),
                "{name}"
            );
        }
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} fixtures");
}

#[test]
fn bad_input_has_its_exit_status() {
    let folder = std::env::temp_dir().join(format!("glmctl-inspect-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("folder");
    let missing = inspect(&folder);
    assert_eq!(missing.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("config.json"));
    fs::write(folder.join("config.json"), "{\"model_type\": \"llama\"}").expect("write");
    let foreign = inspect(&folder);
    assert_eq!(foreign.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("model_type"));
    fs::write(folder.join("config.json"), "{").expect("write");
    assert_eq!(inspect(&folder).status.code(), Some(65));
    fs::remove_dir_all(&folder).expect("clean up");
    let usage = Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .arg("nonsense")
        .output()
        .expect("starts");
    assert_eq!(usage.status.code(), Some(64));
}
