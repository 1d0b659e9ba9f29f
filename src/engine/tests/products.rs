//! Quantised products by ONNX Runtime instead of ours: the same answers, told memory, measured or forced.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

#[path = "support/probe.rs"]
mod probe;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use glm::{Position, TokenId};
use glm_engine::backend::library::Places;
use glm_engine::backend::{Bytes, MemoryUse, Row, SeqId, Step};
use glm_engine::loading::verdict::{Reason, Verdict};
use glm_engine::loading::{BackendKind, KvType, Matmul, MatmulOptions, Options, open};
use glm_engine::model::Model;
use glm_onnx::export;
use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
use tempfile::TempDir;

/// Options with the library of this machine; `None` where it has none.
fn options(matmul: MatmulOptions) -> Option<Options> {
    Some(Options {
        backend: Some(BackendKind::OrtPaged),
        provider: None,
        places: Places {
            variable: Some(probe::needed()?),
            ..Places::default()
        },
        prober: probe::prober(),
        threads: Some(2),
        kv: Bytes(8 << 20),
        kv_type: KvType::F16,
        verify: false,
        matmul,
    })
}

fn only(matmul: Matmul) -> MatmulOptions {
    MatmulOptions {
        only: Some(matmul),
        ..MatmulOptions::default()
    }
}

/// Times decide, however small the model.
fn timed(cache: Option<PathBuf>) -> MatmulOptions {
    MatmulOptions {
        cache,
        least: Bytes(1),
        ..MatmulOptions::default()
    }
}

