//! What every request for text says, in the engine's terms.

use std::time::Duration;

use glm_engine::constraint::Grammar;
use glm_engine::ops::{Sampling, Terms};
use glm_engine::units::Priority;
use glm_wire::common::Control;
use glm_wire::error::{ErrorDetail, ErrorKind};
use glm_wire::format::{ResponseFormat, Stop};

/// Who asks, when and in which order.
pub(super) fn terms(control: Control, client: Box<str>) -> Terms {
    Terms {
        priority: match control.priority {
            glm_wire::Priority::Low => Priority::Low,
            glm_wire::Priority::Normal => Priority::Normal,
            glm_wire::Priority::High => Priority::High,
        },
        deadline: control.deadline_ms.map(Duration::from_millis),
        coalesce_key: control.coalesce_key.map(Into::into),
        client,
    }
}

/// How tokens are chosen.
pub(super) fn sampling(
    wire: &glm_wire::common::Sampling,
    stop: Option<Stop>,
    logprobs: Option<usize>,
) -> Sampling {
    Sampling {
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: wire.top_k,
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        seed: wire.seed,
        stop: stop.map(Stop::into_vec).unwrap_or_default(),
        logprobs,
    }
}

/// A request that names a model must mean the one that is loaded.
pub(super) fn check_model(wanted: Option<&str>, loaded: &str) -> Result<(), ErrorDetail> {
    match wanted {
        Some(name) if name != loaded => Err(ErrorDetail::new(
            ErrorKind::NotFound,
            "model_not_found",
            format!("`model`: `{loaded}` is loaded, not the one that is asked for; leave the field out or name it"),
        )
        .with_param("model")),
        _ => Ok(()),
    }
}

/// What an answer must look like.
pub(super) fn grammar(format: Option<ResponseFormat>) -> Option<Grammar> {
    match format? {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(Grammar::JsonObject),
        ResponseFormat::JsonSchema { json_schema } => Some(Grammar::JsonSchema(json_schema.schema)),
        ResponseFormat::Regex { pattern } => Some(Grammar::Regex(pattern)),
        ResponseFormat::Choice { choices } => Some(Grammar::Choice(choices)),
    }
}

/// Seconds since 1970, as OpenAI dates answers.
pub(super) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is no reason to fail.
    since.map_or(0, |time| time.as_secs())
}
