//! From the keys of `config.json` to a [`ModelSpec`].
//!
//! `model_type` alone does not tell the families apart: `glm` names both the
//! original GLM and the GLM-4 of transformers, `chatglm` names four
//! architectures. The keys do.

use serde_json::{Value, json};

use super::keys::{Keys, bad, unsupported};
use super::vocabulary::{CHATGLM2_ROWS, GLM4_ROWS, causal_ids, chatglm_ids, original_ids};
use super::{
    Activation, Biases, Family, ModelSpec, Norm, PositionEncoding, Residual, Rotary, RotaryStyle,
    TensorLayout,
};
use crate::Result;

/// Residual factor of ChatGLM-6B: `sqrt(2 * 28)`. Its code takes the number of
/// layers from a default and not from the configuration, so the factor does
/// not follow the depth of the model at hand.
const CHATGLM_ALPHA: f64 = 7.483_314_773_547_883;

/// Epsilon of the original GLM and of ChatGLM-6B, which their code fixes.
const LAYER_NORM_EPS: f64 = 1e-5;

/// What `config.json` cannot say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// The user's word. ChatGLM2 and ChatGLM3 have the same tensors, so only
    /// the files around the weights, or this, tell them apart.
    pub family: Option<Family>,
    /// Parsed `tokenizer_config.json`, when the checkpoint has one.
    pub tokenizer_config: Option<&'a Value>,
}

pub(super) fn classify(config: &Value, hints: &Hints<'_>) -> Result<ModelSpec> {
    let keys = Keys::new(config)?;
    let Some(model_type) = keys.text("model_type")? else {
        return Err(bad(
            "model_type",
            "is missing; expected glm, glm4 or chatglm",
        ));
    };
    let spec = match model_type {
        "glm" if keys.has("num_layers") => original(keys)?,
        "glm" if keys.has("num_hidden_layers") => transformers(keys, false)?,
        "glm" => {
            return Err(bad(
                "num_layers",
                "is missing, and so is num_hidden_layers; one of them tells which GLM this is",
            ));
        }
        "glm4" => transformers(keys, true)?,
        "chatglm" if keys.has("padded_vocab_size") => encoder(keys, hints)?,
        "chatglm" if keys.has("inner_hidden_size") || keys.has("position_encoding_2d") => {
            chatglm(keys)?
        }
        "chatglm" => {
            return Err(bad(
                "padded_vocab_size",
                "is missing, and so is inner_hidden_size; one of them tells which ChatGLM this is",
            ));
        }
        other => {
            return Err(unsupported(
                "model_type",
                &json!(other),
                "supported are glm, glm4 and chatglm (text models only)",
            ));
        }
    };
    check(keys, &spec)?;
    match hints.family {
        Some(wanted) if wanted != spec.family => Err(bad(
            "model_type",
            format!(
                "the keys describe {}, not {}",
                spec.family.name(),
                wanted.name()
            ),
        )),
        _ => Ok(spec),
    }
}

/// Checks that hold for every family.
fn check(keys: Keys<'_>, spec: &ModelSpec) -> Result<()> {
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(bad(
            "num_key_value_heads",
            format!(
                "{} query heads cannot share {} key heads",
                spec.heads, spec.kv_heads
            ),
        ));
    }
    if let PositionEncoding::Rotary(r) = spec.positions {
        let turned = if r.two_dimensional {
            2 * r.dims
        } else {
            r.dims
        };
        if r.dims == 0 || !r.dims.is_multiple_of(2) || turned > spec.head_dim {
            return Err(bad(
                "head_dim",
                format!(
                    "{turned} rotary elements do not fit heads of {}",
                    spec.head_dim
                ),
            ));
        }
    }
    for key in ["quantization_bit", "pre_seq_len"] {
        if let Some(value) = keys.get(key).filter(|v| v.as_u64() != Some(0)) {
            return Err(unsupported(
                key,
                value,
                "export the unquantised checkpoint without prefix tuning",
            ));
        }
    }
    spec.special.check(spec.vocab_rows)
}

/// Width of a head when only the number of heads is given.
fn head_dim(keys: Keys<'_>, hidden: usize, heads: usize) -> Result<usize> {
    match keys.opt_size("head_dim")? {
        Some(d) => Ok(d),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(bad(
            "num_attention_heads",
            format!("{heads} heads do not divide a hidden size of {hidden}"),
        )),
    }
}

// === The original GLM ===

