//! What every fuzz target does with its bytes. The bodies end in a panic where
//! a promise is broken, and in nothing otherwise.

use std::path::Path;
use std::sync::OnceLock;

use glm::prompt::{Filling, Fit, Layout, Order, Prompt, Read, Truncation};
use glm::spec::Hints;
use glm::tokenizer::{MaskKind, Piece};
use glm::{ModelSpec, TokenId};
use glm_onnx::checkpoint::{Checkpoint, Format};
use serde_json::json;

use super::zip;

/// A safetensors file: read whole or refused.
pub fn safetensors(data: &[u8]) {
    read_or_refuse(Format::Safetensors, data.to_vec());
}

/// An archive of `torch.save`: read whole or refused.
pub fn archive(data: &[u8]) {
    read_or_refuse(Format::Torch, data.to_vec());
}

/// The pickle of an archive that is well-formed and has storages for it.
pub fn pickle(data: &[u8]) {
    // The sizes of the fixtures' storages, so that tensors of their pickles fit.
    let storages = [30_720, 128, 6_144, 4_096, 64, 65_536].map(|size| vec![0; size]);
    let names: Vec<String> = (0..storages.len() * 6)
        .map(|key| format!("a/data/{key}"))
        .collect();
    let mut entries: Vec<zip::ZipEntry<'_>> = vec![("a/data.pkl", 0, data)];
    let cycled = storages.iter().cycle();
    entries.extend(
        names
            .iter()
            .zip(cycled)
            .map(|(name, bytes)| (&**name, 0, &**bytes)),
    );
    read_or_refuse(Format::Torch, zip::zip(&entries));
}

fn read_or_refuse(format: Format, bytes: Vec<u8>) {
    let path = Path::new("weights.file");
    let length = bytes.len();
    match Checkpoint::from_file(path, format, Box::new(bytes)) {
        Err(error) => {
            assert_eq!(error.exit_status(), 65, "{error}");
            assert!(error.to_string().contains("weights.file"), "{error}");
        }
        Ok(checkpoint) => {
            for (name, tensor) in checkpoint.tensors() {
                let rows = match tensor.shape.as_slice() {
                    [rows, _] => *rows,
                    _ => 1,
                };
                let mut values = Vec::new();
                if checkpoint.read(name, 0..rows, &mut values).is_ok() {
                    assert_eq!(Some(values.len()), tensor.elements(), "{name}");
                    // Nothing becomes more than the file holds, at two bytes a weight.
                    assert!(values.len() * 2 <= length, "{name}");
                    assert!(values.iter().all(|value| value.is_finite()), "{name}");
                }
            }
        }
    }
}

/// One family of each layout.
fn specs() -> &'static [ModelSpec] {
    static SPECS: OnceLock<Vec<ModelSpec>> = OnceLock::new();
    SPECS.get_or_init(|| {
        let original = json!({
            "model_type": "glm", "num_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
            "vocab_size": 50_304, "max_sequence_length": 512, "block_position_encoding": true,
            "relative_encoding": false, "output_predict": true,
        });
        let first = json!({
            "model_type": "chatglm", "num_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
            "vocab_size": 130_528, "max_sequence_length": 512, "inner_hidden_size": 64,
            "position_encoding_2d": true,
        });
        let second = json!({
            "model_type": "chatglm", "num_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
            "multi_query_group_num": 1, "padded_vocab_size": 65_024, "ffn_hidden_size": 64,
            "seq_length": 8_192,
        });
        let modern = |vocab: usize, bias: bool, part: f64| {
            json!({
                "model_type": "glm", "num_hidden_layers": 1, "hidden_size": 64,
                "num_attention_heads": 1, "vocab_size": vocab, "intermediate_size": 64,
                "max_position_embeddings": 512, "hidden_act": "silu", "attention_bias": bias,
                "partial_rotary_factor": part,
            })
        };
        [
            original,
            first,
            second,
            modern(151_552, true, 0.5),
            modern(59_264, false, 1.0),
        ]
        .iter()
        .map(|config| ModelSpec::from_config(config, &Hints::default()).expect("a known family"))
        .collect()
    })
}

