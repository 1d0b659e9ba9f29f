//! What is exported: a checkpoint, or a model directory that was exported before.

use std::path::Path;

use glm::ModelSpec;
use glm::manifest::{self, Manifest, Quantisation, Tasks};

use super::tokenizer::{self, Converted};
use super::{Options, Stage, Watch, companions, tell};
use crate::checkpoint::{Checkpoint, FamilyWeights};
use crate::exported::{self, Exported};
use crate::source::{self, Config};
use crate::weights::Weights;
use crate::{Error, Result};

/// A folder to export, its weights unread.
pub(super) struct Origin {
    pub(super) config: Config,
    pub(super) tokenizer: Converted,
    pub(super) license: Option<String>,
    numbers: Numbers,
    /// Name of the checkpoint that all of it comes from.
    checkpoint: String,
    /// How weights were kept on the way from there.
    rounded: Vec<Quantisation>,
}

/// Where the weights are.
enum Numbers {
    Checkpoint(Checkpoint),
    Exported(Box<Exported>, Box<Manifest>),
}

/// Weights whose names and shapes are right.
pub(super) enum Readable<'a> {
    Checkpoint(FamilyWeights<'a>),
    Exported(&'a Exported),
}

impl<'a> Readable<'a> {
    pub(super) fn as_weights(&self) -> &dyn Weights {
        match self {
            Self::Checkpoint(weights) => weights,
            Self::Exported(weights) => *weights,
        }
    }

    /// Whether the output head is the embedding table.
    pub(super) fn tied(&self) -> Result<bool> {
        match self {
            Self::Checkpoint(weights) => weights.head_is_embedding(),
            Self::Exported(weights) => weights.head_is_embedding(),
        }
    }

    /// Names of tensors that the model does not need; an exported model has none.
    pub(super) fn unused(&self) -> Vec<&'a str> {
        match self {
            Self::Checkpoint(weights) => weights.unused(),
            Self::Exported(_) => Vec::new(),
        }
    }
}

impl Origin {
    /// Opens the checkpoint in `folder` or, where it has no weights of one, the model directory.
    pub(super) fn open(folder: &Path, options: &Options, watch: Watch<'_>) -> Result<Self> {
        let exported = folder.join(manifest::FILE).is_file();
        if exported && !Checkpoint::is_in(folder)? {
            return Self::exported(folder, options, watch);
        }
        let config = Config::read(folder, options.family)?;
        let tokenizer = tokenizer::load(folder, &config)?;
        let checkpoint = Checkpoint::open(folder)?;
        Ok(Self {
            config,
            tokenizer,
            license: options.license.clone(),
            numbers: Numbers::Checkpoint(checkpoint),
            checkpoint: source::name_of(folder),
            rounded: Vec::new(),
        })
    }

    fn exported(folder: &Path, options: &Options, watch: Watch<'_>) -> Result<Self> {
        let manifest = exported::verified(folder, &mut |done, total| {
            tell(watch, Stage::Check, done, total)
        })?;
        let family = manifest.spec.family;
        if let Some(other) = options.family.filter(|other| *other != family) {
            let (other, family) = (other.name(), family.name());
            return Err(Error::Option {
                option: "family",
                reason: format!("is {other}, {} says {family}", manifest::FILE),
            });
        }
        let config = Config::read(folder, Some(family))?;
        let tokenizer = tokenizer::load_exported(folder, manifest.text_rules)?;
        let weights = Exported::open(folder, &manifest, &config.spec)?;
        let mut rounded = manifest.source.rounded.clone();
        let last = manifest.quantisation;
        if !last.is_exact() && rounded.last() != Some(&last) {
            rounded.push(last);
        }
        Ok(Self {
            config,
            tokenizer,
            license: options.license.clone().or_else(|| manifest.license.clone()),
            checkpoint: manifest.source.checkpoint.clone(),
            numbers: Numbers::Exported(Box::new(weights), Box::new(manifest)),
            rounded,
        })
    }

    /// The weights by what they mean.
    pub(super) fn weights(&self) -> Result<Readable<'_>> {
        Ok(match &self.numbers {
            Numbers::Checkpoint(checkpoint) => {
                Readable::Checkpoint(FamilyWeights::new(checkpoint, &self.config.spec)?)
            }
            Numbers::Exported(weights, _) => Readable::Exported(weights),
        })
    }

    /// What the model was trained for.
    pub(super) fn tasks(&self, folder: &Path, spec: &ModelSpec) -> Result<Tasks> {
        match &self.numbers {
            Numbers::Checkpoint(_) => companions::tasks(folder, spec),
            Numbers::Exported(_, manifest) => Ok(manifest.tasks.clone()),
        }
    }

    /// The same for the manifest.
    pub(super) fn record(&self) -> manifest::Source {
        manifest::Source {
            checkpoint: self.checkpoint.clone(),
            config_sha256: self.config.sha256(),
            exporter: concat!("glmd ", env!("CARGO_PKG_VERSION")).to_owned(),
            rounded: self.rounded.clone(),
        }
    }

    /// How the weights of a model directory were kept; `None` for a checkpoint.
    pub(super) fn kept(&self) -> Option<Quantisation> {
        match &self.numbers {
            Numbers::Checkpoint(_) => None,
            Numbers::Exported(_, manifest) => Some(manifest.quantisation),
        }
    }
}