fn original(keys: Keys<'_>) -> Result<ModelSpec> {
    keys.require(
        "block_position_encoding",
        &json!(true),
        "only 2D position models are GLM",
    )?;
    keys.require(
        "relative_encoding",
        &json!(false),
        "relative positions are not supported",
    )?;
    keys.require(
        "output_predict",
        &json!(true),
        "the model must have a language-model head",
    )?;
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let vocab_rows = keys.size("vocab_size")?;
    let max_positions = keys.size("max_sequence_length")?;
    let residual = match keys.text("layernorm_order")? {
        None | Some("pre") => Residual::PreNorm,
        Some("post") => Residual::PostNorm {
            alpha: keys.positive_or("residual_alpha", 1.0)?,
        },
        Some(other) => {
            return Err(unsupported(
                "layernorm_order",
                &json!(other),
                "expected pre or post",
            ));
        }
    };
    let activation = match keys.text("hidden_act")? {
        None | Some("gelu") => Activation::GeluErf,
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_tanh") => Activation::GeluTanh,
        Some(other) => {
            return Err(unsupported(
                "hidden_act",
                &json!(other),
                "expected gelu or gelu_new",
            ));
        }
    };
    Ok(ModelSpec {
        family: Family::Glm,
        tensors: TensorLayout::Glm,
        layers: keys.size("num_layers")?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim: head_dim(keys, hidden, heads)?,
        ffn: keys.opt_size("inner_hidden_size")?.unwrap_or(4 * hidden),
        vocab_rows,
        max_positions,
        norm: Norm::LayerNorm {
            eps: keys.positive_or("layernorm_epsilon", LAYER_NORM_EPS)?,
        },
        residual,
        activation,
        positions: PositionEncoding::Learned {
            rows: max_positions + 1,
        },
        biases: Biases {
            qkv: true,
            linear: true,
        },
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        special: original_ids(keys, vocab_rows)?,
    })
}

// === ChatGLM-6B, first version ===

fn chatglm(keys: Keys<'_>) -> Result<ModelSpec> {
    keys.require(
        "position_encoding_2d",
        &json!(true),
        "ChatGLM-6B has 2D rotary positions",
    )?;
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let head_dim = head_dim(keys, hidden, heads)?;
    let vocab_rows = keys.size("vocab_size")?;
    Ok(ModelSpec {
        family: Family::ChatGlm,
        tensors: TensorLayout::ChatGlm,
        layers: keys.size("num_layers")?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: keys.size("inner_hidden_size")?,
        vocab_rows,
        max_positions: keys.size("max_sequence_length")?,
        norm: Norm::LayerNorm {
            eps: keys.positive_or("layernorm_epsilon", LAYER_NORM_EPS)?,
        },
        residual: Residual::PostNorm {
            alpha: CHATGLM_ALPHA,
        },
        activation: Activation::GeluTanh,
        positions: PositionEncoding::Rotary(Rotary {
            style: RotaryStyle::HalfSplit,
            dims: head_dim / 2,
            theta: 10_000.0,
            two_dimensional: true,
            f16_frequencies: true,
        }),
        biases: Biases {
            qkv: true,
            linear: true,
        },
        // The head is stored on its own and equals the table; the exporter compares.
        tied_head: keys.flag_or("tie_word_embeddings", false)?,
        special: chatglm_ids(keys, vocab_rows)?,
    })
}

// === ChatGLM2, ChatGLM3 and GLM-4-9B as remote code ===

fn encoder(keys: Keys<'_>, hints: &Hints<'_>) -> Result<ModelSpec> {
    let fixed = "only the released form of ChatGLM2, ChatGLM3 and GLM-4 is supported";
    for (key, value) in [
        ("add_bias_linear", json!(false)),
        ("add_qkv_bias", json!(true)),
        ("rmsnorm", json!(true)),
        ("multi_query_attention", json!(true)),
        ("post_layer_norm", json!(true)),
        ("apply_residual_connection_post_layernorm", json!(false)),
        ("original_rope", json!(true)),
    ] {
        keys.require(key, &value, fixed)?;
    }
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let head_dim = match keys.opt_size("kv_channels")? {
        Some(d) => d,
        None => head_dim(keys, hidden, heads)?,
    };
    let vocab_rows = keys.size("padded_vocab_size")?;
    let family = encoder_family(keys, hints, vocab_rows)?;
    Ok(ModelSpec {
        family,
        tensors: TensorLayout::Encoder,
        layers: keys.size_of(&["num_layers", "num_hidden_layers"])?,
        hidden,
        heads,
        kv_heads: keys.size("multi_query_group_num")?,
        head_dim,
        ffn: keys.size("ffn_hidden_size")?,
        vocab_rows,
        max_positions: keys.size("seq_length")?,
        norm: Norm::RmsNorm {
            eps: keys.positive_or("layernorm_epsilon", LAYER_NORM_EPS)?,
        },
        residual: Residual::PreNorm,
        activation: Activation::Silu,
        positions: PositionEncoding::Rotary(Rotary {
            style: RotaryStyle::Interleaved,
            dims: head_dim / 2,
            theta: 10_000.0 * keys.positive_or("rope_ratio", 1.0)?,
            two_dimensional: false,
            f16_frequencies: false,
        }),
        biases: Biases {
            qkv: true,
            linear: false,
        },
        tied_head: keys.flag_or("tie_word_embeddings", false)?,
        special: causal_ids(keys, vocab_rows)?,
    })
}

