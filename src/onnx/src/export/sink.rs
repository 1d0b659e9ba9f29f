//! Constants of a plan on their way into files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::f16;

use crate::calibration::{Range, Ranges};
use crate::graph::{
    Activation, Constant, Matrix, Plan, Quantisation, Rotation, Source, offset_of, rotation_rows,
};
use crate::proto::tensor_proto::DataType;
use crate::quantise::{Layout, quantise_matrix, rows_of_a_piece};
use crate::weights::Weights;
use crate::{Error, Result, parallel};

/// Called with a number of weights that were written.
pub(super) type Tell<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// The data file, and the bytes of constants small enough for the graph file.
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    /// One for each constant of the plan.
    places: Vec<Place>,
}

/// Where the bytes of a constant go.
enum Place {
    Inline(Mutex<Vec<u8>>),
    External(u64),
}

/// Weights that [`Sink::fill`] will report.
pub(super) fn weights_of(plan: &Plan) -> u64 {
    jobs(plan).map(elements).sum()
}

fn elements(constant: &Constant) -> u64 {
    let count: u64 = constant.dims.iter().map(|dim| *dim as u64).product();
    match constant.source {
        // Two weights of four bits lie in a byte.
        Source::Values(_, how) => count * 8 / how.bits() as u64,
        // They are not read from anywhere.
        Source::ActivationScale(_) | Source::ActivationZero(_) => 0,
        _ => count,
    }
}

/// The first constant of each source; scales and zero points come with their values.
fn jobs(plan: &Plan) -> impl Iterator<Item = &Constant> {
    let constants = plan.constants.iter().enumerate();
    constants.filter_map(|(index, constant)| {
        let again = plan.constants[..index]
            .iter()
            .any(|other| other.source == constant.source && other.dtype == constant.dtype);
        let passive = matches!(
            constant.source,
            Source::Bytes(_) | Source::Scales(..) | Source::ZeroPoints(..)
        );
        (!again && !passive).then_some(constant)
    })
}

impl Sink {
    /// Makes a data file of `length` bytes.
    pub(super) fn create(path: &Path, length: u64, plan: &Plan) -> Result<Self> {
        let fault = |e| Error::io(path, e);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(fault)?;
        file.set_len(length).map_err(fault)?;
        let tensors = plan.model.graph.iter().flat_map(|graph| &graph.initializer);
        let places = tensors
            .zip(&plan.constants)
            .map(|(tensor, constant)| match offset_of(tensor) {
                Some(offset) => Place::External(offset),
                None => {
                    let bytes = usize::try_from(constant.bytes()).unwrap_or_default();
                    Place::Inline(Mutex::new(vec![0; bytes]))
                }
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            places,
        })
    }

    /// Writes every constant.
    pub(super) fn fill(
        &self,
        plan: &Plan,
        (weights, ranges): (&dyn Weights, &Ranges),
        threads: usize,
        tell: Tell<'_>,
    ) -> Result<()> {
        let task = Task {
            sink: self,
            plan,
            weights,
            ranges,
            threads,
            tell,
        };
        jobs(plan).try_for_each(|constant| task.run(constant))
    }

    /// Where constants of this source go; those that share bytes are named once.
    fn places_of(&self, plan: &Plan, source: &Source, dtype: DataType) -> Vec<&Place> {
        let mut found: Vec<&Place> = Vec::new();
        for (place, constant) in self.places.iter().zip(&plan.constants) {
            let known = |other: &&Place| match (other, place) {
                (Place::External(a), Place::External(b)) => a == b,
                _ => false,
            };
            if constant.source == *source && constant.dtype == dtype && !found.iter().any(known) {
                found.push(place);
            }
        }
        found
    }

