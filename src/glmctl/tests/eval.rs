//! A slice of the evaluation of the bundled model, and sets of one's own.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glm-mini")
}

fn eval(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .arg("eval")
        .arg(folder)
        .args(arguments)
        .output()
        .expect("glmctl starts")
}

fn figures(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The figures of the model card, as `make eval` prints them.
fn card() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/train/figures.json");
    let figures: Value = serde_json::from_slice(&fs::read(path).expect("figures")).expect("JSON");
    figures["int8"].clone()
}

#[test]
fn the_bundled_model_is_as_good_as_its_card_says() {
    const ITEMS: u32 = 24;
    let table = figures(&eval(&mini(), &["--json", "--limit", &ITEMS.to_string()]));
    let card = card();
    for (set, metric) in [
        ("intent-en", "exact"),
        ("intent-en", "exact_schema"),
        ("intent-zh", "exact"),
        ("severity", "accuracy"),
        ("topic", "accuracy"),
    ] {
        let said = card[set][metric].as_f64().expect(metric);
        let value = table[set][metric].as_f64().expect(metric);
        // Three standard errors of so few items.
        let error = (said * (1.0 - said) / f64::from(ITEMS)).sqrt();
        let least = 3.0_f64.mul_add(-error, said);
        assert!(value >= least, "{set} {metric} {value}: {table:#}");
    }
    let said = card["bits"]["bits_per_byte"].as_f64().expect("bits");
    let bits = table["bits"]["bits_per_byte"].as_f64().expect("bits");
    assert!((bits - said).abs() < 0.2, "{bits} is not about {said}");
    assert_eq!(table["severity"]["items"], ITEMS);
    assert_eq!(table["infill"]["items"], 3 * ITEMS);
}

/// The bundled model with sets of the test's own.
fn with_sets(sets: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(mini()).expect("the model") {
        let path = entry.expect("a file").path();
        if path.is_file() {
            let link = folder.path().join(path.file_name().expect("a name"));
            std::os::unix::fs::symlink(fs::canonicalize(&path).expect("a path"), link)
                .expect("a link");
        }
    }
    fs::create_dir(folder.path().join("eval")).expect("a folder");
    for (name, text) in sets {
        fs::write(folder.path().join("eval").join(name), text).expect("a set");
    }
    folder
}

#[test]
fn own_sets_are_measured_by_what_they_hold() {
    let folder = with_sets(&[
        (
            "severity.test.jsonl",
            "{\"text\":\"Failed to connect to broker: timed out\",\"label\":\"error\"}\n",
        ),
        (
            "door.test.jsonl",
            "{\"text\":\"Failed to [MASK] to the server.\",\"answer\":\"connect\",\"words\":1}\n",
        ),
        ("door.dev.jsonl", "not read\n"),
    ]);
    let table = figures(&eval(folder.path(), &["--json"]));
    assert_eq!(table["severity"]["accuracy"], 1.0);
    assert_eq!(table["door"]["exact_1"], 1.0);
    assert_eq!(table.as_object().map(serde_json::Map::len), Some(2));
}

#[test]
fn a_set_that_cannot_be_asked_says_why() {
    let folder = with_sets(&[("mood.test.jsonl", "{\"text\":\"a\",\"label\":\"b\"}\n")]);
    let output = eval(folder.path(), &[]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(65), "{error}");
    assert!(error.contains("no task `mood`"), "{error}");
    let output = eval(folder.path(), &["--set", "none"]);
    assert_eq!(output.status.code(), Some(65));
}
