//! Which files of a folder hold the weights.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::bytes::{self, ReadAt as _, piece};
use crate::{Error, Result};

/// Longest index that is read; that of a 9 B model has 30 KiB.
const MAX_INDEX: u64 = 16 << 20;
/// Most shards of a checkpoint. All stay open, and 1024 files are what a process may open by default.
const MAX_SHARDS: usize = 256;

/// Format of the files of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// The zip archives of `torch.save`, since PyTorch 1.6.
    Torch,
}

/// Files to read.
pub(super) struct Found {
    pub(super) format: Format,
    pub(super) shards: Vec<Shard>,
}

/// One file, and which of its tensors count when an index says so.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) tensors: Option<Vec<String>>,
}

/// Files of weights, in the order in which transformers looks for them; each may be an index and shards.
const WEIGHTS: [(Format, &str); 2] = [
    (Format::Safetensors, "model.safetensors"),
    (Format::Torch, "pytorch_model.bin"),
];

/// What stands in the place of a file that is in shards.
fn index_of(folder: &Path, single: &str) -> PathBuf {
    folder.join(format!("{single}.index.json"))
}

/// Whether a folder has weights in one of these formats.
pub(super) fn are_there(folder: &Path) -> Result<bool> {
    for (_, single) in WEIGHTS {
        if is_there(&folder.join(single))? || is_there(&index_of(folder, single))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks for weights.
pub(super) fn find(folder: &Path) -> Result<Found> {
    for (format, single) in WEIGHTS {
        let path = folder.join(single);
        if is_there(&path)? {
            let tensors = None;
            return Ok(Found {
                format,
                shards: vec![Shard { path, tensors }],
            });
        }
        let index = index_of(folder, single);
        if is_there(&index)? {
            let shards = shards(folder, &index)?;
            return Ok(Found { format, shards });
        }
    }
    Err(Error::Missing {
        path: folder.join("model.safetensors"),
        hint: "the folder must hold model.safetensors, pytorch_model.bin, the index and shards \
               of one of them, or a model that was exported before"
            .to_owned(),
    })
}

fn is_there(path: &Path) -> Result<bool> {
    // A dangling link is an error, not an absence.
    path.symlink_metadata().map_or_else(
        |e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(false),
            _ => Err(Error::io(path, e)),
        },
        |_| Ok(true),
    )
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, in order of their names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<Shard>> {
    let file = bytes::open(index)?;
    let length = match usize::try_from(file.length()) {
        Ok(length) if file.length() <= MAX_INDEX => length,
        _ => {
            return Err(Error::malformed(
                index,
                format!("is larger than {MAX_INDEX} bytes"),
            ));
        }
    };
    let text = piece(index, &file, 0, length)?;
    let Index { weight_map } =
        serde_json::from_slice(&text).map_err(|e| Error::malformed(index, e.to_string()))?;
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in weight_map {
        if !is_plain(&file) {
            return Err(Error::malformed(
                index,
                format!("tensor `{tensor}` lies in `{file}`, which is not a file of this folder"),
            ));
        }
        files.entry(file).or_default().push(tensor);
    }
    if files.is_empty() || files.len() > MAX_SHARDS {
        return Err(Error::malformed(
            index,
            format!("names {} files, expected 1 to {MAX_SHARDS}", files.len()),
        ));
    }
    files
        .into_iter()
        .map(|(file, tensors)| {
            let path = folder.join(&file);
            if path.exists() {
                return Ok(Shard {
                    path,
                    tensors: Some(tensors),
                });
            }
            Err(Error::Missing {
                path,
                hint: format!(
                    "{} names it: download it again",
                    index.file_name().unwrap_or_default().display()
                ),
            })
        })
        .collect()
}

/// Whether a name is one of a file in the folder itself.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    );
    one && !name.contains(['/', '\\', '\0'])
}
