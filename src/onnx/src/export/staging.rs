//! A folder that takes its name when it is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use glm::manifest;

use crate::source::name_of;
use crate::{Error, Result};

/// A folder beside the destination. Dropped before [`commit`](Staging::commit), it is removed.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    out: PathBuf,
    whole: bool,
}

/// Refuses a destination that is there, or with `force` one that is no model directory.
pub(super) fn check_destination(out: &Path, force: bool) -> Result<()> {
    let found = match out.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(out, error)),
    };
    let refuse = |reason: &str| {
        Err(Error::Option {
            option: "out",
            reason: format!("{} {reason}", out.display()),
        })
    };
    if !force {
        return refuse("is there already; choose another folder, or replace it with --force");
    }
    let empty = || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if !found.is_dir() || !(out.join(manifest::FILE).is_file() || empty()) {
        return refuse("is not a model directory, so --force does not replace it");
    }
    Ok(())
}

impl Staging {
    pub(super) fn new(out: &Path) -> Result<Self> {
        let path = beside(out, "partial");
        // Left by a process of the same id that was killed.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(&path, error));
            }
            _ => {}
        }
        fs::create_dir(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                path: parent(out).to_owned(),
                hint: "make this folder first".to_owned(),
            },
            _ => Error::io(&path, error),
        })?;
        Ok(Self {
            path,
            out: out.to_owned(),
            whole: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings every file to the disk and gives the folder its name.
    pub(super) fn commit(mut self, force: bool) -> Result<()> {
        let entries = fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?;
        for entry in entries {
            sync(&entry.map_err(|e| Error::io(&self.path, e))?.path())?;
        }
        sync(&self.path)?;
        // It may have come into being meanwhile.
        check_destination(&self.out, force)?;
        let old = beside(&self.out, "old");
        let replaces = self.out.exists();
        if replaces {
            fs::rename(&self.out, &old).map_err(|e| Error::io(&self.out, e))?;
        }
        if let Err(error) = fs::rename(&self.path, &self.out) {
            if replaces {
                // The first error is the one to report.
                let _ = fs::rename(&old, &self.out);
            }
            return Err(Error::io(&self.out, error));
        }
        self.whole = true;
        sync(parent(&self.out))?;
        if replaces {
            fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.whole {
            // The error that led here is the one to report.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(path, error))
}

/// A hidden name beside the destination that no other process uses.
fn beside(out: &Path, what: &str) -> PathBuf {
    let name = format!(".{}.{what}-{}", name_of(out), std::process::id());
    parent(out).join(name)
}

fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
