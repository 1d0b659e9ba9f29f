//! `glm.json`: what an exported model is, beside what its graph computes.
//!
//! The exporter writes it last, when every other file of the model directory
//! is whole; whoever loads the directory reads it first. It says which family
//! the model is ([`ModelSpec`]), how text becomes ids ([`TextRules`]), how
//! exactly weights are kept, what every file must hash to, what the model must
//! answer to a few prompts ([`Golden`]) and which [`Task`]s it was trained for.
//! Unknown keys are refused: a manifest that says more than a program
//! understands may mean something else than the program does.

mod golden;
mod precision;
mod sha256;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use golden::{Golden, GoldenLogit, GoldenPrompt};
pub use precision::{Block, Kept, Number, Quantisation};
pub use sha256::Sha256;
pub use tasks::{Normalize, Task, Tasks, tasks_from_json};

use crate::tokenizer::TextRules;
use crate::{Error, ModelSpec, Result};

/// Name of the manifest inside a model directory.
pub const FILE: &str = "glm.json";
/// Name of the file of tasks inside a checkpoint.
pub const TASKS_FILE: &str = "tasks.json";
/// The form of the manifest that this version reads and writes.
pub const FORMAT: u32 = 1;

/// A model directory, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Form of this file; [`FORMAT`].
    pub format: u32,
    /// Name of the model.
    pub name: String,
    /// SPDX expression of the licence of the weights, where the exporter was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What the model was made from.
    pub source: Source,
    /// The model: family, sizes, positions, special ids completed by the tokenizer.
    pub spec: ModelSpec,
    /// Rules that `tokenizer.json` cannot carry.
    pub text_rules: TextRules,
    /// Longest text that the graph can run, in tokens.
    pub context: usize,
    /// How exactly weights are kept.
    pub quantisation: Quantisation,
    /// Every other file of the directory by name.
    pub files: BTreeMap<String, FileRecord>,
    /// What the model must answer.
    pub golden: Golden,
    /// What the model was trained to be asked, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: Tasks,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the checkpoint folder, or what its configuration calls itself.
    pub checkpoint: String,
    /// SHA-256 of its `config.json`.
    pub config_sha256: Sha256,
    /// Program and version that exported it.
    pub exporter: String,
    /// How the weights had been rounded before, the oldest first: an exported model was exported again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounded: Vec<Quantisation>,
}

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// Hash of all of them.
    pub sha256: Sha256,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`Error::Manifest`] naming the key that is unknown, missing or out of range.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let value = document(FILE, bytes)?;
        // Told apart first: a later form will have keys that are unknown here.
        let format = value.get("format").and_then(Value::as_u64);
        if format != Some(u64::from(FORMAT)) {
            let found = value
                .get("format")
                .map_or_else(|| "missing".to_owned(), Value::to_string);
            let reason = format!("is {found}; this version reads format {FORMAT}");
            return Err(bad(FILE, "format", reason));
        }
        let manifest: Self = typed(FILE, value)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The file.
    ///
    /// # Errors
    /// [`Error::Manifest`] when a value is out of range or cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| bad(FILE, "glm.json", error.to_string()))?;
        text.push('\n');
        Ok(text)
    }

    /// Refuses values that contradict each other.
    ///
    /// # Errors
    /// [`Error::Manifest`] naming the key.
    pub fn check(&self) -> Result<()> {
        if self.format != FORMAT {
            return Err(bad(FILE, "format", format!("must be {FORMAT}")));
        }
        if self.name.trim().is_empty() {
            return Err(bad(FILE, "name", "is empty"));
        }
        for name in self.files.keys() {
            if !is_plain_name(name) || name == FILE {
                let key = format!("files.{name}");
                return Err(bad(FILE, &key, "is not the name of a file beside this one"));
            }
        }
        self.spec
            .special
            .check(self.spec.vocab_rows)
            .map_err(|error| bad(FILE, "spec.special", error.to_string()))?;
        if self.context == 0 || self.context > self.spec.max_positions {
            let most = self.spec.max_positions;
            return Err(bad(FILE, "context", format!("must be 1 to {most}")));
        }
        self.quantisation
            .check()
            .map_err(|(key, reason)| bad(FILE, &format!("quantisation.{key}"), reason))?;
        self.golden
            .check(&self.spec)
            .map_err(|(key, reason)| bad(FILE, &format!("golden.{key}"), reason))?;
        tasks::check(FILE, "tasks.", &self.tasks, &self.spec)
    }
}

/// Whether `name` is a file in the same folder whatever the system.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}

fn bad(file: &str, key: &str, reason: impl Into<String>) -> Error {
    Error::Manifest {
        file: file.to_owned(),
        key: key.to_owned(),
        reason: reason.into(),
    }
}

fn document(file: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| bad(file, file, error.to_string()))
}

/// A value of the wanted type, or an error that names the way to the key.
fn typed<T: DeserializeOwned>(file: &str, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let key = if path == "." { file } else { &path };
        bad(file, key, error.inner().to_string())
    })
}
