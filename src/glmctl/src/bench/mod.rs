//! `glmctl bench`: how fast this machine runs a model of a given shape.
//!
//! The model has random weights, since speed depends on shapes alone, and is
//! kept for the next run. Figures are the best of some steps: whatever else
//! runs on the machine makes steps longer, never shorter. With `--against ort`
//! the same file runs unmodified in ONNX Runtime, in turn with ours, and prompts
//! also with dynamically quantised products. `--variants` adds what other
//! integers, runtimes, instruction sets and threads make of some figures.

mod against;
mod bounds;
mod machine;
mod report;
mod shapes;
mod subject;
mod variants;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use glm::ModelSpec;
use glm::spec::Visibility;
use glm_engine::backend::{Backend, Bytes};
use glm_engine::loading::{self, BackendKind, KvType, Options};
use glm_kernels::Kernels;
use glm_onnx::synthetic;
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;
use bounds::{Bounds, Step, Work};
use report::{Decode, Prefill, Report};
use shapes::{Integers, Shape};
use subject::{Engine, Subject};

/// Lengths of prompts.
const PROMPTS: [usize; 3] = [32, 128, 512];
/// Numbers of texts that are continued together.
const BATCHES: [usize; 5] = [1, 2, 4, 8, 16];
/// Length of texts of equal length.
const CONTEXT: usize = 128;
/// Lengths of texts of different length.
const RAGGED: [usize; 8] = [50, 186, 321, 457, 593, 728, 864, 1000];
/// Longest text, the steps of a run included.
const LONGEST: usize = 1088;
/// Steps of a figure: at least these, and as many more as fit the time.
const LEAST: usize = 3;
/// Enough for a good step to happen between bad ones.
const MOST: usize = 24;
/// Time for the steps of a figure.
const PATIENCE: Duration = Duration::from_secs(3);
/// Address space for keys and values: 16 texts of the deepest shape.
const KV: Bytes = Bytes(4 << 30);

/// Measure how fast this machine runs a model of a given shape
#[derive(Debug, Args)]
pub struct Bench {
    /// Sizes of the model
    #[arg(long, value_enum, default_value_t)]
    shape: Shape,
    /// Integers of the weights
    #[arg(long, value_enum, default_value_t, value_name = "INTEGERS")]
    quant: Integers,
    /// Weights that share a scale
    #[arg(long, default_value_t = 32)]
    block: usize,
    /// Measure this as well, in turn
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// Only these figures: 1, 2, 4, 8, 16 or 8r texts that are continued; p32, p128 or p512 for prompts
    #[arg(long, value_delimiter = ',', value_name = "FIGURE")]
    only: Vec<String>,
    /// Also measure INT4, tract, AVX2 and one thread, each in a process of its own
    #[arg(long)]
    variants: bool,
    /// Only this backend: ort-paged, tract-paged or ort-portable
    #[arg(long)]
    backend: Option<BackendKind>,
    /// Threads of a step [default: one for each core that may be used]
    #[arg(long)]
    threads: Option<usize>,
    /// libonnxruntime to use
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Folder that keeps the random models [default: glmd/bench in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Print one JSON object; the same as --output json
    #[arg(long)]
    json: bool,
}

/// What to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The unmodified graph with ONNX Runtime's own kernels
    Ort,
}

impl Bench {
    /// Measures and prints.
    pub fn run(&self, output: Output) -> Result<()> {
        let report = self.measure()?;
        if self.json || output == Output::Json {
            print::text(&format!("{}\n", serde_json::json!(report)))
        } else {
            print::text(&report.table())
        }
    }

