use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Error, TokenId};

fn classify(config: &Value) -> crate::Result<ModelSpec> {
    ModelSpec::from_config(config, &Hints::default())
}

fn with(mut base: Value, key: &str, value: Value) -> Value {
    base[key] = value;
    base
}

fn glm_large() -> Value {
    json!({"model_type": "glm", "num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
           "max_sequence_length": 512, "vocab_size": 30592, "block_position_encoding": true,
           "attention_scale": 1.0, "relative_encoding": false, "output_predict": true,
           "spell_length": null, "torch_dtype": "float32"})
}

fn chatglm_6b() -> Value {
    json!({"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32,
           "inner_hidden_size": 16384, "layernorm_epsilon": 1e-5, "max_sequence_length": 2048,
           "position_encoding_2d": true, "vocab_size": 130528, "bos_token_id": 130004,
           "eos_token_id": 130005, "gmask_token_id": 130001, "mask_token_id": 130000, "pad_token_id": 3})
}

fn chatglm2_6b() -> Value {
    json!({"model_type": "chatglm", "add_bias_linear": false, "add_qkv_bias": true, "ffn_hidden_size": 13696,
           "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-5, "multi_query_attention": true,
           "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "original_rope": true,
           "padded_vocab_size": 65024, "post_layer_norm": true, "rmsnorm": true, "seq_length": 32768})
}

fn glm4_chat_remote_code() -> Value {
    let mut c = chatglm2_6b();
    for (key, value) in [
        ("num_layers", json!(40)),
        ("padded_vocab_size", json!(151_552)),
        ("layernorm_epsilon", json!(1.5625e-7)),
        ("rope_ratio", json!(500)),
        ("seq_length", json!(131_072)),
        ("eos_token_id", json!([151_329, 151_336, 151_338])),
    ] {
        c[key] = value;
    }
    c
}

fn glm_edge() -> Value {
    json!({"model_type": "glm", "attention_bias": false, "eos_token_id": [59246, 59253, 59255],
           "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
           "max_position_embeddings": 8192, "num_attention_heads": 16, "num_hidden_layers": 28,
           "num_key_value_heads": 4, "pad_token_id": 59246, "partial_rotary_factor": 1.0,
           "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": 59264})
}