fn encoder_family(keys: Keys<'_>, hints: &Hints<'_>, vocab_rows: usize) -> Result<Family> {
    let name = keys
        .text("_name_or_path")?
        .unwrap_or_default()
        .to_ascii_lowercase();
    let named = |part: &str| name.contains(part);
    // GLM-4 stops at three role tokens; the ChatGLMs name one end of text.
    if vocab_rows == GLM4_ROWS
        || (vocab_rows != CHATGLM2_ROWS && (named("glm-4") || keys.ids("eos_token_id")?.len() > 1))
    {
        return Ok(Family::Glm4);
    }
    if let Some(family @ (Family::ChatGlm2 | Family::ChatGlm3)) = hints.family {
        return Ok(family);
    }
    // Only the tokenizer of ChatGLM3 knows roles, and only its longer models scale the rotary base.
    let roles = hints
        .tokenizer_config
        .is_some_and(|c| c.to_string().contains("<|observation|>"));
    if roles || named("chatglm3") || keys.has("rope_ratio") {
        return Ok(Family::ChatGlm3);
    }
    if named("chatglm2") || hints.tokenizer_config.is_some() {
        return Ok(Family::ChatGlm2);
    }
    match keys.size("seq_length")? {
        32_768 => Ok(Family::ChatGlm2),
        8_192 => Ok(Family::ChatGlm3),
        other => Err(unsupported(
            "seq_length",
            &json!(other),
            "ChatGLM2 and ChatGLM3 have the same tensors; name the family yourself (chatglm2 or chatglm3)",
        )),
    }
}

// === GLM-4, GLM-Edge and GLM-4-0414 as transformers writes them ===

fn transformers(keys: Keys<'_>, sandwich: bool) -> Result<ModelSpec> {
    keys.require("hidden_act", &json!("silu"), "these families use silu")?;
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let head_dim = head_dim(keys, hidden, heads)?;
    let vocab_rows = keys.size("vocab_size")?;
    let bias = keys.flag_or("attention_bias", sandwich)?;
    let rotary = transformers_rotary(keys, head_dim)?;
    let family = match (sandwich, bias, rotary.dims == head_dim) {
        (true, true, false) => Family::Glm40414,
        (false, true, false) => Family::Glm4,
        (false, false, true) => Family::GlmEdge,
        _ => {
            return Err(unsupported(
                "partial_rotary_factor",
                &json!(f64_ratio(rotary.dims, head_dim)),
                format!("no GLM pairs it with attention_bias = {bias}"),
            ));
        }
    };
    Ok(ModelSpec {
        family,
        tensors: TensorLayout::Transformers,
        layers: keys.size("num_hidden_layers")?,
        hidden,
        heads,
        kv_heads: keys.opt_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: keys.size("intermediate_size")?,
        vocab_rows,
        max_positions: keys.size("max_position_embeddings")?,
        norm: Norm::RmsNorm {
            eps: keys.positive_or("rms_norm_eps", LAYER_NORM_EPS)?,
        },
        residual: if sandwich {
            Residual::Sandwich
        } else {
            Residual::PreNorm
        },
        activation: Activation::Silu,
        positions: PositionEncoding::Rotary(rotary),
        biases: Biases {
            qkv: bias,
            linear: false,
        },
        tied_head: keys.flag_or("tie_word_embeddings", false)?,
        special: causal_ids(keys, vocab_rows)?,
    })
}

/// transformers 5 nests the rotary keys in `rope_parameters`, version 4 had them at the top.
fn transformers_rotary(keys: Keys<'_>, head_dim: usize) -> Result<Rotary> {
    let nested = match keys.get("rope_parameters") {
        Some(value) => Keys::new(value).map_err(|_| bad("rope_parameters", "must be an object"))?,
        None => keys,
    };
    let scaled = "rotary scaling is not supported; the released models run without it";
    nested.require("rope_type", &json!("default"), scaled)?;
    if let Some(value) = keys.get("rope_scaling") {
        let kind = value.get("rope_type").or_else(|| value.get("type"));
        if kind != Some(&json!("default")) {
            return Err(unsupported("rope_scaling", value, scaled));
        }
    }
    let theta = nested.positive_or("rope_theta", keys.positive_or("rope_theta", 10_000.0)?)?;
    if keys.has("rope_ratio") {
        let wanted = 10_000.0 * keys.positive_or("rope_ratio", 1.0)?;
        if (theta - wanted).abs() > 1e-6 * wanted {
            return Err(bad(
                "rope_theta",
                format!("is {theta}, but rope_ratio asks for {wanted}"),
            ));
        }
    }
    let factor = nested.positive_or(
        "partial_rotary_factor",
        keys.positive_or("partial_rotary_factor", 0.5)?,
    )?;
    let dims = (1..=head_dim)
        .rev()
        .find(|&d| f64_ratio(d, head_dim) <= factor + 1e-9);
    match dims {
        Some(dims) if factor <= 1.0 => Ok(Rotary {
            style: RotaryStyle::Interleaved,
            dims,
            theta,
            two_dimensional: false,
            f16_frequencies: false,
        }),
        _ => Err(bad(
            "partial_rotary_factor",
            format!("is {factor}; expected a share of the head up to 1"),
        )),
    }
}

#[allow(clippy::cast_precision_loss)]
fn f64_ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
