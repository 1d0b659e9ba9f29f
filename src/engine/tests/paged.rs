//! The paged backends agree with ONNX Runtime on the unmodified graph, and keep the promises of the contract.
//!
//! Models have the shapes of the test checkpoints, two layers, and random
//! weights, so that nothing is trained to be near anything else.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

#[path = "support/probe.rs"]
mod probe;

use std::fs;
use std::path::{Path, PathBuf};

use glm::spec::{Hints, Visibility};
use glm::{ModelSpec, Position, TokenId};
use glm_engine::backend::library::Places;
use glm_engine::backend::{Backend, BackendError, Bytes, Row, SeqId, Step};
use glm_engine::loading::{BackendKind, KvType, MatmulOptions, Options, open_graph};
use glm_onnx::graph::{self, Block, Precision, Quantisation, Scheme, Table};
use glm_onnx::synthetic;
use tempfile::TempDir;

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
/// Position tables of the smallest models have this many rows.
const CONTEXT: usize = 64;

fn options() -> Options {
    Options {
        backend: None,
        provider: None,
        places: Places {
            variable: std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
            ..Places::default()
        },
        prober: probe::prober(),
        threads: Some(2),
        kv: Bytes(8 << 20),
        kv_type: KvType::F32,
        verify: false,
        matmul: MatmulOptions::default(),
    }
}

/// The backends that this machine can test.
fn kinds() -> Vec<BackendKind> {
    let library = std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| Path::new(&path).is_file());
    if !library {
        eprintln!("skipped for ONNX Runtime: ORT_DYLIB_PATH names no libonnxruntime");
    }
    BackendKind::ALL
        .into_iter()
        .filter(|kind| library || *kind == BackendKind::TractPaged)
        .filter(|kind| cfg!(feature = "tract") || *kind != BackendKind::TractPaged)
        .collect()
}

fn paged() -> Vec<BackendKind> {
    kinds()
        .into_iter()
        .filter(|kind| *kind != BackendKind::OrtPortable)
        .collect()
}

fn spec(family: &str) -> ModelSpec {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(family)
        .join("config.json");
    let config = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    ModelSpec::from_config(&config, &Hints::default()).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Kept {
    Full,
    Int8(Block),
    Int4,
}

/// Writes a model; keep the folder while it is used.
fn model(spec: &ModelSpec, kept: Kept) -> TempDir {
    let quantised = |scheme, block| Precision::Quantised(Quantisation { scheme, block });
    let (layers, head, embedding) = match kept {
        Kept::Full => (Precision::Full, Precision::Full, Table::Full),
        Kept::Int8(block) => {
            let int8 = quantised(Scheme::Int8, block);
            (int8, int8, Table::Half)
        }
        Kept::Int4 => (
            quantised(Scheme::Int4ZeroPoint, Block::Of(32)),
            quantised(Scheme::Int8, Block::Row),
            Table::Half,
        ),
    };
    let folder = tempfile::tempdir().unwrap();
    let options = graph::Options {
        layers,
        head,
        embedding,
        tied_head: spec.tied_head,
        max_positions: CONTEXT,
        fixed: None,
    };
    synthetic::write(spec, &options, folder.path(), 7, &mut |_, _| Ok(())).unwrap();
    folder
}

fn open(folder: &TempDir, kind: BackendKind, options: &Options) -> Box<dyn Backend> {
    open_graph(&folder.path().join("model.onnx"), CONTEXT, kind, options).unwrap()
}

/// Tokens of a text that is as good as any, with the positions and visibility of the family.
struct Text<'a> {
    spec: &'a ModelSpec,
    seq: u64,
    ids: Vec<u32>,
    /// Length of Part A.
    prefix: usize,
}

