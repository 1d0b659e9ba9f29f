//! A model directory that is exported again comes from a stranger, too: the
//! answer is its weights or an error that names file and tensor.

#[cfg(test)]
#[path = "golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::path::Path;

    use glm::Family;
    use glm::manifest::{self, Sha256};
    use glm_onnx::Error;
    use glm_onnx::export::{Options, Progress, Stage, export};
    use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
    use glm_onnx::proto::{GraphProto, ModelProto, TensorProto};
    use prost::Message as _;
    use serde_json::{Value, json};
    use sha2::Digest as _;

    use crate::golden::{folder, scratch};

    const QUIET: fn(Progress) -> ControlFlow<()> = |_| ControlFlow::Continue(());

    /// Makes a directory bad.
    type Spoil = fn(&Path);
    /// Makes a manifest bad.
    type Lie = fn(&mut Value);

    fn good(out: &Path) {
        let how = Quantisation {
            scheme: Scheme::Int8,
            block: Block::Of(32),
        };
        let options = Options {
            layers: Precision::Quantised(how),
            embedding: Table::Half,
            head: Precision::Quantised(how),
            ..Options::default()
        };
        export(&folder("glm-edge-untied"), out, &options, &QUIET).unwrap();
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn edit_manifest(out: &Path, change: impl FnOnce(&mut Value)) {
        edit(&out.join(manifest::FILE), |bytes| {
            let mut value = serde_json::from_slice(bytes).unwrap();
            change(&mut value);
            *bytes = value.to_string().into_bytes();
        });
    }

    /// Makes the manifest agree with the files.
    fn reseal(out: &Path) {
        edit_manifest(out, |manifest| {
            for (name, record) in manifest["files"].as_object_mut().unwrap() {
                let Ok(bytes) = fs::read(out.join(name)) else {
                    continue;
                };
                let hash = Sha256(sha2::Sha256::digest(&bytes).into());
                *record = json!({"size": bytes.len(), "sha256": hash.to_string()});
            }
        });
    }

    fn edit_graph(out: &Path, change: impl FnOnce(&mut GraphProto)) {
        edit(&out.join("model.onnx"), |bytes| {
            let mut model = ModelProto::decode(bytes.as_slice()).unwrap();
            change(model.graph.as_mut().unwrap());
            *bytes = model.encode_to_vec();
        });
        reseal(out);
    }

    fn edit_tensor(out: &Path, name: &str, change: impl FnOnce(&mut TensorProto)) {
        edit_graph(out, |graph| {
            let mut tensors = graph.initializer.iter_mut();
            change(tensors.find(|tensor| tensor.name == name).unwrap());
        });
    }

    fn set(tensor: &mut TensorProto, key: &str, value: &str) {
        let mut entries = tensor.external_data.iter_mut();
        let entry = entries.find(|entry| entry.key == key).unwrap();
        value.clone_into(&mut entry.value);
    }

    /// The first scale of the embedding's neighbour, the head.
    fn spoil_scale(out: &Path, value: f32) {
        let model = fs::read(out.join("model.onnx")).unwrap();
        let model = ModelProto::decode(model.as_slice()).unwrap();
        let tensors = model.graph.unwrap().initializer;
        let scales = tensors.iter().find(|t| t.name == "head.scales").unwrap();
        let offset: usize = scales.external_data[1].value.parse().unwrap();
        edit(&out.join("model.onnx.data"), |bytes| {
            bytes[offset + 4..offset + 8].copy_from_slice(&value.to_le_bytes());
        });
        reseal(out);
    }

    const QKV: &str = "layers.0.attention.qkv.values";

    /// What is wrong, the code of the error, and words that it must have.
    const CASES: [(Spoil, &str, &[&str]); 22] = [
        (
            |out| edit(&out.join("model.onnx.data"), |bytes| bytes[9000] ^= 1),
            "corrupt_model",
            &["model.onnx.data", "hash"],
        ),
        (
            |out| edit(&out.join("model.onnx.data"), |bytes| bytes.truncate(9000)),
            "corrupt_model",
            &["model.onnx.data", "9000 bytes"],
        ),
        (
            |out| fs::remove_file(out.join("model.onnx.data")).unwrap(),
            "file_missing",
            &["model.onnx.data"],
        ),
        (
            |out| edit(&out.join("tokenizer.json"), |bytes| bytes.push(b'\n')),
            "corrupt_model",
            &["tokenizer.json"],
        ),
        (
            |out| {
                edit(&out.join("model.onnx.data"), |bytes| bytes.truncate(9000));
                reseal(out);
            },
            "bad_tensor",
            &["model.onnx", "cut off", "9000"],
        ),
        (
            |out| {
                fs::write(out.join("model.onnx"), b"\x08\x0b\x3a\xff\xff\xff\xff\x0f").unwrap();
                reseal(out);
            },
            "malformed_file",
            &["model.onnx"],
        ),
        (
            |out| {
                fs::write(out.join("model.onnx"), b"").unwrap();
                reseal(out);
            },
            "malformed_file",
            &["model.onnx", "no graph"],
        ),
        (
            |out| {
                fs::write(out.join("model.onnx"), vec![0x0a; 9 << 20]).unwrap();
                reseal(out);
            },
            "malformed_file",
            &["model.onnx", "larger"],
        ),
        (
            |out| edit_graph(out, |graph| graph.initializer.retain(|t| t.name != QKV)),
            "tensor_missing",
            &["model.onnx", QKV],
        ),
        (
            |out| {
                edit_graph(out, |graph| {
                    let more = TensorProto {
                        name: "layers.9.mlp.in.values".into(),
                        ..TensorProto::default()
                    };
                    graph.initializer.push(more);
                });
            },
            "bad_tensor",
            &["layers.9.mlp.in.values", "without it"],
        ),
        (
            |out| edit_graph(out, |graph| graph.initializer.extend_from_within(..1)),
            "bad_tensor",
            &["twice"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| tensor.data_type = 3),
            "bad_tensor",
            &[QKV, "Int8", "Uint8"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| tensor.data_type = 99),
            "bad_tensor",
            &[QKV, "no known type"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| tensor.dims[0] = -1),
            "bad_tensor",
            &[QKV, "-1", "shape"],
        ),
        (
            |out| {
                edit_tensor(out, QKV, |tensor| {
                    set(tensor, "offset", "18446744073709551615")
                })
            },
            "bad_tensor",
            &[QKV, "cut off"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| set(tensor, "offset", "-4096")),
            "bad_tensor",
            &[QKV, "no place"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| set(tensor, "length", "1")),
            "bad_tensor",
            &[QKV, "has 1 bytes"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| set(tensor, "location", "../../secret")),
            "bad_tensor",
            &[QKV, "../../secret"],
        ),
        (
            |out| edit_tensor(out, QKV, |tensor| tensor.data_location = 0),
            "bad_tensor",
            &[QKV, "0 bytes in the graph"],
        ),
        (
            |out| spoil_scale(out, f32::NAN),
            "bad_tensor",
            &["model.onnx.data", "head.values", "NaN at [1, 0]"],
        ),
        (
            |out| spoil_scale(out, 1e38),
            "bad_tensor",
            &["model.onnx.data", "head.values", "inf"],
        ),
        (
            |out| {
                let config = out.join("config.json");
                let text = fs::read_to_string(&config).unwrap();
                let layers = "\"num_hidden_layers\": ";
                let at = text.find(layers).unwrap() + layers.len();
                fs::write(config, format!("{}200000{}", &text[..at], &text[at..])).unwrap();
                reseal(out);
            },
            "malformed_file",
            &["model.onnx", "layers"],
        ),
    ];

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_left() {
        for (n, (spoil, code, words)) in CASES.into_iter().enumerate() {
            let folders = scratch();
            let source = folders.path().join("source");
            good(&source);
            spoil(&source);
            let out = folders.path().join("out");
            let error = export(&source, &out, &Options::default(), &QUIET).unwrap_err();
            assert_eq!(
                (error.code(), error.exit_status()),
                (code, 65),
                "{n}: {error}"
            );
            let text = error.to_string();
            for word in words {
                assert!(text.contains(word), "{n}: `{word}` is not in: {text}");
            }
            assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 1, "{n}");
        }
    }

    #[test]
    fn manifests_that_lie_are_not_believed() {
        let cases: [(Lie, &str, &[&str]); 6] = [
            (
                |manifest| manifest["format"] = json!(2),
                "bad_manifest",
                &["format"],
            ),
            (
                |manifest| {
                    manifest["files"]
                        .as_object_mut()
                        .unwrap()
                        .remove("model.onnx.data");
                },
                "malformed_file",
                &["glm.json", "names no model.onnx.data"],
            ),
            (
                |manifest| manifest["quantisation"]["layers"]["number"] = json!("int4"),
                "bad_tensor",
                &["shape"],
            ),
            (
                |manifest| manifest["quantisation"]["layers"] = json!({"number": "f16"}),
                "malformed_file",
                &["glm.json", "quantisation.layers", "f16"],
            ),
            (
                |manifest| manifest["quantisation"]["head"]["block"] = json!(1_u64 << 62),
                "malformed_file",
                &["glm.json", "quantisation.head"],
            ),
            (
                |manifest| manifest["quantisation"]["layers"] = json!({"number": "f32"}),
                "tensor_missing",
                &["model.onnx", ".weight"],
            ),
        ];
        for (n, (change, code, words)) in cases.into_iter().enumerate() {
            let folders = scratch();
            let source = folders.path().join("source");
            good(&source);
            edit_manifest(&source, change);
            let out = folders.path().join("out");
            let error = export(&source, &out, &Options::default(), &QUIET).unwrap_err();
            assert_eq!(error.exit_status(), 65, "{n}: {error}");
            assert_eq!(error.code(), code, "{n}: {error}");
            let text = error.to_string();
            for word in words {
                assert!(text.contains(word), "{n}: `{word}` is not in: {text}");
            }
        }
    }

    #[test]
    fn another_family_than_it_was_exported_as_is_refused() {
        let folders = scratch();
        let source = folders.path().join("source");
        export(&folder("chatglm2"), &source, &Options::default(), &QUIET).unwrap();
        let wrong = Options {
            family: Some(Family::ChatGlm3),
            ..Options::default()
        };
        let error = export(&source, &folders.path().join("out"), &wrong, &QUIET).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Option {
                    option: "family",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn the_check_can_be_ended_and_counts_every_byte() {
        let folders = scratch();
        let source = folders.path().join("source");
        good(&source);
        let seen = std::sync::Mutex::new((0, 0));
        let stop = |progress: Progress| match progress.stage {
            Stage::Check => {
                *seen.lock().unwrap() = (progress.done, progress.total);
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        };
        let out = folders.path().join("out");
        let error = export(&source, &out, &Options::default(), &stop).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        let (done, total) = *seen.lock().unwrap();
        assert!(done == total && total > 0);
        let error = export(&source, &out, &Options::default(), &|_| {
            ControlFlow::Break(())
        });
        assert!(matches!(error, Err(Error::Cancelled)));
        assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 1);
    }
}
