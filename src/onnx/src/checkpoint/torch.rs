//! Tensors of the zip archives that `torch.save` writes.
//!
//! `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the elements of
//! one storage, and tensors are views of storages.

use std::collections::BTreeMap;
use std::path::Path;

use super::bytes::{ReadAt, piece};
use super::pickle::{self, Stored};
use super::tensor::{Tensor, elements};
use super::zip;
use crate::{Error, Result};

/// Longest pickle that is read. That of a 9 B model has 60 KiB.
const MAX_PICKLE: u64 = 16 << 20;

/// The tensors of an archive.
pub(super) fn tensors(path: &Path, bytes: &dyn ReadAt) -> Result<BTreeMap<String, Tensor>> {
    let entries = zip::entries(path, bytes)?;
    let mut pickles = entries.keys().filter(|name| name.ends_with("/data.pkl"));
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        return Err(Error::malformed(
            path,
            "is a zip archive without one data.pkl, so not a checkpoint of PyTorch",
        ));
    };
    let root = pickle.trim_end_matches("data.pkl");
    let whole = |name: &str, limit: u64| {
        let Some(entry) = entries.get(name) else {
            return Ok(None);
        };
        match usize::try_from(entry.size) {
            Ok(size) if entry.size <= limit => {
                let start = zip::data(path, bytes, name, entry)?;
                piece(path, bytes, start, size).map(Some)
            }
            _ => Err(Error::malformed(
                path,
                format!(
                    "zip entry `{name}` has {} bytes, {limit} are allowed",
                    entry.size
                ),
            )),
        }
    };
    if let Some(order) = whole(&format!("{root}byteorder"), 16)?
        && order.trim_ascii() != b"little"
    {
        return Err(Error::malformed(
            path,
            "was saved on a big-endian machine; save it on another one",
        ));
    }
    let pickle = whole(pickle, MAX_PICKLE)?.unwrap_or_default();
    let mut tensors = BTreeMap::new();
    for (name, stored) in pickle::tensors(path, &pickle)? {
        let fault = |reason| Error::tensor(path, name, reason);
        check(&stored).map_err(fault)?;
        let key = format!("{root}data/{}", stored.key);
        let Some(entry) = entries.get(&key) else {
            return Err(fault(format!("the archive has no `{key}`")));
        };
        let size = u64::from(stored.dtype.bits() / 8);
        if (stored.elements as u64).checked_mul(size) != Some(entry.size) {
            return Err(fault(format!(
                "`{key}` has {} bytes and should have {} elements of {}",
                entry.size,
                stored.elements,
                stored.dtype.name()
            )));
        }
        let start = zip::data(path, bytes, &key, entry)?;
        let tensor = Tensor {
            dtype: stored.dtype,
            shape: stored.shape,
            strides: stored.strides,
            offset: start + stored.first as u64 * size,
        };
        // Of two entries with one name Python keeps the last.
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// Checks that a view stays within its storage, and does not make more of it than there is.
fn check(stored: &Stored<'_>) -> Result<(), String> {
    let (shape, strides) = (&stored.shape, &stored.strides);
    if shape.len() != strides.len() {
        return Err(format!("shape {shape:?} and strides {strides:?} disagree"));
    }
    let end = if shape.contains(&0) {
        Some(stored.first)
    } else {
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(stored.first, |last, (dim, stride)| {
                last.checked_add((dim - 1).checked_mul(*stride)?)
            });
        last.and_then(|last| last.checked_add(1))
    };
    let count = elements(shape).filter(|count| *count <= stored.elements);
    match (end, count) {
        (Some(end), Some(_)) if end <= stored.elements => Ok(()),
        _ => Err(format!(
            "shape {shape:?} with strides {strides:?} from element {} does not fit its storage of \
             {} elements",
            stored.first, stored.elements
        )),
    }
}