impl<'a> Text<'a> {
    fn new(spec: &'a ModelSpec, seq: u64, length: usize) -> Self {
        let vocabulary = u32::try_from(spec.vocab_rows).unwrap();
        let ids = (0..u32::try_from(length).unwrap())
            .map(|i| (i * 37 + u32::try_from(seq).unwrap() * 101 + 5) % vocabulary)
            .collect();
        Self {
            spec,
            seq,
            ids,
            prefix: match spec.visibility() {
                Visibility::PrefixLm => length,
                Visibility::Causal => 0,
            },
        }
    }

    fn row(&self, index: usize, logits: bool) -> Row {
        let place = u32::try_from(index).unwrap();
        let prefix = u32::try_from(self.prefix).unwrap();
        let position = if self.spec.two_dimensional() && index >= self.prefix {
            // A piece that fills a blank at position 1 of Part A.
            Position {
                first: 1,
                second: place - prefix + 1,
            }
        } else {
            Position::context(place)
        };
        Row {
            seq: SeqId(self.seq),
            id: TokenId(self.ids[index]),
            position,
            visible: (place + 1).max(prefix),
            logits,
        }
    }

    /// Rows `from..` of the text; the logits of the last are wanted.
    fn rows(&self, from: usize) -> Vec<Row> {
        let last = self.ids.len() - 1;
        (from..=last)
            .map(|index| self.row(index, index == last))
            .collect()
    }
}

fn logits(backend: &mut dyn Backend, rows: Vec<Row>) -> Vec<f32> {
    backend.forward(&Step { rows }).unwrap().values
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f32, &f32)| (a - b).abs();
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

fn best(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    u32::try_from(best.unwrap()).unwrap()
}

/// Continues a text of `prompt` tokens greedily to `length` tokens; returns the text and the logits on the way.
fn continued(
    backend: &mut dyn Backend,
    spec: &ModelSpec,
    prompt: usize,
    length: usize,
) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut text = Text::new(spec, 1, prompt);
    let mut rows = Vec::new();
    let mut from = 0;
    while text.ids.len() < length {
        let row = logits(backend, text.rows(from));
        from = text.ids.len();
        text.ids.push(best(&row));
        rows.push(row);
    }
    (text.ids, rows)
}

/// The same logits for a text that is given.
fn followed(
    backend: &mut dyn Backend,
    spec: &ModelSpec,
    prompt: usize,
    ids: &[u32],
) -> Vec<Vec<f32>> {
    let mut text = Text::new(spec, 1, prompt);
    let mut from = 0;
    ids[prompt..]
        .iter()
        .map(|id| {
            let row = logits(backend, text.rows(from));
            from = text.ids.len();
            text.ids.push(*id);
            row
        })
        .collect()
}

/// Logits after prompts of their own, which share nothing but the weights.
fn prompted(backend: &mut dyn Backend, spec: &ModelSpec) -> Vec<Vec<f32>> {
    (100..120)
        .map(|seq| {
            let row = logits(backend, Text::new(spec, seq, 9).rows(0));
            backend.release(SeqId(seq));
            row
        })
        .collect()
}

