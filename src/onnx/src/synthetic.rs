//! Models of any shape with random weights: for benchmarks and for tests of runtimes.
//!
//! What a step costs depends on shapes, not on what the weights say. Integers
//! are written as they come from the generator, so a model of gigabytes is
//! there at the speed of the disk and never passes through f32. Every layer
//! has weights of its own, since runtimes share what is equal. Magnitudes are
//! such that activations keep their size from layer to layer.

mod dynamic;

use std::fs::{self, File};
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use glm::ModelSpec;
use half::f16;
use prost::Message as _;

use crate::graph::{self, Constant, Options, Source, Vector, build, place, rotation_rows};
use crate::model_dir::{DATA, GRAPH, Tell};
use crate::proto::tensor_proto::DataType;
use crate::{Error, Result};

pub use dynamic::dynamic_integers;

/// Bytes that are made at a time; a multiple of every element size.
const PIECE: usize = 1 << 20;

/// Writes `model.onnx` and `model.onnx.data` for `spec` into `folder`.
///
/// The same seed gives the same bytes. `tell` hears the bytes written and all
/// of them; its error ends the work.
///
/// # Errors
/// [`Error::Io`], and whatever `tell` returns.
pub fn write(
    spec: &ModelSpec,
    options: &Options,
    folder: &Path,
    seed: u64,
    tell: Tell<'_>,
) -> Result<()> {
    let mut plan = build(spec, options);
    let total = place(&mut plan, DATA);
    let path = folder.join(DATA);
    let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
    let mut out = BufWriter::with_capacity(PIECE, file);
    let mut numbers = Numbers(seed);
    let mut initializers = plan
        .model
        .graph
        .as_mut()
        .map(|graph| std::mem::take(&mut graph.initializer))
        .unwrap_or_default();
    for (tensor, constant) in initializers.iter_mut().zip(&plan.constants) {
        if tensor.data_location == 0 {
            if tensor.raw_data.is_empty() {
                fill(constant, &mut numbers, &mut |bytes| {
                    tensor.raw_data.extend_from_slice(bytes);
                    Ok(())
                })?;
            }
            continue;
        }
        let start = tensor
            .external_data
            .iter()
            .find(|entry| entry.key == "offset")
            .and_then(|entry| entry.value.parse().ok())
            .unwrap_or(0);
        let failed = |error| Error::io(&path, error);
        out.seek(SeekFrom::Start(start)).map_err(failed)?;
        let mut done = start;
        fill(constant, &mut numbers, &mut |bytes| {
            out.write_all(bytes).map_err(failed)?;
            done += bytes.len() as u64;
            tell(done, total)
        })?;
    }
    out.into_inner()
        .map_err(|error| Error::io(&path, error.into_error()))?
        .set_len(total)
        .map_err(|error| Error::io(&path, error))?;
    if let Some(graph) = plan.model.graph.as_mut() {
        graph.initializer = initializers;
    }
    let path = folder.join(GRAPH);
    fs::write(&path, plan.model.encode_to_vec()).map_err(|error| Error::io(&path, error))
}

/// A stream of random numbers (SplitMix64; Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Evenly in -1..1.
    #[allow(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
    const fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Makes the bytes of a constant, piece by piece.
