//! Model directories: their manifest, and whether their files are those that it names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use glm::manifest::{self, FileRecord, Manifest, Sha256};
use sha2::Digest as _;

use crate::source::read_small;
use crate::{Error, Result};

/// Name of the graph file.
pub const GRAPH: &str = "model.onnx";
/// The graph for single tokens, where it is another one.
pub const STEP_GRAPH: &str = "step.onnx";
/// Name of the file of weights.
pub const DATA: &str = "model.onnx.data";

/// Longest manifest that is read; tasks and golden logits make a few KiB.
const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// Called with the bytes that are done and all of them; an error ends the work.
pub type Tell<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// Reads the manifest of a model directory.
///
/// # Errors
/// [`Error::Missing`] when there is none, [`Error::Model`] naming the key that
/// cannot be used, [`Error::Io`].
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(manifest::FILE);
    match read_small(&path, MAX_MANIFEST)? {
        Some(bytes) => Ok(Manifest::from_json(&bytes)?),
        None => Err(Error::Missing {
            path,
            hint: "a model directory is made by `glmctl export`".to_owned(),
        }),
    }
}

pub(crate) fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<()> {
    let path = folder.join(manifest::FILE);
    fs::write(&path, manifest.to_json()?).map_err(|e| Error::io(&path, e))
}

/// Checks that every file of the manifest is there with its size, without reading any.
///
/// # Errors
/// [`Error::Missing`] and [`Error::Corrupt`] naming the file.
pub fn check_sizes(folder: &Path, manifest: &Manifest) -> Result<()> {
    for (name, record) in &manifest.files {
        let path = folder.join(name);
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Missing {
                    path,
                    hint: format!("{} names it", manifest::FILE),
                });
            }
            Err(error) => return Err(Error::io(&path, error)),
        };
        if found.len() != record.size {
            let (found, wanted) = (found.len(), record.size);
            let reason = format!("has {found} bytes, {} says {wanted}", manifest::FILE);
            return Err(Error::Corrupt { path, reason });
        }
    }
    Ok(())
}

/// Checks size and hash of every file of the manifest.
///
/// # Errors
/// As [`check_sizes`], and whatever `tell` returns.
pub fn verify(folder: &Path, manifest: &Manifest, tell: Tell<'_>) -> Result<()> {
    check_sizes(folder, manifest)?;
    let total = manifest.files.values().map(|record| record.size).sum();
    let mut done = 0;
    for (name, record) in &manifest.files {
        let path = folder.join(name);
        let found = hash(&path, &mut |bytes| {
            done += bytes;
            tell(done, total)
        })?;
        if found != *record {
            let (found, wanted) = (found.sha256, record.sha256);
            let reason = format!("has the hash {found}, {} says {wanted}", manifest::FILE);
            return Err(Error::Corrupt { path, reason });
        }
    }
    Ok(())
}

/// Size and hash of every file of a folder but the manifest.
pub(crate) fn records(folder: &Path, tell: Tell<'_>) -> Result<BTreeMap<String, FileRecord>> {
    let fault = |e| Error::io(folder, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let size = entry.metadata().map_err(fault)?.len();
        files.push((entry.file_name().to_string_lossy().into_owned(), size));
    }
    let total = files.iter().map(|(_, size)| size).sum();
    let mut done = 0;
    files
        .into_iter()
        .filter(|(name, _)| name != manifest::FILE)
        .map(|(name, _)| {
            let record = hash(&folder.join(&name), &mut |bytes| {
                done += bytes;
                tell(done, total)
            })?;
            Ok((name, record))
        })
        .collect()
}

fn hash(path: &Path, tell: &mut dyn FnMut(u64) -> Result<()>) -> Result<FileRecord> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hash = sha2::Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    loop {
        let count = file.read(&mut piece).map_err(|e| Error::io(path, e))?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
        size += count as u64;
        tell(count as u64)?;
    }
    Ok(FileRecord {
        size,
        sha256: Sha256(hash.finalize().into()),
    })
}