/// Bytes: family, limit, tokens of an answer, options; then the text, in which
/// some bytes stand for blanks, and after 255 what the model writes.
pub fn prompt(data: &[u8]) {
    let [family, limit, most, options, rest @ ..] = data else {
        return;
    };
    let spec = &specs()[usize::from(*family) % specs().len()];
    let layout = Layout::new(spec, spec.special.clone()).expect("released ids are complete");
    let mut parts = rest.splitn(2, |byte| *byte == 255);
    let (text, answer) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let mut pieces = Vec::new();
    for byte in text {
        match (byte, pieces.last_mut()) {
            (0x80..=0x82, _) => pieces.push(Piece::Mask {
                kind: MaskKind::ALL[usize::from(byte - 0x80)],
                id: TokenId(u32::from(*byte)),
            }),
            (_, Some(Piece::Text(ids))) => ids.push(TokenId(u32::from(*byte))),
            _ => pieces.push(Piece::Text(vec![TokenId(u32::from(*byte))])),
        }
    }
    let fit = Fit {
        limit: usize::from(*limit),
        truncation: if options & 1 == 0 {
            Truncation::Refuse
        } else {
            Truncation::Cut
        },
    };
    let order = if options & 2 == 0 {
        Order::Pieces
    } else {
        Order::Splice
    };
    let ids = text.iter().map(|byte| TokenId(u32::from(*byte))).collect();
    let prompts = [
        layout.infill(&pieces, fit),
        layout.cloze(&pieces, fit),
        layout.complete(ids, fit),
    ];
    for prompt in prompts.into_iter().flatten() {
        check(&prompt, fit.limit);
        write(&layout, &prompt, usize::from(*most), order, answer);
    }
}

/// What holds for every prompt.
fn check(prompt: &Prompt, limit: usize) {
    assert!(prompt.tokens.len() <= limit, "{prompt:?}");
    assert!(prompt.bidirectional <= prompt.tokens.len());
    for (index, placed) in prompt.tokens.iter().enumerate() {
        let inside = index < prompt.bidirectional || prompt.bidirectional == 0;
        if inside {
            assert_eq!(placed.position.first as usize, index, "{prompt:?}");
            assert_eq!(placed.position.second, 0, "{prompt:?}");
        } else {
            assert_eq!(placed.position.first, prompt.blanks[0].mask, "{prompt:?}");
            assert_eq!(
                placed.position.second as usize,
                index - prompt.bidirectional + 1,
                "{prompt:?}"
            );
        }
        assert!(prompt.visible(index) > index && prompt.visible(index) <= prompt.tokens.len());
    }
    let masks: Vec<u32> = prompt.blanks.iter().map(|blank| blank.mask).collect();
    assert!(masks.is_sorted_by(|a, b| a < b), "{prompt:?}");
    assert!(
        masks
            .iter()
            .all(|mask| (*mask as usize) < prompt.bidirectional)
    );
}

/// Feeds what a model wrote until it has nothing more to read.
fn write(layout: &Layout, prompt: &Prompt, most: usize, order: Order, answer: &[u8]) {
    let special = layout.special();
    let eop = special.eop.unwrap_or(special.eos[0]);
    let mut filling = Filling::new(layout, prompt, &[most], order);
    for byte in answer {
        let id = if byte % 5 == 0 {
            eop
        } else {
            TokenId(u32::from(*byte))
        };
        let before = filling.blank();
        match filling.push(id) {
            Ok(Read::More(tokens)) => assert!((1..=2).contains(&tokens.len()), "{tokens:?}"),
            Ok(Read::Anew {
                tokens,
                bidirectional,
            }) => {
                assert!(order == Order::Splice && bidirectional < tokens.len());
                assert!(filling.blank() > before);
            }
            Ok(Read::Nothing) | Err(_) => return,
        }
        assert!(filling.blank() < prompt.blanks.len().max(1));
    }
}
