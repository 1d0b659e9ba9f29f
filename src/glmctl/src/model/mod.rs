//! `glmctl model`: model directories on disk.
//!
//! | module | what it does |
//! |---|---|
//! | [`install`] | from a folder, an archive or a URL to a model that is whole or not there |
//! | [`fetch`] | downloads that go on where they broke off |
//! | [`unpack`] | archives, of which nothing is believed |
//! | [`store`] | the folder of models, and which of them is served |

mod fetch;
mod install;
mod store;
mod unpack;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use glm_onnx::model_dir;
use serde_json::json;

use crate::commands::operate::bytes;
use crate::failure::Failure;
use crate::progress::Bar;
use store::Store;

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
    /// Show the installed models
    List {
        #[command(flatten)]
        place: Place,
    },
    Install(install::Install),
}

/// Where models are kept.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Folder of the installed models
    #[arg(
        long,
        env = "GLMD_MODELS",
        default_value = "/var/lib/glmd/models",
        value_name = "DIR"
    )]
    models: PathBuf,
}

impl Model {
    /// Runs the command.
    pub fn run(self, output: Output) -> Result<()> {
        match self {
            Self::Verify { dir } => verify(&dir, output),
            Self::List { place } => list(&Store::new(place.models), output),
            Self::Install(install) => install.run(output),
        }
    }
}

fn list(store: &Store, output: Output) -> Result<()> {
    let models = store.list()?;
    if output == Output::Json {
        return print::json(&models);
    }
    for model in models {
        print::line(&format!(
            "{} {:<24} {:<10} {:<10} {:>9}  {}",
            if model.active { "*" } else { " " },
            model.name,
            model.family,
            model.quantisation,
            bytes(model.bytes),
            model.path.display(),
        ))?;
    }
    Ok(())
}

/// Compares every file of a model directory with its manifest.
fn check(folder: &Path, bar: &Bar) -> Result<glm::manifest::Manifest> {
    let manifest = model_dir::read_manifest(folder)?;
    let compared = model_dir::verify(folder, &manifest, &mut |done, total| match bar
        .at("hashes", done, total)
        .is_continue()
    {
        true => Ok(()),
        false => Err(glm_onnx::Error::Cancelled),
    });
    match compared {
        Err(glm_onnx::Error::Cancelled) => Err(Failure::Interrupted),
        compared => Ok(compared.map(|()| manifest)?),
    }
}

fn verify(dir: &Path, output: Output) -> Result<()> {
    let folder = dir.to_owned();
    let manifest = watched(move |bar| check(&folder, bar))?;
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
