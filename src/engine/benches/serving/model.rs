//! A causal model of the size that small boxes run, with random weights: speed does not depend on sense.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use glm_onnx::export;
use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 768;
const INNER: usize = 2048;
const LAYERS: usize = 12;
const HEADS: usize = 12;
const KV_HEADS: usize = 4;
const HEAD: usize = HIDDEN / HEADS;
/// Rows of the fixture's tokenizer.
const VOCABULARY: usize = 320;

/// Where models for measurements are kept between two runs.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench-models")
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints/glm-edge")
}

/// The model directory; made the first time.
pub fn causal() -> io::Result<PathBuf> {
    let out = folder().join("edge-70m");
    if out.join("glm.json").is_file() {
        return Ok(out);
    }
    let checkpoint = folder().join("edge-70m-checkpoint");
    fs::create_dir_all(&checkpoint)?;
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        fs::copy(fixture().join(file), checkpoint.join(file))?;
    }
    let text = fs::read_to_string(fixture().join("config.json"))?;
    let mut config: Map<String, Value> = serde_json::from_str(&text)?;
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", INNER),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", HEADS),
        ("num_key_value_heads", KV_HEADS),
        ("head_dim", HEAD),
        ("max_position_embeddings", 2048),
    ] {
        config.insert(key.into(), json!(value));
    }
    fs::write(checkpoint.join("config.json"), json!(config).to_string())?;
    write_weights(&checkpoint.join("model.safetensors"))?;
    exported(&checkpoint, &out)?;
    fs::remove_dir_all(&checkpoint)?;
    Ok(out)
}

/// The fixture itself as a model directory: tiny, so that thousands of requests take seconds.
pub fn tiny() -> io::Result<PathBuf> {
    let out = folder().join("edge-tiny");
    if !out.join("glm.json").is_file() {
        fs::create_dir_all(folder())?;
        exported(&fixture(), &out)?;
    }
    Ok(out)
}

fn exported(checkpoint: &Path, out: &Path) -> io::Result<()> {
    let int8 = Quantisation {
        scheme: Scheme::Int8,
        block: Block::Of(32),
    };
    let options = export::Options {
        layers: Precision::Quantised(int8),
        head: Precision::Quantised(int8),
        embedding: Table::Quantised(int8),
        force: true,
        ..export::Options::default()
    };
    export::export(checkpoint, out, &options, &|_| ControlFlow::Continue(()))
        .map(drop)
        .map_err(io::Error::other)
}

/// Name and shape of every tensor.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        all.extend([
            (name("input_layernorm"), vec![HIDDEN]),
            (name("post_attention_layernorm"), vec![HIDDEN]),
            (name("self_attn.q_proj"), vec![HEADS * HEAD, HIDDEN]),
            (name("self_attn.k_proj"), vec![KV_HEADS * HEAD, HIDDEN]),
            (name("self_attn.v_proj"), vec![KV_HEADS * HEAD, HIDDEN]),
            (name("self_attn.o_proj"), vec![HIDDEN, HEADS * HEAD]),
            (name("mlp.gate_up_proj"), vec![2 * INNER, HIDDEN]),
            (name("mlp.down_proj"), vec![HIDDEN, INNER]),
        ]);
    }
    all
}

/// A safetensors file in bf16: norms are one, the rest is noise of the usual size.
fn write_weights(path: &Path) -> io::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors() {
        let size = 2 * shape.iter().product::<usize>();
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]});
        header.insert(name, tensor);
        end += size;
    }
    let header = json!(header).to_string();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 1_u32;
    for (_, shape) in tensors() {
        for _ in 0..shape.iter().product::<usize>() {
            let value = match shape.len() {
                1 => 1.0_f32,
                _ => {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Uniform in -0.04..0.04.
                    ((state >> 8) as f32 / 16_777_216.0 - 0.5) * 0.08
                }
            };
            // bf16 is the upper half of f32.
            let bits = value.to_bits().to_le_bytes();
            file.write_all(&bits[2..])?;
        }
    }
    file.flush()
}