fn glm4_0414() -> Value {
    json!({"model_type": "glm4", "attention_bias": true, "head_dim": 128, "hidden_act": "silu",
           "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 32768,
           "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
           "rms_norm_eps": 1e-5, "vocab_size": 151552,
           "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}})
}

/// Parameters of the whole model, head counted unless tied.
fn parameters(s: &ModelSpec) -> usize {
    let up = if s.activation.is_gated() { 2 } else { 1 };
    let attention = s.qkv_rows() * s.hidden + s.heads * s.head_dim * s.hidden;
    let mlp = (up + 1) * s.ffn * s.hidden;
    let linear = if s.biases.linear {
        2 * s.hidden + up * s.ffn
    } else {
        0
    };
    let biases = linear + if s.biases.qkv { s.qkv_rows() } else { 0 };
    let norm = s.hidden
        * if matches!(s.norm, Norm::LayerNorm { .. }) {
            2
        } else {
            1
        };
    let norms = if s.residual == Residual::Sandwich {
        4
    } else {
        2
    };
    let tables = match s.positions {
        PositionEncoding::Learned { rows } => 2 * rows * s.hidden,
        PositionEncoding::Rotary(_) => 0,
    };
    let vocabularies = if s.tied_head { 1 } else { 2 };
    s.layers * (attention + mlp + biases + norms * norm)
        + norm
        + tables
        + vocabularies * s.vocab_rows * s.hidden
}

#[test]
fn sizes_add_up_to_the_published_parameter_counts() {
    // The hub's byte totals of the untied models, and the original GLM's table.
    let untied = |c| with(c, "tie_word_embeddings", json!(false));
    for (config, wanted) in [
        (untied(glm_edge()), 1_593_427_968),
        (glm4_chat_remote_code(), 9_399_951_360),
        (chatglm2_6b(), 12_487_168_064 / 2),
        // Norms are stored in four bytes, everything else in two.
        (chatglm_6b(), (13_416_793_856 - 2 * (28 * 4 + 2) * 4096) / 2),
    ] {
        let spec = classify(&config).unwrap();
        let got = parameters(&spec);
        // The ChatGLMs also store rotary frequencies: 32 once, or in each layer.
        assert!(
            got.abs_diff(wanted) <= 28 * 32,
            "{}: {got} != {wanted}",
            spec.family.name()
        );
    }
    let large = parameters(&classify(&glm_large()).unwrap());
    assert!(large.abs_diff(334_700_000) < 100_000, "{large}");
}

#[test]
fn families_are_told_apart_by_their_keys() {
    let tokenizer3 = json!({"added_tokens_decoder": {"64797": {"content": "<|observation|>"}}});
    for (config, family) in [
        (glm_large(), Family::Glm),
        (chatglm_6b(), Family::ChatGlm),
        (chatglm2_6b(), Family::ChatGlm2),
        (
            with(chatglm2_6b(), "seq_length", json!(8192)),
            Family::ChatGlm3,
        ),
        (
            with(
                chatglm2_6b(),
                "_name_or_path",
                json!("THUDM/chatglm3-6b-base"),
            ),
            Family::ChatGlm3,
        ),
        (glm4_chat_remote_code(), Family::Glm4),
        (glm_edge(), Family::GlmEdge),
        (glm4_0414(), Family::Glm40414),
    ] {
        assert_eq!(classify(&config).unwrap().family, family, "{config}");
    }
    let hints = Hints {
        tokenizer_config: Some(&tokenizer3),
        ..Hints::default()
    };
    assert_eq!(
        ModelSpec::from_config(&chatglm2_6b(), &hints)
            .unwrap()
            .family,
        Family::ChatGlm3
    );
    let hints = Hints {
        family: Some(Family::ChatGlm2),
        ..Hints::default()
    };
    let odd = with(chatglm2_6b(), "seq_length", json!(1234));
    assert_eq!(
        ModelSpec::from_config(&odd, &hints).unwrap().family,
        Family::ChatGlm2
    );
}

#[test]
fn rotary_follows_the_family() {
    let rotary = |c: &Value| match classify(c).unwrap().positions {
        PositionEncoding::Rotary(r) => r,
        PositionEncoding::Learned { .. } => panic!("rotary expected"),
    };
    assert_eq!(rotary(&glm_edge()).dims, 128);
    assert_eq!(rotary(&glm4_0414()).dims, 64);
    assert_eq!(rotary(&chatglm2_6b()).dims, 64);
    assert!((rotary(&glm4_chat_remote_code()).theta - 5e6).abs() < 1e-3);
    let first = rotary(&chatglm_6b());
    assert!(
        first.two_dimensional && first.f16_frequencies && first.style == RotaryStyle::HalfSplit
    );
    // transformers 4.46 left the default of 0.5 unwritten.
    let mut old = glm4_0414();
    old["model_type"] = json!("glm");
    old.as_object_mut().unwrap().remove("rope_parameters");
    assert_eq!(rotary(&old).dims, 64);
}

#[test]
fn special_ids_are_those_of_the_released_tokenizers() {
    let ids = |c: &Value| classify(c).unwrap().special;
    let large = ids(&glm_large());
    assert_eq!(
        (large.mask, large.sop, large.eop),
        (
            Some(TokenId(103)),
            Some(TokenId(30522)),
            Some(TokenId(30523))
        )
    );
    assert_eq!(large.gmask, None);
    let glm4 = ids(&glm4_0414());
    assert_eq!(
        (glm4.gmask, glm4.sop, glm4.user),
        (
            Some(TokenId(151_331)),
            Some(TokenId(151_333)),
            Some(TokenId(151_336))
        )
    );
    assert_eq!(glm4.eos, [151_329, 151_336, 151_338].map(TokenId));
    let edge = ids(&glm_edge());
    assert_eq!(
        (edge.user, edge.observation),
        (Some(TokenId(59_253)), Some(TokenId(59_255)))
    );
    let chinese = ids(&with(glm_large(), "vocab_size", json!(50_048)));
    assert_eq!(
        (chinese.mask, chinese.eop, chinese.gmask),
        (
            Some(TokenId(50_003)),
            Some(TokenId(50_007)),
            Some(TokenId(50_009))
        )
    );
    let ten_b = with(
        with(glm_large(), "vocab_size", json!(50_304)),
        "hidden_size",
        json!(4096),
    );
    assert_eq!(ids(&ten_b).mask, Some(TokenId(50_260)));
    let roberta = with(glm_large(), "vocab_size", json!(50_304));
    assert_eq!(ids(&roberta).mask, Some(TokenId(50_264)));
}

fn refused(config: &Value, wanted: &str) {
    match classify(config) {
        Err(Error::Config { key, .. } | Error::UnsupportedModel { key, .. }) => {
            assert_eq!(key, wanted, "{config}")
        }
        other => panic!("{config}: {other:?}"),
    }
}

#[test]
fn what_is_not_a_known_glm_is_refused_by_key() {
    refused(&json!({}), "model_type");
    refused(&json!({"model_type": "llama"}), "model_type");
    refused(&json!({"model_type": "glm"}), "num_layers");
    refused(&json!({"model_type": "chatglm"}), "padded_vocab_size");
    refused(
        &with(glm_large(), "block_position_encoding", json!(false)),
        "block_position_encoding",
    );
    refused(
        &with(glm_large(), "relative_encoding", json!(true)),
        "relative_encoding",
    );
    refused(
        &with(glm_large(), "hidden_act", json!("relu")),
        "hidden_act",
    );
    refused(
        &with(glm_large(), "num_attention_heads", json!(15)),
        "num_attention_heads",
    );
    refused(
        &with(glm_edge(), "attention_bias", json!(true)),
        "partial_rotary_factor",
    );
    refused(
        &with(glm_edge(), "partial_rotary_factor", json!(2.0)),
        "partial_rotary_factor",
    );
    refused(
        &with(
            glm_edge(),
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
        ),
        "rope_scaling",
    );
    refused(&with(glm_edge(), "rope_ratio", json!(500)), "rope_theta");
    refused(
        &with(glm_edge(), "num_hidden_layers", json!(0)),
        "num_hidden_layers",
    );
    refused(
        &with(glm_edge(), "num_hidden_layers", json!("28")),
        "num_hidden_layers",
    );
    refused(
        &with(glm_edge(), "hidden_size", json!(1u64 << 40)),
        "hidden_size",
    );
    refused(
        &with(glm_edge(), "num_key_value_heads", json!(5)),
        "num_key_value_heads",
    );
    refused(&with(glm_edge(), "vocab_size", json!(512)), "vocab_size");
    refused(
        &with(chatglm2_6b(), "add_bias_linear", json!(true)),
        "add_bias_linear",
    );
    refused(
        &with(chatglm2_6b(), "seq_length", json!(4096)),
        "seq_length",
    );
    refused(
        &with(chatglm_6b(), "gmask_token_id", json!(150_001)),
        "gmask_token_id",
    );
    refused(
        &with(chatglm_6b(), "quantization_bit", json!(4)),
        "quantization_bit",
    );
}

proptest! {
    /// Whatever stands in a configuration, the answer is a spec or an error.
    #[test]
    fn no_configuration_panics(
        base in 0usize..6,
        key in 0usize..24,
        value in prop_oneof![
            Just(json!(null)), Just(json!([])), Just(json!({})), Just(json!(-1)), Just(json!("x")),
            Just(json!(1e300)), any::<u64>().prop_map(|n| json!(n)), any::<f64>().prop_map(|x| json!(x)),
            any::<bool>().prop_map(|b| json!(b)),
        ],
    ) {
        let mut config = [glm_large(), chatglm_6b(), chatglm2_6b(), glm4_chat_remote_code(), glm_edge(), glm4_0414()][base].clone();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        config[&keys[key % keys.len()]] = value;
        if let Ok(spec) = classify(&config) {
            prop_assert!(spec.heads.is_multiple_of(spec.kv_heads));
            prop_assert!(spec.special.all().all(|id| id.index() < spec.vocab_rows));
        }
    }
}