    /// Whether a figure is asked for.
    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == figure)
    }

    /// # Errors
    /// When a figure is asked for that does not exist.
    fn check_figures(&self) -> Result<()> {
        let prompts = PROMPTS.map(|length| format!("p{length}"));
        let batches = BATCHES.map(|batch| batch.to_string());
        let known = |figure: &String| {
            figure == "8r" || prompts.contains(figure) || batches.contains(figure)
        };
        match self.only.iter().find(|figure| !known(figure)) {
            None => Ok(()),
            Some(figure) => Err(Failure::Usage(format!(
                "--only {figure}: there are {}, 8r, {}",
                batches.join(", "),
                prompts.join(", ")
            ))),
        }
    }

    fn measure(&self) -> Result<Report> {
        self.check_figures()?;
        let spec = self.shape.spec()?;
        let load_average = machine::load_average();
        let graph = self.model(&spec)?;
        let mut options = Options::of_process(self.onnxruntime.clone())?;
        options.threads = Some(self.threads.unwrap_or_else(loading::threads_here));
        options.kv = KV;
        options.kv_type = KvType::F16;
        let threads = options.threads.unwrap_or(1);
        let bar = Bar::new();
        bar.says("bounds of this machine");
        let kernels = Kernels::from_env().map_err(|error| Failure::Usage(error.to_string()))?;
        let bounds = Bounds::measure(kernels, threads);
        // What is measured is not the disk.
        warm(&graph)?;

        bar.says("loading");
        let (mut backend, load, before) = self.open(&graph, &options)?;
        let built = shapes::options(&spec, self.quant, self.block, LONGEST)?;
        let work = Work::of(&spec, &built);
        let mut report = Report {
            shape: self.shape.name(),
            weights: format!("{}/{}", self.quant.name(), self.block),
            backend: backend.capabilities().name,
            kernels: kernels.isa().name(),
            threads,
            load_average,
            bandwidth_gb_s: bounds.bytes_s / 1e9,
            peak_products_g_s: bounds.products_s / 1e9,
            weights_mib: mib(work.bytes),
            load_s: load.as_secs_f64(),
            ..Report::default()
        };
        {
            let mut engine = Engine::new(backend.as_mut(), &spec);
            engine.hold(&[CONTEXT]).map_err(Failure::Measurement)?;
            engine.step().map_err(Failure::Measurement)?;
        }
        let kv = backend.memory().kv_resident.0;
        let taken = machine::anonymous().saturating_sub(before);
        report.anon_mib = mib(taken.saturating_sub(kv));
        let setting = Setting {
            graph: &graph,
            options: &options,
            spec: &spec,
            work,
            bounds,
        };
        self.figures(&setting, backend.as_mut(), &bar, &mut report)?;
        if self.variants {
            // Nothing else takes memory and processors meanwhile.
            drop(backend);
            report.variants = variants::measure(self, &bar)?;
        }
        bar.done();
        Ok(report)
    }

    /// Loads ours; returns it with the time that it took and the anonymous memory before.
    fn open(&self, graph: &Path, options: &Options) -> Result<(Box<dyn Backend>, Duration, u64)> {
        // The probe of the library is not part of loading a model.
        let kinds = match self.backend {
            Some(kind) => vec![kind],
            None => vec![BackendKind::OrtPaged, BackendKind::TractPaged],
        };
        let mut failed = None;
        for kind in kinds {
            let _ = loading::find_library(options);
            let before = machine::anonymous();
            let started = Instant::now();
            match loading::open_graph(graph, LONGEST, kind, options) {
                Ok(backend) => return Ok((backend, started.elapsed(), before)),
                Err(error) => {
                    eprintln!("glmctl: {error}");
                    failed = Some(error);
                }
            }
        }
        Err(failed.map_or_else(|| Failure::Usage("no backend".to_owned()), Failure::from))
    }

    /// Every figure of ours and, in turn, of what it is compared with.
    fn figures(
        &self,
        setting: &Setting<'_>,
        backend: &mut dyn Backend,
        bar: &Bar,
        report: &mut Report,
    ) -> Result<()> {
        let spec = setting.spec;
        let as_stored = against::Products::AsStored;
        let mut other = Other::open(self.against, setting, as_stored)?;
        let mut engine = Engine::new(backend, spec);
        let longest = spec.max_positions.min(LONGEST);
        let prompts = PROMPTS.into_iter().filter(|length| *length <= longest);
        for length in prompts.filter(|length| self.wants(&format!("p{length}"))) {
            bar.says(&format!("prompt of {length}"));
            let ours = prompt_time(&mut engine, length)?;
            let theirs = other.with(spec, |other| prompt_time(other, length))?;
            report.prefill.insert(
                length.to_string(),
                Prefill {
                    tok_s: rate(length, ours),
                    roofline: setting.least(Step::prompt(length)) / ours.as_secs_f64(),
                    vs_ort: theirs.map(|time| ratio(time, ours)),
                    vs_integer: None,
                },
            );
        }
        let equal = BATCHES.map(|n| (n.to_string(), vec![CONTEXT; n]));
        let ragged = RAGGED.map(|length| length.min(longest.saturating_sub(MOST + 1)));
        let cases = equal
            .into_iter()
            .chain([("8r".to_owned(), ragged.to_vec())]);
        for (name, lengths) in cases.filter(|(name, _)| self.wants(name)) {
            bar.says(&format!("{name} texts"));
            let ours = step_time(&mut engine, &lengths)?;
            let theirs = other.with(spec, |other| step_time(other, &lengths))?;
            report.decode.insert(
                name,
                Decode {
                    tok_s: rate(lengths.len(), ours),
                    roofline: setting.least(Step::texts(lengths.len())) / ours.as_secs_f64(),
                    vs_ort: theirs.map(|time| ratio(time, ours)),
                },
            );
        }
        // The last case, where nothing else was asked for ragged texts, is still held.
        report.kv_mib = mib(engine.memory().kv_used.0);
        // One session of another at a time: each keeps a copy of the weights.
        drop(other);
        let causal = spec.visibility() == Visibility::Causal;
        if self.quant == Integers::Int8 && causal && !report.prefill.is_empty() {
            let dynamic = against::Products::Dynamic;
            let mut other = Other::open(self.against, setting, dynamic)?;
            for (name, row) in &mut report.prefill {
                let Ok(length) = name.parse::<usize>() else {
                    continue;
                };
                bar.says(&format!("prompt of {length}, dynamically quantised"));
                let ours = prompt_time(&mut engine, length)?;
                let theirs = other.with(spec, |other| prompt_time(other, length))?;
                row.vs_integer = theirs.map(|time| ratio(time, ours));
            }
        }
        Ok(())
    }

    /// The graph of the random model, written first where it is not there yet.
    fn model(&self, spec: &ModelSpec) -> Result<PathBuf> {
        let options = shapes::options(spec, self.quant, self.block, LONGEST)?;
        let name = format!("{}-{}-{}", self.shape.name(), self.quant.name(), self.block);
        let folder = self.models.clone().map_or_else(cache, Ok)?.join(name);
        let graph = folder.join("model.onnx");
        if graph.is_file() {
            return Ok(graph);
        }
        let bar = Bar::new();
        bar.says("writing the model");
        // Under another name until it is whole.
        let part = folder.with_extension("part");
        let failed = |error| Failure::io(part.display().to_string(), error);
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).map_err(failed)?;
        synthetic::write(spec, &options, &part, 1, &mut |done, total| {
            bar.at(done, total);
            Ok(())
        })?;
        bar.done();
        fs::rename(&part, &folder).map_err(failed)?;
        Ok(graph)
    }
}

