//! A checkpoint folder in, a model directory out.
//!
//! The folder may be a model directory itself, for another form of a model
//! whose checkpoint is not at hand: [`exported`](crate::exported).
//!
//! Everything is written to a staging folder beside the destination, which
//! takes its name when it is whole and on the disk; an error on the way leaves
//! nothing. Weights pass through a few rows at a time, so memory stays far
//! below the size of the model.
//!
//! | file | from |
//! |---|---|
//! | `model.onnx`, `model.onnx.data` | the plan of [`graph`], filled with weights |
//! | `step.onnx` | for NPUs only: the same weights, for single tokens |
//! | `tokenizer.json` | whatever tokenizer files the checkpoint has |
//! | `chat_template.jinja` | the same file, or the template inside `tokenizer_config.json` |
//! | `config.json`, `tokenizer_config.json`, `generation_config.json`, licences | copied |
//! | `genai_config.json` | written for causal families, for ONNX Runtime GenAI |
//! | `glm.json` | [`Manifest`]: hashes of all these, golden logits, tasks |

mod calibrate;
mod companions;
mod golden;
mod options;
mod origin;
mod sink;
mod staging;
mod tokenizer;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use glm::ModelSpec;
use glm::manifest::{self, Manifest, Quantisation};
use glm::spec::{PositionEncoding, Visibility};
use prost::Message as _;

pub use options::{Options, Profile};

use crate::calibration::Ranges;
use crate::graph::{self, Plan};
use crate::model_dir::{self, DATA, GRAPH, STEP_GRAPH};
use crate::source;
use crate::stored::StoredWeights;
use crate::weights::Weights;
use crate::{Error, Result};
use origin::Origin;
use sink::Sink;
use staging::Staging;

/// Part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Files of a model directory that is exported again are checked; counted in bytes.
    Check,
    /// Text runs through the model, for the ranges of its activations; counted in layers.
    Calibration,
    /// Weights are read, quantised and written; counted in weights.
    Weights,
    /// Golden logits are computed; counted in layers.
    Golden,
    /// Files are read back for their hashes; counted in bytes.
    Hashes,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// What is done of it.
    pub done: u64,
    /// All of it.
    pub total: u64,
}

/// Told of progress, from several threads; `Break` ends the export with [`Error::Cancelled`].
pub type Watch<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// What was exported.
#[derive(Clone, Debug)]
pub struct Report {
    /// The manifest of the new directory.
    pub manifest: Manifest,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Exports the checkpoint, or the model directory, in `source` to the new directory `out`.
///
/// # Errors
/// [`Error::Option`] for options that do not fit the model, and when `out` is
/// there already; [`Error::Model`] when configuration, tokenizer or tasks
/// cannot be used; whatever [`Checkpoint`](crate::checkpoint::Checkpoint),
/// [`FamilyWeights`](crate::checkpoint::FamilyWeights) and
/// [`Exported`](crate::exported::Exported) say of the weights, and
/// [`exported::verified`](crate::exported::verified) of the files;
/// [`Error::Io`]; [`Error::Cancelled`].
pub fn export(source: &Path, out: &Path, options: &Options, watch: Watch<'_>) -> Result<Report> {
    staging::check_destination(out, options.force)?;
    let origin = Origin::open(source, options, watch)?;
    let (config, tokenizer) = (&origin.config, &origin.tokenizer);
    let readable = origin.weights()?;
    let weights = readable.as_weights();
    let mut spec = config.spec.clone();
    spec.special = tokenizer.tokenizer.specials(&spec)?;
    tokenizer.tokenizer.check_vocab(spec.vocab_rows)?;
    let tasks = origin.tasks(source, &spec)?;
    let tied = readable.tied()?;
    let warnings = warnings(&config.spec, tied, origin.kept(), &readable.unused());
    let plan = options.plan(&spec, tied)?;
    let ranges = match options.calibration() {
        Some(text) => {
            let (tokenizer, threads) = (&tokenizer.tokenizer, options.threads);
            calibrate::ranges(&spec, tokenizer, weights, text, threads, watch)?
        }
        None => Ranges::default(),
    };

    let staging = Staging::new(out)?;
    let folder = staging.path();
    let plan = write_graph(folder, plan, (weights, &ranges), options.threads, watch)?;
    if let Some(step) = options.step_plan(&spec, tied) {
        write_step_graph(folder, step, &plan)?;
    }
    companions::write(folder, source, config, &spec, tokenizer, options.profile)?;
    let stored = StoredWeights::open(plan, folder)?;
    let golden = golden::compute(&spec, &stored, options, watch)?;
    let files = model_dir::records(folder, &mut |done, total| {
        tell(watch, Stage::Hashes, done, total)
    })?;
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: options.name.clone().unwrap_or_else(|| source::name_of(out)),
        license: origin.license.clone(),
        source: origin.record(),
        context: options.context(&spec),
        text_rules: tokenizer.tokenizer.rules(),
        quantisation: options.record(tied),
        files,
        golden,
        tasks,
        spec,
    };
    model_dir::write_manifest(folder, &manifest)?;
    staging.commit(options.force)?;
    Ok(Report { manifest, warnings })
}

