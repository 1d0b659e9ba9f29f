//! `glmctl export` and `glmctl model verify` from the outside.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    root.join(name)
}

fn glmctl(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .args(args)
        .output()
        .expect("glmctl starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names of what is in a folder.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_becomes_a_directory_that_verifies() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("mini");
    let done = glmctl(&[
        &"export",
        &fixture("glm-post"),
        &"--out",
        &out,
        &"--quant=int8",
        &"--block=row",
        &"--head=int8",
        &"--embedding=int8",
        &"--license=Apache-2.0",
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.contains("mini (glm)"), "{text}");
    assert_eq!(entries(folder.path()), ["mini"]);
    let verified = glmctl(&[&"model", &"verify", &out]);
    assert!(verified.status.success(), "{}", stderr(&verified));

    let manifest = fs::read(out.join("glm.json")).expect("glm.json");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["license"], "Apache-2.0");
    assert_eq!(manifest["quantisation"]["embedding"]["block"], "row");

    let again = glmctl(&[&"export", &fixture("glm-post"), &"--out", &out]);
    assert_eq!(again.status.code(), Some(64), "{}", stderr(&again));
    assert!(stderr(&again).contains("--force"));
    let forced = glmctl(&[
        &"export",
        &fixture("glm-large"),
        &"--out",
        &out,
        &"--force",
        &"--output=json",
    ]);
    assert!(forced.status.success(), "{}", stderr(&forced));
    let manifest: serde_json::Value = serde_json::from_slice(&forced.stdout).expect("JSON");
    assert_eq!(manifest["source"]["checkpoint"], "glm-large");
    assert_eq!(manifest["quantisation"]["layers"]["block"], 32);

    let data = out.join("model.onnx.data");
    let mut bytes = fs::read(&data).expect("weights");
    bytes[0] ^= 1;
    fs::write(&data, bytes).expect("write");
    let changed = glmctl(&[&"model", &"verify", &out]);
    assert_eq!(changed.status.code(), Some(65));
    assert!(stderr(&changed).contains("model.onnx.data"));
}

#[test]
fn the_bundled_model_can_be_exported_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glm-mini");
    let out = folder.path().join("again");
    let done = glmctl(&[
        &"export",
        &bundled,
        &"--out",
        &out,
        &"--head=int8",
        &"--embedding=int8",
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    let note = stderr(&done);
    assert!(note.contains("layers int8/32"), "{note}");
    let manifest = |folder: &Path| -> serde_json::Value {
        let bytes = fs::read(folder.join("glm.json")).expect("glm.json");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let (before, after) = (manifest(&bundled), manifest(&out));
    // In the same form it is the same model, file by file.
    for key in [
        "spec",
        "files",
        "golden",
        "tasks",
        "license",
        "quantisation",
    ] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert_eq!(after["source"]["rounded"][0], before["quantisation"]);

    // Of a damaged one nothing is made.
    let damaged = folder.path().join("damaged");
    fs::create_dir(&damaged).expect("a folder");
    for name in entries(&out) {
        fs::copy(out.join(&name), damaged.join(&name)).expect("copy");
    }
    let data = damaged.join("model.onnx.data");
    let mut bytes = fs::read(&data).expect("weights");
    bytes[70_000] ^= 1;
    fs::write(&data, bytes).expect("write");
    let bad = glmctl(&[&"export", &damaged, &"--out", &folder.path().join("x")]);
    assert_eq!(bad.status.code(), Some(65), "{}", stderr(&bad));
    assert!(stderr(&bad).contains("model.onnx.data"), "{}", stderr(&bad));
    assert_eq!(entries(folder.path()), ["again", "damaged"]);
}

#[test]
fn bad_input_says_what_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let missing = glmctl(&[&"export", &empty, &"--out", &out]);
    assert_eq!(missing.status.code(), Some(65));
    assert!(stderr(&missing).contains("config.json"));

    let short = folder.path().join("short");
    fs::create_dir(&short).expect("a folder");
    for name in entries(&fixture("glm-edge")) {
        fs::copy(fixture("glm-edge").join(&name), short.join(&name)).expect("copy");
    }
    let weights = short.join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("write");
    let cut = glmctl(&[&"export", &short, &"--out", &out, &"--output=json"]);
    assert_eq!(cut.status.code(), Some(65));
    let envelope: serde_json::Value = serde_json::from_slice(&cut.stderr).expect("an envelope");
    let message = envelope["error"]["message"].as_str().expect("a message");
    assert!(message.contains("model.safetensors"), "{message}");
    assert_eq!(entries(folder.path()), ["empty", "short"]);

    let usage = glmctl(&[&"export", &short, &"--out", &out, &"--block=48"]);
    assert_eq!(usage.status.code(), Some(64));
    assert!(stderr(&usage).contains("power of two"));
}

#[test]
fn integers_for_npus_want_text_and_the_profile() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, text) = (folder.path().join("out"), folder.path().join("text"));
    let export = |more: &[&str]| {
        let source = fixture("glm-post");
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"export", &source, &"--out", &out];
        all.push(&"--calibrate");
        all.push(&text);
        all.extend(more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        glmctl(&all)
    };
    let npu = ["--profile=npu", "--prompt=32", "--context=64"];
    assert_eq!(
        export(&npu).status.code(),
        Some(74),
        "there is no such file"
    );
    fs::write(&text, "Turn on the lamp.\n").expect("a file");
    let short = export(&npu);
    assert_eq!(short.status.code(), Some(64), "{}", stderr(&short));
    assert!(stderr(&short).contains("a few dozen sentences"));
    fs::write(&text, "Turn on the lamp in the kitchen.\n".repeat(30)).expect("a file");
    let cpu = export(&[]);
    assert_eq!(cpu.status.code(), Some(64), "{}", stderr(&cpu));
    assert!(stderr(&cpu).contains("--profile npu"));
    let both = export(&[&npu[..], &["--quant=int4"]].concat());
    assert_eq!(both.status.code(), Some(64), "{}", stderr(&both));
    assert_eq!(entries(folder.path()), ["text"]);
    let done = export(&npu);
    assert!(done.status.success(), "{}", stderr(&done));
    let verified = glmctl(&[&"model", &"verify", &out]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let manifest = fs::read(out.join("glm.json")).expect("glm.json");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["quantisation"]["head"]["block"], "row");
}

