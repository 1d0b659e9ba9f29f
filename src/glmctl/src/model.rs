//! `glmctl model`: model directories on disk.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use glm_onnx::model_dir;
use serde_json::json;

use crate::failure::Result;
use crate::options::Output;
use crate::print;
use crate::progress::watched;

/// Commands on model directories.
#[derive(Clone, Debug, Subcommand)]
pub enum Model {
    /// Compare size and hash of every file with the manifest
    Verify {
        /// Model directory
        dir: PathBuf,
    },
}

impl Model {
    /// Runs the command.
    pub fn run(self, output: Output) -> Result<()> {
        match self {
            Self::Verify { dir } => verify(&dir, output),
        }
    }
}

fn verify(dir: &Path, output: Output) -> Result<()> {
    let folder = dir.to_owned();
    let manifest = watched(move |bar| {
        let manifest = model_dir::read_manifest(&folder)?;
        model_dir::verify(&folder, &manifest, &mut |done, total| match bar
            .at("hashes", done, total)
            .is_continue()
        {
            true => Ok(()),
            false => Err(glm_onnx::Error::Cancelled),
        })?;
        Ok(manifest)
    })?;
    let files = manifest.files.len();
    match output {
        Output::Json => print::json(&json!({"name": manifest.name, "files": files})),
        Output::Text => print::line(&format!(
            "{}: {}, all {files} files are as the manifest says",
            dir.display(),
            manifest.name
        )),
    }
}
