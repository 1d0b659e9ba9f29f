//! Whose kernel computes a model's quantised products: ours, or ONNX Runtime's, where those are clearly faster.
//!
//! Ours read the weights where they lie in the mapped file. ONNX Runtime packs them into memory of its own, and its
//! kernels (MLAS, `KleidiAI` on ARM) may be faster on processors that nobody has timed. So they are timed, on the
//! model's own shapes, for at most 300 ms, once for each model, library and processor.
//!
//! | module | what it does |
//! |---|---|
//! | [`verdict`] | decides, and says why: pure functions |
//! | `warm_up` | times both |
//! | `cache` | keeps the times for the next start |

mod cache;
pub mod verdict;
mod warm_up;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm_kernels::Kernels;
use glm_onnx::paging::{Constant, Matmul, Paged, Quantised};
use glm_onnx::proto::ModelProto;
use ort::environment::Environment;

use crate::backend::paged::{Limits, Operators};
use crate::backend::{Bytes, ort_paged};
use crate::events;
use crate::memory;
use crate::memory::headroom::{Weights, headroom};
use crate::memory::telemetry::{Detail, Machine, Telemetry as _};

use cache::Key;
use verdict::{Facts, Measurement, Verdict};

/// Smaller models answer in milliseconds whoever computes their products, and fit the caches of many processors,
/// so that a few runs tell nothing.
const LEAST: Bytes = Bytes::mib(32);

/// How the kernel of quantised products is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The only one to use; measured where it is `None`.
    pub only: Option<Matmul>,
    /// Folder that keeps times for the next start; without one they are taken at every load.
    pub cache: Option<PathBuf>,
    /// Memory that is left alone, as in the governor's settings; computed from the size of the machine when `None`.
    pub floor: Option<Bytes>,
    /// Models with fewer weights to pack keep ours unmeasured.
    pub least: Bytes,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: None,
            cache: None,
            floor: None,
            least: LEAST,
        }
    }
}

/// A model, and what runs it.
pub(super) struct Subject<'a> {
    pub(super) env: &'a Environment,
    /// What libonnxruntime says of its build.
    pub(super) library: &'a str,
    /// Hash of the model.
    pub(super) digest: &'a str,
    /// Where its files lie.
    pub(super) folder: &'a Path,
    /// Its graph with our products.
    pub(super) paged: &'a Paged,
    pub(super) limits: Limits,
    pub(super) threads: usize,
}

/// The verdict, as far as it needs no timing: forced, pointless, without room, or with times of an earlier start.
pub(super) fn known(options: &Options, subject: &Subject<'_>) -> Option<Verdict> {
    let constants = &subject.paged.constants;
    let facts = Facts {
        only: options.only,
        packed: ort_paged::packed(quantised(constants)),
        least: options.least,
        headroom: room(constants, options.floor),
    };
    verdict::known(&facts).or_else(|| {
        let folder = options.cache.as_deref()?;
        let found = cache::find(folder, &key(subject))?;
        Some(verdict::measured(Ok(found)))
    })
}

/// The verdict that times lead to. They are kept.
pub(super) fn measured(options: &Options, subject: &Subject<'_>) -> Verdict {
    let outcome = time(subject);
    // What was packed for it goes back at once.
    memory::trim();
    if let (Ok(times), Some(folder)) = (&outcome, &options.cache)
        && let Err(error) = cache::keep(folder, &key(subject), times)
    {
        events::times_not_kept(folder, &error);
    }
    verdict::measured(outcome)
}

fn time(subject: &Subject<'_>) -> Result<Measurement, String> {
    let pieces = warm_up::pieces(&subject.paged.constants);
    let alone = Paged {
        model: ModelProto::default(),
        constants: warm_up::constants(&pieces),
        kept: Vec::new(),
        description: subject.paged.description.clone(),
    };
    let operators = Operators::new(subject.folder, &alone, subject.limits)?;
    warm_up::run(warm_up::Subject {
        env: subject.env.clone(),
        folder: subject.folder.to_owned(),
        operators: Arc::new(operators),
        pieces,
        threads: subject.threads,
    })
}

fn quantised(constants: &[Constant]) -> impl Iterator<Item = &Quantised> {
    constants.iter().filter_map(|constant| match constant {
        Constant::Quantised(weights) => Some(&**weights),
        _ => None,
    })
}

/// Memory above the floor while the weights are mapped, by the governor's formula.
fn room(constants: &[Constant], floor: Option<Bytes>) -> Option<Bytes> {
    let mapped = quantised(constants).map(Quantised::bytes).sum();
    let weights = Weights {
        mapped: Bytes(mapped),
        missing: Bytes(0),
    };
    let snapshot = Machine::default().snapshot(Detail::Quick);
    headroom(&snapshot, weights, floor).map(|left| left.margin.bytes())
}

fn key(subject: &Subject<'_>) -> Key {
    let isa = Kernels::from_env().map_or("none", |kernels| kernels.isa().name());
    // Where it cannot be read, processors are told apart by their instruction sets alone.
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Key {
        glmd: env!("CARGO_PKG_VERSION").to_owned(),
        model: subject.digest.to_owned(),
        onnxruntime: subject.library.to_owned(),
        cpu: cache::cpu(&cpuinfo, isa),
        threads: subject.threads,
    }
}
