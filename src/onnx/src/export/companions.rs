//! The small files of a model directory.

use std::fs;
use std::path::Path;

use glm::manifest::{self, Tasks};
use glm::spec::Visibility;
use glm::{ModelSpec, TokenId};
use serde_json::{Value, json};

use super::Profile;
use super::tokenizer::Converted;
use crate::model_dir::GRAPH;
use crate::source::{Config, read_small};
use crate::{Error, Result};

/// Longest small file that is read.
const MAX_FILE: u64 = 4 << 20;
/// Files of a checkpoint that go along as they are.
const COPIED: [&str; 5] = [
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "MODEL_LICENSE",
    "NOTICE",
];
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The tasks that a checkpoint was trained for.
pub(super) fn tasks(source: &Path, spec: &ModelSpec) -> Result<Tasks> {
    match read_small(&source.join(manifest::TASKS_FILE), MAX_FILE)? {
        Some(bytes) => Ok(manifest::tasks_from_json(&bytes, spec)?),
        None => Ok(Tasks::new()),
    }
}

/// Writes all of them. `spec` has the special ids of the tokenizer.
pub(super) fn write(
    folder: &Path,
    source: &Path,
    config: &Config,
    spec: &ModelSpec,
    tokenizer: &Converted,
    profile: Profile,
) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|e| Error::io(&path, e))
    };
    put("config.json", &config.bytes)?;
    for name in COPIED {
        if let Some(bytes) = read_small(&source.join(name), MAX_FILE)? {
            put(name, &bytes)?;
        }
    }
    put("tokenizer.json", &tokenizer.json)?;
    if let Some(settings) = &config.tokenizer {
        let settings = tokenizer_settings(settings, tokenizer.converted);
        put("tokenizer_config.json", pretty(&settings).as_bytes())?;
    }
    if spec.family.chats() {
        let template = match read_small(&source.join(CHAT_TEMPLATE), MAX_FILE)? {
            Some(bytes) => Some(bytes),
            None => config.tokenizer.as_ref().and_then(template_within),
        };
        if let Some(template) = template {
            put(CHAT_TEMPLATE, &template)?;
        }
    }
    // ONNX Runtime GenAI wants steps of any size.
    if spec.visibility() == Visibility::Causal && profile == Profile::Cpu {
        put("genai_config.json", pretty(&genai(spec)).as_bytes())?;
    }
    Ok(())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What other tools may still believe of a tokenizer that is now a
/// `tokenizer.json`: not that Python code of the checkpoint reads it.
fn tokenizer_settings(settings: &Value, converted: bool) -> Value {
    let mut settings = settings.clone();
    if let Some(keys) = settings.as_object_mut() {
        keys.remove("auto_map");
        if converted {
            keys.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        }
    }
    settings
}

/// `chat_template` of a `tokenizer_config.json`: a text, or a list of named ones.
fn template_within(settings: &Value) -> Option<Vec<u8>> {
    let template = settings.get("chat_template")?;
    let text = match template.as_array() {
        None => template.as_str()?,
        Some(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?
            .get("template")?
            .as_str()?,
    };
    Some(text.as_bytes().to_vec())
}

/// `genai_config.json` of ONNX Runtime GenAI.
fn genai(spec: &ModelSpec) -> Value {
    let special = &spec.special;
    let id = |id: Option<TokenId>| id.map(|id| id.0);
    let mut ends: Vec<u32> = special.eos.iter().map(|id| id.0).collect();
    if ends.is_empty() {
        ends.extend(id(special.eop));
    }
    let pad = id(special.pad)
        .or(ends.first().copied())
        .unwrap_or_default();
    json!({
        "model": {
            "type": "decoder",
            "context_length": spec.max_positions,
            "vocab_size": spec.vocab_rows,
            "bos_token_id": id(special.sop).unwrap_or(pad),
            "eos_token_id": ends,
            "pad_token_id": pad,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH,
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden,
                "num_attention_heads": spec.heads,
                "num_hidden_layers": spec.layers,
                "num_key_value_heads": spec.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": false,
            "early_stopping": true,
            "max_length": spec.max_positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": true,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    })
}