#[test]
fn all_backends_continue_every_family_alike() {
    for family in FAMILIES {
        let spec = spec(family);
        for kept in [
            Kept::Full,
            Kept::Int8(Block::Of(32)),
            Kept::Int8(Block::Row),
        ] {
            let folder = model(&spec, kept);
            let kinds = kinds();
            let Some((first, others)) = kinds.split_first() else {
                return;
            };
            let mut first = open(&folder, *first, &options());
            // The shortest position table has 64 rows.
            let (ids, expected) = continued(first.as_mut(), &spec, 9, 63);
            let expected_prompts = prompted(first.as_mut(), &spec);
            for kind in others {
                let what = format!("{family} {kept:?} {kind}");
                let mut backend = open(&folder, *kind, &options());
                let rows = followed(backend.as_mut(), &spec, 9, &ids);
                let pairs = expected.iter().zip(&rows);
                let worst = pairs.map(|(a, b)| far(a, b)).fold(0.0, f32::max);
                let exact = matches!(kept, Kept::Full);
                // Quantised activations: the last bit of a norm may turn a
                // rounding over, which then stays in the caches.
                let margin = if exact { 1e-4 } else { 0.2 };
                assert!(worst < margin, "{what}: {worst}");
                let chosen = rows.iter().map(|row| best(row));
                let equal = chosen.zip(&ids[9..]).filter(|(a, b)| a == *b).count();
                let enough = if exact {
                    rows.len()
                } else {
                    rows.len() * 9 / 10
                };
                assert!(equal >= enough, "{what}: {equal} choices");
                // Our kernels quantise 64 activations at a time where ONNX
                // Runtime takes a whole block of 128.
                let coarse = matches!(kept, Kept::Int8(Block::Row));
                if !(coarse && *kind == BackendKind::OrtPortable) {
                    let prompts = prompted(backend.as_mut(), &spec);
                    let pairs = expected_prompts.iter().zip(&prompts);
                    let alike = pairs.filter(|(a, b)| far(a, b) < 1e-4).count();
                    assert!(alike * 10 >= prompts.len() * 9, "{what}: {alike} prompts");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_beside_a_prompt() {
    for family in ["glm-post", "chatglm-6b", "chatglm2", "glm-edge"] {
        let spec = spec(family);
        for kept in [Kept::Full, Kept::Int8(Block::Of(32)), Kept::Int4] {
            let folder = model(&spec, kept);
            for kind in paged() {
                let options = Options {
                    kv_type: KvType::F16,
                    ..options()
                };
                let mut backend = open(&folder, kind, &options);
                let backend = backend.as_mut();
                let prompt = 11;
                let mut texts: Vec<Text<'_>> =
                    (0..10).map(|seq| Text::new(&spec, seq, prompt)).collect();
                for text in &mut texts {
                    let row = logits(backend, text.rows(0));
                    text.ids.push(best(&row));
                }
                let own = texts[0].rows(prompt);
                let alone = logits(backend, own.clone());

                backend.truncate(SeqId(0), prompt);
                let mut batch = own.clone();
                batch.extend(texts[1..8].iter().flat_map(|text| text.rows(prompt)));
                let batched = logits(backend, batch);
                assert_eq!(batched.len(), 8 * spec.vocab_rows);
                assert_eq!(
                    alone,
                    batched[..spec.vocab_rows],
                    "{family} {kept:?} {kind}"
                );

                backend.truncate(SeqId(0), prompt);
                let mut mixed = Text::new(&spec, 20, 30).rows(0);
                mixed.extend(own);
                let mixed = logits(backend, mixed);
                assert_eq!(alone, mixed[spec.vocab_rows..], "{family} {kept:?} {kind}");
            }
        }
    }
}

#[test]
fn chunks_forks_and_truncations_end_where_a_whole_prompt_does() {
    for family in ["glm-post", "glm4-old", "glm-edge"] {
        let spec = spec(family);
        let folder = model(&spec, Kept::Int8(Block::Of(32)));
        for kind in paged() {
            let mut backend = open(&folder, kind, &options());
            let backend = backend.as_mut();
            // Part A of 35 tokens in one step, then 20 causal ones at once.
            let mut text = Text::new(&spec, 1, 55);
            text.prefix = text.prefix.min(35);
            let expected = logits(backend, text.rows(0));
            backend.release(SeqId(1));

            for cut in [35, 40, 54] {
                text.seq = 2;
                let head: Vec<Row> = (0..cut).map(|index| text.row(index, false)).collect();
                assert!(logits(backend, head).is_empty());
                assert_eq!(backend.len(SeqId(2)), cut);
                backend.fork(SeqId(2), SeqId(3), cut).unwrap();
                // The parent goes another way: the child must not see it.
                let other = Text::new(&spec, 2, 58);
                let astray: Vec<Row> = (cut..58).map(|index| other.row(index, false)).collect();
                logits(backend, astray);
                text.seq = 3;
                assert_eq!(expected, logits(backend, text.rows(cut)), "{family} {kind}");
                text.seq = 2;
                backend.truncate(SeqId(2), cut);
                assert_eq!(expected, logits(backend, text.rows(cut)), "{family} {kind}");
                backend.release(SeqId(2));
                backend.release(SeqId(3));
            }
            let memory = backend.memory();
            assert_eq!(memory.kv_used, Bytes(0));
            assert_eq!(memory.free_blocks, backend.capabilities().blocks);
            assert!(backend.shrink() > Bytes(0));
            assert_eq!(backend.memory().kv_resident, Bytes(0));
        }
    }
}

#[test]
fn a_step_that_cannot_run_changes_nothing() {
    let spec = spec("glm-edge");
    let folder = model(&spec, Kept::Full);
    for kind in paged() {
        let mut backend = open(&folder, kind, &options());
        let backend = backend.as_mut();
        let text = Text::new(&spec, 1, 12);
        logits(backend, text.rows(0));
        let next = Text::new(&spec, 1, 13).rows(12);

        // A token outside the table fails inside the graph, when blocks are taken already.
        let mut outside = next.clone();
        outside[0].id = TokenId(u32::try_from(spec.vocab_rows).unwrap());
        let error = backend.forward(&Step { rows: outside }).unwrap_err();
        assert!(matches!(error, BackendError::Runtime { .. }), "{error}");
        assert!(error.to_string().contains("table"), "{error}");
        // So does a position outside the tables of the rotation.
        let mut far_away = next.clone();
        far_away[0].position.first = 1000;
        let error = backend.forward(&Step { rows: far_away }).unwrap_err();
        assert!(error.to_string().contains("position"), "{error}");

        let long = Text::new(&spec, 1, CONTEXT + 1).rows(12);
        let error = backend.forward(&Step { rows: long }).unwrap_err();
        assert!(matches!(error, BackendError::BadStep(_)), "{error}");
        let mut apart = next.clone();
        apart.extend(Text::new(&spec, 2, 3).rows(0));
        apart.push(Text::new(&spec, 1, 14).row(13, false));
        let error = backend.forward(&Step { rows: apart }).unwrap_err();
        assert!(matches!(error, BackendError::BadStep(_)), "{error}");
        let mut blind = next.clone();
        blind[0].visible = 20;
        let error = backend.forward(&Step { rows: blind }).unwrap_err();
        assert!(matches!(error, BackendError::BadStep(_)), "{error}");
        let blocks = backend.capabilities().blocks;
        let many = (0..=blocks as u64).flat_map(|seq| Text::new(&spec, 10 + seq, 1).rows(0));
        let error = backend
            .forward(&Step {
                rows: many.collect(),
            })
            .unwrap_err();
        assert!(matches!(error, BackendError::OutOfBlocks { .. }), "{error}");

        assert_eq!(backend.len(SeqId(1)), 12);
        assert_eq!(backend.memory().free_blocks, blocks - 1);
        let mut fresh = open(&folder, kind, &options());
        logits(fresh.as_mut(), text.rows(0));
        assert_eq!(logits(backend, next.clone()), logits(fresh.as_mut(), next));
    }
}

#[test]
fn caches_of_all_kinds_answer_nearly_alike() {
    let spec = spec("glm-edge");
    let folder = model(&spec, Kept::Full);
    for kind in paged() {
        let answer = |kv_type| {
            let options = Options {
                kv_type,
                ..options()
            };
            let mut backend = open(&folder, kind, &options);
            logits(backend.as_mut(), Text::new(&spec, 1, 40).rows(0))
        };
        let full = answer(KvType::F32);
        assert!(far(&full, &answer(KvType::F16)) < 1e-2);
        assert!(far(&full, &answer(KvType::Int8)) < 1e-1);
    }
}
