//! Checkpoint folders: named tensors, read a few rows at a time.
//!
//! A [`Checkpoint`] knows where the numbers of every tensor lie, in safetensors
//! files or in the zip archives that PyTorch writes, and reads them as f32 when
//! asked; it holds none of them. [`FamilyWeights`] stands on top and answers by
//! meaning ([`Matrix`](crate::graph::Matrix), [`Vector`](crate::graph::Vector))
//! whatever the family calls, fuses or orders its tensors.
//!
//! A checkpoint comes from a stranger. Every length in it is checked against
//! the file before it is used, nothing in a pickle is ever executed, and no
//! name in a file leads out of the folder.

mod bytes;
mod family;
mod files;
mod names;
mod pickle;
mod safetensors;
mod tensor;
mod torch;
mod zip;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use bytes::ReadAt;
pub use family::FamilyWeights;
pub use files::Format;
pub(crate) use tensor::first_unusable;
pub use tensor::{Dtype, Tensor};

use crate::{Error, Result};

/// A checkpoint whose tensors can be read.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<Source>,
    tensors: BTreeMap<String, Place>,
}

/// One open file of weights.
struct Source {
    path: PathBuf,
    bytes: Box<dyn ReadAt>,
}

/// A tensor and the file that holds it.
struct Place {
    file: usize,
    tensor: Tensor,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("folder", &self.folder)
            .field("files", &self.files.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl Checkpoint {
    /// Whether a folder has weights that [`Checkpoint::open`] would open.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_in(folder: &Path) -> Result<bool> {
        files::are_there(folder)
    }

    /// Opens the weights of a folder: `model.safetensors`, its index and
    /// shards, `pytorch_model.bin`, or its index and shards, the first of these
    /// that is there.
    ///
    /// Only headers are read. Links are followed, as download caches are made
    /// of them, but shards are named by their index as files of this folder.
    ///
    /// # Errors
    /// [`Error::Missing`] without weights or shard, [`Error::Malformed`] and
    /// [`Error::ForbiddenGlobal`] for a file that breaks its format,
    /// [`Error::Tensor`] for one whose header lies about a tensor,
    /// [`Error::MissingTensor`] where index and shard disagree, [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let found = files::find(folder)?;
        let mut checkpoint = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for shard in found.shards {
            let bytes = Box::new(bytes::open(&shard.path)?);
            checkpoint.add(shard.path, found.format, bytes, shard.tensors.as_deref())?;
        }
        Ok(checkpoint)
    }

    /// Reads one file of weights from anything that has bytes. `path` names it in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_file(path: &Path, format: Format, bytes: Box<dyn ReadAt>) -> Result<Self> {
        let mut checkpoint = Self {
            folder: path.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.add(path.to_owned(), format, bytes, None)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of a file, or those of them that an index names.
    fn add(
        &mut self,
        path: PathBuf,
        format: Format,
        bytes: Box<dyn ReadAt>,
        wanted: Option<&[String]>,
    ) -> Result<()> {
        let mut found = match format {
            Format::Safetensors => safetensors::tensors(&path, &*bytes)?,
            Format::Torch => torch::tensors(&path, &*bytes)?,
        };
        let file = self.files.len();
        match wanted {
            None => {
                let places = found
                    .into_iter()
                    .map(|(name, tensor)| (name, Place { file, tensor }));
                self.tensors.extend(places);
            }
            Some(names) => {
                for name in names {
                    let Some(tensor) = found.remove(name) else {
                        return Err(Error::MissingTensor {
                            path,
                            tensor: name.clone(),
                        });
                    };
                    self.tensors.insert(name.clone(), Place { file, tensor });
                }
            }
        }
        self.files.push(Source { path, bytes });
        Ok(())
    }

    /// The folder, or the file where there is only one.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names and descriptions of all tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors
            .iter()
            .map(|(name, place)| (name.as_str(), &place.tensor))
    }

    /// Description of a tensor.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(|place| &place.tensor)
    }

    /// The file that holds a tensor, or the folder when there is no such tensor.
    #[must_use]
    pub fn path_of(&self, name: &str) -> &Path {
        self.tensors
            .get(name)
            .and_then(|place| self.files.get(place.file))
            .map_or(&self.folder, |source| &source.path)
    }

    /// Appends rows of a tensor to `out` as f32, `[rows.len(), columns]`.
    /// A tensor of one axis is one row.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Tensor`] when it has more than two
    /// axes or fewer rows, is not of floating point, or holds a value that is
    /// not finite; [`Error::Io`].
    pub fn read(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Some((place, source)) = self
            .tensors
            .get(name)
            .and_then(|place| Some((place, self.files.get(place.file)?)))
        else {
            return Err(self.missing(name));
        };
        let fault = |reason| Error::tensor(&source.path, name, reason);
        let view = place.tensor.view().map_err(fault)?;
        if rows.start > rows.end || rows.end > view.rows {
            return Err(fault(format!(
                "rows {}..{} were asked for, it has {}",
                rows.start, rows.end, view.rows
            )));
        }
        let start = out.len();
        view.read(&*source.bytes, rows.clone(), out)
            .map_err(|e| Error::io(&source.path, e))?;
        match first_unusable(&out[start..]) {
            None => Ok(()),
            Some(at) => {
                let value = out[start + at];
                let (row, column) = (rows.start + at / view.columns, at % view.columns);
                out.truncate(start);
                let place = match place.tensor.shape.len() {
                    2 => format!("[{row}, {column}]"),
                    _ => format!("[{column}]"),
                };
                Err(fault(format!("holds {value} at {place}")))
            }
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor {
            path: self.folder.clone(),
            tensor: name.to_owned(),
        }
    }
}