fn fill(
    constant: &Constant,
    numbers: &mut Numbers,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let count = constant.dims.iter().product::<usize>();
    match &constant.source {
        Source::Bytes(bytes) => write(bytes),
        Source::Values(..) | Source::ZeroPoints(..) => {
            let mut left = count;
            while left > 0 {
                let words = left.min(PIECE).div_ceil(8);
                let bytes: Vec<u8> = (0..words)
                    .flat_map(|_| numbers.next().to_le_bytes())
                    .collect();
                let part = left.min(PIECE);
                write(&bytes[..part])?;
                left -= part;
            }
            Ok(())
        }
        Source::Scales(_, how) => {
            let inputs = constant.dims.last().copied().unwrap_or(1)
                * match how.block {
                    graph::Block::Of(size) => size,
                    // Rows are stored in blocks of at most this length.
                    graph::Block::Row => 128,
                };
            // Standard deviation of the integers.
            let spread = if how.bits() == 8 { 73.9 } else { 4.6 };
            let scale = 1.0 / (spread * root(inputs));
            floats(constant.dtype, count, write, &mut || {
                scale * (1.0 + 0.2 * numbers.unit())
            })
        }
        // Activations of models like these stay within a few units of 0.
        Source::ActivationScale(_) => write(&(16.0_f32 / 65_536.0).to_le_bytes()),
        Source::ActivationZero(_) => write(&(1_u16 << 15).to_le_bytes()),
        Source::Vector(Vector::NormWeight(_)) => floats(constant.dtype, count, write, &mut || {
            1.0 + 0.1 * numbers.unit()
        }),
        Source::Vector(_) => floats(constant.dtype, count, write, &mut || 0.1 * numbers.unit()),
        Source::Matrix(_) => {
            let scale = 3.0_f32.sqrt() / root(constant.dims.last().copied().unwrap_or(1));
            floats(constant.dtype, count, write, &mut || scale * numbers.unit())
        }
        Source::Rotation(table) => {
            let width = constant.dims.last().copied().unwrap_or(1);
            let rows = constant.dims.first().copied().unwrap_or(0);
            let at_once = (PIECE / 4 / width.max(1)).max(1);
            for first in (0..rows).step_by(at_once) {
                let mut values =
                    rotation_rows(*table, first, at_once.min(rows - first)).into_iter();
                let count = values.len();
                floats(constant.dtype, count, write, &mut || {
                    values.next().unwrap_or_default()
                })?;
            }
            Ok(())
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "widths stay below 2^24")]
fn root(width: usize) -> f32 {
    (width as f32).sqrt()
}

fn floats(
    dtype: DataType,
    count: usize,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
    next: &mut dyn FnMut() -> f32,
) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let part = left.min(PIECE / 4);
        let values = (0..part).map(|_| next());
        let bytes: Vec<u8> = if dtype == DataType::Float16 {
            values
                .flat_map(|value| f16::from_f32(value).to_le_bytes())
                .collect()
        } else {
            values.flat_map(f32::to_le_bytes).collect()
        };
        write(&bytes)?;
        left -= part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use glm::spec::Hints;

    use super::*;
    use crate::graph::{Block, Precision, Quantisation, Scheme, Table};
    use crate::paging::{self, Outcome};
    use crate::proto::ModelProto;

    fn spec() -> ModelSpec {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let path = folder.join("../../tests/fixtures/checkpoints/glm-edge/config.json");
        let config = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        ModelSpec::from_config(&config, &Hints::default()).unwrap()
    }

    fn int8() -> Options {
        let int8 = Precision::Quantised(Quantisation {
            scheme: Scheme::Int8,
            block: Block::Of(32),
        });
        Options {
            layers: int8,
            head: int8,
            embedding: Table::Half,
            tied_head: false,
            max_positions: 64,
            fixed: None,
        }
    }

    #[test]
    fn a_model_is_whole_and_the_same_seed_gives_it_again() {
        let mut bytes = Vec::new();
        for seed in [1, 1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let mut last = (0, 0);
            write(&spec(), &int8(), folder.path(), seed, &mut |done, total| {
                last = (done, total);
                Ok(())
            })
            .unwrap();
            let graph = fs::read(folder.path().join(GRAPH)).unwrap();
            let data = fs::read(folder.path().join(DATA)).unwrap();
            assert_eq!(last, (data.len() as u64, data.len() as u64));
            let model = ModelProto::decode(graph.as_slice()).unwrap();
            assert!(matches!(paging::page(&model), Outcome::Paged(_)));
            bytes.push((graph, data));
        }
        assert_eq!(bytes[0], bytes[1]);
        assert_ne!(bytes[0].1, bytes[2].1);
    }

    #[test]
    fn dynamically_quantised_products_take_the_place_of_all_others() {
        let folder = tempfile::tempdir().unwrap();
        write(&spec(), &int8(), folder.path(), 1, &mut |_, _| Ok(())).unwrap();
        let bytes = fs::read(folder.path().join(GRAPH)).unwrap();
        let size = fs::metadata(folder.path().join(DATA)).unwrap().len();
        let before = ModelProto::decode(bytes.as_slice()).unwrap();
        let mut model = before.clone();
        let of = |model: &ModelProto, op: &str| {
            let nodes = &model.graph.as_ref().unwrap().node;
            nodes.iter().filter(|node| node.op_type == op).count()
        };
        let count = dynamic_integers(&mut model);
        assert!(count > 0);
        assert_eq!(of(&before, "MatMulNBits"), count);
        assert_eq!(of(&model, "MatMulNBits"), 0);
        assert_eq!(of(&model, "MatMulInteger"), count);
        // Every constant has the bytes that its shape asks for, inside the file.
        for constant in &model.graph.as_ref().unwrap().initializer {
            let number = |key: &str| {
                let entry = constant.external_data.iter().find(|e| e.key == key)?;
                entry.value.parse::<u64>().ok()
            };
            let width = match DataType::try_from(constant.data_type).unwrap() {
                DataType::Float => 4,
                DataType::Float16 => 2,
                DataType::Int8 | DataType::Uint8 => 1,
                _ => continue,
            };
            let sizes = constant.dims.iter().map(|size| size.unsigned_abs());
            let wanted = sizes.product::<u64>() * width;
            if let (Some(offset), Some(length)) = (number("offset"), number("length")) {
                assert_eq!(length, wanted, "{}", constant.name);
                assert!(offset + length <= size, "{}", constant.name);
            }
        }
    }
}