/// Writes the data file, and the graph file when its small constants are known.
fn write_graph(
    folder: &Path,
    mut plan: Plan,
    numbers: (&dyn Weights, &Ranges),
    threads: usize,
    watch: Watch<'_>,
) -> Result<Plan> {
    let length = graph::place(&mut plan, DATA);
    let sink = Sink::create(&folder.join(DATA), length, &plan)?;
    let done = AtomicU64::new(0);
    let total = sink::weights_of(&plan);
    let tell = |weights: u64| {
        let done = done.fetch_add(weights, Ordering::Relaxed) + weights;
        tell(watch, Stage::Weights, done, total)
    };
    sink.fill(&plan, (numbers.0, numbers.1), threads, &tell)?;
    sink.finish(&mut plan);
    let path = folder.join(GRAPH);
    fs::write(&path, plan.model.encode_to_vec()).map_err(|e| Error::io(&path, e))?;
    Ok(plan)
}

/// Writes the graph for single tokens, whose constants are those of the first one.
fn write_step_graph(folder: &Path, mut step: Plan, first: &Plan) -> Result<()> {
    let written = |name: &str| {
        let graph = first.model.graph.as_ref()?;
        graph.initializer.iter().find(|tensor| tensor.name == name)
    };
    let tensors = step.model.graph.iter_mut();
    for tensor in tensors.flat_map(|graph| &mut graph.initializer) {
        // Shapes differ, and come with the plan.
        if let (true, Some(written)) = (tensor.raw_data.is_empty(), written(&tensor.name)) {
            tensor.clone_from(written);
        }
    }
    let path = folder.join(STEP_GRAPH);
    fs::write(&path, step.model.encode_to_vec()).map_err(|e| Error::io(&path, e))
}

fn tell(watch: Watch<'_>, stage: Stage, done: u64, total: u64) -> Result<()> {
    match watch(Progress { stage, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// ONNX Runtime's `GroupQueryAttention` turns this many elements at once, and refuses what is no multiple of it.
const GROUPED_LANES: usize = 16;

/// The size for which ONNX Runtime cannot run the attention of a causal model unmodified.
fn foreign_to_runtimes(spec: &ModelSpec) -> Option<String> {
    let PositionEncoding::Rotary(rotary) = spec.positions else {
        return None;
    };
    if spec.visibility() == Visibility::PrefixLm {
        return None;
    }
    [
        ("the size of a head", spec.head_dim),
        ("the part of a head that rotates", rotary.dims),
    ]
    .into_iter()
    .find(|(_, size)| size % GROUPED_LANES != 0)
    .map(|(what, size)| format!("{what}, {size},"))
}

fn warnings(
    spec: &ModelSpec,
    tied: bool,
    kept: Option<Quantisation>,
    unused: &[&str],
) -> Vec<String> {
    let mut warnings = Vec::new();
    match kept {
        Some(kept) if !kept.is_exact() => warnings.push(format!(
            "the weights are those of an exported model, as it had rounded them ({kept}); its \
             checkpoint would lose less"
        )),
        _ => {}
    }
    match (spec.tied_head && !tied, kept) {
        (false, _) => {}
        (true, Some(_)) => warnings.push(
            "the head of the model had been rounded in another way than its embedding table, and \
             is a table of its own from now on"
                .to_owned(),
        ),
        (true, None) => warnings.push(
            "config.json says that the head is the embedding table, but the checkpoint has \
             another head; that one is exported"
                .to_owned(),
        ),
    }
    if let Some(what) = foreign_to_runtimes(spec) {
        warnings.push(format!(
            "{what} is not a multiple of {GROUPED_LANES}: ONNX Runtime's own attention refuses such \
             a model, and `model.onnx` will only run with this project's"
        ));
    }
    if let [first, ..] = unused {
        warnings.push(format!(
            "{} tensors of the checkpoint are not used, `{first}` among them",
            unused.len()
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causal(head_dim: usize, partial: f64) -> ModelSpec {
        let config = json!({
            "model_type": "glm", "num_hidden_layers": 1, "hidden_size": 64,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim,
            "intermediate_size": 64, "vocab_size": 320, "max_position_embeddings": 128,
            "hidden_act": "silu", "attention_bias": partial < 1.0, "partial_rotary_factor": partial,
            "pad_token_id": 304, "eos_token_id": [304],
        });
        ModelSpec::from_config(&config, &glm::spec::Hints::default()).unwrap()
    }

    #[test]
    fn heads_that_the_runtime_refuses_are_told() {
        assert_eq!(foreign_to_runtimes(&causal(32, 1.0)), None);
        assert_eq!(foreign_to_runtimes(&causal(32, 0.5)), None);
        let head = foreign_to_runtimes(&causal(24, 1.0)).unwrap();
        assert!(head.contains("size of a head, 24"), "{head}");
        let part = foreign_to_runtimes(&causal(48, 0.5)).unwrap();
        assert!(part.contains("rotates, 24"), "{part}");
        assert!(!warnings(&causal(24, 1.0), true, None, &[]).is_empty());
    }
}
