//! Shapes to measure: sizes of released models, and how their weights are kept.

use clap::ValueEnum;
use glm::ModelSpec;
use glm::spec::Hints;
use glm_onnx::graph::{Block, Options, Precision, Quantisation, Scheme, Table};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};

/// A released model to take the sizes of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// The bundled model: 6 layers of 384
    GlmMini,
    /// GLM-Edge-1.5B-chat: 28 layers of 2048
    #[default]
    #[value(name = "glm-edge-1.5b")]
    GlmEdge1_5b,
    /// GLM-Edge-4B-chat: 40 layers of 3072
    #[value(name = "glm-edge-4b")]
    GlmEdge4b,
    /// GLM-large: 24 layers of 1024, bidirectional
    GlmLarge,
    /// ChatGLM3-6B: 28 layers of 4096
    Chatglm3,
}

impl Shape {
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GlmMini => "glm-mini",
            Self::GlmEdge1_5b => "glm-edge-1.5b",
            Self::GlmEdge4b => "glm-edge-4b",
            Self::GlmLarge => "glm-large",
            Self::Chatglm3 => "chatglm3",
        }
    }

    /// Its description.
    pub fn spec(self) -> Result<ModelSpec> {
        Ok(ModelSpec::from_config(&self.config(), &Hints::default())
            .map_err(glm_onnx::Error::from)?)
    }

    /// Sizes as the configuration of the model has them.
    fn config(self) -> Value {
        match self {
            Self::GlmMini => original(384, 6, 12, 1536, 12_288, 512, "post"),
            Self::GlmLarge => original(1024, 24, 16, 4096, 30_592, 512, "pre"),
            Self::GlmEdge1_5b => edge(2048, 28, 16, 4, 6144),
            Self::GlmEdge4b => edge(3072, 40, 24, 6, 8192),
            Self::Chatglm3 => json!({
                "model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b",
                "architectures": ["ChatGLMModel"], "add_bias_linear": false, "add_qkv_bias": true,
                "ffn_hidden_size": 13_696, "hidden_size": 4096, "kv_channels": 128,
                "layernorm_epsilon": 1e-5, "multi_query_attention": true,
                "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
                "original_rope": true, "padded_vocab_size": 65_024, "post_layer_norm": true,
                "rmsnorm": true, "tie_word_embeddings": false, "eos_token_id": 2,
                "pad_token_id": 0, "seq_length": 8192, "transformers_version": "4.30.2"}),
        }
    }
}

/// A GLM of the first generation.
fn original(
    hidden: usize,
    layers: usize,
    heads: usize,
    inner: usize,
    vocabulary: usize,
    positions: usize,
    order: &str,
) -> Value {
    json!({
        "model_type": "glm", "architectures": ["GLMForConditionalGeneration"],
        "block_position_encoding": true, "relative_encoding": false, "output_predict": true,
        "hidden_size": hidden, "num_layers": layers, "num_attention_heads": heads,
        "inner_hidden_size": inner, "vocab_size": vocabulary, "max_sequence_length": positions,
        "layernorm_order": order, "residual_alpha": 1.0, "hidden_act": "gelu",
        "tie_word_embeddings": true, "pad_token_id": 0, "cls_token_id": 1, "mask_token_id": 2,
        "smask_token_id": 3, "gmask_token_id": 4, "sop_token_id": 5, "eop_token_id": 6,
        "eos_token_id": 0})
}

/// A GLM-Edge.
fn edge(hidden: usize, layers: usize, heads: usize, kv_heads: usize, inner: usize) -> Value {
    json!({
        "model_type": "glm", "architectures": ["GlmForCausalLM"], "attention_bias": false,
        "eos_token_id": [59_246, 59_253, 59_255], "pad_token_id": 59_246, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden / heads,
        "max_position_embeddings": 8192, "vocab_size": 59_264, "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0, "tie_word_embeddings": false,
        "transformers_version": "4.47.0"})
}

/// Integers of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Integers {
    /// Eight bits, symmetric
    #[default]
    Int8,
    /// Four bits, symmetric; the head keeps eight
    Int4,
}

impl Integers {
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// How the weights of the measured model are kept.
pub fn options(
    spec: &ModelSpec,
    integers: Integers,
    block: usize,
    longest: usize,
) -> Result<Options> {
    if block < 16 || !block.is_power_of_two() {
        let reason = format!("--block {block}: must be a power of two of at least 16");
        return Err(Failure::Usage(reason));
    }
    let quantised = |scheme| {
        let block = Block::Of(block);
        Precision::Quantised(Quantisation { scheme, block })
    };
    Ok(Options {
        layers: quantised(match integers {
            Integers::Int8 => Scheme::Int8,
            Integers::Int4 => Scheme::Int4,
        }),
        head: quantised(Scheme::Int8),
        embedding: Table::Half,
        tied_head: spec.tied_head,
        max_positions: longest.min(spec.max_positions),
        fixed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::bounds::Work;
    use super::*;

    #[test]
    fn every_shape_is_a_model_of_its_size() {
        for shape in Shape::value_variants() {
            let spec = shape.spec().expect("a model");
            let options = options(&spec, Integers::Int8, 32, 2048).expect("options");
            let work = Work::of(&spec, &options);
            assert!(work.bytes > 1 << 20 && work.each_token > 0, "{shape:?}");
            let value = shape.to_possible_value().expect("a name");
            assert_eq!(value.get_name(), shape.name());
        }
        let spec = Shape::GlmEdge1_5b.spec().expect("a model");
        let options = options(&spec, Integers::Int8, 32, 2048).expect("options");
        // 28 layers of 2048 x 3072 + 2048 x 2048 + 3 x 2048 x 6144 and a head of
        // 59264 x 2048, a byte each and an f32 scale for 32 of them.
        let layers = 28 * (2048 * 3072 + 2048 * 2048 + 3 * 2048 * 6144);
        let head = 59_264 * 2048;
        let work = Work::of(&spec, &options);
        assert_eq!((work.each_token, work.each_answer), (layers, head));
        let (read, expected) = (work.bytes, (layers + head) * 36 / 32);
        assert!(
            read >= expected && read < expected + (1 << 20),
            "{read} {expected}"
        );
    }
}