/// A file may not grow beyond a few blocks: the same error path as a full disk.
#[test]
fn a_disk_that_is_full_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let full = Command::new("sh")
        .arg("-c")
        // The signal would end the process before it could clean up; a full disk sends none.
        .arg("trap '' XFSZ; ulimit -f 16; exec \"$@\"")
        .arg("sh")
        .arg(env!("CARGO_BIN_EXE_glmctl"))
        .arg("export")
        .arg(fixture("glm-edge"))
        .arg("--out")
        .arg(&out)
        .output()
        .expect("sh starts");
    assert_eq!(full.status.code(), Some(74), "{}", stderr(&full));
    assert!(
        stderr(&full).contains("model.onnx.data"),
        "{}",
        stderr(&full)
    );
    assert_eq!(entries(folder.path()), [] as [&str; 0]);
}

/// A checkpoint of 134 M zeros, which are a hole in the file.
fn hollow_checkpoint(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let fixture = fixture("glm-edge");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture.join(name), folder.join(name)).expect("copy");
    }
    let config = serde_json::json!({
        "model_type": "glm", "num_hidden_layers": 1, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "intermediate_size": 4096, "vocab_size": 4096,
        "max_position_embeddings": 128, "hidden_act": "silu", "attention_bias": false,
        "partial_rotary_factor": 1.0, "pad_token_id": 304, "eos_token_id": [304],
        "tie_word_embeddings": true,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("write");
    let square = vec![4096, 4096];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in [
        ("embed_tokens", square.clone()),
        ("layers.0.input_layernorm", vec![4096]),
        ("layers.0.self_attn.q_proj", square.clone()),
        ("layers.0.self_attn.k_proj", square.clone()),
        ("layers.0.self_attn.v_proj", square.clone()),
        ("layers.0.self_attn.o_proj", square.clone()),
        ("layers.0.post_attention_layernorm", vec![4096]),
        ("layers.0.mlp.gate_up_proj", vec![8192, 4096]),
        ("layers.0.mlp.down_proj", square),
        ("norm", vec![4096]),
    ] {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let entry =
            serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(format!("model.{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let path = folder.join("model.safetensors");
    let length = u64::try_from(header.len()).expect("short");
    let start = [&length.to_le_bytes(), header.as_bytes()].concat();
    fs::write(&path, start).expect("write");
    let file = fs::OpenOptions::new().write(true).open(&path);
    file.and_then(|file| file.set_len(8 + length + end))
        .expect("a hole");
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("source");
    hollow_checkpoint(&source);
    let mut export = Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .args(["export", "--quant=int4-zp", "--out"])
        .arg(folder.path().join("out"))
        .arg(&source)
        .stderr(Stdio::piped())
        .spawn()
        .expect("glmctl starts");
    // The staging folder is there: weights are on their way.
    while entries(folder.path()).len() < 2 {
        assert!(
            export.try_wait().expect("a child").is_none(),
            "ended too early"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let interrupt = Command::new("kill")
        .arg("-INT")
        .arg(export.id().to_string())
        .status();
    assert!(interrupt.expect("kill starts").success());
    let ended = export.wait_with_output().expect("a child");
    assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
    assert_eq!(entries(folder.path()), ["source"]);
}
