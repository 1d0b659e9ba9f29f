//! Weights where they lie: a table of constants over mapped files.
//!
//! The rewrite of the graph says for each constant which bytes of which file
//! it is. Here those files are mapped and the bytes are seen as numbers, so
//! loading reads nothing and the system may drop and re-read pages as it
//! needs memory. Only constants inside the graph file, and those that some
//! other exporter did not align to their element size, are copied.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path};

use glm_kernels::{Dense, DenseLayout, Floats, Matrix, Quantised, Table};
use glm_onnx::paging::{self, Blob, BlobData, Constant, ElementType};
use half::f16;
use half::slice::HalfBitsSliceExt;
use memmap2::Mmap;
use zerocopy::FromBytes;

use crate::backend::Bytes;

/// Constants of a paged graph, in the order of their ids.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<Mmap>,
    constants: Vec<Stored>,
    bytes: u64,
    mapped: u64,
}

/// A constant and where its parts lie.
#[derive(Debug)]
enum Stored {
    Quantised(StoredQuantised),
    QuantisedTable(StoredQuantised),
    Dense {
        outputs: usize,
        inputs: usize,
        layout: DenseLayout,
        data: Region,
    },
    Table {
        width: usize,
        data: Region,
    },
}

#[derive(Debug)]
struct StoredQuantised {
    outputs: usize,
    inputs: usize,
    bits: usize,
    block: usize,
    values: Region,
    scales: Region,
    zero_points: Option<Region>,
    bias: Option<Region>,
}

/// The numbers of one tensor.
#[derive(Debug)]
enum Region {
    Mapped {
        file: usize,
        range: Range<usize>,
        dtype: ElementType,
    },
    U8(Vec<u8>),
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Weights {
    /// Maps the files of `constants`, which lie in `folder`.
    ///
    /// # Errors
    /// Names the file and the tensor that cannot be read.
    pub(crate) fn map(folder: &Path, constants: &[Constant]) -> Result<Self, String> {
        let mut mapper = Mapper {
            folder,
            files: Vec::new(),
            places: BTreeMap::new(),
            bytes: 0,
            mapped: 0,
        };
        let constants = constants
            .iter()
            .map(|constant| mapper.constant(constant))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            files: mapper.files,
            constants,
            bytes: mapper.bytes,
            mapped: mapper.mapped,
        })
    }

    /// What all constants take.
    pub(crate) const fn bytes(&self) -> Bytes {
        Bytes(self.bytes)
    }

    /// Of these, what is read where it lies in a file.
    pub(crate) const fn mapped(&self) -> Bytes {
        Bytes(self.mapped)
    }

    /// The weights `index` of a product.
    ///
    /// # Errors
    /// When it is no such constant, or of a kind that the kernels do not know.
    pub(crate) fn matrix(&self, index: usize) -> Result<Matrix<'_>, String> {
        match self.constants.get(index) {
            Some(Stored::Quantised(weights)) => self.quantised(weights).map(Matrix::Quantised),
            Some(Stored::Dense {
                outputs,
                inputs,
                layout,
                data,
            }) => Dense::new(*outputs, *inputs, *layout, self.floats(data)?)
                .map(Matrix::Dense)
                .map_err(|error| error.to_string()),
            _ => Err(format!("constant {index} is no matrix")),
        }
    }

    /// The table `index` of rows to look up.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn table(&self, index: usize) -> Result<Table<'_>, String> {
        match self.constants.get(index) {
            Some(Stored::QuantisedTable(weights)) => self.quantised(weights).map(Table::Quantised),
            Some(Stored::Table { width, data }) => Ok(Table::Floats {
                width: *width,
                data: self.floats(data)?,
            }),
            _ => Err(format!("constant {index} is no table")),
        }
    }

    /// Cosines or sines: the numbers of a table of f32.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn angles(&self, index: usize) -> Result<&[f32], String> {
        match self.constants.get(index) {
            Some(Stored::Table { data, .. }) => self.full(data),
            _ => Err(format!("constant {index} is no table")),
        }
    }

    fn quantised<'a>(&'a self, weights: &'a StoredQuantised) -> Result<Quantised<'a>, String> {
        let found = Quantised::new(
            weights.outputs,
            weights.inputs,
            weights.bits,
            weights.block,
            self.bytes_of(&weights.values)?,
            self.full(&weights.scales)?,
        );
        let mut found = found.map_err(|error| error.to_string())?;
        if let Some(region) = &weights.zero_points {
            found = found
                .with_zero_points(self.bytes_of(region)?)
                .map_err(|error| error.to_string())?;
        }
        if let Some(region) = &weights.bias {
            found = found
                .with_bias(self.full(region)?)
                .map_err(|error| error.to_string())?;
        }
        Ok(found)
    }

    /// A region as bytes.
    fn bytes_of<'a>(&'a self, region: &'a Region) -> Result<&'a [u8], String> {
        match region {
            Region::U8(bytes) => Ok(bytes),
            Region::Mapped { file, range, .. } => self
                .files
                .get(*file)
                .and_then(|file| file.get(range.clone()))
                .ok_or_else(|| "weights outside their file".to_owned()),
            Region::F16(_) | Region::F32(_) => Err("floats where bytes are wanted".to_owned()),
        }
    }

    /// A region as f32.
    fn full<'a>(&'a self, region: &'a Region) -> Result<&'a [f32], String> {
        match self.floats(region)? {
            Floats::F32(values) => Ok(values),
            Floats::F16(_) => Err("f16 where f32 is wanted".to_owned()),
        }
    }

    /// A region as f32 or f16.
    fn floats<'a>(&'a self, region: &'a Region) -> Result<Floats<'a>, String> {
        let misplaced = || "weights that are not aligned".to_owned();
        match region {
            Region::F32(values) => Ok(Floats::F32(values)),
            Region::F16(values) => Ok(Floats::F16(values)),
            Region::Mapped { dtype, .. } => {
                let bytes = self.bytes_of(region)?;
                match dtype {
                    ElementType::F32 => <[f32]>::ref_from_bytes(bytes)
                        .map(Floats::F32)
                        .map_err(|_| misplaced()),
                    ElementType::F16 => <[u16]>::ref_from_bytes(bytes)
                        .map(|bits| Floats::F16(bits.reinterpret_cast::<f16>()))
                        .map_err(|_| misplaced()),
                    ElementType::U8 => Err("bytes where floats are wanted".to_owned()),
                }
            }
            Region::U8(_) => Err("bytes where floats are wanted".to_owned()),
        }
    }
}

