//! Model directories as sources: the weights of an export, read back.
//!
//! What comes back are the numbers that the graph computes with: floats as they
//! lie there, integers times their scales. The model that they make is the
//! exported one, so what had been rounded away stays away.
//!
//! The manifest and the configuration say which graph the exporter writes for
//! the model; its constants are looked up by name in the graph of the directory
//! (`bind`), which says where their bytes are. Only graphs for processors are
//! read: those for NPUs have the same weights, rounded once more.

mod bind;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use glm::ModelSpec;
use glm::manifest::{self, Kept, Manifest, Number};
use prost::Message as _;

use crate::checkpoint::first_unusable;
use crate::graph::{self, Block, Matrix, Options, Precision, Quantisation, Scheme, Table, Vector};
use crate::model_dir::{self, DATA, GRAPH, STEP_GRAPH};
use crate::proto::{GraphProto, ModelProto};
use crate::source::read_small;
use crate::stored::StoredWeights;
use crate::weights::{Weights, head_is_embedding};
use crate::{Error, Result};

/// Longest graph file that is read. That of a model of 40 layers has half a MiB.
const MAX_GRAPH: u64 = 8 << 20;
/// Longest block: rows of any model are shorter.
const MAX_BLOCK: usize = 1 << 24;

/// The weights of a model directory.
#[derive(Debug)]
pub struct Exported {
    weights: StoredWeights,
    /// File of the weights.
    data: PathBuf,
    /// Whether the head reads the constant of the embedding table.
    shares_table: bool,
}

/// Reads the manifest of a model directory and checks every file that it names.
///
/// # Errors
/// As [`model_dir::read_manifest`] and [`model_dir::verify`]; [`Error::Malformed`]
/// for a directory that was exported for NPUs, or whose manifest names no weights.
pub fn verified(folder: &Path, tell: model_dir::Tell<'_>) -> Result<Manifest> {
    let manifest = model_dir::read_manifest(folder)?;
    if manifest.files.contains_key(STEP_GRAPH) {
        return Err(Error::malformed(
            folder.join(STEP_GRAPH),
            "is of a model that was exported for NPUs; export its checkpoint, or what was exported \
             of it for processors",
        ));
    }
    for name in [GRAPH, DATA] {
        if !manifest.files.contains_key(name) {
            let path = folder.join(manifest::FILE);
            let reason = format!("names no {name}, so no weights can be read");
            return Err(Error::malformed(path, reason));
        }
    }
    model_dir::verify(folder, &manifest, tell)?;
    Ok(manifest)
}

impl Exported {
    /// Opens the weights of the model directory `folder`. Only the graph is read.
    ///
    /// `manifest` says how weights are kept, `spec` what the model is; both come
    /// from the directory.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a graph that is none, [`Error::MissingTensor`] for
    /// one without a tensor of the model, [`Error::Tensor`] for a tensor of
    /// another type or shape, one whose bytes are not all there, and one that the
    /// model does not have; [`Error::Io`].
    pub fn open(folder: &Path, manifest: &Manifest, spec: &ModelSpec) -> Result<Self> {
        let path = folder.join(GRAPH);
        let graph = read_graph(&path)?;
        // A layer has a dozen constants: nothing is planned for layers that are not there.
        if spec.layers > graph.initializer.len() {
            let (layers, constants) = (spec.layers, graph.initializer.len());
            let reason = format!("has {constants} constants for {layers} layers");
            return Err(Error::malformed(path, reason));
        }
        let own_head = (graph.initializer.iter()).any(|tensor| tensor.name == "head.weight");
        let options = options(&folder.join(manifest::FILE), manifest, spec, own_head)?;
        let data = folder.join(DATA);
        let length = fs::metadata(&data).map_err(|e| Error::io(&data, e))?.len();
        let shares_table = options.tied_head;
        let mut plan = graph::build(spec, &options);
        bind::bind(&path, &mut plan, graph.initializer, length)?;
        let weights = StoredWeights::open(plan, folder)?;
        Ok(Self {
            weights,
            data,
            shares_table,
        })
    }

