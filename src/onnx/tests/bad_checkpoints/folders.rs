//! Folders, indexes and links.

use std::os::unix::fs::symlink;
use std::path::Path;

use glm_onnx::Error;
use glm_onnx::checkpoint::Checkpoint;
use serde_json::json;

use crate::all;
use crate::support::{fixture, safetensors_with};

fn opened(folder: &Path) -> Error {
    Checkpoint::open(folder)
        .map(drop)
        .expect_err("must be refused")
}

fn with_index(map: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let header = json!({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
    let file = safetensors_with(&header.to_string(), &[0; 4]);
    std::fs::write(folder.path().join("one.safetensors"), file).unwrap();
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn what_a_folder_lacks_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = opened(empty.path());
    assert_eq!((error.code(), error.exit_status()), ("file_missing", 65));
    assert_eq!(opened(&empty.path().join("absent")).code(), "file_missing");

    let good = with_index(&json!({"a": "one.safetensors"}));
    assert_eq!(Checkpoint::open(good.path()).unwrap().tensors().count(), 1);

    let error = opened(with_index(&json!({"a": "two.safetensors"})).path());
    assert_eq!(error.code(), "file_missing");
    assert!(error.to_string().contains("two.safetensors"), "{error}");

    let map = json!({"a": "one.safetensors", "b": "one.safetensors"});
    let error = opened(with_index(&map).path());
    assert_eq!((error.code(), error.exit_status()), ("tensor_missing", 65));
    assert!(
        error.to_string().contains("one.safetensors: tensor `b`"),
        "{error}"
    );

    for map in [json!({}), json!([]), json!({"a": 3}), json!(null)] {
        assert_eq!(opened(with_index(&map).path()).code(), "malformed_file");
    }
    let many: serde_json::Map<_, _> = (0..300)
        .map(|n| (format!("t{n}"), json!(format!("{n}.safetensors"))))
        .collect();
    let error = opened(with_index(&many.into()).path());
    assert!(error.to_string().contains("300"), "{error}");
}

#[test]
fn an_index_names_files_of_its_folder_only() {
    for name in [
        "../one.safetensors",
        "/etc/passwd",
        "./one.safetensors",
        "x/../one.safetensors",
        "one.safetensors/",
        "..",
        ".",
        "",
        "a\\b",
        "a\0b",
    ] {
        let error = opened(with_index(&json!({"a": name})).path());
        assert_eq!(
            (error.code(), error.exit_status()),
            ("malformed_file", 65),
            "{name:?}"
        );
        assert!(error.to_string().contains("`a`"), "{error}");
    }
}

#[test]
fn links_lead_to_files_or_to_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    let target = fixture("glm-edge").join("model.safetensors");
    symlink(&target, &weights).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().tensors().count() > 0);

    for (to, code) in [
        ("/dev/zero", "malformed_file"),
        ("/", "malformed_file"),
        ("nowhere", "io"),
    ] {
        std::fs::remove_file(&weights).unwrap();
        symlink(to, &weights).unwrap();
        let error = opened(folder.path());
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
    std::fs::remove_file(&weights).unwrap();
    symlink("nowhere", folder.path().join("two.safetensors")).unwrap();
    let index = json!({"weight_map": {"a": "two.safetensors"}}).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(opened(folder.path()).code(), "file_missing");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_fails_the_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::copy(fixture("glm-edge").join("model.safetensors"), &path).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(10_000).unwrap();
    let results: Vec<_> = checkpoint
        .tensors()
        .map(|(name, _)| all(&checkpoint, name))
        .collect();
    let failed = results.iter().filter_map(|result| result.as_ref().err());
    assert!(failed.clone().count() > 0);
    for error in failed {
        assert_eq!((error.code(), error.exit_status()), ("io", 74), "{error}");
    }
}
