//! The weights of a model by what they mean, whatever its family calls and fuses.

use std::collections::HashSet;
use std::ops::Range;

use glm::ModelSpec;
use glm::spec::{Norm, PositionEncoding, Residual, TensorLayout};

use super::Checkpoint;
use super::names::{Modules, Names};
use crate::graph::{Matrix, NormId, Vector};
use crate::weights::head_is_embedding;
use crate::{Error, Result};

/// The weights of one model, in the rows and order that the graph wants.
///
/// Fused projections of every layout come out as all queries, all keys, all
/// values, and a gated MLP with the gate first. Interleaved rotary embeddings
/// keep the order of the checkpoint. Under two position numbers a query or key
/// head of the checkpoint is `[a1, a2, b1, b2]`, where `a` turns by the first
/// number, `b` by the second, and 1 and 2 are the halves that turn together;
/// it comes out as `[a1, b1, a2, b2]`, in weights and biases, so that one
/// rotation of a whole head turns both.
#[derive(Debug)]
pub struct FamilyWeights<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    names: Names,
}

/// Rows of one tensor that stand together in a matrix of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    module: usize,
    first: usize,
    count: usize,
}

impl<'a> FamilyWeights<'a> {
    /// Checks that the checkpoint has every tensor that the model needs, of
    /// the right shape and of a type that can be read. No weight is read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] and [`Error::Tensor`], naming the tensor.
    pub fn new(checkpoint: &'a Checkpoint, spec: &'a ModelSpec) -> Result<Self> {
        let names = Names::find(checkpoint, spec.tensors)?;
        let weights = Self {
            checkpoint,
            spec,
            names,
        };
        for matrix in weights.matrices() {
            weights.check_matrix(matrix)?;
        }
        for norm in weights.norms() {
            let module = weights.names.norm(norm);
            weights.check(&format!("{module}.weight"), &[spec.hidden])?;
            if matches!(spec.norm, Norm::LayerNorm { .. }) {
                weights.check(&format!("{module}.bias"), &[spec.hidden])?;
            } else {
                weights.refuse_bias(&module)?;
            }
        }
        weights.check_layers()?;
        Ok(weights)
    }

    /// Outputs and inputs of a matrix.
    #[must_use]
    pub fn shape(&self, matrix: Matrix) -> (usize, usize) {
        let spec = self.spec;
        match matrix {
            Matrix::Embedding | Matrix::Head => (spec.vocab_rows, spec.hidden),
            Matrix::Positions | Matrix::BlockPositions => {
                let rows = match spec.positions {
                    PositionEncoding::Learned { rows } => rows,
                    PositionEncoding::Rotary(_) => 0,
                };
                (rows, spec.hidden)
            }
            Matrix::Qkv(_) => (spec.qkv_rows(), spec.hidden),
            Matrix::AttentionOutput(_) => (spec.hidden, spec.heads * spec.head_dim),
            Matrix::MlpIn(_) => {
                let branches = if spec.activation.is_gated() { 2 } else { 1 };
                (branches * spec.ffn, spec.hidden)
            }
            Matrix::MlpOut(_) => (spec.hidden, spec.ffn),
        }
    }

