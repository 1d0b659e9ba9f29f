//! From a model directory to a model that runs.
//!
//! [`open`] reads the directory, looks for a libonnxruntime that works, and
//! takes the first backend that answers the model's own test prompts right:
//! ONNX Runtime with paged caches, tract with paged caches, then ONNX Runtime
//! on the unmodified graph. What did not do, and why, comes along in the
//! [`Report`], for the log, `status` and `doctor`. Whose products the first of
//! them uses is measured ([`verdict`]).

mod choose;
mod directory;
mod matmul;
mod onnxruntime;
mod report;
mod self_test;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use ort::environment::Environment;
use tracing::{info, warn};

pub use directory::Directory;
pub use glm_kernels::KvType;
pub use glm_onnx::paging::Matmul;
pub use matmul::{Options as MatmulOptions, verdict};
pub use report::{Attempt, BackendKind, Report};

use crate::backend::library::{Places, Prober, Search};
use crate::backend::provider::Provider;
use crate::backend::threads::{self, Threads};
use crate::backend::{Backend, Bytes};
use crate::model::{Model, ModelInfo, ModelSource};
use crate::units::Epoch;
use crate::{Error, Result};

/// Memory for keys and values where nothing is said; address space until it is used.
const KV: Bytes = Bytes(512 << 20);

/// What a model takes beside its mapped files: session, tables of the tokenizer, activations of the
/// self-test. An allowance, generous for models of the size that small boxes run.
const BESIDE_FILES: Bytes = Bytes(64 << 20);

/// ONNX Runtime's sums are at most one part in so many of a model's files: of INT4 in blocks of 32, scales are a fifth.
const SUMS: u64 = 5;

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only backend to try; all of them in turn where it is `None`.
    pub backend: Option<BackendKind>,
    /// Execution provider of ONNX Runtime to try before any backend on the CPU.
    pub provider: Option<Provider>,
    /// Where libonnxruntime may be.
    pub places: Places,
    /// Who tries out a library before this process loads it.
    pub prober: Prober,
    /// Threads of a step; chosen by affinity, quota and cores where it is `None`.
    pub threads: Option<usize>,
    /// Memory for keys and values: a limit, taken from the system as it is used.
    pub kv: Bytes,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Whether to hash every file before it is used, rather than only to compare sizes.
    pub verify: bool,
    /// Whose kernel computes quantised products where ONNX Runtime runs the paged graph.
    pub matmul: MatmulOptions,
}

impl Options {
    /// What this process would do; `library` is the libonnxruntime of the configuration.
    ///
    /// `main` must begin with [`answer_probe`](crate::backend::library::answer_probe).
    ///
    /// # Errors
    /// [`Error::Load`] when the system does not tell which program this is.
    pub fn of_process(library: Option<PathBuf>) -> Result<Self> {
        let prober = Prober::this_program().map_err(|error| Error::Load {
            reason: error.to_string(),
        })?;
        Ok(Self {
            backend: None,
            provider: None,
            places: Places::of_process(library),
            prober,
            threads: None,
            kv: KV,
            kv_type: KvType::F16,
            verify: false,
            matmul: MatmulOptions::default(),
        })
    }
}

/// Loads the model in `folder`.
///
/// To be called on the thread that will run steps: on a machine with big and
/// little cores it stays on the big ones from then on, and so do the threads
/// that the backend starts.
///
/// # Errors
/// [`Error::Load`] naming the file that is missing or damaged, or what each backend said.
pub fn open(folder: &Path, options: &Options) -> Result<Model> {
    let started = Instant::now();
    // The probe is another process, so the files are read meanwhile.
    let (directory, search) = thread::scope(|scope| {
        let search = scope.spawn(|| search(options));
        (Directory::read(folder), search.join())
    });
    let directory = directory?;
    let search = search.map_err(|_| Error::Load {
        reason: "the search for libonnxruntime panicked".to_owned(),
    })?;
    if options.verify {
        directory.verify(&mut |_, _| {})?;
    }
    let threads = threads::decide(&threads::read(Path::new("/")), options.threads);
    stay_on(&threads);
    let (backend, mut report) = choose::choose(&directory, options, &threads, &search)?;
    report.elapsed = started.elapsed();
    report.quantisation =
        (directory.manifest.as_ref()).map(|manifest| manifest.quantisation.layers.to_string());
    tell(&directory, &report);
    let capabilities = backend.capabilities().clone();
    Ok(Model {
        info: ModelInfo {
            id: directory.id,
            digest: directory.digest,
            epoch: Epoch(0),
            spec: directory.spec,
            special: directory.special,
            tokenizer: directory.tokenizer,
            chat_template: directory.chat_template,
            tasks: directory
                .manifest
                .map(|manifest| manifest.tasks)
                .unwrap_or_default(),
            report,
            capabilities,
        },
        backend,
    })
}

