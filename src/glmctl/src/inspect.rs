//! `glmctl inspect`: which GLM a checkpoint folder holds.

use std::path::Path;

use glm::spec::PositionEncoding;
use glm::{ModelSpec, TokenId};
use glm_onnx::source::Config;

use crate::failure::Result;
use crate::options::Output;
use crate::print;

/// Runs the command.
pub fn run(checkpoint: &Path, output: Output) -> Result<()> {
    let spec = Config::read(checkpoint, None)?.spec;
    match output {
        Output::Text => print::line(&text(&spec)),
        Output::Json => print::json(&spec),
    }
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