    /// Whether the output head is the embedding table: one constant is both, or
    /// both are equal value for value. A head that was rounded in another way
    /// than the table is another one.
    ///
    /// # Errors
    /// [`Error::Tensor`] and [`Error::Io`].
    pub fn head_is_embedding(&self) -> Result<bool> {
        Ok(self.shares_table || head_is_embedding(self)?)
    }

    /// Refuses numbers that no weight can be. They are of the constant `name`, from row `first` on.
    fn usable(
        &self,
        name: impl FnOnce() -> String,
        columns: usize,
        first: usize,
        values: &[f32],
    ) -> Result<()> {
        let Some(at) = first_unusable(values) else {
            return Ok(());
        };
        let (row, column) = (first + at / columns.max(1), at % columns.max(1));
        let reason = format!("holds {} at [{row}, {column}]", values[at]);
        Err(Error::tensor(&self.data, name(), reason))
    }
}

impl Weights for Exported {
    fn shape(&self, matrix: Matrix) -> (usize, usize) {
        self.weights.shape(matrix)
    }

    fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (outputs, inputs) = self.weights.shape(matrix);
        let rows = rows.start.min(outputs)..rows.end.min(outputs);
        let first = rows.start;
        self.weights.rows(matrix, rows, out)?;
        let name = || self.weights.name_of_matrix(matrix);
        self.usable(name, inputs, first, out)
    }

    fn vector(&self, vector: Vector) -> Result<Vec<f32>> {
        let values = self.weights.vector(vector)?;
        let name = || self.weights.name_of_vector(vector);
        self.usable(name, values.len(), 0, &values)?;
        Ok(values)
    }
}

fn read_graph(path: &Path) -> Result<GraphProto> {
    let bytes = read_small(path, MAX_GRAPH)?.ok_or_else(|| Error::Missing {
        path: path.to_owned(),
        hint: format!("{} names it", manifest::FILE),
    })?;
    let model = ModelProto::decode(bytes.as_slice())
        .map_err(|error| Error::malformed(path, error.to_string()))?;
    model
        .graph
        .ok_or_else(|| Error::malformed(path, "has no graph"))
}

/// What the exporter was asked for, as the manifest `path` tells.
///
/// A quantised head is a constant of its own, whether or not it was made from
/// the embedding table.
fn options(path: &Path, manifest: &Manifest, spec: &ModelSpec, own_head: bool) -> Result<Options> {
    let kept = manifest.quantisation;
    let odd = |part: &str, kept: Kept| {
        let reason = format!("`quantisation.{part}` is {kept}, which no exporter writes");
        Error::malformed(path, reason)
    };
    let precision = |part: &str, kept: Kept| match (kept.number, integers(kept)) {
        (Number::F32, _) => Ok(Precision::Full),
        (_, Some(how)) => Ok(Precision::Quantised(how)),
        (_, None) => Err(odd(part, kept)),
    };
    let head = precision("head", kept.head)?;
    Ok(Options {
        layers: precision("layers", kept.layers)?,
        head,
        embedding: match (kept.embedding.number, integers(kept.embedding)) {
            (Number::F32, _) => Table::Full,
            (Number::F16, _) => Table::Half,
            (_, Some(how)) => Table::Quantised(how),
            (_, None) => return Err(odd("embedding", kept.embedding)),
        },
        tied_head: head == Precision::Full && !own_head,
        max_positions: spec.max_positions,
        fixed: None,
    })
}

/// The integers that the manifest tells of, where it tells of some.
fn integers(kept: Kept) -> Option<Quantisation> {
    let scheme = match kept.number {
        Number::Int8 => Scheme::Int8,
        Number::Int4 => Scheme::Int4,
        Number::Int4Zp => Scheme::Int4ZeroPoint,
        Number::F32 | Number::F16 => return None,
    };
    let block = match kept.block? {
        manifest::Block::Of(length) if length <= MAX_BLOCK => Block::Of(length),
        manifest::Block::Of(_) => return None,
        manifest::Block::Row => Block::Row,
    };
    Some(Quantisation { scheme, block })
}