    fn put(&self, places: &[&Place], at: u64, bytes: &[u8]) -> Result<()> {
        for place in places {
            match place {
                Place::External(offset) => self
                    .file
                    .write_all_at(bytes, offset + at)
                    .map_err(|e| Error::io(&self.path, e))?,
                Place::Inline(buffer) => {
                    let mut buffer = buffer.lock().unwrap_or_else(|e| e.into_inner());
                    // An inline constant was made as long as its type and sizes say.
                    let start = usize::try_from(at).unwrap_or(usize::MAX);
                    let room = buffer.get_mut(start..);
                    if let Some(to) = room.and_then(|room| room.get_mut(..bytes.len())) {
                        to.copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves the small constants into the graph.
    pub(super) fn finish(self, plan: &mut Plan) {
        let graph = plan.model.graph.iter_mut();
        let tensors = graph.flat_map(|graph| &mut graph.initializer);
        for ((tensor, constant), place) in tensors.zip(&plan.constants).zip(self.places) {
            let given = matches!(constant.source, Source::Bytes(_));
            if let (Place::Inline(buffer), false) = (place, given) {
                tensor.raw_data = buffer.into_inner().unwrap_or_else(|e| e.into_inner());
            }
        }
    }
}

/// Where weights come from and how they travel.
struct Task<'a> {
    sink: &'a Sink,
    plan: &'a Plan,
    weights: &'a dyn Weights,
    ranges: &'a Ranges,
    threads: usize,
    tell: Tell<'a>,
}

impl Task<'_> {
    fn run(&self, constant: &Constant) -> Result<()> {
        let places = self
            .sink
            .places_of(self.plan, &constant.source, constant.dtype);
        match &constant.source {
            Source::Vector(vector) => {
                let values = self.weights.vector(*vector)?;
                self.sink.put(&places, 0, &floats(&values))?;
                (self.tell)(elements(constant))
            }
            Source::Matrix(matrix) => {
                self.matrix(&places, *matrix, constant.dtype == DataType::Float16)
            }
            Source::Values(matrix, how) => self.integers(&places, *matrix, *how),
            Source::ActivationScale(activation) => {
                let scale = self.range(*activation)?.scale();
                self.sink.put(&places, 0, &scale.to_le_bytes())
            }
            Source::ActivationZero(activation) => {
                let zero = self.range(*activation)?.zero();
                self.sink.put(&places, 0, &zero.to_le_bytes())
            }
            Source::Rotation(table) => self.rotation(&places, &constant.dims, *table),
            Source::Bytes(_) | Source::Scales(..) | Source::ZeroPoints(..) => Ok(()),
        }
    }

    fn range(&self, activation: Activation) -> Result<Range> {
        self.ranges.of(activation).ok_or_else(|| Error::Option {
            option: "calibrate",
            reason: format!("no text has shown the range of {activation:?}"),
        })
    }

    fn matrix(&self, places: &[&Place], matrix: Matrix, half: bool) -> Result<()> {
        let (outputs, inputs) = self.weights.shape(matrix);
        let row_bytes = inputs as u64 * if half { 2 } else { 4 };
        let rows = rows_of_a_piece(inputs);
        parallel::for_each(self.threads, outputs.div_ceil(rows), |piece| {
            let range = piece * rows..((piece + 1) * rows).min(outputs);
            let mut values = Vec::new();
            self.weights.rows(matrix, range.clone(), &mut values)?;
            let bytes = if half {
                halves(&values)?
            } else {
                floats(&values)
            };
            self.sink
                .put(places, range.start as u64 * row_bytes, &bytes)?;
            (self.tell)(values.len() as u64)
        })
    }

    fn integers(&self, values: &[&Place], matrix: Matrix, how: Quantisation) -> Result<()> {
        let (outputs, inputs) = self.weights.shape(matrix);
        let layout = Layout::new(how, inputs);
        let find = |source, dtype| self.sink.places_of(self.plan, &source, dtype);
        let scales = find(Source::Scales(matrix, how), DataType::Float);
        let zeros = find(Source::ZeroPoints(matrix, how), DataType::Uint8);
        quantise_matrix(
            how,
            [outputs, inputs],
            self.threads,
            |rows, out| self.weights.rows(matrix, rows, out),
            |rows, packed| {
                let at = |row_bytes: usize| rows.start as u64 * row_bytes as u64;
                let sink = self.sink;
                sink.put(values, at(layout.value_bytes()), &packed.values)?;
                sink.put(&scales, at(layout.blocks * 4), &floats(&packed.scales))?;
                sink.put(&zeros, at(layout.zero_point_bytes()), &packed.zero_points)?;
                (self.tell)((rows.len() * layout.blocks * layout.block) as u64)
            },
        )
    }

    fn rotation(&self, places: &[&Place], dims: &[usize], table: Rotation) -> Result<()> {
        let [positions, width] = dims[..] else {
            return Ok(());
        };
        let rows = rows_of_a_piece(width);
        parallel::for_each(self.threads, positions.div_ceil(rows), |piece| {
            let first = piece * rows;
            let values = rotation_rows(table, first, rows.min(positions - first));
            let at = first as u64 * width as u64 * 4;
            self.sink.put(places, at, &floats(&values))?;
            (self.tell)(values.len() as u64)
        })
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn halves(values: &[f32]) -> Result<Vec<u8>> {
    if let Some(x) = values.iter().find(|x| x.abs() > f16::MAX.to_f32()) {
        return Err(Error::Option {
            option: "embedding",
            reason: format!("the table holds {x}, which f16 cannot; keep it as full"),
        });
    }
    let halves = values.iter().map(|x| f16::from_f32(*x));
    Ok(halves.flat_map(f16::to_le_bytes).collect())
}
