//! Headers of safetensors files.
//!
//! A file is the length of its header (u64, little-endian), the header as JSON,
//! and the bytes of the tensors without gap or overlap, as the format's own
//! description demands.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::bytes::{ReadAt, piece};
use super::tensor::{Dtype, Tensor, dense_strides, elements};
use crate::{Error, Result};

/// Longest header that is read. The headers of a 9 B model have 60 KiB; this
/// is room for a hundred thousand tensors.
const MAX_HEADER: u64 = 16 << 20;

/// The tensors of a file.
pub(super) fn tensors(path: &Path, bytes: &dyn ReadAt) -> Result<BTreeMap<String, Tensor>> {
    let size = bytes.length();
    if size < 8 {
        return Err(Error::malformed(
            path,
            format!("has {size} bytes, too few for a safetensors header"),
        ));
    }
    let mut length = [0; 8];
    bytes
        .read_at(0, &mut length)
        .map_err(|e| Error::io(path, e))?;
    let length = u64::from_le_bytes(length);
    let header = match usize::try_from(length) {
        Ok(header) if length <= MAX_HEADER && length <= size - 8 => header,
        _ => {
            return Err(Error::malformed(
                path,
                format!(
                    "promises a header of {length} bytes, the file has {} after the length \
                     and {MAX_HEADER} are allowed",
                    size - 8
                ),
            ));
        }
    };
    let header = piece(path, bytes, 8, header)?;
    parse(path, &header, size - 8 - length)
}

/// A header, and what it says of `data` bytes behind it.
fn parse(path: &Path, header: &[u8], data: u64) -> Result<BTreeMap<String, Tensor>> {
    let start = 8 + header.len() as u64;
    let Header(mut entries) = serde_json::from_slice(header)
        .map_err(|e| Error::malformed(path, format!("safetensors header: {e}")))?;
    entries.sort_by_key(|(_, entry)| (entry.data_offsets, entry.shape.contains(&0)));
    let mut end = 0;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let (from, to) = entry.data_offsets;
        let fault = |reason| Error::tensor(path, &name, reason);
        let dtype =
            dtype(&entry.dtype).ok_or_else(|| fault(format!("unknown type `{}`", entry.dtype)))?;
        if to > data {
            return Err(fault(format!(
                "ends at byte {to} of the data, which has {data}; the file is cut off"
            )));
        }
        if from != end {
            let what = if from < end {
                "overlaps"
            } else {
                "leaves a gap to"
            };
            return Err(fault(format!(
                "begins at byte {from} and {what} the tensor before it, which ends at {end}"
            )));
        }
        let bits = elements(&entry.shape).and_then(|n| n.checked_mul(usize::from(dtype.bits())));
        let fits = bits.is_some_and(|bits| {
            bits.is_multiple_of(8) && to.checked_sub(from) == Some((bits / 8) as u64)
        });
        if !fits {
            return Err(fault(format!(
                "bytes {from}..{to} do not hold {} of the shape {:?}",
                dtype.name(),
                entry.shape
            )));
        }
        end = to;
        let tensor = Tensor {
            dtype,
            strides: dense_strides(&entry.shape),
            shape: entry.shape,
            offset: start + from,
        };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::tensor(path, name, "is listed twice"));
        }
    }
    if end != data {
        return Err(Error::malformed(
            path,
            format!("{} bytes at its end belong to no tensor", data - end),
        ));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// All entries in file order, repeated names included.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn dtype(name: &str) -> Option<Dtype> {
    let other = |name, bits| Some(Dtype::Other { name, bits });
    match name {
        "F32" => Some(Dtype::F32),
        "F16" => Some(Dtype::F16),
        "BF16" => Some(Dtype::Bf16),
        "C64" => other("C64", 64),
        "F64" => other("F64", 64),
        "I64" => other("I64", 64),
        "U64" => other("U64", 64),
        "I32" => other("I32", 32),
        "U32" => other("U32", 32),
        "I16" => other("I16", 16),
        "U16" => other("U16", 16),
        "I8" => other("I8", 8),
        "U8" => other("U8", 8),
        "BOOL" => other("BOOL", 8),
        "F8_E4M3" => other("F8_E4M3", 8),
        "F8_E5M2" => other("F8_E5M2", 8),
        "F8_E8M0" => other("F8_E8M0", 8),
        "F6_E2M3" => other("F6_E2M3", 6),
        "F6_E3M2" => other("F6_E3M2", 6),
        "F4" => other("F4", 4),
        _ => None,
    }
}
