//! What an export costs: its peak of resident memory, and its time.
//!
//! Exports a made-up GLM-Edge of many layers, whose weights are far larger than
//! the memory that an export may take: the largest tensor as f32 twice, and
//! 200 MiB. Ends with an error when the peak is above that. Layers come from
//! `GLMD_BENCH_LAYERS`; with 28 and `GLMD_BENCH_ROWS` = 59264 it is GLM-Edge-1.5B.
//! `GLMD_BENCH_OUT` names a new folder where the model is kept, with layers of
//! 4 bits: `make small-box` serves it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use glm_onnx::export::{Options, export};
use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 2048;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;
const FFN: usize = 6144;
/// What an export may take beside its largest tensor.
const SPARE: u64 = 200 << 20;

fn size(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Names and shapes of the tensors.
fn tensors(layers: usize, rows: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![rows, HIDDEN])];
    for n in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_up_proj", vec![2 * FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            tensors.push((format!("model.layers.{n}.{name}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors.push(("lm_head.weight".to_owned(), vec![rows, HIDDEN]));
    tensors
}

/// Writes a checkpoint of bf16 numbers below 1/128.
fn write_checkpoint(folder: &Path, tensors: &[(String, Vec<usize>)], config: &Value) {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let file = File::create(folder.join("model.safetensors")).expect("a file");
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| file.write_all(bytes).expect("room on the disk");
    put(&(header.len() as u64).to_le_bytes());
    put(header.as_bytes());
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..end / 2 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        // Sign and mantissa at random, exponents -9 and -8.
        let [low, high, ..] = state.to_le_bytes();
        put(&[low, 0x3b | (high & 0x80)]);
    }
    file.into_inner().expect("a flushed file");
    fs::write(folder.join("config.json"), config.to_string()).expect("a file");
}

/// Writes the fixture's tokenizer with fillers before its special tokens, the first of which is to have id `first`.
fn write_tokenizer(folder: &Path, first: usize) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints/glm-edge/tokenizer.json");
    let text = fs::read(fixture).expect("the fixture");
    let mut tokenizer: Value = serde_json::from_slice(&text).expect("JSON");
    let vocab = tokenizer["model"]["vocab"].as_object_mut().expect("a map");
    for id in vocab.len()..first {
        vocab.insert(format!("filler{id}"), json!(id));
    }
    let special = tokenizer["added_tokens"].as_array_mut().expect("a list");
    for (n, token) in special.iter_mut().enumerate() {
        token["id"] = json!(first + n);
    }
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
}

/// Peak of resident memory of this process so far.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> ExitCode {
    let layers = size("GLMD_BENCH_LAYERS", 8);
    let rows = size("GLMD_BENCH_ROWS", 4096);
    // Padding, [MASK] and the others stand where GLM-Edge has them among 59264 rows.
    let first = rows - 18;
    let config = json!({
        "model_type": "glm", "num_hidden_layers": layers, "hidden_size": HIDDEN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "intermediate_size": FFN, "vocab_size": rows, "max_position_embeddings": 8192,
        "hidden_act": "silu", "attention_bias": false, "partial_rotary_factor": 1.0,
        "pad_token_id": first, "eos_token_id": [first, first + 7, first + 9],
    });
    let tensors = tensors(layers, rows);
    let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let all: u64 = tensors.iter().map(|(_, shape)| elements(shape)).sum();
    let largest = tensors.iter().map(|(_, shape)| elements(shape)).max();
    let allowed = 2 * 4 * largest.unwrap_or_default() + SPARE;

    let kept = std::env::var_os("GLMD_BENCH_OUT").map(PathBuf::from);
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    write_checkpoint(scratch.path(), &tensors, &config);
    write_tokenizer(scratch.path(), first);
    let blocks = |scheme| {
        let block = Block::Of(32);
        Precision::Quantised(Quantisation { scheme, block })
    };
    let options = Options {
        layers: blocks(match kept {
            Some(_) => Scheme::Int4,
            None => Scheme::Int8,
        }),
        head: blocks(Scheme::Int8),
        embedding: match kept {
            Some(_) => Table::Half,
            None => Table::Full,
        },
        threads: 2,
        ..Options::default()
    };
    let mib = |bytes: u64| bytes >> 20;
    let before = peak().unwrap_or_default();
    let start = Instant::now();
    let out = kept.unwrap_or_else(|| scratch.path().join("out"));
    if let Err(error) = export(scratch.path(), &out, &options, &|_| {
        ControlFlow::Continue(())
    }) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} M weights, {} MiB of bf16: {seconds:.1} s, {:.0} M weights a second",
        all / 1_000_000,
        mib(2 * all),
        all as f64 / 1e6 / seconds,
    );
    let Some(peak) = peak() else {
        println!("peak of memory: not told by this system");
        return ExitCode::SUCCESS;
    };
    println!(
        "peak of resident memory {} MiB (before the export {} MiB), allowed {} MiB",
        mib(peak),
        mib(before),
        mib(allowed)
    );
    if peak > allowed {
        eprintln!("an export takes more memory than it may");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