/// Weights on the way in.
struct Mapper<'a> {
    folder: &'a Path,
    files: Vec<Mmap>,
    places: BTreeMap<String, usize>,
    bytes: u64,
    mapped: u64,
}

impl Mapper<'_> {
    fn constant(&mut self, constant: &Constant) -> Result<Stored, String> {
        Ok(match constant {
            Constant::Quantised(weights) => Stored::Quantised(self.quantised(weights)?),
            Constant::QuantisedTable(weights) => Stored::QuantisedTable(self.quantised(weights)?),
            Constant::Dense(weights) => Stored::Dense {
                outputs: weights.outputs,
                inputs: weights.inputs,
                layout: if weights.by_output {
                    DenseLayout::ByOutput
                } else {
                    DenseLayout::ByInput
                },
                data: self.region(&weights.data)?,
            },
            Constant::Table(table) => Stored::Table {
                width: table.width,
                data: self.region(&table.data)?,
            },
        })
    }

    fn quantised(&mut self, weights: &paging::Quantised) -> Result<StoredQuantised, String> {
        let mut optional = |blob: &Option<Blob>| match blob {
            Some(blob) => self.region(blob).map(Some),
            None => Ok(None),
        };
        let (zero_points, bias) = (optional(&weights.zero_points)?, optional(&weights.bias)?);
        Ok(StoredQuantised {
            outputs: weights.outputs,
            inputs: weights.inputs,
            bits: weights.bits,
            block: weights.block,
            values: self.region(&weights.values)?,
            scales: self.region(&weights.scales)?,
            zero_points,
            bias,
        })
    }

    fn region(&mut self, blob: &Blob) -> Result<Region, String> {
        self.bytes += blob.bytes();
        let (file, offset, length) = match &blob.data {
            BlobData::Inline(bytes) => return Ok(copied(bytes, blob.dtype)),
            BlobData::External {
                file,
                offset,
                length,
            } => (file, *offset, *length),
        };
        let place = self.file(file)?;
        let whole = &self.files[place];
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(length).ok())
            .and_then(|(start, length)| Some(start..start.checked_add(length)?))
            .filter(|range| range.end <= whole.len())
            .ok_or_else(|| {
                format!(
                    "{}: tensor `{}` ends at byte {}, the file has {}; copy the file again",
                    self.folder.join(file).display(),
                    blob.name,
                    offset.saturating_add(length),
                    whole.len()
                )
            })?;
        let bytes = &whole[range.clone()];
        if bytes.as_ptr().addr().is_multiple_of(blob.dtype.size()) {
            self.mapped += length;
            Ok(Region::Mapped {
                file: place,
                range,
                dtype: blob.dtype,
            })
        } else {
            Ok(copied(bytes, blob.dtype))
        }
    }

    fn file(&mut self, name: &str) -> Result<usize, String> {
        if let Some(place) = self.places.get(name) {
            return Ok(*place);
        }
        let path = self.folder.join(name);
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(format!(
                "{}: leaves the folder of the model",
                path.display()
            ));
        }
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = File::open(&path).map_err(failed)?;
        // SAFETY: the map is only read. That nobody changes or shortens the file
        // while it is mapped is what every program that maps its data relies on;
        // models are installed under a new name and then renamed.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        self.files.push(map);
        let place = self.files.len() - 1;
        self.places.insert(name.to_owned(), place);
        Ok(place)
    }
}

