//! The folder of installed models: one directory each, and beside the folder a link `model` to the one that is served.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use glm_onnx::model_dir;
use serde::Serialize;

use crate::failure::{Failure, Result};

/// Name of the link to the served model: what the key model.path of the packaged service names.
const LINK: &str = "model";

/// The folder.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

/// An installed model.
#[derive(Clone, Debug, Serialize)]
pub struct Installed {
    /// Name of its directory.
    pub name: String,
    /// Family.
    pub family: String,
    /// Numbers of its layers.
    pub quantisation: String,
    /// Size of its files.
    pub bytes: u64,
    /// Whether the link names it.
    pub active: bool,
    /// Its directory.
    pub path: PathBuf,
}

impl Store {
    /// Models in `folder`.
    pub const fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder, made if it is not there.
    pub fn folder(&self) -> Result<&Path> {
        fs::create_dir_all(&self.0).map_err(|e| Failure::io(self.0.display().to_string(), e))?;
        Ok(&self.0)
    }

    /// Where a model of this name is, installed or not.
    pub fn place(&self, name: &str) -> Result<PathBuf> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match name.starts_with('.') || name.is_empty() || !name.chars().all(fits) {
            true => Err(Failure::BadInput(format!(
                "`{name}` cannot name a directory; choose letters, digits, `-`, `_` and `.` with --name"
            ))),
            false => Ok(self.0.join(name)),
        }
    }

    /// The installed models by name.
    pub fn list(&self) -> Result<Vec<Installed>> {
        let fault = |e| Failure::io(self.0.display().to_string(), e);
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fault)?,
        };
        let active = self.link().and_then(|link| fs::canonicalize(link).ok());
        let mut models = Vec::new();
        for entry in entries {
            let path = entry.map_err(fault)?.path();
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name.filter(|name| !name.starts_with('.')) else {
                continue;
            };
            // What is no model is none of ours.
            let Ok(manifest) = model_dir::read_manifest(&path) else {
                continue;
            };
            models.push(Installed {
                name,
                family: manifest.spec.family.name().to_owned(),
                quantisation: manifest.quantisation.layers.to_string(),
                bytes: manifest.files.values().map(|file| file.size).sum(),
                active: active.is_some() && fs::canonicalize(&path).ok() == active,
                path,
            });
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Makes the link name a model, from one moment to the next. Returns the link.
    pub fn activate(&self, name: &str) -> Result<PathBuf> {
        let link = self.link().ok_or_else(|| {
            Failure::BadInput(format!("{} has no folder around it", self.0.display()))
        })?;
        let fault = |e| Failure::io(link.display().to_string(), e);
        if fs::symlink_metadata(&link).is_ok_and(|found| !found.is_symlink()) {
            let reason = "is no link, and is not replaced: move it away first";
            return Err(fault(io::Error::new(ErrorKind::AlreadyExists, reason)));
        }
        let folder = self.0.file_name().unwrap_or_default();
        let new = link.with_file_name(format!(".{LINK}.{}", std::process::id()));
        std::os::unix::fs::symlink(Path::new(folder).join(name), &new).map_err(fault)?;
        fs::rename(&new, &link).map_err(|error| {
            // Whatever happens to it, the failure is the one before.
            let _ = fs::remove_file(&new);
            fault(error)
        })?;
        Ok(link)
    }

    fn link(&self) -> Option<PathBuf> {
        let parent = self.0.parent()?;
        // `models` alone lies in the working folder.
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        Some(parent.join(LINK))
    }
}
