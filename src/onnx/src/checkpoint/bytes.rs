//! Bytes at an offset: files are read where their headers point, never whole.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::{Error, Result};

/// Something with bytes at offsets that several threads may read at once.
pub trait ReadAt: Debug + Send + Sync {
    /// Bytes in all.
    fn length(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// Of the system, and [`io::ErrorKind::UnexpectedEof`] behind the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// An open file. Its length is that of the moment of opening; a file that
/// shrinks later makes reads fail, it does not make them wrong.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    length: u64,
}

/// Opens a regular file. Pipes and devices would block or never end.
pub(super) fn open(path: &Path) -> Result<OpenFile> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::malformed(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    Ok(OpenFile { file, length })
}

impl ReadAt for OpenFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

/// Reads `length` bytes that a header promised. The caller has bounded `length`.
pub(super) fn piece(
    path: &Path,
    bytes: &dyn ReadAt,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    bytes
        .read_at(offset, &mut buffer)
        .map_err(|e| Error::io(path, e))?;
    Ok(buffer)
}