/// Little-endian bytes as numbers of their own.
fn copied(bytes: &[u8], dtype: ElementType) -> Region {
    match dtype {
        ElementType::U8 => Region::U8(bytes.to_vec()),
        ElementType::F16 => {
            let values = bytes.as_chunks::<2>().0.iter();
            Region::F16(values.map(|bytes| f16::from_le_bytes(*bytes)).collect())
        }
        ElementType::F32 => {
            let values = bytes.as_chunks::<4>().0.iter();
            Region::F32(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use glm_kernels::Kernels;

    use super::*;

    fn blob(dtype: ElementType, file: &str, offset: u64, length: u64) -> Blob {
        Blob {
            name: "weight".into(),
            dtype,
            data: BlobData::External {
                file: file.into(),
                offset,
                length,
            },
        }
    }

    fn table(rows: usize, width: usize, data: Blob) -> Constant {
        Constant::Table(paging::Table { rows, width, data })
    }

    fn folder(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("data"), bytes).unwrap();
        folder
    }

    fn rows(weights: &Weights, index: usize) -> Vec<f32> {
        let table = weights.table(index).unwrap();
        let mut out = vec![0.0; 2 * table.width()];
        Kernels::detect().rows(&table, &[0, 1], &mut out).unwrap();
        out
    }

    #[test]
    fn tables_are_read_where_they_lie_and_from_odd_places_too() {
        let full: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let half: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0]
            .iter()
            .flat_map(|x| f16::from_f32(*x).to_le_bytes())
            .collect();
        // Aligned f32, aligned f16, one byte of nothing, f32, f16.
        let bytes = [&full[..], &half, &[0], &full, &half].concat();
        let folder = folder(&bytes);
        let constants = [
            table(2, 2, blob(ElementType::F32, "data", 0, 16)),
            table(2, 2, blob(ElementType::F16, "./data", 16, 8)),
            table(2, 2, blob(ElementType::F32, "data", 25, 16)),
            table(2, 2, blob(ElementType::F16, "data", 41, 8)),
        ];
        let weights = Weights::map(folder.path(), &constants).unwrap();
        assert_eq!((weights.bytes(), weights.mapped()), (Bytes(48), Bytes(24)));
        for index in 0..constants.len() {
            assert_eq!(rows(&weights, index), [1.0, 2.0, 3.0, 4.0]);
        }
        assert!(matches!(
            weights.constants[0],
            Stored::Table {
                data: Region::Mapped { .. },
                ..
            }
        ));
        assert_eq!(weights.angles(0), Ok(&[1.0, 2.0, 3.0, 4.0][..]));
        assert!(weights.angles(1).is_err() && weights.matrix(0).is_err());
        assert!(weights.table(constants.len()).is_err());
    }

    #[test]
    fn files_outside_the_folder_and_short_files_are_refused_by_name() {
        let folder = folder(&[0; 15]);
        for (file, length, what) in [
            ("../data", 4, "leaves the folder"),
            ("/etc/passwd", 4, "leaves the folder"),
            ("absent", 4, "absent"),
            ("data", 16, "`weight` ends at byte 16, the file has 15"),
            ("data", u64::MAX, "ends at byte"),
        ] {
            let constants = [table(1, 1, blob(ElementType::F32, file, 0, length))];
            let error = Weights::map(folder.path(), &constants).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