/// A model on this machine.
struct Setting<'a> {
    graph: &'a Path,
    options: &'a Options,
    spec: &'a ModelSpec,
    work: Work,
    bounds: Bounds,
}

impl Setting<'_> {
    /// Seconds that a step takes at least.
    fn least(&self, step: Step) -> f64 {
        self.bounds.least(self.work, step)
    }
}

/// What ours is compared with.
enum Other<'a> {
    Nothing,
    /// Causal families: batched, caches in place.
    Batched(Box<against::Unmodified<'a>>),
    /// Others: one sequence after the other.
    Portable(Box<dyn Backend>),
}

impl<'a> Other<'a> {
    fn open(
        against: Option<Against>,
        setting: &Setting<'a>,
        products: against::Products,
    ) -> Result<Self> {
        let Setting {
            graph,
            options,
            spec,
            ..
        } = *setting;
        if against.is_none() {
            return Ok(Self::Nothing);
        }
        if spec.visibility() == Visibility::PrefixLm {
            let kind = BackendKind::OrtPortable;
            return loading::open_graph(graph, LONGEST, kind, options)
                .map(Self::Portable)
                .map_err(Failure::from);
        }
        let environment = loading::environment(options)?;
        let threads = options.threads.unwrap_or(1);
        against::Unmodified::open(&environment, graph, spec, threads, products)
            .map(|session| Self::Batched(Box::new(session)))
            .map_err(Failure::Measurement)
    }

    fn with(
        &mut self,
        spec: &ModelSpec,
        measure: impl FnOnce(&mut dyn Subject) -> Result<Duration>,
    ) -> Result<Option<Duration>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Batched(session) => measure(session.as_mut()).map(Some),
            Self::Portable(backend) => {
                let mut engine = Engine::new(backend.as_mut(), spec);
                let time = measure(&mut engine)?;
                engine.hold(&[]).map_err(Failure::Measurement)?;
                Ok(Some(time))
            }
        }
    }
}

/// Best time for a prompt.
fn prompt_time(subject: &mut dyn Subject, length: usize) -> Result<Duration> {
    best(&mut || subject.prompt(length))
}

/// Best time for a step of texts of these lengths.
fn step_time(subject: &mut dyn Subject, lengths: &[usize]) -> Result<Duration> {
    subject.hold(lengths).map_err(Failure::Measurement)?;
    best(&mut || subject.step())
}

/// The best of some runs after one that does not count.
fn best(run: &mut dyn FnMut() -> Result<(), String>) -> Result<Duration> {
    run().map_err(Failure::Measurement)?;
    let started = Instant::now();
    let mut best = Duration::MAX;
    for round in 0..MOST {
        if round >= LEAST && started.elapsed() > PATIENCE {
            break;
        }
        let began = Instant::now();
        run().map_err(Failure::Measurement)?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

/// How many times as long the first takes.
fn ratio(theirs: Duration, ours: Duration) -> f64 {
    theirs.as_secs_f64() / ours.as_secs_f64().max(1e-9)
}

/// Reads the files beside `graph` once.
fn warm(graph: &Path) -> Result<()> {
    let data = graph.with_extension("onnx.data");
    let failed = |error| Failure::io(data.display().to_string(), error);
    let mut file = fs::File::open(&data).map_err(failed)?;
    std::io::copy(&mut file, &mut std::io::sink()).map_err(failed)?;
    Ok(())
}

/// Folder for things that can be made again.
fn cache() -> Result<PathBuf> {
    env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map(|folder| folder.join("glmd/bench"))
        .ok_or_else(|| Failure::Usage("name a folder for the model with --models".to_owned()))
}

#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

#[allow(clippy::cast_precision_loss, reason = "sizes stay below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What is being done, on standard error where that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {percent} %") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    fn says(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    fn at(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    fn done(&self) {
        self.0.finish_and_clear();
    }
}
