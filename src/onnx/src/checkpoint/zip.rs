//! Where the stored entries of a zip archive lie (PKWARE APPNOTE, sections 4.3 and 4.5.3).
//!
//! PyTorch stores tensors as they are so that they can be read in place. An
//! entry that is packed or encrypted is none of its, and is refused rather than
//! unpacked: nothing here can be made larger than the file.

use std::collections::HashMap;
use std::path::Path;

use super::bytes::{ReadAt, piece};
use crate::{Error, Result};

/// Longest directory that is read: 80 bytes an entry make room for 200,000.
const MAX_DIRECTORY: u64 = 16 << 20;
/// End record and the longest comment behind it.
const MAX_TAIL: u64 = 22 + 0xffff;

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// A field whose value stands in the zip64 record or extra field.
const IN_64: u32 = u32::MAX;

/// An entry of the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    header: u64,
    /// Bytes of the file that it stores.
    pub(super) size: u64,
    plain: bool,
}

/// The directory of an archive by name.
pub(super) fn entries(path: &Path, bytes: &dyn ReadAt) -> Result<HashMap<String, Entry>> {
    let (start, size) = directory(path, bytes)?;
    let within = start
        .checked_add(size)
        .is_some_and(|end| end <= bytes.length());
    let length = match usize::try_from(size) {
        Ok(length) if within && size <= MAX_DIRECTORY => length,
        _ => {
            return Err(Error::malformed(
                path,
                format!(
                    "zip directory of {size} bytes at {start}, the file has {} and \
                     {MAX_DIRECTORY} are allowed",
                    bytes.length()
                ),
            ));
        }
    };
    let directory = piece(path, bytes, start, length)?;
    let mut entries = HashMap::new();
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let parsed = entry(rest).ok_or_else(|| {
            let at = directory.len() - rest.len();
            Error::malformed(path, format!("zip directory: bad entry at byte {at}"))
        })?;
        let (name, entry, length) = parsed;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(Error::malformed(
                path,
                format!("zip directory: `{name}` is listed twice"),
            ));
        }
        rest = &rest[length..];
    }
    Ok(entries)
}

/// Offset and length of the directory.
fn directory(path: &Path, bytes: &dyn ReadAt) -> Result<(u64, u64)> {
    let size = bytes.length();
    let tail_start = size.saturating_sub(MAX_TAIL);
    let length = usize::try_from(size - tail_start).unwrap_or_default();
    let tail = piece(path, bytes, tail_start, length)?;
    let found = (0..tail.len().saturating_sub(21))
        .rev()
        .find(|at| u32_at(&tail, *at) == Some(END));
    let Some(at) = found else {
        return Err(Error::malformed(
            path,
            "is not a whole zip archive: it is cut off, or was saved by PyTorch before 1.6 \
             (load and save it again)",
        ));
    };
    let bad = || Error::malformed(path, "zip end record is cut off");
    let size_32 = u32_at(&tail, at + 12).ok_or_else(bad)?;
    let start_32 = u32_at(&tail, at + 16).ok_or_else(bad)?;
    let Some(locator) = at
        .checked_sub(20)
        .filter(|at| u32_at(&tail, *at) == Some(LOCATOR_64))
    else {
        if start_32 == IN_64 || size_32 == IN_64 {
            return Err(Error::malformed(path, "zip64 end record is missing"));
        }
        return Ok((u64::from(start_32), u64::from(size_32)));
    };
    let record = u64_at(&tail, locator + 8).ok_or_else(bad)?;
    if record.checked_add(56).is_none_or(|end| end > size) {
        return Err(Error::malformed(path, "zip64 end record lies outside"));
    }
    let record = piece(path, bytes, record, 56)?;
    match (u32_at(&record, 0), u64_at(&record, 48), u64_at(&record, 40)) {
        (Some(END_64), Some(start), Some(size)) => Ok((start, size)),
        _ => Err(Error::malformed(path, "zip64 end record is broken")),
    }
}

/// Name, entry and length of the directory entry that `bytes` begins with.
fn entry(bytes: &[u8]) -> Option<(String, Entry, usize)> {
    if u32_at(bytes, 0)? != CENTRAL {
        return None;
    }
    let [flags, method] = [u16_at(bytes, 8)?, u16_at(bytes, 10)?];
    let [packed, size, header] = [u32_at(bytes, 20)?, u32_at(bytes, 24)?, u32_at(bytes, 42)?];
    let [name, extra, comment] = [28, 30, 32].map(|at| u16_at(bytes, at).map(usize::from));
    let (name, extra) = (46..46 + name?, extra?);
    let extra = name.end..name.end + extra;
    let length = extra.end + comment?;
    if length > bytes.len() {
        return None;
    }
    // Only fields that are full in the entry stand in the extra field, in this order.
    let mut wide = bytes.get(extra).and_then(zip64)?;
    let mut widen = |field: u32| {
        if field == IN_64 {
            let (value, rest) = wide.split_first_chunk()?;
            wide = rest;
            Some(u64::from_le_bytes(*value))
        } else {
            Some(u64::from(field))
        }
    };
    let (size, packed, header) = (widen(size)?, widen(packed)?, widen(header)?);
    let encrypted = flags & 1 != 0;
    let entry = Entry {
        header,
        size,
        plain: method == 0 && !encrypted && packed == size,
    };
    let name = String::from_utf8(bytes.get(name)?.to_vec()).ok()?;
    Some((name, entry, length))
}

/// The zip64 field among the extra fields; empty when there is none.
fn zip64(mut extra: &[u8]) -> Option<&[u8]> {
    while extra.len() >= 4 {
        let length = usize::from(u16_at(extra, 2)?);
        let field = extra.get(4..4 + length)?;
        if u16_at(extra, 0)? == 1 {
            return Some(field);
        }
        extra = &extra[4 + length..];
    }
    Some(&[])
}

/// Offset of the bytes of an entry, which lie in the file whole.
pub(super) fn data(path: &Path, bytes: &dyn ReadAt, name: &str, entry: &Entry) -> Result<u64> {
    let bad = |reason: &str| Error::malformed(path, format!("zip entry `{name}` {reason}"));
    if !entry.plain {
        return Err(bad(
            "is packed or encrypted; PyTorch stores tensors as they are",
        ));
    }
    let outside = "lies outside of the file, which is cut off";
    let file = bytes.length();
    // Names have two-byte lengths, so this is small.
    let length = 30 + name.len();
    let fits = |end: Option<u64>| end.is_some_and(|end| end <= file);
    if !fits(entry.header.checked_add(length as u64)) {
        return Err(bad(outside));
    }
    let header = piece(path, bytes, entry.header, length)?;
    let (Some(LOCAL), Some(named), Some(extra)) =
        (u32_at(&header, 0), u16_at(&header, 26), u16_at(&header, 28))
    else {
        return Err(bad("has no local header where the directory says"));
    };
    if usize::from(named) != name.len() || header.get(30..) != Some(name.as_bytes()) {
        return Err(bad("has another name in its local header"));
    }
    let start = entry.header + length as u64 + u64::from(extra);
    if !fits(start.checked_add(entry.size)) {
        return Err(bad(outside));
    }
    Ok(start)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
