//! Every layout on disk comes out as the rows that the graph wants.

mod support;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use glm::ModelSpec;
    use glm_onnx::Error;
    use glm_onnx::checkpoint::{Checkpoint, FamilyWeights, Format};
    use glm_onnx::graph::{Matrix, NormId, Vector};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::support::{FIXTURES, Tensors, fixture, json_of, safetensors, spec_from, spec_of};

    fn matrices(spec: &ModelSpec) -> Vec<Matrix> {
        (0..spec.layers)
            .flat_map(|n| {
                [
                    Matrix::Qkv(n),
                    Matrix::AttentionOutput(n),
                    Matrix::MlpIn(n),
                    Matrix::MlpOut(n),
                ]
            })
            .chain([Matrix::Embedding, Matrix::Head])
            .collect()
    }

    fn all_rows(weights: &FamilyWeights<'_>, matrix: Matrix) -> Vec<f32> {
        let (outputs, inputs) = weights.shape(matrix);
        let mut rows = Vec::new();
        weights.rows(matrix, 0..outputs, &mut rows).unwrap();
        assert_eq!(rows.len(), outputs * inputs, "{matrix:?}");
        rows
    }

    /// Reflected CRC-32 of IEEE 802.3, as Python's `zlib.crc32`.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }

    #[test]
    fn every_tensor_is_what_python_reads() {
        let digests = json_of(&fixture("../digests.json"));
        for name in FIXTURES {
            let checkpoint = Checkpoint::open(fixture(name)).unwrap();
            let expected = digests[name].as_object().unwrap();
            assert_eq!(checkpoint.tensors().count(), expected.len(), "{name}");
            for (tensor, found) in checkpoint.tensors() {
                let expected = &expected[tensor];
                assert_eq!(json!(found.shape), expected["shape"], "{name}: {tensor}");
                assert_eq!(
                    json!(found.dtype.name()),
                    expected["dtype"],
                    "{name}: {tensor}"
                );
                let rows = if found.shape.len() == 2 {
                    found.shape[0]
                } else {
                    1
                };
                let mut values = Vec::new();
                checkpoint.read(tensor, 0..rows, &mut values).unwrap();
                let bytes = crate::support::floats(values);
                assert_eq!(json!(crc32(&bytes)), expected["crc32"], "{name}: {tensor}");
            }
        }
    }

    #[test]
    fn every_fixture_has_all_that_its_model_needs_and_nothing_else() {
        for name in FIXTURES {
            let folder = fixture(name);
            let (spec, checkpoint) = (spec_of(&folder), Checkpoint::open(&folder).unwrap());
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            assert_eq!(weights.unused(), [""; 0], "{name}");
            for matrix in matrices(&spec) {
                all_rows(&weights, matrix);
            }
        }
    }

    #[test]
    fn both_layouts_of_glm4_are_the_same_model() {
        let (old, new) = (fixture("glm4-old"), fixture("glm4-hf"));
        let (a, b) = (
            Checkpoint::open(&old).unwrap(),
            Checkpoint::open(&new).unwrap(),
        );
        let (old, new) = (spec_of(&old), spec_of(&new));
        let (a, b) = (
            FamilyWeights::new(&a, &old).unwrap(),
            FamilyWeights::new(&b, &new).unwrap(),
        );
        for matrix in matrices(&old) {
            assert_eq!(all_rows(&a, matrix), all_rows(&b, matrix), "{matrix:?}");
        }
        for vector in [
            Vector::Bias(Matrix::Qkv(1)),
            Vector::NormWeight(NormId::Attention(1)),
            Vector::NormWeight(NormId::Mlp(0)),
            Vector::NormWeight(NormId::Final),
        ] {
            assert_eq!(a.vector(vector).unwrap(), b.vector(vector).unwrap());
        }
    }

    #[test]
    fn heads_are_compared_and_not_believed() {
        // What the flag says, and what is so.
        for (name, flag, equal) in [
            ("glm-large", true, true),
            ("chatglm-6b", false, true),
            ("glm-edge", true, true),
            ("glm-edge-untied", false, false),
            ("chatglm2", false, false),
        ] {
            let folder = fixture(name);
            let (spec, checkpoint) = (spec_of(&folder), Checkpoint::open(&folder).unwrap());
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            let found = (spec.tied_head, weights.head_is_embedding().unwrap());
            assert_eq!(found, (flag, equal), "{name}");
        }
    }

    // === Layouts by hand ===

    /// A matrix whose every row holds its own number, from `first` on.
    fn numbered(
        name: &str,
        rows: usize,
        columns: usize,
        first: u8,
    ) -> (String, Vec<usize>, Vec<f32>) {
        let values = (0..rows).flat_map(|row| {
            vec![f32::from(first) + f32::from(u8::try_from(row).unwrap()); columns]
        });
        (name.to_owned(), vec![rows, columns], values.collect())
    }

    fn numbers(name: &str, count: usize, first: u8) -> (String, Vec<usize>, Vec<f32>) {
        let (name, _, values) = numbered(name, count, 1, first);
        (name, vec![count], values)
    }

    fn opened(tensors: &Tensors) -> Checkpoint {
        let bytes = Box::new(safetensors(tensors));
        Checkpoint::from_file(Path::new("model.safetensors"), Format::Safetensors, bytes).unwrap()
    }

    fn first_columns(weights: &FamilyWeights<'_>, matrix: Matrix) -> Vec<f32> {
        let (_, inputs) = weights.shape(matrix);
        all_rows(weights, matrix)
            .chunks(inputs)
            .map(|row| row[0])
            .collect()
    }

    /// One layer of the original GLM or ChatGLM-6B: hidden 16, two heads, MLP 8, 10 words, 6 positions.
    fn older(prefix: &str, layers: &str, chatglm: bool) -> Tensors {
        let h = 16;
        let layer = format!("{layers}0.");
        let mut tensors = vec![
            numbered(&format!("{prefix}word_embeddings.weight"), 10, h, 0),
            numbered(
                &format!("{layer}attention.query_key_value.weight"),
                3 * h,
                h,
                0,
            ),
            numbers(
                &format!("{layer}attention.query_key_value.bias"),
                3 * h,
                100,
            ),
            numbered(&format!("{layer}attention.dense.weight"), h, h, 0),
            numbers(&format!("{layer}attention.dense.bias"), h, 0),
            numbered(&format!("{layer}mlp.dense_h_to_4h.weight"), 8, h, 0),
            numbers(&format!("{layer}mlp.dense_h_to_4h.bias"), 8, 0),
            numbered(&format!("{layer}mlp.dense_4h_to_h.weight"), h, 8, 0),
            numbers(&format!("{layer}mlp.dense_4h_to_h.bias"), h, 0),
        ];
        let root = layers.trim_end_matches("layers.");
        for norm in [
            format!("{layer}input_layernorm"),
            format!("{layer}post_attention_layernorm"),
            format!("{root}final_layernorm"),
        ] {
            tensors.push(numbers(&format!("{norm}.weight"), h, 1));
            tensors.push(numbers(&format!("{norm}.bias"), h, 2));
        }
        if chatglm {
            tensors.push(numbered("lm_head.weight", 10, h, 0));
        }
        tensors
    }

    fn glm() -> ModelSpec {
        spec_from(&json!({
            "model_type": "glm", "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
            "vocab_size": 10, "max_sequence_length": 5, "inner_hidden_size": 8,
            "block_position_encoding": true, "relative_encoding": false, "output_predict": true,
        }))
    }

    #[test]
    fn chatglm_heads_come_out_by_kind_and_turned() {
        let spec = spec_from(&json!({
            "model_type": "chatglm", "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
            "vocab_size": 10, "max_sequence_length": 8, "inner_hidden_size": 8,
            "position_encoding_2d": true, "bos_token_id": 4, "eos_token_id": 5,
            "mask_token_id": 2, "gmask_token_id": 3, "pad_token_id": 0,
        }));
        // On disk head 0 is q 0..8, k 8..16, v 16..24, and head 1 follows. Within a query or key
        // a1 = 0 1, a2 = 2 3 (first position), b1 = 4 5, b2 = 6 7 (second position).
        let expected = [
            0, 1, 4, 5, 2, 3, 6, 7, 24, 25, 28, 29, 26, 27, 30, 31, // queries
            8, 9, 12, 13, 10, 11, 14, 15, 32, 33, 36, 37, 34, 35, 38, 39, // keys
            16, 17, 18, 19, 20, 21, 22, 23, 40, 41, 42, 43, 44, 45, 46, 47, // values
        ]
        .map(|row: u8| f32::from(row));
        for (prefix, layers) in [("transformer.", "transformer.layers."), ("", "layers.")] {
            let checkpoint = opened(&older(prefix, layers, true));
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            assert_eq!(first_columns(&weights, Matrix::Qkv(0)), expected);
            let bias = weights.vector(Vector::Bias(Matrix::Qkv(0))).unwrap();
            assert_eq!(bias, expected.map(|row| row + 100.0));
        }
    }

    #[test]
    fn the_original_glm_goes_by_many_names() {
        let spec = glm();
        let block = "block_position_embeddings.weight";
        for (prefix, blocks) in [
            ("", format!("transformer.{block}")),
            ("glm.", format!("glm.transformer.{block}")),
            ("module.", format!("module.transformer.{block}")),
            ("", format!("mixins.block_position_embedding.{block}")),
        ] {
            let mut tensors = older(prefix, &format!("{prefix}transformer.layers."), false);
            let table = format!("{prefix}transformer.position_embeddings.weight");
            tensors.push(numbered(&table, 6, 16, 40));
            tensors.push(numbered(&blocks, 6, 16, 50));
            tensors.push(numbers("out_proj.bias", 3, 0));
            let checkpoint = opened(&tensors);
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            // All queries, all keys, all values on disk already.
            let rows: Vec<f32> = (0..48_u8).map(f32::from).collect();
            assert_eq!(first_columns(&weights, Matrix::Qkv(0)), rows);
            let first = |matrix| first_columns(&weights, matrix)[0];
            assert_eq!(
                (first(Matrix::Positions), first(Matrix::BlockPositions)),
                (40.0, 50.0)
            );
            assert_eq!(
                weights.vector(Vector::NormBias(NormId::Final)).unwrap()[..2],
                [2.0, 3.0]
            );
            assert_eq!(
                all_rows(&weights, Matrix::Head),
                all_rows(&weights, Matrix::Embedding)
            );
            assert_eq!(weights.unused(), ["out_proj.bias"]);
        }
    }

    /// One layer as transformers writes it: hidden 16, 4 heads of 4 over 2, MLP 6, 10 words.
    fn modern(prefix: &str, head: &str, split: bool) -> Tensors {
        let (h, layer) = (16, format!("{prefix}layers.0."));
        let mut tensors = vec![
            numbered(&format!("{prefix}embed_tokens.weight"), 10, h, 0),
            numbered(&format!("{layer}self_attn.q_proj.weight"), 16, h, 10),
            numbered(&format!("{layer}self_attn.k_proj.weight"), 8, h, 40),
            numbered(&format!("{layer}self_attn.v_proj.weight"), 8, h, 60),
            numbered(&format!("{layer}self_attn.o_proj.weight"), h, 16, 0),
            numbered(&format!("{layer}mlp.down_proj.weight"), h, 6, 0),
            numbers(&format!("{layer}input_layernorm.weight"), h, 1),
            numbers(&format!("{layer}post_attention_layernorm.weight"), h, 2),
            numbers(&format!("{prefix}norm.weight"), h, 3),
            numbered(&format!("{head}lm_head.weight"), 10, h, 80),
        ];
        if split {
            tensors.push(numbered(&format!("{layer}mlp.gate_proj.weight"), 6, h, 100));
            tensors.push(numbered(&format!("{layer}mlp.up_proj.weight"), 6, h, 106));
        } else {
            tensors.push(numbered(
                &format!("{layer}mlp.gate_up_proj.weight"),
                12,
                h,
                100,
            ));
        }
        tensors
    }

    fn edge() -> Value {
        json!({
            "model_type": "glm", "num_hidden_layers": 1, "hidden_size": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10,
            "intermediate_size": 6, "max_position_embeddings": 8, "hidden_act": "silu",
            "attention_bias": false, "partial_rotary_factor": 1.0,
        })
    }

    #[test]
    fn separate_projections_are_joined() {
        let spec = spec_from(&edge());
        for (prefix, head) in [
            ("model.", ""),
            ("", ""),
            ("model.language_model.", ""),
            ("language_model.model.", "language_model."),
        ] {
            for split in [false, true] {
                let checkpoint = opened(&modern(prefix, head, split));
                let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
                let expected = (10..26_u8).chain(40..48).chain(60..68).map(f32::from);
                assert_eq!(
                    first_columns(&weights, Matrix::Qkv(0)),
                    expected.collect::<Vec<_>>()
                );
                let gates_first: Vec<f32> = (100..112_u8).map(f32::from).collect();
                assert_eq!(first_columns(&weights, Matrix::MlpIn(0)), gates_first);
                assert_eq!(first_columns(&weights, Matrix::Head)[0], 80.0);
                assert!(!weights.head_is_embedding().unwrap());
            }
        }
    }

    // === Disagreements with the configuration ===

    fn refusal(tensors: &Tensors, config: &Value) -> Error {
        let checkpoint = opened(tensors);
        let spec = spec_from(config);
        FamilyWeights::new(&checkpoint, &spec)
            .map(drop)
            .unwrap_err()
    }

    fn with(mut config: Value, key: &str, value: Value) -> Value {
        config[key] = value;
        config
    }

    #[test]
    fn what_the_configuration_does_not_say_is_refused_by_name() {
        let whole = modern("model.", "", false);
        let named = |error: Error, tensor: &str, code: &str| {
            assert!(
                error.to_string().contains(&format!("`{tensor}`")),
                "{error}"
            );
            assert_eq!((error.code(), error.exit_status()), (code, 65), "{error}");
        };
        for (key, value, tensor) in [
            ("vocab_size", json!(11), "model.embed_tokens.weight"),
            (
                "num_key_value_heads",
                json!(1),
                "model.layers.0.self_attn.k_proj.weight",
            ),
            (
                "head_dim",
                json!(8),
                "model.layers.0.self_attn.q_proj.weight",
            ),
            (
                "intermediate_size",
                json!(7),
                "model.layers.0.mlp.gate_up_proj.weight",
            ),
        ] {
            let error = refusal(&whole, &with(edge(), key, value));
            assert!(error.to_string().contains("shape"), "{error}");
            named(error, tensor, "bad_tensor");
        }
        let fewer = refusal(&whole, &with(edge(), "num_hidden_layers", json!(2)));
        named(
            fewer,
            "model.layers.1.self_attn.q_proj.weight",
            "tensor_missing",
        );

        let mut more = whole.clone();
        more.push(numbers("model.layers.1.input_layernorm.weight", 16, 0));
        named(
            refusal(&more, &edge()),
            "model.layers.1.input_layernorm.weight",
            "bad_tensor",
        );

        let mut biased = whole.clone();
        biased.push(numbers("model.layers.0.self_attn.q_proj.bias", 16, 0));
        named(
            refusal(&biased, &edge()),
            "model.layers.0.self_attn.q_proj.bias",
            "bad_tensor",
        );

        let mut headless = whole.clone();
        headless.retain(|(name, ..)| name != "lm_head.weight");
        named(
            refusal(&headless, &edge()),
            "lm_head.weight",
            "tensor_missing",
        );
        let tied = with(edge(), "tie_word_embeddings", json!(true));
        let (checkpoint, spec) = (opened(&headless), spec_from(&tied));
        assert!(
            FamilyWeights::new(&checkpoint, &spec)
                .unwrap()
                .head_is_embedding()
                .unwrap()
        );

        let other = older("", "transformer.layers.", false);
        named(
            refusal(&other, &edge()),
            "model.embed_tokens.weight",
            "tensor_missing",
        );
    }

    #[test]
    fn weights_that_are_no_numbers_are_found_while_reading() {
        let spec = spec_from(&edge());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut tensors = modern("model.", "", false);
            let name = "model.layers.0.self_attn.k_proj.weight";
            let k = tensors
                .iter_mut()
                .find(|(found, ..)| found == name)
                .unwrap();
            k.2[16 * 3 + 5] = bad;
            let checkpoint = opened(&tensors);
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            let mut rows = Vec::new();
            weights.rows(Matrix::Qkv(0), 0..16, &mut rows).unwrap();
            let error = weights.rows(Matrix::Qkv(0), 16..24, &mut rows).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("[3, 5]"), "{text}");
            assert_eq!((error.code(), error.exit_status()), ("bad_tensor", 65));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_cut_into_chunks_gives_the_same_rows(
            name in prop::sample::select(vec!["chatglm-6b", "glm4-hf", "chatglm3", "glm-large"]),
            step in 1_usize..70,
        ) {
            let folder = fixture(name);
            let (spec, checkpoint) = (spec_of(&folder), Checkpoint::open(&folder).unwrap());
            let weights = FamilyWeights::new(&checkpoint, &spec).unwrap();
            for matrix in [Matrix::Qkv(1), Matrix::MlpIn(0), Matrix::Embedding] {
                let (outputs, _) = weights.shape(matrix);
                let (mut joined, mut chunk) = (Vec::new(), Vec::new());
                for start in (0..outputs).step_by(step) {
                    weights.rows(matrix, start..outputs.min(start + step), &mut chunk).unwrap();
                    joined.extend_from_slice(&chunk);
                }
                prop_assert!(joined == all_rows(&weights, matrix), "{matrix:?}");
            }
        }
    }
}
