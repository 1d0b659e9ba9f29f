//! Models come whole or not at all: from folders, archives and a server that breaks off.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glm-mini")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn model(models: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glmctl"));
    command.args(["--output", "json", "model"]).args(arguments);
    command.arg("--models").arg(models);
    // A proxy of the machine knows nothing of a server in this test.
    command.env("NO_PROXY", "127.0.0.1");
    command.output().expect("glmctl starts")
}

fn install(models: &Path, source: &str, more: &[&str]) -> Output {
    let arguments: Vec<&str> = ["install", source]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    model(models, &arguments)
}

fn answer(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn refusal(output: &Output) -> String {
    assert_ne!(output.status.code(), Some(0));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nothing is left but models: no staging folder, no part of a download.
fn names(models: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(models)
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// The bundled model as an archive.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in fs::read_dir(mini()).expect("the model") {
        let path = entry.expect("a file").path();
        if path.is_file() {
            let name = Path::new("glm-mini").join(path.file_name().expect("a name"));
            tar.append_path_with_name(&path, name).expect("appended");
        }
    }
    tar.into_inner().expect("an archive")
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[test]
fn a_folder_is_installed_listed_and_served_by_a_link() {
    let home = folder();
    let models = home.path().join("models");
    let source = mini().display().to_string();
    let first = answer(&install(&models, &source, &["--activate"]));
    assert_eq!(
        (&first["name"], &first["unchanged"]),
        (&"glm-mini".into(), &false.into())
    );
    assert_eq!(names(&models), ["glm-mini"]);
    let link = fs::canonicalize(home.path().join("model")).expect("a link");
    assert_eq!(
        link,
        fs::canonicalize(models.join("glm-mini")).expect("a model")
    );
    let listed = answer(&model(&models, &["list"]));
    assert_eq!(listed[0]["active"], true);
    assert_eq!(listed[0]["name"], "glm-mini");
    let again = answer(&install(&models, &source, &[]));
    assert_eq!(again["unchanged"], true);
    assert_eq!(
        answer(&model(&home.path().join("none"), &["list"])),
        Value::Array(Vec::new())
    );
}

#[test]
fn a_damaged_source_changes_nothing_and_a_damaged_model_is_mended() {
    let (home, bad) = (folder(), folder());
    let models = home.path().join("models");
    for entry in fs::read_dir(mini()).expect("the model") {
        let path = entry.expect("a file").path();
        if path.is_file() {
            fs::copy(&path, bad.path().join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    let data = bad.path().join("model.onnx.data");
    let mut bytes = fs::read(&data).expect("weights");
    bytes[1000] ^= 1;
    fs::write(&data, bytes).expect("written");
    let error = refusal(&install(&models, &bad.path().display().to_string(), &[]));
    assert!(
        error.contains("model.onnx.data") && error.contains("hash"),
        "{error}"
    );
    assert!(names(&models).is_empty());

    let good = mini().display().to_string();
    answer(&install(&models, &good, &[]));
    fs::write(models.join("glm-mini/config.json"), "{}").expect("written");
    let error = refusal(&install(&models, &good, &[]));
    assert!(error.contains("--force"), "{error}");
    assert_eq!(
        answer(&install(&models, &good, &["--force"]))["unchanged"],
        false
    );
    assert_eq!(names(&models), ["glm-mini"]);
    assert_eq!(answer(&install(&models, &good, &[]))["unchanged"], true);
}

#[test]
fn archives_are_not_believed() {
    let home = folder();
    let models = home.path().join("models");
    let path = home.path().join("model.tar");
    fs::write(&path, archive()).expect("written");
    let source = path.display().to_string();
    let named = answer(&install(&models, &source, &["--name", "mine"]));
    assert_eq!(named["name"], "mine");
    let error = refusal(&install(&models, &source, &["--name", "../mine"]));
    assert!(error.contains("--name"), "{error}");
    let wrong = "0".repeat(64);
    let error = refusal(&install(&models, &source, &["--sha256", &wrong]));
    assert!(error.contains(&wrong), "{error}");

    // A link that leads out of the folder, and a file that would be written through it.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "out", home.path())
        .expect("appended");
    fs::write(&path, tar.into_inner().expect("an archive")).expect("written");
    assert!(refusal(&install(&models, &source, &[])).contains("no plain file"));
    fs::write(&path, b"\x1f\x8b compressed").expect("written");
    assert!(refusal(&install(&models, &source, &[])).contains("compressed"));
    let cut = archive();
    fs::write(&path, &cut[..cut.len() / 2]).expect("written");
    refusal(&install(&models, &source, &[]));
    assert_eq!(names(&models), ["mine"]);
}

/// Serves `body`; the first answer breaks off after half of it. Returns the address and the ranges asked for.
fn server(body: Vec<u8>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!(
        "http://{}/model.tar",
        listener.local_addr().expect("an address")
    );
    let (ranges, asked) = (Arc::default(), AtomicUsize::new(0));
    let told: Arc<Mutex<Vec<String>>> = Arc::clone(&ranges);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let (mut range, mut line) = (String::new(), String::new());
            while stream.read_line(&mut line).expect("a head") > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
                    range = value.trim().to_owned();
                }
                line.clear();
            }
            told.lock().expect("the test").push(range.clone());
            let from = range
                .strip_prefix("bytes=")
                .and_then(|range| range.trim_end_matches('-').parse().ok())
                .unwrap_or(0_usize);
            let part = &body[from..];
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!(
                    "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
                    body.len() - 1,
                    body.len()
                ),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                part.len()
            );
            let end = match asked.fetch_add(1, Ordering::SeqCst) {
                0 => part.len() / 2,
                _ => part.len(),
            };
            let stream = stream.get_mut();
            // The client may be satisfied before the end.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&part[..end]));
        }
    });
    (address, ranges)
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let home = folder();
    let models = home.path().join("models");
    let body = archive();
    let (half, sum) = (body.len() / 2, hash(&body));
    let (address, ranges) = server(body);
    let usage = install(&models, &address, &[]);
    assert_eq!(usage.status.code(), Some(64));
    let error = refusal(&install(&models, &address, &["--sha256", &sum]));
    assert!(error.contains("goes on"), "{error}");
    let part = models.join(format!(".{sum}.part"));
    assert_eq!(
        File::open(&part)
            .and_then(|f| f.metadata())
            .expect("a part")
            .len(),
        half as u64
    );
    answer(&install(&models, &address, &["--sha256", &sum]));
    assert_eq!(
        *ranges.lock().expect("the server"),
        [String::new(), format!("bytes={half}-")]
    );
    assert_eq!(names(&models), ["glm-mini"]);
    let wrong = "1".repeat(64);
    let error = refusal(&install(&models, &address, &["--sha256", &wrong]));
    assert!(error.contains(&sum), "{error}");
    assert_eq!(names(&models), ["glm-mini"]);
}
