//! The bundled model on the emulated NPU: which nodes run there, and whether it answers as it does on the CPU.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use glm_engine::backend::provider::Provider;
use glm_engine::loading::{BackendKind, Options, Report, open};
use glm_engine::ops::{Classify, Operations, Terms};
use glm_engine::units::SystemClock;
use glm_engine::{Config, Drain, Engine, EngineHandle};
use glm_onnx::export;

use super::{library, options, provider, qnn};

/// Questions of a task; the emulator takes seconds for each.
const OF_A_TASK: usize = 12;
/// Tokens of a step, and of the longest text with its answer.
const SIZES: (usize, usize) = (64, 128);
/// Tokens that a text may have beside its pattern.
const LONGEST: usize = 54;
/// Of a hundred answers, those that must be the CPU's.
const AGREEING: usize = 90;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glm-mini")
}

/// The texts of a held-out set.
fn texts(set: &str) -> Vec<String> {
    let path = bundled().join("eval").join(format!("{set}.dev.jsonl"));
    let lines = fs::read_to_string(path).unwrap();
    let text = |line: &str| -> String {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        item["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// The bundled model as an NPU wants it, fitted to other texts than it is asked about.
fn exported(out: &Path) {
    let sets = ["infill-wiki", "infill-help", "infill-device", "intent-en"];
    let lines: Vec<String> = sets.into_iter().flat_map(texts).collect();
    let options = export::Options {
        profile: export::Profile::Npu {
            prompt: SIZES.0,
            context: SIZES.1,
        },
        calibration: Some(lines.join("\n")),
        ..export::Options::default()
    };
    export::export(&bundled(), out, &options, &|_| ControlFlow::Continue(())).unwrap();
}

/// A model that answers.
struct Asked {
    engine: EngineHandle,
    thread: std::thread::JoinHandle<()>,
    operations: Operations,
}

impl Asked {
    fn start(folder: PathBuf, options: Options) -> Self {
        let (tell, told) = mpsc::channel();
        let source = move || {
            let model = open(&folder, &options);
            let _ = tell.send(model.as_ref().map(drop).map_err(Clone::clone));
            model
        };
        let clock = Arc::new(SystemClock::default());
        let (engine, handle) = Engine::new(Config::default(), Box::new(source), clock);
        let thread = engine.spawn().unwrap();
        told.recv().unwrap().unwrap();
        let model = loop {
            match handle.model() {
                Some(model) => break model,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Self {
            engine: handle,
            thread,
            operations: Operations::new(model).unwrap(),
        }
    }

    fn report(&self) -> &Report {
        &self.operations.model().report
    }

    fn length(&self, text: &str) -> usize {
        let tokenizer = &self.operations.model().tokenizer;
        tokenizer.encode_plain(text).unwrap().len()
    }

    fn label(&self, task: &str, text: &str) -> String {
        let ask = Classify {
            texts: vec![text.to_owned()],
            task: Some(task.to_owned()),
            ..Classify::default()
        };
        let planned = self.operations.classify(&ask, Terms::default()).unwrap();
        let ticket = self.engine.submit(planned.request).unwrap();
        let answer = planned.reader.read(&ticket.collect_blocking().unwrap());
        answer.unwrap().verdicts.remove(0).label
    }

    fn labels(&self, questions: &[(&str, String)]) -> Vec<String> {
        let questions = questions.iter();
        questions
            .map(|(task, text)| self.label(task, text))
            .collect()
    }

    fn stop(self) {
        self.engine.shutdown(Drain::Now, Box::new(|_| {}));
        self.thread.join().unwrap();
    }
}

/// Questions that fit into a step, evenly from each set.
fn questions(asked: &Asked) -> Vec<(&'static str, String)> {
    let mut questions = Vec::new();
    for task in ["severity", "topic"] {
        let mut all = texts(task);
        all.retain(|text| asked.length(text) <= LONGEST);
        let step = (all.len() / OF_A_TASK).max(1);
        let some = all.into_iter().step_by(step).take(OF_A_TASK);
        questions.extend(some.map(|text| (task, text)));
    }
    questions
}

#[test]
fn the_bundled_model_runs_on_the_npu_as_a_whole_and_answers_as_on_the_cpu() {
    let (Some(library), Some((plugin, backend))) = (library(), qnn()) else {
        return;
    };
    let on_cpu = options(Some(BackendKind::OrtPaged), library.clone(), None);
    let cpu = Asked::start(bundled(), on_cpu);
    let questions = questions(&cpu);
    assert_eq!(questions.len(), 2 * OF_A_TASK);
    let expected = cpu.labels(&questions);
    cpu.stop();

    let started = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("glm-mini-npu");
    exported(&out);
    println!("exported in {:.0?}", started.elapsed());

    let provider: Provider = provider(&plugin, &backend, false);
    let on_npu = options(Some(BackendKind::OrtPortable), library, Some(provider));
    let npu = Asked::start(out, on_npu);
    let report = npu.report();
    let placement = report.placement.as_ref();
    let placement = placement.unwrap_or_else(|| panic!("{:?}", report.attempts));
    println!("{placement}, started after {:.0?}", started.elapsed());
    assert!(placement.elsewhere.is_empty(), "{:?}", placement.elsewhere);
    assert!(placement.taken > 400, "{placement}");

    let found = npu.labels(&questions);
    npu.stop();
    let mut agreeing = 0;
    for (((task, text), found), expected) in questions.iter().zip(&found).zip(&expected) {
        match found == expected {
            true => agreeing += 1,
            false => println!("{task}: {found}, on the CPU {expected}: {text}"),
        }
    }
    let all = questions.len();
    println!(
        "{agreeing} of {all} labels as on the CPU, after {:.0?}",
        started.elapsed()
    );
    assert!(agreeing * 100 >= all * AGREEING, "{agreeing} of {all}");
}
