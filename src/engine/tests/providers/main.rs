//! Execution providers: what they take is told, and what they do not take is refused.
//!
//! The tests of a real provider want Qualcomm's plug-in, whose x86 library emulates the NPU: `make test-providers`
//! fetches it and names its folder in `GLMD_QNN_DIR`.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

mod bundled;
#[path = "../support/probe.rs"]
mod probe;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use glm_engine::backend::Bytes;
use glm_engine::backend::library::Places;
use glm_engine::backend::provider::{Provider, ProviderKind};
use glm_engine::loading::{BackendKind, KvType, MatmulOptions, Options, Report, open};
use glm_onnx::export;
use tempfile::TempDir;

use probe::needed as library;

/// Plug-in and emulator.
fn qnn() -> Option<(PathBuf, PathBuf)> {
    let folder = std::env::var_os("GLMD_QNN_DIR").map(PathBuf::from);
    let files = folder.map(|folder| {
        let plugin = folder.join("libonnxruntime_providers_qnn.so");
        (plugin, folder.join("libQnnHtp.so"))
    });
    let files = files.filter(|(plugin, backend)| plugin.is_file() && backend.is_file());
    if files.is_none() {
        eprintln!("skipped: GLMD_QNN_DIR names no folder with the QNN plug-in");
    }
    files
}

fn provider(library: &Path, backend: &Path, partial: bool) -> Provider {
    let backend = backend.to_str().unwrap().to_owned();
    Provider {
        kind: ProviderKind::Qnn,
        library: Some(library.to_owned()),
        options: [
            ("backend_path", backend.as_str()),
            // A chip that computes in f16; the emulator's default does not.
            ("htp_arch", "73"),
            ("soc_model", "43"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        partial,
        cache: None,
    }
}

fn exported(family: &str, profile: export::Profile) -> (TempDir, PathBuf) {
    exported_with(family, profile, None)
}

/// A model of integers where there is text for calibration.
fn exported_with(
    family: &str,
    profile: export::Profile,
    calibration: Option<&str>,
) -> (TempDir, PathBuf) {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(family);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join(family);
    let options = export::Options {
        profile,
        calibration: calibration.map(str::to_owned),
        threads: 1,
        ..export::Options::default()
    };
    export::export(&checkpoint, &out, &options, &|_| ControlFlow::Continue(())).unwrap();
    (folder, out)
}

/// How the model came to run; its self-test passed.
fn opened(folder: &Path, library: PathBuf, provider: Provider) -> Report {
    opened_on(BackendKind::OrtPortable, folder, library, provider)
}

fn opened_on(backend: BackendKind, folder: &Path, library: PathBuf, provider: Provider) -> Report {
    let options = options(Some(backend), library, Some(provider));
    open(folder, &options).unwrap().info.report
}

fn options(backend: Option<BackendKind>, library: PathBuf, provider: Option<Provider>) -> Options {
    Options {
        backend,
        provider,
        places: Places {
            variable: Some(library),
            ..Places::default()
        },
        prober: probe::prober(),
        threads: Some(1),
        kv: Bytes(8 << 20),
        kv_type: KvType::F16,
        verify: false,
        matmul: MatmulOptions::default(),
    }
}

/// It runs on the CPU, and says why not on the provider.
fn refused(report: &Report) -> String {
    assert_eq!(report.backend, Some(BackendKind::OrtPortable));
    assert_eq!(report.placement, None);
    let reason = report.backend_reason().unwrap();
    assert!(reason.starts_with("ort-portable on "), "{reason}");
    reason
}

#[test]
fn a_plug_in_that_is_not_there_is_named() {
    let Some(library) = library() else { return };
    let (_keep, folder) = exported("glm-edge", export::Profile::Cpu);
    let missing = folder.join("libnothing.so");
    // Another kind than the other test's, whose plug-in this process may have loaded.
    let provider = Provider {
        kind: ProviderKind::OpenVino,
        ..provider(&missing, &missing, true)
    };
    let reason = refused(&opened(&folder, library, provider));
    assert!(reason.contains("on openvino: "), "{reason}");
    assert!(reason.contains("libnothing.so"), "{reason}");
}

// One test: a plug-in stays in the process that loaded it.
#[test]
fn what_the_npu_does_not_take_is_told_or_refused() {
    let (Some(library), Some((plugin, backend))) = (library(), qnn()) else {
        return;
    };
    let (_keep, folder) = exported("glm-edge", export::Profile::Cpu);
    let open = |backend: &Path, partial| {
        opened(
            &folder,
            library.clone(),
            provider(&plugin, backend, partial),
        )
    };

    let strict = refused(&open(&backend, false));
    assert!(strict.contains(" nodes, the CPU would run"), "{strict}");
    assert!(strict.contains("partial = true"), "{strict}");

    // The paged backend does not fall to a plug-in that is loaded, either.
    let paged = opened_on(
        BackendKind::OrtPaged,
        &folder,
        library.clone(),
        provider(&plugin, &backend, false),
    );
    assert_eq!(paged.backend, Some(BackendKind::OrtPaged));

    let report = open(&backend, true);
    let placement = report.placement.expect("a placement");
    assert_eq!(placement.provider, ProviderKind::Qnn);
    assert!(placement.taken > 0, "{placement}");
    assert!(placement.elsewhere.contains_key("GroupQueryAttention"));
    assert_eq!(report.attempts, []);

    // Graphs for NPUs go there as a whole, and pass the model's own test there.
    for family in ["glm-large", "glm-post", "chatglm-6b", "glm4-hf", "glm-edge"] {
        let profile = export::Profile::Npu {
            prompt: 32,
            context: 64,
        };
        for calibration in [None, Some(include_str!("../../../../LICENSE"))] {
            let (_keep, folder) = exported_with(family, profile, calibration);
            let report = opened(&folder, library.clone(), provider(&plugin, &backend, false));
            println!("{family}: {:?}, {:?}", report.placement, report.attempts);
            let placement = report.placement.expect("a placement");
            assert_eq!(placement.elsewhere, BTreeMap::new(), "{family}");
            assert!(placement.taken > 50, "{family}: {placement}");
        }
    }

    // What was compiled serves the next start, and what became of it does no harm.
    let cache = tempfile::tempdir().unwrap();
    let profile = export::Profile::Npu {
        prompt: 32,
        context: 64,
    };
    let (_keep, compact) = exported("glm-post", profile);
    let provider = Provider {
        cache: Some(cache.path().to_owned()),
        ..provider(&plugin, &backend, false)
    };
    let run = || {
        let report = opened(&compact, library.clone(), provider.clone());
        report.placement.expect("a placement")
    };
    let kept = || {
        let entries = std::fs::read_dir(cache.path()).unwrap();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        folders
    };
    let first = run();
    let [model, step] = &kept()[..] else {
        panic!("{:?}", kept());
    };
    let written = |folder: &Path, name: &str| {
        let file = std::fs::metadata(folder.join(name)).unwrap();
        file.modified().unwrap()
    };
    let before = (written(model, "nodes"), written(step, "nodes"));
    assert_eq!(run(), first);
    assert_eq!((written(model, "nodes"), written(step, "nodes")), before);
    std::fs::write(step.join("step.onnx"), "not a graph").unwrap();
    assert_eq!(run(), first);
    let after = (written(model, "nodes"), written(step, "nodes"));
    assert_eq!(after.0, before.0);
    assert!(after.1 > before.1, "compiled again");

    // ONNX Runtime itself takes this for a success, on the CPU.
    let nothing = refused(&open(&folder.join("libnothing.so"), true));
    assert!(nothing.contains("0 of "), "{nothing}");
}
