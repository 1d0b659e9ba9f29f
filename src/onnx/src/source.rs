//! What a checkpoint folder says of itself.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use glm::manifest::Sha256;
use glm::spec::Hints;
use glm::{Family, ModelSpec};
use serde_json::Value;
use sha2::Digest as _;

use crate::{Error, Result};

/// Longest configuration that is read. Real ones have a few KiB; tokenizer
/// configurations that list every added token stay below 1 MiB.
const MAX_CONFIG: u64 = 4 << 20;

/// `config.json` and `tokenizer_config.json` of a checkpoint.
#[derive(Clone, Debug)]
pub struct Config {
    /// What they describe.
    pub spec: ModelSpec,
    /// `config.json` as it is.
    pub bytes: Vec<u8>,
    /// `tokenizer_config.json`, where there is one.
    pub tokenizer: Option<Value>,
}

impl Config {
    /// Reads both; `family` is the user's word where the files do not tell.
    ///
    /// # Errors
    /// [`Error::Missing`] without `config.json`, [`Error::Malformed`] when a
    /// file is too long or no JSON, [`Error::Model`] naming the key.
    pub fn read(checkpoint: &Path, family: Option<Family>) -> Result<Self> {
        let path = checkpoint.join("config.json");
        let Some(bytes) = read_small(&path, MAX_CONFIG)? else {
            return Err(Error::Missing {
                path,
                hint: "name the folder that holds the downloaded checkpoint".to_owned(),
            });
        };
        let config = json(&path, &bytes)?;
        let path = checkpoint.join("tokenizer_config.json");
        let tokenizer = read_small(&path, MAX_CONFIG)?
            .map(|bytes| json(&path, &bytes))
            .transpose()?;
        let hints = Hints {
            family,
            tokenizer_config: tokenizer.as_ref(),
        };
        Ok(Self {
            spec: ModelSpec::from_config(&config, &hints)?,
            bytes,
            tokenizer,
        })
    }

    /// Hash of `config.json`.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        Sha256(sha2::Sha256::digest(&self.bytes).into())
    }
}

fn json(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::malformed(path, e.to_string()))
}

/// A file of up to `limit` bytes, or `None` when there is no such file.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::malformed(
            path,
            format!("is larger than {limit} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// Name of a folder, also of `.` and of paths that end in `..`.
pub(crate) fn name_of(folder: &Path) -> String {
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    name(folder)
        .or_else(|| name(&folder.canonicalize().unwrap_or_else(|_| PathBuf::new())))
        .unwrap_or_else(|| "model".to_owned())
}
