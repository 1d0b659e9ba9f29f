//! Exported model directories: whole, described by their manifest, and never half there.

#[cfg(test)]
#[path = "golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::path::Path;
    use std::sync::Mutex;

    use glm::manifest::{self, Kept, Number};
    use glm::tokenizer::Tokenizer;
    use glm::{Family, TokenId};
    use glm_onnx::Error;
    use glm_onnx::export::{Options, Profile, Progress, Stage, export};
    use glm_onnx::graph::{ALIGNMENT, Block, Precision, Quantisation, Scheme, Table};
    use glm_onnx::model_dir::{self, read_manifest};
    use glm_onnx::paging::{self, Constant, Outcome};
    use glm_onnx::proto::ModelProto;
    use prost::Message as _;
    use serde_json::Value;

    use crate::golden::{FIXTURES, cases, folder, scratch, worst};

    /// Makes a checkpoint bad.
    type Spoil = fn(&Path);

    const QUIET: fn(Progress) -> ControlFlow<()> = |_| ControlFlow::Continue(());

    fn how(scheme: Scheme, block: Block) -> Quantisation {
        Quantisation { scheme, block }
    }

    fn layers(how: Quantisation) -> Options {
        Options {
            layers: Precision::Quantised(how),
            threads: 2,
            ..Options::default()
        }
    }

    /// Everything as integers, the table too.
    fn small(how: Quantisation) -> Options {
        Options {
            head: Precision::Quantised(how),
            embedding: Table::Quantised(how),
            ..layers(how)
        }
    }

    fn all_options() -> Vec<Options> {
        let int8 = how(Scheme::Int8, Block::Of(32));
        vec![
            Options::default(),
            Options {
                embedding: Table::Half,
                ..layers(int8)
            },
            small(how(Scheme::Int8, Block::Row)),
            small(how(Scheme::Int4ZeroPoint, Block::Of(32))),
        ]
    }

    fn model(out: &Path) -> ModelProto {
        let bytes = fs::read(out.join("model.onnx")).unwrap();
        ModelProto::decode(bytes.as_slice()).unwrap()
    }

    #[test]
    fn every_family_becomes_a_directory_that_verifies() {
        let folders = scratch();
        for fixture in FIXTURES {
            for (n, options) in all_options().into_iter().enumerate() {
                let out = folders.path().join(format!("{fixture}-{n}"));
                let report = export(&folder(fixture), &out, &options, &QUIET).unwrap();
                let manifest = read_manifest(&out).unwrap();
                assert_eq!(manifest, report.manifest);
                assert_eq!(manifest.name, format!("{fixture}-{n}"));
                assert_eq!(manifest.source.checkpoint, fixture);
                model_dir::verify(&out, &manifest, &mut |_, _| Ok(())).unwrap();
                let mut names: Vec<_> = manifest.files.keys().cloned().collect();
                names.push(manifest::FILE.to_owned());
                let mut found: Vec<_> = fs::read_dir(&out)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
                names.sort();
                found.sort();
                assert_eq!(names, found);
                let genai = found.contains(&"genai_config.json".to_owned());
                assert_eq!(genai, !manifest.spec.family.fills_blanks());

                let json = fs::read(out.join("tokenizer.json")).unwrap();
                let tokenizer = Tokenizer::from_json(&json, manifest.text_rules).unwrap();
                tokenizer.check_vocab(manifest.spec.vocab_rows).unwrap();
                let text = "the network is down 你好 42";
                let ids = tokenizer.encode_plain(text).unwrap();
                assert!(ids.iter().all(|id| id.index() < manifest.spec.vocab_rows));

                let model = model(&out);
                let graph = model.graph.as_ref().unwrap();
                let data = fs::metadata(out.join("model.onnx.data")).unwrap().len();
                for tensor in graph.initializer.iter().filter(|t| t.data_location == 1) {
                    let number = |n: usize| tensor.external_data[n].value.parse::<u64>().unwrap();
                    assert_eq!(number(1) % ALIGNMENT, 0);
                    assert!(number(1) + number(2) <= data);
                }
                assert!(graph.initializer.iter().all(|tensor| {
                    tensor.data_location == 1
                        || !tensor.raw_data.is_empty()
                        || tensor.dims.contains(&0)
                }));
                assert!(
                    matches!(paging::page(&model), Outcome::Paged(_)),
                    "{fixture}"
                );
            }
        }
        let left: Vec<_> = fs::read_dir(folders.path()).unwrap().collect();
        assert_eq!(left.len(), FIXTURES.len() * all_options().len());
    }

    #[test]
    fn special_tokens_of_the_checkpoint_reach_the_manifest() {
        let folders = scratch();
        let out = folders.path().join("out");
        let report = export(&folder("glm-post"), &out, &Options::default(), &QUIET).unwrap();
        let special = report.manifest.spec.special;
        assert_eq!(special.smask, Some(TokenId(243)));
        assert_eq!(special.gmask, Some(TokenId(242)));
        let json = fs::read(out.join("tokenizer.json")).unwrap();
        let tokenizer = Tokenizer::from_json(&json, report.manifest.text_rules).unwrap();
        assert_eq!(tokenizer.special("[sMASK]"), Some(TokenId(243)));
    }

    #[test]
    fn golden_logits_of_unquantised_weights_are_those_of_others() {
        let folders = scratch();
        for fixture in ["glm-post", "chatglm2", "glm-edge-untied"] {
            let out = folders.path().join(fixture);
            let report = export(&folder(fixture), &out, &Options::default(), &QUIET).unwrap();
            let golden = &report.manifest.golden;
            let largest = cases(fixture)[0]
                .logits
                .iter()
                .fold(0.0_f32, |m, x| m.max(x.abs()));
            assert!(golden.tolerance < 0.02 * largest, "{}", golden.tolerance);
            assert!(golden.prompts.iter().any(|prompt| prompt.ids.len() > 32));
            let family = report.manifest.spec.family;
            for prompt in &golden.prompts {
                let blank = prompt.positions.iter().any(|[_, second]| *second > 0);
                assert_eq!(blank, family.fills_blanks());
            }
        }
    }

    #[test]
    fn a_tied_table_is_stored_once_and_quantised_when_asked() {
        let folders = scratch();
        let sizes = [Options::default(), small(how(Scheme::Int8, Block::Row))].map(|options| {
            let out = folders
                .path()
                .join(format!("{:?}", options.head == Precision::Full));
            let report = export(&folder("glm-post"), &out, &options, &QUIET).unwrap();
            let table = report.manifest.quantisation.embedding;
            let Outcome::Paged(paged) = paging::page(&model(&out)) else {
                panic!("not rewritten");
            };
            let quantised = paged
                .constants
                .iter()
                .any(|constant| matches!(constant, Constant::QuantisedTable(_)));
            assert_eq!(quantised, table.number == Number::Int8);
            fs::metadata(out.join("model.onnx.data")).unwrap().len()
        });
        // 256 rows of 32: 32 KiB as f32, 9 KiB as integers with a scale a row.
        assert!(sizes[0] > sizes[1] + 20_000, "{sizes:?}");
    }

    #[test]
    fn what_was_asked_is_recorded() {
        let folders = scratch();
        let out = folders.path().join("out");
        let options = Options {
            name: Some("mini".into()),
            license: Some("Apache-2.0".into()),
            embedding: Table::Half,
            ..layers(how(Scheme::Int4ZeroPoint, Block::Row))
        };
        // The tied head is kept in f32, so the table is too.
        let report = export(&folder("glm-large"), &out, &options, &QUIET).unwrap();
        let kept = |number| Kept {
            number,
            block: None,
        };
        let quantisation = report.manifest.quantisation;
        assert_eq!(quantisation.layers.number, Number::Int4Zp);
        assert_eq!(quantisation.layers.block, Some(manifest::Block::Row));
        assert_eq!(quantisation.head, kept(Number::F32));
        assert_eq!(quantisation.embedding, kept(Number::F32));
        assert_eq!(report.manifest.license.as_deref(), Some("Apache-2.0"));
        assert_eq!(report.manifest.name, "mini");
        assert_eq!(report.manifest.spec.family, Family::Glm);
        let config = fs::read(folder("glm-large").join("config.json")).unwrap();
        assert_eq!(fs::read(out.join("config.json")).unwrap(), config);
    }

    #[test]
    fn chat_templates_go_along() {
        let folders = scratch();
        let checkpoint = folders.path().join("checkpoint");
        copy(&folder("glm-edge"), &checkpoint);
        let template = fs::read(checkpoint.join("chat_template.jinja")).unwrap();
        let first = folders.path().join("first");
        export(&checkpoint, &first, &Options::default(), &QUIET).unwrap();
        assert_eq!(
            fs::read(first.join("chat_template.jinja")).unwrap(),
            template
        );

        fs::remove_file(checkpoint.join("chat_template.jinja")).unwrap();
        let path = checkpoint.join("tokenizer_config.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        settings["chat_template"] = serde_json::json!([
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]);
        settings["auto_map"] = serde_json::json!({"AutoTokenizer": ["x.Y", null]});
        fs::write(&path, settings.to_string()).unwrap();
        let second = folders.path().join("second");
        export(&checkpoint, &second, &Options::default(), &QUIET).unwrap();
        assert_eq!(
            fs::read(second.join("chat_template.jinja")).unwrap(),
            b"yes"
        );
        let settings = fs::read_to_string(second.join("tokenizer_config.json")).unwrap();
        assert!(!settings.contains("auto_map"));
    }

    #[test]
    fn tasks_are_checked_and_carried() {
        let folders = scratch();
        let checkpoint = folders.path().join("checkpoint");
        copy(&folder("glm-post"), &checkpoint);
        let out = folders.path().join("out");
        let task = |pattern: &str| {
            let tasks = serde_json::json!({"severity": {"kind": "classify", "description": "How bad",
                "pattern": pattern, "labels": {"error": ["error"], "info": ["info"]}}});
            fs::write(checkpoint.join("tasks.json"), tasks.to_string()).unwrap();
        };
        task("{text} Severity: nothing.");
        let error = export(&checkpoint, &out, &Options::default(), &QUIET).unwrap_err();
        assert!(error.to_string().contains("severity.pattern"), "{error}");
        assert_eq!(error.exit_status(), 65);
        // [sMASK] is a token of the tokenizer's files alone.
        task("{text} Severity: [sMASK].");
        let report = export(&checkpoint, &out, &Options::default(), &QUIET).unwrap();
        assert_eq!(report.manifest.tasks.len(), 1);
    }

    #[test]
    fn an_end_in_any_stage_leaves_nothing() {
        for stage in [Stage::Weights, Stage::Golden, Stage::Hashes] {
            let folders = scratch();
            let out = folders.path().join("out");
            let stop = |progress: Progress| match progress.stage == stage {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            let error = export(&folder("glm4-hf"), &out, &Options::default(), &stop).unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error}");
            assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn progress_reaches_the_end_of_every_stage() {
        let folders = scratch();
        let seen = Mutex::new(Vec::new());
        let watch = |progress: Progress| {
            seen.lock().unwrap().push(progress);
            ControlFlow::Continue(())
        };
        let options = small(how(Scheme::Int4, Block::Of(16)));
        export(
            &folder("chatglm-6b"),
            &folders.path().join("out"),
            &options,
            &watch,
        )
        .unwrap();
        let seen = seen.into_inner().unwrap();
        for stage in [Stage::Weights, Stage::Golden, Stage::Hashes] {
            let own = seen.iter().filter(|progress| progress.stage == stage);
            let most = own.map(|p| (p.done, p.total)).max().unwrap();
            assert_eq!(most.0, most.1, "{stage:?}");
        }
    }

    #[test]
    fn a_directory_that_is_there_is_replaced_only_when_asked() {
        let folders = scratch();
        let out = folders.path().join("out");
        let run = |fixture: &str, force| {
            let options = Options {
                force,
                ..Options::default()
            };
            export(&folder(fixture), &out, &options, &QUIET)
        };
        run("glm-post", false).unwrap();
        let refused = run("glm-large", false).unwrap_err();
        assert_eq!((refused.code(), refused.exit_status()), ("bad_option", 64));
        assert_eq!(read_manifest(&out).unwrap().source.checkpoint, "glm-post");
        run("glm-large", true).unwrap();
        assert_eq!(read_manifest(&out).unwrap().source.checkpoint, "glm-large");
        assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 1);

        // A folder of something else is nobody's to delete.
        fs::remove_file(out.join(manifest::FILE)).unwrap();
        assert_eq!(run("glm-post", true).unwrap_err().exit_status(), 64);
        assert!(out.join("model.onnx").exists());
        let nowhere = folders.path().join("a/b");
        let error = export(&folder("glm-post"), &nowhere, &Options::default(), &QUIET).unwrap_err();
        assert!(error.to_string().contains("make this folder"), "{error}");
    }

    #[test]
    fn options_that_do_not_fit_name_themselves() {
        let folders = scratch();
        let out = folders.path().join("out");
        let odd = Options {
            embedding: Table::Quantised(how(Scheme::Int8, Block::Of(128))),
            ..Options::default()
        };
        let error = export(&folder("glm-post"), &out, &odd, &QUIET).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Option {
                    option: "embedding",
                    ..
                }
            ),
            "{error}"
        );
        let odd = layers(how(Scheme::Int8, Block::Of(48)));
        let error = export(&folder("glm-post"), &out, &odd, &QUIET).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Option {
                    option: "quant",
                    ..
                }
            ),
            "{error}"
        );
        for (wrong, odd) in [
            (
                "quant",
                Options {
                    profile: npu(32),
                    ..layers(how(Scheme::Int8, Block::Of(32)))
                },
            ),
            (
                "prompt",
                Options {
                    profile: npu(16),
                    ..Options::default()
                },
            ),
            (
                "prompt",
                Options {
                    profile: npu(49),
                    ..Options::default()
                },
            ),
        ] {
            let error = export(&folder("glm-post"), &out, &odd, &QUIET).unwrap_err();
            let Error::Option { option, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(option, wrong);
        }
        assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 0);
    }

    fn npu(prompt: usize) -> Profile {
        Profile::Npu {
            prompt,
            context: 48,
        }
    }

    #[test]
    fn both_graphs_for_npus_read_the_same_bytes() {
        let folders = scratch();
        for fixture in ["glm-large", "glm-edge"] {
            let out = folders.path().join(fixture);
            let options = Options {
                profile: npu(32),
                ..Options::default()
            };
            let manifest = export(&folder(fixture), &out, &options, &QUIET)
                .unwrap()
                .manifest;
            assert_eq!(manifest.context, 48);
            assert!(manifest.files.contains_key("step.onnx"));
            assert!(!out.join("genai_config.json").exists());
            let step = fs::read(out.join("step.onnx")).unwrap();
            let step = ModelProto::decode(step.as_slice()).unwrap();
            let graphs = [model(&out), step].map(|model| model.graph.unwrap());
            let weights = graphs.each_ref().map(|graph| {
                let tensors = graph.initializer.iter();
                tensors
                    .filter(|tensor| !tensor.name.starts_with("shape."))
                    .collect::<Vec<_>>()
            });
            assert_eq!(weights[0], weights[1]);
            let operators = graphs.iter().flat_map(|graph| &graph.node);
            assert!(operators.map(|node| &node.domain).all(String::is_empty));
        }
    }

    #[test]
    fn bad_input_leaves_nothing() {
        let spoil: [(&str, Spoil); 4] = [
            ("NaN", |path| {
                let weights = path.join("model.safetensors");
                let mut bytes = fs::read(&weights).unwrap();
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(weights, bytes).unwrap();
            }),
            ("vocab_size", |path| {
                let config = fs::read_to_string(path.join("config.json")).unwrap();
                let config = config.replace("\"vocab_size\": 256", "\"vocab_size\": 200");
                fs::write(path.join("config.json"), config).unwrap();
            }),
            ("vocab.txt", |path| {
                fs::remove_file(path.join("vocab.txt")).unwrap();
            }),
            ("[gMASK]", |path| {
                fs::write(path.join("added_tokens.json"), "{\"[gMASK]\": 250}").unwrap();
            }),
        ];
        for (named, spoil) in spoil {
            let folders = scratch();
            let checkpoint = folders.path().join("checkpoint");
            copy(&folder("glm-post"), &checkpoint);
            spoil(&checkpoint);
            let out = folders.path().join("out");
            let error = export(&checkpoint, &out, &Options::default(), &QUIET).unwrap_err();
            assert!(error.to_string().contains(named), "{named}: {error}");
            assert_eq!(error.exit_status(), 65, "{named}");
            assert_eq!(fs::read_dir(folders.path()).unwrap().count(), 1, "{named}");
        }
    }

    #[test]
    fn a_changed_file_does_not_verify() {
        let folders = scratch();
        let out = folders.path().join("out");
        let report = export(&folder("glm-post"), &out, &Options::default(), &QUIET).unwrap();
        let path = out.join("model.onnx.data");
        let mut bytes = fs::read(&path).unwrap();
        bytes[5000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let check = || model_dir::verify(&out, &report.manifest, &mut |_, _| Ok(()));
        let error = check().unwrap_err();
        assert!(error.to_string().contains("model.onnx.data"), "{error}");
        assert_eq!((error.code(), error.exit_status()), ("corrupt_model", 65));
        model_dir::check_sizes(&out, &report.manifest).unwrap();
        fs::write(&path, &bytes[1..]).unwrap();
        assert!(model_dir::check_sizes(&out, &report.manifest).is_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(check().unwrap_err().code(), "file_missing");
    }

    #[test]
    fn two_exports_of_one_checkpoint_are_equal() {
        let folders = scratch();
        let files = [1, 5].map(|threads| {
            let out = folders.path().join(threads.to_string());
            let options = Options {
                threads,
                name: Some("same".into()),
                ..small(how(Scheme::Int8, Block::Of(32)))
            };
            export(&folder("glm-large"), &out, &options, &QUIET)
                .unwrap()
                .manifest
        });
        assert_eq!(files[0].files, files[1].files);
        let logits = |n: usize| files[n].golden.prompts[0].logits.iter().map(|l| l.value);
        let (a, b): (Vec<_>, Vec<_>) = (logits(0).collect(), logits(1).collect());
        assert_eq!(worst(&a, &b), 0.0);
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
