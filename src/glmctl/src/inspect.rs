//! `glmctl inspect`: which GLM a checkpoint folder holds.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use glm::spec::{Hints, PositionEncoding};
use glm::{ModelSpec, TokenId};
use glm_onnx::{Error, Result};
use serde_json::Value;

use crate::failure::Failure;
use crate::options::Output;
use crate::print;

/// Longest configuration that is read. Real ones have a few KiB; tokenizer
/// configurations that list every added token stay below 1 MiB.
const MAX_CONFIG: u64 = 4 << 20;

/// Runs the command.
pub fn run(checkpoint: &Path, output: Output) -> Result<(), Failure> {
    let spec = read(checkpoint)?;
    match output {
        Output::Text => print::line(&text(&spec)),
        Output::Json => print::json(&spec),
    }
}

/// Reads `config.json` and, where there is one, `tokenizer_config.json`.
fn read(checkpoint: &Path) -> Result<ModelSpec> {
    let path = checkpoint.join("config.json");
    let config = json(&path)?.ok_or_else(|| Error::Missing {
        path,
        hint: "name the folder that holds the downloaded checkpoint".to_owned(),
    })?;
    let tokenizer_config = json(&checkpoint.join("tokenizer_config.json"))?;
    let hints = Hints {
        tokenizer_config: tokenizer_config.as_ref(),
        ..Hints::default()
    };
    Ok(ModelSpec::from_config(&config, &hints)?)
}

/// A JSON file of bounded size, or `None` when there is no such file.
fn json(path: &Path) -> Result<Option<Value>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::malformed(
            path,
            format!("is larger than {MAX_CONFIG} bytes"),
        ));
    }
    let value =
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e.to_string()))?;
    Ok(Some(value))
}

/// The description as aligned lines.
fn text(spec: &ModelSpec) -> String {
    let id = |id: Option<TokenId>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let positions = match spec.positions {
        PositionEncoding::Learned { rows } => format!("learned 2D, {rows} rows each"),
        PositionEncoding::Rotary(r) => format!(
            "rotary {:?}, {} of {} elements, theta {}{}",
            r.style,
            r.dims,
            spec.head_dim,
            r.theta,
            if r.two_dimensional { ", 2D" } else { "" }
        ),
    };
    let special = &spec.special;
    [
        ("family", spec.family.name().to_owned()),
        (
            "fills blanks",
            if spec.family.fills_blanks() {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ),
        ("layers", spec.layers.to_string()),
        ("hidden", spec.hidden.to_string()),
        (
            "heads",
            format!(
                "{} of {}, {} for keys",
                spec.heads, spec.head_dim, spec.kv_heads
            ),
        ),
        ("mlp", format!("{} ({:?})", spec.ffn, spec.activation)),
        ("vocabulary", format!("{} rows", spec.vocab_rows)),
        ("longest text", spec.max_positions.to_string()),
        ("norm", format!("{:?}, {:?}", spec.norm, spec.residual)),
        ("positions", positions),
        (
            "ids",
            format!(
                "[MASK] {}  [sMASK] {}  [gMASK] {}  sop {}  eop {}",
                id(special.mask),
                id(special.smask),
                id(special.gmask),
                id(special.sop),
                id(special.eop)
            ),
        ),
    ]
    .map(|(name, value)| format!("{name:<14}{value}"))
    .join("\n")
}
