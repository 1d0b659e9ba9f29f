//! `glmctl export` and `glmctl model verify` from the outside.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
