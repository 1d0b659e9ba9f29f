//! Weights as they lie in an exported model, back in f32.
//!
//! The exporter takes golden logits from here: not from the checkpoint but from
//! what was made of it, so that they also hold every step of writing it. A model
//! directory that is exported again is read through here as well.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use half::f16;

use crate::graph::{Constant, Matrix, Plan, Quantisation, Source, Vector, offset_of};
use crate::model_dir::DATA;
use crate::proto::{TensorProto, tensor_proto::DataType};
use crate::quantise::Layout;
use crate::weights::Weights;
use crate::{Error, Result};

/// The constants of a plan whose initializers say where their bytes are.
#[derive(Debug)]
pub(crate) struct StoredWeights {
    plan: Plan,
    file: File,
    path: PathBuf,
}

/// A constant and where its bytes are.
struct Found<'a> {
    constant: &'a Constant,
    tensor: &'a TensorProto,
}

impl StoredWeights {
    pub(crate) fn open(plan: Plan, folder: &Path) -> Result<Self> {
        let path = folder.join(DATA);
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { plan, file, path })
    }

    fn find(&self, wanted: impl Fn(&Constant) -> bool) -> Option<Found<'_>> {
        let graph = self.plan.model.graph.as_ref()?;
        let mut all = graph.initializer.iter().zip(&self.plan.constants);
        all.find(|(_, constant)| wanted(constant))
            .map(|(tensor, constant)| Found { constant, tensor })
    }

    /// The constant that holds a matrix, as floats or as integers. A tied table
    /// may be kept in two ways: for look-ups and for the head.
    fn holder(&self, matrix: Matrix) -> Result<Found<'_>> {
        let named = |module: &str| {
            self.find(|constant| {
                let name = constant.name.strip_prefix(module);
                matches!(name, Some(".weight" | ".values"))
            })
        };
        let found = match matrix {
            Matrix::Embedding => named("embedding"),
            Matrix::Head => named("head").or_else(|| named("embedding")),
            _ => self.find(|constant| match &constant.source {
                Source::Matrix(held) | Source::Values(held, _) => *held == matrix,
                _ => false,
            }),
        };
        found.ok_or_else(|| self.missing(&format!("{matrix:?}")))
    }

    /// Name of the constant that holds a matrix.
    pub(crate) fn name_of_matrix(&self, matrix: Matrix) -> String {
        let found = self.holder(matrix);
        found.map_or_else(
            |_| format!("{matrix:?}"),
            |found| found.constant.name.clone(),
        )
    }

    /// Name of the constant that is a vector.
    pub(crate) fn name_of_vector(&self, vector: Vector) -> String {
        let found = self.find(|constant| constant.source == Source::Vector(vector));
        found.map_or_else(
            || format!("{vector:?}"),
            |found| found.constant.name.clone(),
        )
    }

    fn missing(&self, what: &str) -> Error {
        Error::MissingTensor {
            path: self.path.clone(),
            tensor: what.to_owned(),
        }
    }

    /// Some bytes of a constant.
    fn bytes(&self, found: &Found<'_>, at: usize, length: usize) -> Result<Vec<u8>> {
        match offset_of(found.tensor) {
            Some(offset) => {
                let mut bytes = vec![0; length];
                self.file
                    .read_exact_at(&mut bytes, offset + at as u64)
                    .map_err(|e| Error::io(&self.path, e))?;
                Ok(bytes)
            }
            None => found
                .tensor
                .raw_data
                .get(at..at + length)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| self.missing(&found.constant.name)),
        }
    }

    fn integers(
        &self,
        (held, how): (Matrix, Quantisation),
        inputs: usize,
        values: &Found<'_>,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let layout = Layout::new(how, inputs);
        let part = |source: Source, row_bytes: usize| -> Result<Vec<u8>> {
            let found = self
                .find(|constant| constant.source == source)
                .ok_or_else(|| self.missing(&format!("{source:?}")))?;
            self.bytes(&found, rows.start * row_bytes, rows.len() * row_bytes)
        };
        let row_bytes = layout.value_bytes();
        let values = self.bytes(values, rows.start * row_bytes, rows.len() * row_bytes)?;
        let scales = floats(&part(Source::Scales(held, how), layout.blocks * 4)?);
        let zero_bytes = match layout.zero_points {
            true => layout.zero_point_bytes(),
            false => 0,
        };
        let zeros = match zero_bytes {
            0 => Vec::new(),
            bytes => part(Source::ZeroPoints(held, how), bytes)?,
        };
        out.resize(rows.len() * inputs, 0.0);
        for (n, row) in out.chunks_exact_mut(inputs).enumerate() {
            layout.dequantise(
                &values[n * row_bytes..(n + 1) * row_bytes],
                &scales[n * layout.blocks..(n + 1) * layout.blocks],
                &zeros[n * zero_bytes..(n + 1) * zero_bytes],
                row,
            );
        }
        Ok(())
    }

    /// Weights of a row of the quantised constant `values`.
    fn inputs_of(&self, values: &str) -> Option<usize> {
        let graph = self.plan.model.graph.as_ref()?;
        let reads = |input: &String| input == values;
        let reader = graph
            .node
            .iter()
            .find(|node| node.input.iter().any(reads))?;
        let attribute = |name: &str| {
            let found = reader.attribute.iter().find(|a| a.name == name)?;
            usize::try_from(found.i).ok()
        };
        // Rows of a table are whole blocks, so their bytes tell.
        attribute("K").or_else(|| {
            let tensor = graph.initializer.iter().find(|t| t.name == values)?;
            let bytes = usize::try_from(*tensor.dims.get(1)?).ok()?;
            Some(bytes * 8 / attribute("bits")?.max(1))
        })
    }
}

impl Weights for StoredWeights {
    fn shape(&self, matrix: Matrix) -> (usize, usize) {
        let Ok(found) = self.holder(matrix) else {
            return (0, 0);
        };
        let inputs = match found.constant.source {
            // Bytes of whole rows say it themselves.
            Source::Values(_, how) if how.bits() == 8 && found.constant.dims.len() == 2 => {
                found.constant.dims.get(1).copied()
            }
            Source::Values(..) => self.inputs_of(&found.constant.name),
            _ => found.constant.dims.get(1).copied(),
        };
        let outputs = found.constant.dims.first().copied();
        (outputs.unwrap_or_default(), inputs.unwrap_or_default())
    }

    fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let found = self.holder(matrix)?;
        let (_, inputs) = self.shape(matrix);
        if let Source::Values(held, how) = found.constant.source {
            return self.integers((held, how), inputs, &found, rows, out);
        }
        let half = found.constant.dtype == DataType::Float16;
        let row_bytes = inputs * if half { 2 } else { 4 };
        let bytes = self.bytes(&found, rows.start * row_bytes, rows.len() * row_bytes)?;
        if half {
            let halves = bytes.as_chunks::<2>().0.iter();
            out.extend(halves.map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
        } else {
            *out = floats(&bytes);
        }
        Ok(())
    }

    fn vector(&self, vector: Vector) -> Result<Vec<f32>> {
        let found = self
            .find(|constant| constant.source == Source::Vector(vector))
            .ok_or_else(|| self.missing(&format!("{vector:?}")))?;
        let length = usize::try_from(found.constant.bytes()).unwrap_or_default();
        Ok(floats(&self.bytes(&found, 0, length)?))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks::<4>().0.iter();
    chunks.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
