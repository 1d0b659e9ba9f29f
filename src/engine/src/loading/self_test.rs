//! What a backend must answer before it is trusted.

use glm::manifest::{Golden, GoldenPrompt};
use glm::{Position, TokenId};

use crate::backend::{Backend, Row, SeqId, Step};

/// The engine counts its sequences up from 0; the self-test has the last one to itself.
const SEQUENCE: SeqId = SeqId(u64::MAX);

/// Runs every golden prompt; returns how far the worst logit is off.
///
/// # Errors
/// When the backend fails, or a logit is further off than the model allows.
pub(super) fn golden(backend: &mut dyn Backend, golden: &Golden) -> Result<f32, String> {
    let mut worst = 0.0_f32;
    for (number, prompt) in golden.prompts.iter().enumerate() {
        let deviation = prompt.deviation(&last_row(backend, &step(prompt))?);
        // What is missing or no number is infinitely far off.
        if deviation > golden.tolerance {
            return Err(format!(
                "self-test: prompt {number} is off by {deviation}, the model allows {}",
                golden.tolerance
            ));
        }
        worst = worst.max(deviation);
    }
    Ok(worst)
}

/// For models that bring no answers: one token must give finite logits.
///
/// # Errors
/// When it does not.
pub(super) fn finite(backend: &mut dyn Backend) -> Result<(), String> {
    let step = Step {
        rows: vec![Row {
            seq: SEQUENCE,
            id: TokenId(0),
            position: Position::context(0),
            visible: 1,
            logits: true,
        }],
    };
    if last_row(backend, &step)?
        .iter()
        .all(|value| value.is_finite())
    {
        Ok(())
    } else {
        Err("self-test: logits are no numbers".to_owned())
    }
}

fn step(prompt: &GoldenPrompt) -> Step {
    let last = prompt.ids.len().saturating_sub(1);
    let rows = prompt.ids.iter().zip(prompt.places()).enumerate();
    Step {
        rows: rows
            .map(|(index, (id, position))| Row {
                seq: SEQUENCE,
                id: *id,
                position,
                visible: u32::try_from(prompt.bidirectional.max(index + 1)).unwrap_or(u32::MAX),
                logits: index == last,
            })
            .collect(),
    }
}

fn last_row(backend: &mut dyn Backend, step: &Step) -> Result<Vec<f32>, String> {
    let logits = backend
        .forward(step)
        .map_err(|error| format!("self-test: {error}"));
    backend.release(SEQUENCE);
    Ok(logits?.values)
}