/// Loads a bare graph, which has `context` positions, in one backend and without self-test.
///
/// For benchmarks, which make their models themselves; everyone else wants [`open`].
///
/// # Errors
/// [`Error::Load`] with what the backend said.
pub fn open_graph(
    graph: &Path,
    context: usize,
    backend: BackendKind,
    options: &Options,
) -> Result<Box<dyn Backend>> {
    let options = &Options {
        backend: Some(backend),
        ..options.clone()
    };
    let search = search(options);
    let threads = threads::decide(&threads::read(Path::new("/")), options.threads);
    stay_on(&threads);
    choose::only(graph, context, backend, options, &threads, &search)
}

/// Threads that a step gets here where nobody says how many.
#[must_use]
pub fn threads_here() -> usize {
    threads::decide(&threads::read(Path::new("/")), None).count
}

/// Looks for a libonnxruntime that works; the answer is kept for the next time.
#[must_use]
pub fn find_library(options: &Options) -> Search {
    search(options)
}

/// The ONNX Runtime of this process, loaded if it is not.
///
/// # Errors
/// [`Error::Load`] when no library works, or another one is loaded already.
pub fn environment(options: &Options) -> Result<Environment> {
    let search = search(options);
    let failed = |reason| Error::Load { reason };
    let library = choose::library_of(&search).map_err(failed)?;
    onnxruntime::environment(library).map_err(failed)
}

/// Execution providers of the library that works, with the devices that they find here.
///
/// # Errors
/// As [`environment`].
pub fn providers(options: &Options) -> Result<Vec<String>> {
    Ok(onnxruntime::providers(&environment(options)?))
}

/// Loads one directory again and again.
#[derive(Clone, Debug)]
pub struct Loader {
    /// The directory.
    pub folder: PathBuf,
    /// How.
    pub options: Options,
}

impl ModelSource for Loader {
    fn load(&mut self) -> Result<Model> {
        open(&self.folder, &self.options)
    }

    fn size(&self) -> Option<Bytes> {
        let files = std::fs::read_dir(&self.folder).ok()?;
        let bytes = files
            .filter_map(|file| file.ok()?.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|file| file.len())
            .fold(0, u64::saturating_add);
        // Packed weights take the place of mapped ones, with sums beside the scales. Where times decide, that is
        // looked at when they have.
        let packed = match self.options.matmul.only {
            Some(Matmul::OnnxRuntime) => Bytes(bytes / SUMS),
            _ => Bytes(0),
        };
        Some(Bytes(bytes).plus(packed).plus(BESIDE_FILES))
    }

    fn check(&mut self) -> Result<()> {
        let directory = Directory::read(&self.folder)?;
        if directory.manifest.is_some() {
            directory.verify(&mut |_, _| {})?;
        }
        choose::check_graph(&directory)
    }
}

fn search(options: &Options) -> Search {
    if options.backend == Some(BackendKind::TractPaged) && options.provider.is_none() {
        return Search {
            library: None,
            tried: Vec::new(),
        };
    }
    onnxruntime::search(&options.prober, options.places.candidates())
}

/// Keeps this thread, and those it starts from now on, on the chosen processors.
fn stay_on(threads: &Threads) {
    if threads.cpus.is_empty() {
        return;
    }
    let mut set = rustix::thread::CpuSet::new();
    for cpu in &threads.cpus {
        set.set(*cpu);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        warn!(%error, cpus = ?threads.cpus, "cannot stay on the big cores");
    }
}

/// One line for whoever runs the machine, and one more if it is not the best backend.
fn tell(directory: &Directory, report: &Report) {
    let backend = report.backend.map_or("none", BackendKind::name);
    info!(
        model = %directory.id,
        backend,
        provider = report.placement.as_ref().map(tracing::field::display),
        threads = report.threads,
        kernels = report.kernels,
        matmul = report.matmul.as_ref().map(tracing::field::display),
        elapsed_ms = report.elapsed.as_millis(),
        "model loaded"
    );
    if let Some(reason) = report.backend_reason() {
        warn!(backend, %reason, "not the fastest backend");
    }
}
