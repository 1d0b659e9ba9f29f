//! From a model directory to a model that runs, on the best backend that answers right.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

#[path = "support/probe.rs"]
mod probe;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
#[cfg(feature = "tract")]
use std::process::Command;

use glm::manifest;
use glm_engine::backend::library::Places;
use glm_engine::backend::{Bytes, Row, SeqId, Step};
use glm_engine::loading::{BackendKind, Directory, KvType, Loader, MatmulOptions, Options, open};
use glm_engine::model::{Model, ModelSource};
use glm_onnx::export;
use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
use tempfile::TempDir;

use probe::{prober, working};

const FAMILIES: [&str; 10] = [
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

/// Makes a directory bad.
type Spoil = fn(&Path);

/// Whether any backend can be tried here.
fn something_runs() -> bool {
    let runs = working().is_some() || cfg!(feature = "tract");
    if !runs {
        eprintln!("skipped: neither libonnxruntime nor tract");
    }
    runs
}

fn options(library: Option<PathBuf>) -> Options {
    Options {
        backend: None,
        provider: None,
        places: Places {
            variable: library,
            ..Places::default()
        },
        prober: prober(),
        threads: Some(1),
        kv: Bytes(8 << 20),
        kv_type: KvType::F16,
        verify: true,
        matmul: MatmulOptions::default(),
    }
}

fn int8() -> export::Options {
    let how = Quantisation {
        scheme: Scheme::Int8,
        block: Block::Of(32),
    };
    export::Options {
        layers: Precision::Quantised(how),
        head: Precision::Quantised(how),
        embedding: Table::Quantised(how),
        threads: 1,
        ..export::Options::default()
    }
}

/// Exports a test checkpoint; keep the folder while it is used.
fn exported(family: &str, how: &export::Options) -> (TempDir, PathBuf) {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(family);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join(family);
    export::export(&checkpoint, &out, how, &|_| ControlFlow::Continue(())).unwrap();
    (folder, out)
}

/// Logits of the last token of the first golden prompt.
fn answer(model: &mut Model, folder: &Path) -> f32 {
    let manifest = Directory::read(folder).unwrap().manifest.unwrap();
    let prompt = &manifest.golden.prompts[0];
    let rows = prompt.ids.iter().zip(prompt.places()).enumerate();
    let step = Step {
        rows: rows
            .map(|(index, (id, position))| Row {
                seq: SeqId(0),
                id: *id,
                position,
                visible: u32::try_from(prompt.bidirectional.max(index + 1)).unwrap(),
                logits: index + 1 == prompt.ids.len(),
            })
            .collect(),
    };
    let logits = model.backend.forward(&step).unwrap().values;
    prompt.deviation(&logits) / manifest.golden.tolerance
}

fn load(folder: &Path, options: &Options) -> Model {
    open(folder, options).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

#[test]
fn every_family_opens_on_the_best_backend_and_answers_right() {
    if !something_runs() {
        return;
    }
    let library = working();
    if library.is_none() {
        eprintln!("skipped for ONNX Runtime: ORT_DYLIB_PATH names no libonnxruntime");
    }
    for family in FAMILIES {
        for how in [int8(), export::Options::default()] {
            let (_keep, folder) = exported(family, &how);
            let mut model = load(&folder, &options(library.clone()));
            let best = if library.is_some() {
                BackendKind::OrtPaged
            } else {
                BackendKind::TractPaged
            };
            let report = &model.info.report;
            assert_eq!(report.backend, Some(best), "{family}: {report:?}");
            assert_eq!(model.info.capabilities.name, best.name());
            assert_eq!(report.attempts.is_empty(), library.is_some());
            let (worst, allowed) = report.deviation.unwrap();
            assert!(worst <= allowed, "{family}");
            assert!(answer(&mut model, &folder) <= 1.0, "{family}");
            let memory = model.backend.memory();
            assert!(memory.mapped > Bytes(0) && memory.mapped <= memory.weights);
        }
    }
}

#[test]
fn every_backend_can_be_forced() {
    let (_keep, folder) = exported("glm-edge", &int8());
    for kind in BackendKind::ALL {
        if kind != BackendKind::TractPaged && working().is_none() {
            continue;
        }
        if kind == BackendKind::TractPaged && !cfg!(feature = "tract") {
            continue;
        }
        let options = Options {
            backend: Some(kind),
            ..options(working())
        };
        let mut model = load(&folder, &options);
        assert_eq!(model.info.report.backend, Some(kind));
        assert!(answer(&mut model, &folder) <= 1.0);
        assert_eq!(kind.name().parse(), Ok(kind));
    }
}

#[cfg(feature = "tract")]
/// Writes a library that ends the process which loads it; `None` without a C compiler.
fn aborting(folder: &Path) -> Option<PathBuf> {
    let source = folder.join("abort.c");
    let library = folder.join("libonnxruntime.so");
    let text =
        "#include <stdlib.h>\n__attribute__((constructor)) static void f(void) { abort(); }\n";
    fs::write(&source, text).unwrap();
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .is_ok_and(|status| status.success());
    made.then_some(library)
}

#[cfg(feature = "tract")]
#[test]
fn without_a_library_that_works_tract_answers_and_says_why() {
    let (_keep, folder) = exported("glm-post", &int8());
    let broken = tempfile::tempdir().unwrap();
    let mut cases = vec![
        (None, "no libonnxruntime was found"),
        (Some(broken.path().join("absent.so")), "no such file"),
    ];
    if let Some(path) = working() {
        let bytes = fs::read(path).unwrap();
        let truncated = broken.path().join("truncated.so");
        fs::write(&truncated, &bytes[..bytes.len() / 3]).unwrap();
        cases.push((Some(truncated), "truncated.so"));
    }
    let garbage = broken.path().join("garbage.so");
    fs::write(&garbage, [0x5a; 4096]).unwrap();
    cases.push((Some(garbage), "not loadable"));
    match aborting(broken.path()) {
        Some(library) => cases.push((Some(library), "ends the process")),
        None => eprintln!("skipped: no C compiler to make a library that aborts"),
    }
    for (library, reason) in cases {
        let mut model = load(&folder, &options(library));
        assert_eq!(model.info.report.backend, Some(BackendKind::TractPaged));
        let said = model.info.report.backend_reason().unwrap();
        assert!(
            said.contains("ort-paged") && said.contains(reason),
            "{said}"
        );
        assert!(answer(&mut model, &folder) <= 1.0);
    }
}

#[test]
fn a_model_that_answers_wrong_is_not_opened() {
    if !something_runs() {
        return;
    }
    let (_keep, folder) = exported("glm-edge", &int8());
    // Weights that changed on the disk: the sizes still agree.
    let data = folder.join("model.onnx.data");
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[..middle] {
        *byte ^= 0x55;
    }
    fs::write(&data, bytes).unwrap();
    let unverified = Options {
        verify: false,
        ..options(working())
    };
    let error = open(&folder, &unverified).unwrap_err().to_string();
    assert!(error.contains("self-test"), "{error}");
    let error = open(&folder, &options(working())).unwrap_err().to_string();
    assert!(error.contains("model.onnx.data"), "{error}");
}

#[test]
fn what_is_wrong_with_a_directory_is_said_with_the_file() {
    let empty = tempfile::tempdir().unwrap();
    let error = open(empty.path(), &options(None)).unwrap_err();
    assert_eq!(error.code(), "load_failed");
    assert!(
        error.to_string().contains("not a model directory"),
        "{error}"
    );

    let spoil: [(&str, Spoil); 4] = [
        ("model.onnx.data", |folder| {
            let path = folder.join("model.onnx.data");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("tokenizer.json", |folder| {
            fs::remove_file(folder.join("tokenizer.json")).unwrap();
        }),
        ("golden", |folder| {
            let path = folder.join(manifest::FILE);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"golden\"", "\"silver\"")).unwrap();
        }),
        ("glm.json", |folder| {
            fs::write(folder.join(manifest::FILE), "{").unwrap();
        }),
    ];
    for (named, spoil) in spoil {
        let (_keep, folder) = exported("glm-edge", &int8());
        spoil(&folder);
        let error = open(&folder, &options(working())).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn a_directory_without_manifest_opens_where_its_files_say_enough() {
    if !something_runs() {
        return;
    }
    let (_keep, folder) = exported("glm4-hf", &export::Options::default());
    let with = Directory::read(&folder).unwrap();
    fs::remove_file(folder.join(manifest::FILE)).unwrap();
    let options = Options {
        verify: false,
        ..options(working())
    };
    let model = load(&folder, &options);
    assert_eq!(model.info.report.deviation, None);
    assert_eq!(model.info.spec.family, with.spec.family);
    assert_eq!(model.info.special, with.special);
    assert_ne!(model.info.digest, with.digest);
    let again = load(&folder, &options);
    assert_eq!(again.info.digest, model.info.digest);

    let (_keep, folder) = exported("glm-post", &export::Options::default());
    fs::remove_file(folder.join(manifest::FILE)).unwrap();
    let error = open(&folder, &options).unwrap_err().to_string();
    assert!(error.contains("glmctl export"), "{error}");
}

#[test]
fn a_loader_loads_again() {
    if !something_runs() {
        return;
    }
    let (_keep, folder) = exported("glm-post", &int8());
    let mut loader = Loader {
        folder,
        options: options(working()),
    };
    let first = loader.load().unwrap().info.digest;
    assert_eq!(loader.load().unwrap().info.digest, first);
    assert_eq!(first.len(), 64);
}