    /// Rows of a matrix as f32, `[rows.len(), inputs]`; `out` is cleared first.
    ///
    /// A head that the checkpoint does not store is the embedding table.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a value that is not finite, naming its place;
    /// [`Error::MissingTensor`] for a matrix that the model does not have; [`Error::Io`].
    pub fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let (outputs, inputs) = self.shape(matrix);
        let wanted = rows.start.min(outputs)..rows.end.min(outputs);
        out.reserve(wanted.len() * inputs);
        let modules = self.modules(matrix);
        self.each_run(matrix, wanted, |module, part| {
            let name = format!("{}.weight", modules[module]);
            self.checkpoint.read(&name, part, out)
        })
    }

    /// A vector as f32.
    ///
    /// # Errors
    /// As [`FamilyWeights::rows`].
    pub fn vector(&self, vector: Vector) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        let matrix = match vector {
            Vector::NormWeight(norm) => {
                let name = format!("{}.weight", self.names.norm(norm));
                self.checkpoint.read(&name, 0..1, &mut out)?;
                return Ok(out);
            }
            Vector::NormBias(norm) => {
                let name = format!("{}.bias", self.names.norm(norm));
                self.checkpoint.read(&name, 0..1, &mut out)?;
                return Ok(out);
            }
            Vector::Bias(matrix) => matrix,
        };
        let modules = self.modules(matrix);
        let parts = modules
            .iter()
            .map(|module| {
                let mut part = Vec::new();
                let name = format!("{module}.bias");
                self.checkpoint.read(&name, 0..1, &mut part)?;
                Ok(part)
            })
            .collect::<Result<Vec<_>>>()?;
        let (outputs, _) = self.shape(matrix);
        self.each_run(matrix, 0..outputs, |module, part| {
            out.extend_from_slice(&parts[module][part]);
            Ok(())
        })?;
        Ok(out)
    }

    /// Whether the output head is the embedding table: there is none in the
    /// checkpoint, or it is equal value for value. Compare with
    /// [`ModelSpec::tied_head`], which the checkpoint overrules.
    ///
    /// # Errors
    /// As [`FamilyWeights::rows`].
    pub fn head_is_embedding(&self) -> Result<bool> {
        if self.stored_head().is_none() {
            return Ok(true);
        }
        head_is_embedding(self)
    }

    /// Tensors that the model does not need, tables of rotary frequencies
    /// apart, which every reader computes itself.
    #[must_use]
    pub fn unused(&self) -> Vec<&'a str> {
        let mut needed = HashSet::new();
        for matrix in self.matrices() {
            for module in self.modules(matrix) {
                needed.insert(format!("{module}.weight"));
                needed.insert(format!("{module}.bias"));
            }
        }
        for norm in self.norms() {
            let module = self.names.norm(norm);
            needed.insert(format!("{module}.weight"));
            needed.insert(format!("{module}.bias"));
        }
        self.checkpoint
            .tensors()
            .map(|(name, _)| name)
            .filter(|name| !needed.contains(*name) && !name.ends_with("inv_freq"))
            .collect()
    }

    // === Checks ===

    /// Every matrix that the model has.
    fn matrices(&self) -> impl Iterator<Item = Matrix> {
        let learned = matches!(self.spec.positions, PositionEncoding::Learned { .. });
        let tables = [Matrix::Positions, Matrix::BlockPositions];
        [Matrix::Embedding, Matrix::Head]
            .into_iter()
            .chain(tables.into_iter().filter(move |_| learned))
            .chain((0..self.spec.layers).flat_map(|n| {
                [
                    Matrix::Qkv(n),
                    Matrix::AttentionOutput(n),
                    Matrix::MlpIn(n),
                    Matrix::MlpOut(n),
                ]
            }))
    }

    fn norms(&self) -> impl Iterator<Item = NormId> {
        let sandwich = self.spec.residual == Residual::Sandwich;
        (0..self.spec.layers)
            .flat_map(|n| {
                [
                    NormId::Attention(n),
                    NormId::Mlp(n),
                    NormId::AfterAttention(n),
                    NormId::AfterMlp(n),
                ]
            })
            .filter(move |norm| {
                sandwich || !matches!(norm, NormId::AfterAttention(_) | NormId::AfterMlp(_))
            })
            .chain([NormId::Final])
    }

    fn check_matrix(&self, matrix: Matrix) -> Result<()> {
        let spec = self.spec;
        let (outputs, inputs) = self.shape(matrix);
        let modules = self.modules(matrix);
        let parts = match (matrix, modules.len()) {
            (Matrix::Qkv(_), 3) => {
                let kv = spec.kv_heads * spec.head_dim;
                vec![spec.heads * spec.head_dim, kv, kv]
            }
            (_, count) => vec![outputs / count; count],
        };
        let bias = match matrix {
            Matrix::Qkv(_) => spec.biases.qkv,
            Matrix::AttentionOutput(_) | Matrix::MlpIn(_) | Matrix::MlpOut(_) => spec.biases.linear,
            _ => false,
        };
        for (module, rows) in modules.iter().zip(parts) {
            self.check(&format!("{module}.weight"), &[rows, inputs])?;
            if bias {
                self.check(&format!("{module}.bias"), &[rows])?;
            } else {
                self.refuse_bias(module)?;
            }
        }
        Ok(())
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let Some(tensor) = self.checkpoint.get(name) else {
            return Err(Error::MissingTensor {
                path: self.checkpoint.folder().to_owned(),
                tensor: name.to_owned(),
            });
        };
        let fault = |reason| Error::tensor(self.checkpoint.path_of(name), name, reason);
        if tensor.shape != shape {
            return Err(fault(format!(
                "has the shape {:?}, the configuration asks for {shape:?}",
                tensor.shape
            )));
        }
        tensor.view().map_err(fault).map(drop)
    }

    /// A bias that is there and would not be added would make another model.
    fn refuse_bias(&self, module: &str) -> Result<()> {
        let name = format!("{module}.bias");
        if self.checkpoint.get(&name).is_none() {
            return Ok(());
        }
        let path = self.checkpoint.path_of(&name);
        let reason = "the configuration describes a model without this bias";
        Err(Error::tensor(path, &name, reason))
    }

    /// A layer behind the last would be left out in silence.
    fn check_layers(&self) -> Result<()> {
        let layers = self.names.layers();
        let behind = self.checkpoint.tensors().find(|(name, _)| {
            let number = name
                .strip_prefix(&layers)
                .and_then(|rest| rest.split('.').next())
                .and_then(|number| number.parse::<usize>().ok());
            number.is_some_and(|number| number >= self.spec.layers)
        });
        match behind {
            None => Ok(()),
            Some((name, _)) => Err(Error::tensor(
                self.checkpoint.path_of(name),
                name,
                format!(
                    "the configuration has {} layers, counted from 0",
                    self.spec.layers
                ),
            )),
        }
    }

    // === Where rows lie ===

    fn stored_head(&self) -> Option<String> {
        let mut heads = self.names.heads().into_iter();
        heads.find(|name| self.checkpoint.get(&format!("{name}.weight")).is_some())
    }

    /// Modules whose rows, in the order of [`runs`], are those of a matrix.
    fn modules(&self, matrix: Matrix) -> Vec<String> {
        if matrix == Matrix::Head && self.stored_head().is_none() && self.may_share() {
            return self.modules(Matrix::Embedding);
        }
        match self.names.matrix(matrix) {
            Modules::Joined(modules) => modules,
            Modules::AnyOf(mut names) => {
                let is_there =
                    |name: &String| self.checkpoint.get(&format!("{name}.weight")).is_some();
                let found = names.iter().position(is_there).unwrap_or_default();
                vec![names.swap_remove(found)]
            }
        }
    }

    /// Whether a head that is not stored may be the embedding table.
    fn may_share(&self) -> bool {
        self.spec.tied_head || self.spec.tensors == TensorLayout::Glm
    }

    /// Calls `each` with the module and rows of it for every run of `rows`, in order.
    fn each_run(
        &self,
        matrix: Matrix,
        rows: Range<usize>,
        mut each: impl FnMut(usize, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        for run in self.runs(matrix) {
            let end = start + run.count;
            let (from, to) = (rows.start.max(start), rows.end.min(end));
            if from < to {
                let first = run.first + (from - start);
                each(run.module, first..first + (to - from))?;
            }
            start = end;
        }
        Ok(())
    }

    /// Where the rows of a matrix lie, in the order of the graph.
    fn runs(&self, matrix: Matrix) -> Vec<Run> {
        let spec = self.spec;
        let (outputs, _) = self.shape(matrix);
        let run = |module, first, count| Run {
            module,
            first,
            count,
        };
        match (matrix, spec.tensors) {
            (Matrix::Qkv(_), TensorLayout::Transformers) => {
                let kv = spec.kv_heads * spec.head_dim;
                let q = spec.heads * spec.head_dim;
                vec![run(0, 0, q), run(1, 0, kv), run(2, 0, kv)]
            }
            (Matrix::Qkv(_), TensorLayout::ChatGlm) => per_head(spec),
            _ => {
                let modules = self.modules(matrix).len();
                let rows = outputs / modules;
                (0..modules).map(|module| run(module, 0, rows)).collect()
            }
        }
    }
}

/// Rows of `[q | k | v]` of one head after the other, as all queries, all keys,
/// all values; queries and keys turned as [`FamilyWeights`] says.
fn per_head(spec: &ModelSpec) -> Vec<Run> {
    let d = spec.head_dim;
    let turning = match spec.positions {
        PositionEncoding::Rotary(rotary) if rotary.two_dimensional => rotary.dims,
        _ => 0,
    };
    let half = turning / 2;
    // Offset and length within a head, in the order that comes out.
    let turned = [
        (0, half),
        (turning, half),
        (half, half),
        (turning + half, half),
        (2 * turning, d - 2 * turning),
    ];
    let kept = [(0, d)];
    let parts: [&[(usize, usize)]; 3] = [&turned, &turned, &kept];
    let mut runs = Vec::new();
    for (part, pieces) in parts.into_iter().enumerate() {
        for head in 0..spec.heads {
            let start = (3 * head + part) * d;
            let all = pieces.iter().filter(|(_, count)| *count > 0);
            runs.extend(all.map(|(offset, count)| Run {
                module: 0,
                first: start + offset,
                count: *count,
            }));
        }
    }
    runs
}