/// Exports a test checkpoint; keep the folder while it is used.
fn exported(family: &str, scheme: Scheme, block: Block) -> (TempDir, PathBuf) {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(family);
    let how = Quantisation { scheme, block };
    let how = export::Options {
        layers: Precision::Quantised(how),
        head: Precision::Quantised(Quantisation {
            scheme: Scheme::Int8,
            block: Block::Of(32),
        }),
        embedding: Table::Half,
        threads: 1,
        ..export::Options::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join(family);
    export::export(&checkpoint, &out, &how, &|_| ControlFlow::Continue(())).unwrap();
    (folder, out)
}

fn load(folder: &Path, options: &Options) -> Model {
    open(folder, options).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn verdict(model: &Model) -> Verdict {
    model.info.report.matmul.clone().expect("there is a choice")
}

/// Logits after each of twelve tokens of a text, one step a token.
fn answers(model: &mut Model) -> Vec<f32> {
    let vocabulary = u32::try_from(model.backend.capabilities().vocabulary).unwrap();
    let step = |index: u32| Step {
        rows: vec![Row {
            seq: SeqId(1),
            id: TokenId((index * 37 + 5) % vocabulary),
            position: Position::context(index),
            visible: index + 1,
            logits: true,
        }],
    };
    let row = |index| model.backend.forward(&step(index)).unwrap().values;
    let rows: Vec<f32> = (0..12).flat_map(row).collect();
    model.backend.release(SeqId(1));
    rows
}

fn memory(model: &Model) -> MemoryUse {
    model.backend.memory()
}

#[test]
fn forced_products_of_onnxruntime_answer_like_ours_and_are_counted() {
    for family in ["glm-edge", "glm-post", "chatglm2", "glm4-0414"] {
        for (scheme, block) in [
            (Scheme::Int8, Block::Of(32)),
            (Scheme::Int4ZeroPoint, Block::Of(32)),
        ] {
            let (_keep, folder) = exported(family, scheme, block);
            let (Some(ours), Some(theirs)) = (
                options(only(Matmul::Glmd)),
                options(only(Matmul::OnnxRuntime)),
            ) else {
                return;
            };
            let what = format!("{family} {scheme:?}");
            let (mut ours, mut theirs) = (load(&folder, &ours), load(&folder, &theirs));
            for (model, matmul) in [(&ours, Matmul::Glmd), (&theirs, Matmul::OnnxRuntime)] {
                let reason = Reason::Forced;
                assert_eq!(verdict(model), Verdict { matmul, reason }, "{what}");
                assert_eq!(model.info.capabilities.name, "ort-paged");
            }
            let (a, b) = (answers(&mut ours), answers(&mut theirs));
            let worst = (a.iter().zip(&b)).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            // Rounding of activations may turn over, as in the comparison with the unmodified graph.
            assert!(worst < 0.2 && a.len() == b.len(), "{what}: {worst}");
            assert_ne!(a, b, "{what}: both ran the same kernel");
            // What is packed is no longer mapped, and takes at least what it took in the file.
            let (ours, theirs) = (memory(&ours), memory(&theirs));
            assert!(theirs.mapped < ours.mapped, "{what}");
            let packed = theirs.weights.less(theirs.mapped);
            let left = ours.mapped.less(theirs.mapped);
            assert!(packed >= left, "{what}: {packed} for {left}");
        }
    }
}

#[test]
fn times_are_taken_once_and_told() {
    let (keep, folder) = exported("glm-edge", Scheme::Int8, Block::Of(32));
    let cache = keep.path().join("cache");
    let Some(options) = options(timed(Some(cache.clone()))) else {
        return;
    };
    // Nothing is kept of a machine that was busy with other work: ours serve, and the next load tries again.
    let measured = |model: &Model| matches!(verdict(model).reason, Reason::Measured(_));
    let loads = (0..20).map(|_| load(&folder, &options));
    let Some(mut first) = loads.into_iter().find(|model| {
        let kept = cache.exists();
        assert_eq!(kept, measured(model), "{}", verdict(model));
        kept
    }) else {
        eprintln!("skipped: the machine is too busy");
        return;
    };
    let expected = verdict(&first);
    let Reason::Measured(times) = &expected.reason else {
        panic!("{expected}");
    };
    assert!(!times.samples.is_empty() && times.speedup().is_some());
    assert!(expected.to_string().contains("ms"), "{expected}");
    let file = fs::read_dir(&cache).unwrap().next().unwrap().unwrap();
    let kept = fs::read(file.path()).unwrap();

    let mut second = load(&folder, &options);
    assert_eq!(verdict(&second), expected, "not timed again");
    assert_eq!(fs::read(file.path()).unwrap(), kept);
    assert_eq!(answers(&mut first), answers(&mut second));

    fs::write(file.path(), "{\"key\":").unwrap();
    let third = load(&folder, &options);
    assert!(matches!(
        verdict(&third).reason,
        Reason::Measured(_) | Reason::NotMeasured(_)
    ));
    // Another number of threads is another machine.
    let other = Options {
        threads: Some(1),
        ..options
    };
    load(&folder, &other);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
}

#[test]
fn nothing_is_timed_where_it_cannot_matter() {
    let (_keep, folder) = exported("glm-edge", Scheme::Int8, Block::Of(32));
    let Some(usual) = options(MatmulOptions::default()) else {
        return;
    };
    assert_eq!(verdict(&load(&folder, &usual)).reason, Reason::Small);
    let no_room = MatmulOptions {
        floor: Some(Bytes(u64::MAX / 4)),
        ..timed(None)
    };
    let no_room = options(no_room).unwrap();
    let found = verdict(&load(&folder, &no_room));
    assert!(matches!(found.reason, Reason::NoRoom { .. }), "{found}");
    assert_eq!(found.matmul, Matmul::Glmd);
    // The other runtimes leave no choice.
    for backend in BackendKind::ALL {
        let other = Options {
            backend: Some(backend),
            ..options(only(Matmul::OnnxRuntime)).unwrap()
        };
        match open(&folder, &other) {
            Ok(model) => {
                let told = model.info.report.matmul.is_some();
                assert_eq!(told, backend == BackendKind::OrtPaged, "{backend}");
            }
            // Built without tract.
            Err(error) => assert!(backend == BackendKind::TractPaged, "{error}"),
        }
    }
}

#[test]
fn the_bundled_model_answers_its_test_prompts_with_products_of_onnxruntime() {
    let Some(forced) = options(only(Matmul::OnnxRuntime)) else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glm-mini");
    let mut model = load(&folder, &forced);
    assert_eq!(verdict(&model).matmul, Matmul::OnnxRuntime);
    let (off, most) = model.info.report.deviation.expect("golden logits");
    assert!(off <= most);
    let ours = load(&folder, &options(only(Matmul::Glmd)).unwrap());
    let mut ours = ours;
    let (a, b) = (answers(&mut ours), answers(&mut model));
    let mean = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs()));
    #[allow(clippy::cast_precision_loss, reason = "a mean")]
    let mean = mean.sum::<f64>() / a.len() as f64;
    assert!(mean < 0.1, "{mean}");
}
