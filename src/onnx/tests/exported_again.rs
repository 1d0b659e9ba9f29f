//! Model directories exported again: what comes back, what stays, and what goes along.

#[cfg(test)]
#[path = "golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::ops::ControlFlow;
    use std::path::Path;

    use glm::ModelSpec;
    use glm::manifest::{Kept, Manifest, Number};
    use glm_onnx::checkpoint::{Checkpoint, FamilyWeights};
    use glm_onnx::export::{Options, Profile, Progress, Report, export};
    use glm_onnx::exported::Exported;
    use glm_onnx::graph::{Block, Matrix, NormId, Precision, Quantisation, Scheme, Table, Vector};
    use glm_onnx::model_dir::read_manifest;
    use glm_onnx::proto::ModelProto;
    use glm_onnx::source::Config;
    use glm_onnx::weights::Weights;
    use prost::Message as _;

    use crate::golden::{FIXTURES, cases, folder, scratch};

    const QUIET: fn(Progress) -> ControlFlow<()> = |_| ControlFlow::Continue(());
    const TEXT: &str = include_str!("../../../LICENSE");

    fn how(scheme: Scheme, block: Block) -> Quantisation {
        Quantisation { scheme, block }
    }

    fn int8() -> Quantisation {
        how(Scheme::Int8, Block::Of(32))
    }

    fn run(source: &Path, out: &Path, options: &Options) -> Report {
        export(source, out, options, &QUIET).unwrap()
    }

    /// Layers, head and table as the same integers.
    fn all_of(how: Quantisation) -> Options {
        Options {
            layers: Precision::Quantised(how),
            head: Precision::Quantised(how),
            embedding: Table::Quantised(how),
            threads: 2,
            ..Options::default()
        }
    }

    // === What comes back ===

    fn matrices(spec: &ModelSpec) -> Vec<Matrix> {
        let layers = (0..spec.layers).flat_map(|n| {
            let attention = [Matrix::Qkv(n), Matrix::AttentionOutput(n)];
            attention
                .into_iter()
                .chain([Matrix::MlpIn(n), Matrix::MlpOut(n)])
        });
        [Matrix::Embedding, Matrix::Head]
            .into_iter()
            .chain(layers)
            .collect()
    }

    /// Vectors that a model may have.
    fn vectors(spec: &ModelSpec) -> Vec<Vector> {
        let norms = (0..spec.layers).flat_map(|n| {
            [
                NormId::Attention(n),
                NormId::AfterAttention(n),
                NormId::Mlp(n),
                NormId::AfterMlp(n),
            ]
        });
        let norms = norms.chain([NormId::Final]);
        let of_norm = |norm| [Vector::NormWeight(norm), Vector::NormBias(norm)];
        let biases = matrices(spec).into_iter().map(Vector::Bias);
        norms.flat_map(of_norm).chain(biases).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn what_was_not_rounded_comes_back_bit_for_bit() {
        let folders = scratch();
        for fixture in FIXTURES {
            let out = folders.path().join(fixture);
            let manifest = run(&folder(fixture), &out, &Options::default()).manifest;
            let spec = Config::read(&folder(fixture), None).unwrap().spec;
            let checkpoint = Checkpoint::open(folder(fixture)).unwrap();
            let before = FamilyWeights::new(&checkpoint, &spec).unwrap();
            let after = Exported::open(&out, &manifest, &spec).unwrap();
            assert_eq!(
                after.head_is_embedding().unwrap(),
                before.head_is_embedding().unwrap(),
                "{fixture}"
            );
            let mut all = matrices(&spec);
            if spec.two_dimensional() && spec.family == glm::Family::Glm {
                all.extend([Matrix::Positions, Matrix::BlockPositions]);
            }
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for matrix in all {
                let (rows, columns) = Weights::shape(&after, matrix);
                assert_eq!(
                    (rows, columns),
                    before.shape(matrix),
                    "{fixture} {matrix:?}"
                );
                // In the middle, and all of it.
                for part in [rows / 3..rows / 2, 0..rows] {
                    before.rows(matrix, part.clone(), &mut a).unwrap();
                    after.rows(matrix, part, &mut b).unwrap();
                    assert!(bits(&a) == bits(&b), "{fixture} {matrix:?}");
                }
            }
            let mut found = 0;
            for vector in vectors(&spec) {
                if let Ok(a) = before.vector(vector) {
                    assert_eq!(
                        bits(&a),
                        bits(&after.vector(vector).unwrap()),
                        "{fixture} {vector:?}"
                    );
                    found += 1;
                }
            }
            assert!(found > 2 * spec.layers, "{fixture}");

            // Exported once more it is the same directory.
            let again = folders.path().join(format!("{fixture}-again"));
            let second = run(&out, &again, &Options::default());
            assert_eq!(second.manifest.files, manifest.files, "{fixture}");
            assert_eq!(second.manifest.source, manifest.source, "{fixture}");
        }
    }

    // === What stays ===

    /// Bytes of every constant by name.
    fn constants(out: &Path) -> BTreeMap<String, Vec<u8>> {
        let graph = fs::read(out.join("model.onnx")).unwrap();
        let graph = ModelProto::decode(graph.as_slice()).unwrap().graph.unwrap();
        let data = fs::read(out.join("model.onnx.data")).unwrap();
        let tensors = graph.initializer.into_iter().map(|tensor| {
            if tensor.data_location == 0 {
                return (tensor.name, tensor.raw_data);
            }
            let number = |n: usize| tensor.external_data[n].value.parse::<usize>().unwrap();
            let bytes = data[number(1)..number(1) + number(2)].to_vec();
            (tensor.name, bytes)
        });
        tensors.collect()
    }

    /// Places where two lists of bytes differ, and all of them.
    fn differing(a: &[u8], b: &[u8]) -> (usize, usize) {
        assert_eq!(a.len(), b.len());
        (a.iter().zip(b).filter(|(a, b)| a != b).count(), a.len())
    }

    /// Bytes of constants that are others when a model is exported again, and all of them.
    fn moved(fixture: &str, options: &Options) -> (usize, usize) {
        let folders = scratch();
        let [first, second] = ["a", "b"].map(|name| folders.path().join(name));
        let manifest = run(&folder(fixture), &first, options).manifest;
        let again = run(&first, &second, options).manifest;
        assert_eq!(again.quantisation, manifest.quantisation);
        let (before, after) = (constants(&first), constants(&second));
        assert!(before.keys().eq(after.keys()), "{fixture}");
        let (mut off, mut all) = (0, 0);
        for (name, bytes) in &before {
            let (differ, of) = differing(bytes, &after[name]);
            off += differ;
            all += of;
        }
        assert_eq!(off == 0, manifest.files == again.files, "{fixture}");
        (off, all)
    }

    #[test]
    fn symmetric_integers_are_the_same_when_a_model_is_exported_again() {
        let mixed = Options {
            embedding: Table::Half,
            layers: Precision::Quantised(int8()),
            head: Precision::Quantised(how(Scheme::Int8, Block::Row)),
            ..Options::default()
        };
        for fixture in FIXTURES {
            for options in [mixed.clone(), all_of(how(Scheme::Int4, Block::Of(32)))] {
                assert_eq!(moved(fixture, &options).0, 0, "{fixture} {options:?}");
            }
        }
        for how in [int8(), how(Scheme::Int4, Block::Row)] {
            assert_eq!(moved("glm-large", &all_of(how)).0, 0, "{how:?}");
        }
    }

    #[test]
    fn integers_with_zero_points_are_almost_the_same() {
        for (fixture, block) in [("glm-large", Block::Of(32)), ("glm-edge", Block::Row)] {
            let options = all_of(how(Scheme::Int4ZeroPoint, block));
            let (off, all) = moved(fixture, &options);
            println!("{fixture} {block:?}: {off} of {all} bytes differ");
            assert!(100 * off < all, "{fixture} {block:?}: {off} of {all}");
        }
    }

    #[test]
    fn the_model_read_back_answers_as_the_one_of_integers() {
        let folders = scratch();
        let schemes = [Scheme::Int8, Scheme::Int4, Scheme::Int4ZeroPoint];
        for (n, scheme) in schemes.into_iter().enumerate() {
            for fixture in ["glm-large", "chatglm-6b", "glm-edge-untied"] {
                let small = folders.path().join(format!("{fixture}-{n}"));
                let wide = folders.path().join(format!("{fixture}-{n}-wide"));
                let integers = run(
                    &folder(fixture),
                    &small,
                    &all_of(how(scheme, Block::Of(32))),
                );
                let floats = run(&small, &wide, &Options::default()).manifest;
                // Both come from the reference, which reads integers where they are some.
                assert_eq!(
                    floats.golden.prompts, integers.manifest.golden.prompts,
                    "{fixture} {scheme:?}"
                );
            }
        }
    }

    // === What goes along ===

    fn directory(manifest: &Manifest, folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let names = manifest
            .files
            .keys()
            .filter(|name| !name.starts_with("model.onnx"));
        let read = |name: &String| (name.clone(), fs::read(folder.join(name)).unwrap());
        names.map(read).collect()
    }

    #[test]
    fn tokenizer_template_tasks_and_licence_go_along() {
        let folders = scratch();
        for fixture in FIXTURES {
            let checkpoint = folders.path().join(format!("{fixture}-checkpoint"));
            fs::create_dir(&checkpoint).unwrap();
            for entry in fs::read_dir(folder(fixture)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), checkpoint.join(entry.file_name())).unwrap();
            }
            fs::write(checkpoint.join("LICENSE"), "of the weights").unwrap();
            if cases(fixture)[0].spec.family.fills_blanks() {
                let mask = if fixture == "chatglm-6b" {
                    "[gMASK]"
                } else {
                    "[MASK]"
                };
                let tasks = serde_json::json!({"severity": {"kind": "classify",
                    "description": "How bad", "pattern": format!("{{text}} Severity: {mask}."),
                    "labels": {"error": ["error"], "info": ["info"]}}});
                fs::write(checkpoint.join("tasks.json"), tasks.to_string()).unwrap();
            }
            let (first, second) = (
                folders.path().join(fixture),
                folders.path().join(format!("{fixture}-again")),
            );
            let named = Options {
                license: Some("Apache-2.0".into()),
                ..all_of(how(Scheme::Int4, Block::Row))
            };
            let before = run(&checkpoint, &first, &named).manifest;
            let report = run(&first, &second, &all_of(int8()));
            let after = report.manifest;
            assert_eq!(
                directory(&before, &first),
                directory(&after, &second),
                "{fixture}"
            );
            assert_eq!(after.spec, before.spec);
            assert_eq!(after.text_rules, before.text_rules);
            assert_eq!(after.tasks, before.tasks);
            assert_eq!(
                after.tasks.len(),
                usize::from(after.spec.family.fills_blanks())
            );
            assert_eq!(after.license, before.license);
            assert_eq!(after.name, format!("{fixture}-again"));

            // It is said that they had been rounded before.
            assert_eq!(after.source.checkpoint, before.source.checkpoint);
            assert_eq!(after.source.rounded, [before.quantisation]);
            let told = &report.warnings[0];
            assert!(told.contains("layers int4/row, head int4/row"), "{told}");
            assert_eq!(read_manifest(&second).unwrap(), after);
            let third = folders.path().join(format!("{fixture}-third"));
            let last = run(&second, &third, &Options::default()).manifest;
            let rounded = [before.quantisation, after.quantisation];
            assert_eq!(last.source.rounded, rounded);
        }
    }

    #[test]
    fn a_shared_table_stays_shared_where_it_was_rounded_once() {
        let folders = scratch();
        let data = |name: &str| {
            let file = fs::metadata(folders.path().join(name).join("model.onnx.data"));
            file.unwrap().len()
        };
        let at = |name: &str| folders.path().join(name);
        run(&folder("glm-post"), &at("full"), &Options::default());
        run(&folder("glm-post"), &at("same"), &all_of(int8()));
        let report = run(&at("same"), &at("same-full"), &Options::default());
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
        assert_eq!(data("same-full"), data("full"));

        // Rounded for the head alone, it is another table.
        let head = Options {
            head: Precision::Quantised(int8()),
            ..Options::default()
        };
        let manifest = run(&folder("glm-post"), &at("head"), &head).manifest;
        let full = Kept {
            number: Number::F32,
            block: None,
        };
        assert_eq!(manifest.quantisation.embedding, full);
        let report = run(&at("head"), &at("head-full"), &Options::default());
        assert!(
            report.warnings[1].contains("table of its own"),
            "{:?}",
            report.warnings
        );
        assert!(data("head-full") > data("full"));
        let golden = &report.manifest.golden.prompts;
        assert_eq!(golden, &manifest.golden.prompts);
    }

    #[test]
    fn an_export_becomes_one_for_npus() {
        let folders = scratch();
        let (small, npu) = (folders.path().join("small"), folders.path().join("npu"));
        run(&folder("glm-large"), &small, &all_of(int8()));
        let options = Options {
            profile: Profile::Npu {
                prompt: 32,
                context: 48,
            },
            calibration: Some(TEXT.to_owned()),
            ..Options::default()
        };
        let manifest = run(&small, &npu, &options).manifest;
        assert!(manifest.files.contains_key("step.onnx"));
        assert_eq!(manifest.quantisation.layers.number, Number::Int8);
        assert_eq!(manifest.source.rounded.len(), 1);

        // It is the end of the road.
        let error = export(&npu, &folders.path().join("x"), &Options::default(), &QUIET);
        let error = error.unwrap_err();
        assert_eq!((error.code(), error.exit_status()), ("malformed_file", 65));
        assert!(error.to_string().contains("step.onnx"), "{error}");
        assert!(error.to_string().contains("for NPUs"), "{error}");
    }

    #[test]
    fn a_checkpoint_beside_an_export_is_what_is_exported() {
        let folders = scratch();
        let out = folders.path().join("both");
        run(
            &folder("glm-edge"),
            &out,
            &all_of(how(Scheme::Int4, Block::Row)),
        );
        let weights = folder("glm-edge").join("model.safetensors");
        fs::copy(weights, out.join("model.safetensors")).unwrap();
        let report = run(&out, &folders.path().join("out"), &Options::default());
        assert!(report.manifest.source.rounded.is_empty());
        assert_eq!(report.manifest.source.checkpoint, "both");
    }
}
