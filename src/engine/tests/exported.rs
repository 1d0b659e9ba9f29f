//! Exported graphs of every family in ONNX Runtime, unmodified: those for processors and those for NPUs.

#[cfg(test)]
#[path = "../../onnx/tests/golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use glm::manifest::{Manifest, Number};
    use glm::{Position, TokenId};
    use glm_engine::backend::fixed::FixedShapes;
    use glm_engine::backend::portable::{Options, Portable};
    use glm_engine::backend::{Backend, Bytes, Row, SeqId, Step};
    use glm_onnx::export::{self, export};
    use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};
    use ort::environment::Environment;

    use crate::golden::{Case, FIXTURES, assert_direction, cases, folder, scratch, worst};

    fn environment() -> Option<&'static Environment> {
        static ENVIRONMENT: OnceLock<Option<Environment>> = OnceLock::new();
        let found = ENVIRONMENT.get_or_init(|| {
            let path = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH")?);
            let builder = ort::init_from(path).ok()?;
            Some(builder.with_telemetry(false).build().unwrap())
        });
        if found.is_none() {
            eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
        }
        found.as_ref()
    }

    fn exported(checkpoint: &Path, out: &Path, options: &export::Options) -> Manifest {
        let go_on = |_| std::ops::ControlFlow::Continue(());
        export(checkpoint, out, options, &go_on).unwrap().manifest
    }

    fn on_cpu() -> Options {
        Options {
            provider: None,
            threads: 1,
            max_tokens: 64,
            kv: Bytes(64 << 20),
        }
    }

    fn open(environment: &Environment, out: &Path) -> Portable {
        Portable::open(environment, &out.join("model.onnx"), on_cpu()).unwrap()
    }

    struct Tokens<'a> {
        ids: &'a [TokenId],
        positions: &'a [Position],
        bidirectional: usize,
    }

    /// Logits of all tokens, the first `prompt` of them at once and the others one by one.
    fn run(model: &mut dyn Backend, tokens: &Tokens<'_>, prompt: usize) -> Vec<f32> {
        let seq = SeqId(1);
        let row = |n: usize| Row {
            seq,
            id: tokens.ids[n],
            position: tokens.positions[n],
            visible: u32::try_from(tokens.bidirectional.max(n + 1)).unwrap(),
            logits: true,
        };
        let mut logits = Vec::new();
        let rest = (prompt..tokens.ids.len()).map(|n| n..n + 1);
        for range in std::iter::once(0..prompt).chain(rest) {
            let rows = range.map(row).collect();
            logits.extend(model.forward(&Step { rows }).unwrap().values);
        }
        model.release(seq);
        logits
    }

    /// The portable graph of a causal family counts positions itself, so it
    /// cannot run the cases that leave some out.
    fn in_a_row(case: &Case) -> bool {
        let mut places = (0..).zip(&case.prompt.positions);
        case.spec.family.fills_blanks() || places.all(|(n, position)| position.first == n)
    }

    fn logits_of(model: &mut dyn Backend, case: &Case) -> Vec<f32> {
        let tokens = Tokens {
            ids: &case.prompt.ids,
            positions: &case.prompt.positions,
            bidirectional: case.prompt.bidirectional,
        };
        run(model, &tokens, case.prompt_len)
    }

    /// A copy of a checkpoint with the activation of a case, where it has one of its own.
    fn checkpoint_of(fixture: &str, case: &Case, scratch: &Path) -> PathBuf {
        if !case.name.ends_with("-erf") {
            return folder(fixture);
        }
        let copy = scratch.join(format!("{fixture}-erf"));
        if !copy.exists() {
            std::fs::create_dir(&copy).unwrap();
            for entry in std::fs::read_dir(folder(fixture)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
            let config = std::fs::read_to_string(copy.join("config.json")).unwrap();
            let config = config.replace("\"gelu_new\"", "\"gelu\"");
            std::fs::write(copy.join("config.json"), config).unwrap();
        }
        copy
    }

    /// The model gives the logits that its manifest has.
    fn assert_golden(model: &mut dyn Backend, manifest: &Manifest, name: &str) {
        let vocabulary = manifest.spec.vocab_rows;
        for prompt in &manifest.golden.prompts {
            let positions: Vec<_> = prompt.places().collect();
            let tokens = Tokens {
                ids: &prompt.ids,
                positions: &positions,
                bidirectional: prompt.bidirectional,
            };
            let logits = run(model, &tokens, prompt.ids.len());
            let off = prompt.deviation(&logits[logits.len() - vocabulary..]);
            let tolerance = manifest.golden.tolerance;
            println!("{name:<18} {off:.4} of {tolerance:.4}");
            assert!(off <= tolerance, "{name}: {off} above {tolerance}");
        }
    }

    fn integers(scheme: Scheme, block: Block) -> export::Options {
        export::Options {
            layers: Precision::Quantised(Quantisation { scheme, block }),
            threads: 1,
            ..export::Options::default()
        }
    }

    #[test]
    fn unquantised_graphs_give_the_logits_of_others() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        for fixture in FIXTURES {
            for (n, case) in cases(fixture).into_iter().enumerate() {
                if !in_a_row(&case) {
                    continue;
                }
                let checkpoint = checkpoint_of(fixture, &case, scratch.path());
                let out = scratch.path().join(format!("{fixture}-{n}"));
                exported(&checkpoint, &out, &export::Options::default());
                let logits = logits_of(&mut open(environment, &out), &case);
                let worst = worst(&logits, &case.logits);
                println!("{:<34}{worst:.1e}", case.name);
                assert!(worst < 2e-5, "{}: {worst}", case.name);
            }
        }
    }

    #[test]
    fn graphs_of_fixed_shapes_give_the_logits_of_others() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        let npu = export::Options {
            profile: export::Profile::Npu {
                prompt: 32,
                context: 48,
            },
            threads: 1,
            ..export::Options::default()
        };
        for fixture in FIXTURES {
            for (n, case) in cases(fixture).into_iter().enumerate() {
                let checkpoint = checkpoint_of(fixture, &case, scratch.path());
                let out = scratch.path().join(format!("{fixture}-{n}"));
                exported(&checkpoint, &out, &npu);
                let graph = out.join("model.onnx");
                let mut model = FixedShapes::open(environment, &graph, &on_cpu()).unwrap();
                // Positions go in as numbers here, so every case can run.
                let logits = logits_of(&mut model, &case);
                let off = worst(&logits, &case.logits);
                println!("{:<34}{off:.1e}", case.name);
                assert!(off < 2e-5, "{}: {off}", case.name);
            }
        }
    }

    /// Text for calibration.
    const TEXT: &str = include_str!("../../../LICENSE");

    #[test]
    fn calibrated_graphs_of_fixed_shapes_keep_direction_and_pass_their_own_test() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        let npu = export::Options {
            profile: export::Profile::Npu {
                prompt: 40,
                context: 48,
            },
            calibration: Some(TEXT.to_owned()),
            threads: 1,
            ..export::Options::default()
        };
        for fixture in FIXTURES {
            let out = scratch.path().join(fixture);
            let manifest = exported(&folder(fixture), &out, &npu);
            let kept = manifest.quantisation.layers;
            assert_eq!(kept.number, Number::Int8);
            let graph = out.join("model.onnx");
            let mut model = FixedShapes::open(environment, &graph, &on_cpu()).unwrap();
            for case in cases(fixture) {
                if case.name.ends_with("-erf") {
                    continue;
                }
                let logits = logits_of(&mut model, &case);
                assert_direction(&case, &logits);
            }
            assert_golden(&mut model, &manifest, fixture);
        }
    }

    /// A prompt longer than a step, two sequences in turn, a step that is refused, and what is cut off.
    #[test]
    fn steps_of_fixed_sizes_are_steps_of_any_size() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        let (any, fixed) = (scratch.path().join("any"), scratch.path().join("fixed"));
        let plain = export::Options {
            threads: 1,
            ..export::Options::default()
        };
        exported(&folder("glm-edge"), &any, &plain);
        let profile = export::Profile::Npu {
            prompt: 32,
            context: 64,
        };
        let npu = export::Options { profile, ..plain };
        exported(&folder("glm-edge"), &fixed, &npu);
        let mut any = open(environment, &any);
        let graph = fixed.join("model.onnx");
        let mut fixed = FixedShapes::open(environment, &graph, &on_cpu()).unwrap();
        assert_eq!(fixed.capabilities().max_step_tokens, 32);

        let rows = |seq: u64, range: std::ops::Range<u32>, salt: u32| Step {
            rows: range
                .map(|n| Row {
                    seq: SeqId(seq),
                    id: TokenId((n * 37 + salt) % 300),
                    position: Position::context(n),
                    visible: n + 1,
                    logits: true,
                })
                .collect(),
        };
        let mut both = |step: Step| {
            let (a, b) = (any.forward(&step), fixed.forward(&step));
            let off = worst(&a.unwrap().values, &b.unwrap().values);
            assert!(off < 2e-5, "{off}");
        };
        both(rows(1, 0..40, 0));
        both(rows(2, 0..5, 7));
        both(rows(1, 40..41, 0));
        let mut mixed = rows(1, 41..43, 0);
        mixed.rows.extend(rows(2, 5..9, 7).rows);
        both(mixed);
        fixed.truncate(SeqId(2), 6);
        any.truncate(SeqId(2), 6);
        let full = fixed.forward(&rows(1, 43..80, 0));
        assert!(full.unwrap_err().to_string().contains("of 64 tokens"));
        assert_eq!((fixed.len(SeqId(1)), fixed.len(SeqId(2))), (43, 6));
        let step = rows(2, 6..12, 9);
        let (a, b) = (any.forward(&step), fixed.forward(&step));
        assert!(worst(&a.unwrap().values, &b.unwrap().values) < 2e-5);
        fixed.release(SeqId(1));
        assert_eq!(fixed.len(SeqId(1)), 0);
    }

    #[test]
    fn int8_graphs_keep_the_direction_of_every_row() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        for fixture in FIXTURES {
            let out = scratch.path().join(fixture);
            exported(
                &folder(fixture),
                &out,
                &integers(Scheme::Int8, Block::Of(32)),
            );
            let mut model = open(environment, &out);
            for case in cases(fixture) {
                if case.name.ends_with("-erf") || !in_a_row(&case) {
                    continue;
                }
                let logits = logits_of(&mut model, &case);
                assert_direction(&case, &logits);
            }
        }
    }

    #[test]
    fn every_model_passes_its_own_test() {
        let Some(environment) = environment() else {
            return;
        };
        let scratch = scratch();
        let int8 = Quantisation {
            scheme: Scheme::Int8,
            block: Block::Row,
        };
        let zero_points = Quantisation {
            scheme: Scheme::Int4ZeroPoint,
            block: Block::Of(32),
        };
        let all = [
            export::Options {
                head: Precision::Quantised(int8),
                embedding: Table::Quantised(int8),
                ..integers(int8.scheme, int8.block)
            },
            export::Options {
                embedding: Table::Half,
                ..integers(Scheme::Int4, Block::Of(32))
            },
            export::Options {
                head: Precision::Quantised(zero_points),
                embedding: Table::Quantised(zero_points),
                ..integers(zero_points.scheme, zero_points.block)
            },
        ];
        for fixture in FIXTURES {
            for (n, options) in all.iter().enumerate() {
                let out = scratch.path().join(format!("{fixture}-{n}"));
                let manifest = exported(&folder(fixture), &out, options);
                let mut model = open(environment, &out);
                assert_golden(&mut model, &manifest, &format!("{fixture} {n}"));
            }
        }
    }
}
