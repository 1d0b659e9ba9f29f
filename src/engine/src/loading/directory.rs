//! A model directory as it lies on disk.
//!
//! What `glmctl export` writes has a `glm.json`, which says everything and
//! what every file must look like. Decoder exports of other programs have
//! none: then `config.json` and `tokenizer.json` must do.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm::ModelSpec;
use glm::manifest::{self, Manifest};
use glm::spec::{Family, SpecialIds};
use glm::tokenizer::{TextRules, Tokenizer};
use glm_onnx::model_dir;
use glm_onnx::source::Config;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Longest configuration or template that is read; real ones stay below 1 MiB.
const MAX_TEXT: u64 = 16 << 20;
/// Longest tokenizer that is read; the largest GLM vocabulary takes about 20 MB.
const MAX_TOKENIZER: u64 = 128 << 20;

/// A directory that has been looked at; nothing of the weights is read yet.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The directory.
    pub folder: PathBuf,
    /// The graph in it.
    pub graph: PathBuf,
    /// `glm.json`, where the directory has one.
    pub manifest: Option<Manifest>,
    /// Name of the model.
    pub id: String,
    /// Hash over the hashes of all files, hexadecimal.
    pub digest: String,
    /// Family and shape.
    pub spec: ModelSpec,
    /// Special tokens.
    pub special: SpecialIds,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
    /// Longest text that the graph can run, in tokens.
    pub context: usize,
}

impl Directory {
    /// Reads everything but graph and weights; with a manifest, checks that every file is there and as long as it says.
    ///
    /// # Errors
    /// [`Error::Load`] naming the file and what is wrong with it.
    pub fn read(folder: &Path) -> Result<Self> {
        if folder.join(manifest::FILE).exists() {
            Self::exported(folder)
        } else {
            Self::foreign(folder)
        }
    }

    fn exported(folder: &Path) -> Result<Self> {
        let manifest = model_dir::read_manifest(folder).map_err(unreadable)?;
        model_dir::check_sizes(folder, &manifest).map_err(unreadable)?;
        let mut hash = Sha256::new();
        for (name, record) in &manifest.files {
            hash.update(format!("{}  {name}\n", record.sha256));
        }
        let tokenizer = tokenizer(folder, manifest.text_rules)?;
        tokenizer
            .check_vocab(manifest.spec.vocab_rows)
            .map_err(|error| failed(folder, error))?;
        Ok(Self {
            graph: folder.join(model_dir::GRAPH),
            id: manifest.name.clone(),
            digest: hex(&hash.finalize()),
            spec: manifest.spec.clone(),
            special: manifest.spec.special.clone(),
            tokenizer: Arc::new(tokenizer),
            chat_template: chat_template(folder)?,
            context: manifest.context,
            folder: folder.to_owned(),
            manifest: Some(manifest),
        })
    }

    fn foreign(folder: &Path) -> Result<Self> {
        if !folder.join("config.json").exists() {
            let reason = "holds neither glm.json nor config.json: not a model directory";
            return Err(failed(folder, reason));
        }
        let spec = Config::read(folder, None).map_err(unreadable)?.spec;
        if matches!(spec.family, Family::Glm | Family::ChatGlm) {
            // Their text rules and ids are in no file that other exporters write.
            let reason = "has no glm.json; export this family with `glmctl export`";
            return Err(failed(folder, reason));
        }
        let genai = json(&folder.join("genai_config.json"))?;
        let graph = graph_of(folder, genai.as_ref());
        let tokenizer = tokenizer(folder, TextRules::None)?;
        let special = tokenizer
            .specials(&spec)
            .map_err(|error| failed(folder, error))?;
        let context = genai
            .as_ref()
            .and_then(|value| value.pointer("/model/context_length")?.as_u64())
            .and_then(|length| usize::try_from(length).ok())
            .map_or(spec.max_positions, |length| length.min(spec.max_positions));
        let name = folder.file_name().map(|name| name.to_string_lossy().into());
        Ok(Self {
            id: name.unwrap_or_else(|| "model".to_owned()),
            digest: unlisted_digest(folder, &graph)?,
            special,
            tokenizer: Arc::new(tokenizer),
            chat_template: chat_template(folder)?,
            context,
            spec,
            graph,
            folder: folder.to_owned(),
            manifest: None,
        })
    }

    /// Hashes every file that the manifest names; calls `progress` with the bytes that are done and all of them.
    ///
    /// # Errors
    /// [`Error::Load`] naming the first file that differs, or that there is no manifest to compare with.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let manifest = self.manifest.as_ref().ok_or_else(|| {
            let reason = "has no glm.json, so there is nothing to compare with";
            failed(&self.folder, reason)
        })?;
        model_dir::verify(&self.folder, manifest, &mut |done, total| {
            progress(done, total);
            Ok(())
        })
        .map_err(unreadable)
    }
}

/// The graph of a directory without manifest.
fn graph_of(folder: &Path, genai: Option<&Value>) -> PathBuf {
    let named = genai
        .and_then(|value| value.pointer("/model/decoder/filename")?.as_str())
        .filter(|name| !name.contains(['/', '\\']));
    let tried = [
        named.unwrap_or(model_dir::GRAPH),
        model_dir::GRAPH,
        "onnx/model.onnx",
    ]
    .map(|name| folder.join(name));
    let [first, ..] = &tried;
    tried
        .iter()
        .find(|path| path.is_file())
        .unwrap_or(first)
        .clone()
}

/// What tells apart models without manifest: the graph itself, and sizes and times of what lies beside it.
fn unlisted_digest(folder: &Path, graph: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(fs::read(graph).map_err(|error| failed(graph, error))?);
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let mut beside: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(format!(
                "{} {:?} {name}\n",
                metadata.len(),
                metadata.modified().ok()
            ))
        })
        .collect();
    beside.sort();
    hash.update(beside.concat());
    Ok(hex(&hash.finalize()))
}

fn tokenizer(folder: &Path, rules: TextRules) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let bytes = read(&path, MAX_TOKENIZER)?.ok_or_else(|| failed(&path, "no such file"))?;
    Tokenizer::from_json(&bytes, rules).map_err(|error| failed(&path, error))
}

fn chat_template(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    read(&path, MAX_TEXT)?
        .map(|bytes| String::from_utf8(bytes).map_err(|error| failed(&path, error)))
        .transpose()
}

fn json(path: &Path) -> Result<Option<Value>> {
    read(path, MAX_TEXT)?
        .map(|bytes| serde_json::from_slice(&bytes).map_err(|error| failed(path, error)))
        .transpose()
}

/// A file of bounded size, or `None` when there is no such file.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(path, error))?;
    if bytes.len() as u64 > most {
        return Err(failed(path, format!("is larger than {most} bytes")));
    }
    Ok(Some(bytes))
}

/// An error of the reader, which names the file itself.
fn unreadable(error: glm_onnx::Error) -> Error {
    Error::Load {
        reason: error.to_string(),
    }
}

pub(super) fn failed(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Error {
    Error::Load {
        reason: format!("{}: {reason}", path.as_ref().display()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
