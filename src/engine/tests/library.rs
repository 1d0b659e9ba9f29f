//! A libonnxruntime that is missing or broken is told apart from one that works.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

#[path = "support/probe.rs"]
mod probe;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use glm_engine::backend::library::{Candidate, Origin, Places, Prober, Search, Unusable};

use probe::{prober, working};

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_missing_library_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let reason = prober().probe(&folder.path().join("libonnxruntime.so"));
    assert_eq!(reason, Err(Unusable::Missing));
}

#[test]
fn an_empty_and_a_garbage_library_are_refused_with_the_file_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("empty.so", &[][..]), ("garbage.so", &[0x5a; 4096][..])] {
        let path = file(folder.path(), name, bytes);
        match prober().probe(&path) {
            Err(Unusable::Refused(reason)) => assert!(reason.contains(name), "{reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_library_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let path = file(folder.path(), "program.so", &program);
    let reason = prober().probe(&path).unwrap_err();
    assert!(
        matches!(reason, Unusable::Refused(_) | Unusable::Fatal(_)),
        "{reason:?}"
    );
}

#[test]
fn a_probe_that_dies_is_told_from_one_that_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "any.so", b"any");
    let arguments = ["-c", "kill -ILL $$"].map(OsString::from).to_vec();
    let reason = Prober::new("/bin/sh".into(), arguments).probe(&path);
    assert!(matches!(reason, Err(Unusable::Fatal(_))), "{reason:?}");
}

#[test]
fn a_truncated_library_is_passed_over_for_one_that_works() {
    let Some(path) = working() else {
        eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(&path).unwrap();
    let truncated = file(
        folder.path(),
        "libonnxruntime.so",
        &bytes[..bytes.len() / 3],
    );
    let candidates = [truncated.clone(), path.clone()]
        .map(|path| Candidate {
            path,
            origin: Origin::System,
        })
        .to_vec();
    let Search { library, tried } = prober().search(candidates);
    let found = library.expect("the whole file loads");
    assert_eq!(found.candidate.path, path);
    assert!(found.build.contains("ORT Build Info"), "{}", found.build);
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0].0.path, truncated);
}

#[test]
fn candidates_come_in_order_and_config_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = folder.path().join("bundled");
    let system = folder.path().join("system");
    for path in [&bundled, &system] {
        fs::create_dir(path).unwrap();
    }
    let whole = file(&bundled, "libonnxruntime.so.1.32.0", b"");
    file(&bundled, "libonnxruntime.so.1", b"");
    file(&bundled, "libonnxruntime_providers_shared.so", b"");
    let plain = file(&system, "libonnxruntime.so", b"");
    let mut places = Places {
        config: None,
        variable: Some("/nowhere/ort.so".into()),
        bundled: vec![folder.path().join("absent"), bundled],
        system: vec![system],
    };
    let found: Vec<_> = places
        .candidates()
        .into_iter()
        .map(|found| (found.origin, found.path))
        .collect();
    let expected = [
        (Origin::Variable, PathBuf::from("/nowhere/ort.so")),
        (Origin::Bundled, whole),
        (Origin::System, plain),
    ];
    assert_eq!(found, expected);

    places.config = Some("/chosen/ort.so".into());
    let chosen = Candidate {
        path: "/chosen/ort.so".into(),
        origin: Origin::Config,
    };
    assert_eq!(places.candidates(), [chosen]);
}
