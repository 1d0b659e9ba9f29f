//! Whatever a checkpoint folder holds, the answer is its tensors or an error
//! that names file and tensor; nothing in it is executed or believed.

mod support;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use glm_onnx::checkpoint::{Checkpoint, FamilyWeights, Format};
    use glm_onnx::{Error, Result};
    use proptest::prelude::*;
    use serde_json::json;

    use crate::support::zip::zip;
    use crate::support::{Pickle, ViewOf, archive, fixture, floats, safetensors_with, spec_of};

    fn read(format: Format, bytes: Vec<u8>) -> Result<Checkpoint> {
        Checkpoint::from_file(Path::new("weights.file"), format, Box::new(bytes))
    }

    /// Checks that `bytes` are refused with `code`, as bad input, in words that hold all of `words`.
    fn refused(format: Format, bytes: Vec<u8>, code: &str, words: &[&str]) {
        let error = read(format, bytes).map(drop).expect_err("must be refused");
        let text = error.to_string();
        assert_eq!((error.code(), error.exit_status()), (code, 65), "{text}");
        for word in words.iter().chain(&["weights.file"]) {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }

    fn all(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
        let shape = &checkpoint.get(name).unwrap().shape;
        let rows = if shape.len() == 2 { shape[0] } else { 1 };
        let mut out = Vec::new();
        checkpoint.read(name, 0..rows, &mut out)?;
        Ok(out)
    }

    // === safetensors ===

    #[test]
    fn lengths_that_lie_are_not_believed() {
        let whole = std::fs::read(fixture("glm-edge").join("model.safetensors")).unwrap();
        for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            refused_somehow(Format::Safetensors, whole[..length].to_vec());
        }
        for length in [
            u64::MAX,
            u64::MAX - 8,
            1 << 40,
            17 << 20,
            whole.len() as u64 - 7,
        ] {
            let mut lying = whole.clone();
            lying[..8].copy_from_slice(&length.to_le_bytes());
            let words = ["header", &length.to_string()];
            refused(Format::Safetensors, lying, "malformed_file", &words);
        }
        let mut longer = whole;
        longer.extend([0; 3]);
        refused(Format::Safetensors, longer, "malformed_file", &["3 bytes"]);
    }

    fn refused_somehow(format: Format, bytes: Vec<u8>) {
        let error = read(format, bytes).map(drop).expect_err("must be refused");
        assert_eq!(error.exit_status(), 65, "{error}");
        assert!(error.to_string().contains("weights.file"), "{error}");
    }

    #[test]
    fn headers_that_are_no_headers_are_refused() {
        for (header, word) in [
            ("", "header"),
            ("[]", "header"),
            ("{\"a\": 3}", "`a`"),
            (
                r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
                "`a`",
            ),
            (r#"{"a": {"dtype": "F32", "shape": [1]}}"#, "`a`"),
            ("{\"a\": {", "header"),
        ] {
            let file = safetensors_with(header, &[0; 4]);
            refused(Format::Safetensors, file, "malformed_file", &[word]);
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        refused(
            Format::Safetensors,
            safetensors_with(&deep, &[]),
            "malformed_file",
            &[],
        );
    }

    #[test]
    fn tensors_lie_one_after_the_other_and_within_the_file() {
        let entry = |dtype: &str, shape: &[u64], from: u64, to: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]});
        let f = |from, to| entry("F32", &[(to - from) / 4], from, to);
        for (header, word) in [
            (json!({"t": f(0, 20)}), "cut off"),
            (json!({"s": f(0, 8), "t": f(4, 16)}), "overlaps"),
            (json!({"s": f(0, 8), "t": f(0, 8)}), "overlaps"),
            (json!({"s": f(0, 4), "t": f(8, 16)}), "gap"),
            (json!({"t": f(4, 16)}), "gap"),
            (json!({"t": entry("F32", &[5], 0, 16)}), "do not hold"),
            (json!({"t": entry("F16", &[4], 0, 16)}), "do not hold"),
            (
                json!({"t": entry("F32", &[1 << 62, 1 << 62], 0, 16)}),
                "do not hold",
            ),
            (json!({"t": entry("F32", &[4], 16, 0)}), "gap"),
            (json!({"t": entry("F4", &[33], 0, 16)}), "do not hold"),
            (json!({"t": entry("F33", &[4], 0, 16)}), "unknown type"),
        ] {
            let file = safetensors_with(&header.to_string(), &[0; 16]);
            refused(Format::Safetensors, file, "bad_tensor", &["`t`", word]);
        }
        let twice = r#"{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                        "t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
        let file = safetensors_with(twice, &[0; 8]);
        refused(Format::Safetensors, file, "bad_tensor", &["`t`", "twice"]);
    }

    #[test]
    fn tensors_that_are_no_weights_may_be_there_but_not_be_read() {
        let header = json!({
            "__metadata__": {"format": "pt"},
            "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
            "cube": {"dtype": "F32", "shape": [1, 2, 1], "data_offsets": [8, 16]},
            "w": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
        });
        let data = [&[0; 16][..], &[0x80, 0x3f, 0x00, 0xc0]].concat();
        let file = safetensors_with(&header.to_string(), &data);
        let checkpoint = read(Format::Safetensors, file).unwrap();
        assert_eq!(all(&checkpoint, "w").unwrap(), [1.0, -2.0]);
        for (name, word) in [("ids", "I64"), ("cube", "axes")] {
            let error = all(&checkpoint, name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(word), "{error}");
        }
        let mut out = Vec::new();
        let beyond = checkpoint.read("w", 0..2, &mut out).unwrap_err();
        assert_eq!(beyond.code(), "bad_tensor");
        let absent = checkpoint.read("x", 0..1, &mut out).unwrap_err();
        assert_eq!(absent.code(), "tensor_missing");
    }

    // === Pickles ===

    fn pickled(pickle: &[u8]) -> Vec<u8> {
        archive(pickle, &[&floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])])
    }

    #[test]
    fn views_of_storages_are_read_as_python_indexes_them() {
        let view = |first, shape, strides| ViewOf {
            first,
            shape,
            strides,
            ..ViewOf::default()
        };
        let pickle = Pickle::dictionary(&[
            ("rows", view(0, &[2, 3], &[3, 1])),
            ("turned", view(0, &[3, 2], &[1, 3])),
            ("part", view(1, &[2, 2], &[3, 1])),
            ("apart", view(1, &[3], &[2])),
            ("empty", view(0, &[0, 7], &[7, 1])),
        ]);
        let checkpoint = read(Format::Torch, pickled(&pickle)).unwrap();
        for (name, expected) in [
            ("rows", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]),
            ("turned", &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            ("part", &[1.0, 2.0, 4.0, 5.0]),
            ("apart", &[1.0, 3.0, 5.0]),
            ("empty", &[]),
        ] {
            assert_eq!(all(&checkpoint, name).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn parameters_attributes_and_settings_do_not_matter() {
        let mut pickle = Pickle(b"\x80\x02}(".to_vec());
        pickle.text("epoch");
        pickle.int(3);
        pickle.text("weight");
        pickle.global("torch._utils", "_rebuild_parameter");
        pickle.0.extend(b"(");
        pickle.tensor(&ViewOf::default());
        pickle.0.extend(b"\x89");
        pickle.global("collections", "OrderedDict");
        pickle.0.extend(b")RtRu");
        // An attribute, as `state_dict` leaves it on its dictionary.
        pickle.0.extend(b"}");
        pickle.text("_metadata");
        pickle.0.extend(b"}sb.");
        let checkpoint = read(Format::Torch, pickled(&pickle.0)).unwrap();
        let names: Vec<_> = checkpoint.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["weight"]);
        assert_eq!(all(&checkpoint, "weight").unwrap().len(), 6);
    }

    #[test]
    fn a_pickle_that_names_anything_else_is_refused_unexecuted() {
        let folder = tempfile::tempdir().unwrap();
        let canary = folder.path().join("executed");
        let command = format!("touch {}", canary.display());
        let call = |name: &[u8]| {
            let mut pickle = Pickle(b"\x80\x04".to_vec());
            pickle.0.extend(name);
            pickle.text(&command);
            pickle.0.extend(b"\x85R.");
            pickle.0
        };
        let mut stacked = Pickle::default();
        stacked.text("os");
        stacked.text("system");
        stacked.0.push(0x93);
        let inst = [b"\x80\x02(".as_slice(), b"ios\nsystem\n."].concat();
        for (pickle, name) in [
            (call(b"cos\nsystem\n"), "os.system"),
            (call(b"cposix\nsystem\n"), "posix.system"),
            (call(b"cbuiltins\neval\n"), "builtins.eval"),
            (call(b"ctorch\nload\n"), "torch.load"),
            (
                call(b"ctorch._utils\n_rebuild_tensor\n"),
                "torch._utils._rebuild_tensor",
            ),
            (
                call(b"ccollections\nOrderedDict.fromkeys\n"),
                "collections.OrderedDict.fromkeys",
            ),
            (call(&stacked.0), "os.system"),
            (inst, "os.system"),
        ] {
            refused(Format::Torch, pickled(&pickle), "forbidden_pickle", &[name]);
        }
        // Hidden among the arguments of a tensor, in a protocol that frames.
        let mut hidden = Pickle(b"\x80\x04\x95\x10\0\0\0\0\0\0\0".to_vec());
        hidden.global("torch._utils", "_rebuild_tensor_v2");
        hidden.0.extend(b"(");
        hidden.global("subprocess", "Popen");
        hidden.0.extend(b"tR.");
        let name = ["subprocess.Popen"];
        refused(Format::Torch, pickled(&hidden.0), "forbidden_pickle", &name);
        assert!(!canary.exists());
    }

    #[test]
    fn pickles_that_make_no_sense_are_refused() {
        let odd = |bytes: &[u8]| [b"\x80\x02", bytes].concat();
        for pickle in [
            odd(b""),
            odd(b"."),
            odd(b"N."),
            odd(b"K"),
            odd(b"K\x05."),
            odd(b"h\0."),
            odd(b"q\0."),
            odd(b"R."),
            odd(b"NNR."),
            odd(b"u."),
            odd(b"}Ns."),
            odd(b"(}0."),
            odd(b"K\x01(0."),
            odd(b"\x86."),
            odd(b"ccollections\nOrderedDict\nNR."),
            odd(b"ccollections\nOrderedDict\nNb."),
            odd(b"ccollections"),
            odd(b"ccollections\nOrdered"),
            odd(b"X\xff\xff\xff\xffabc."),
            odd(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."),
            odd(b"X\x01\0\0\0\xff."),
            odd(b"\x8a\x09\0\0\0\0\0\0\0\0\x01."),
            odd(b"(K\x01K\x02tQ."),
            odd(b"\x82\x01."),
            odd(b"P123\n."),
            b"\x80\x63}.".to_vec(),
        ] {
            refused_somehow(Format::Torch, pickled(&pickle));
        }
        // No depth, count or repetition takes more than the pickle is long.
        let count = (1 << 20) + (1 << 18);
        for one in [&b"\x85"[..], b"(", b"]", b"\x94", b"}", b"0N"] {
            let bomb = [b"\x80\x04N".as_slice(), &one.repeat(count), b"."].concat();
            refused_somehow(Format::Torch, pickled(&bomb));
        }
    }

    #[test]
    fn tensors_stay_within_their_storage() {
        let view = ViewOf::default();
        for (bad, word) in [
            (ViewOf { first: 1, ..view }, "storage"),
            (
                ViewOf {
                    shape: &[3, 3],
                    ..view
                },
                "storage",
            ),
            (
                ViewOf {
                    strides: &[4, 1],
                    ..view
                },
                "storage",
            ),
            (
                ViewOf {
                    shape: &[7],
                    strides: &[0],
                    ..view
                },
                "storage",
            ),
            (
                ViewOf {
                    shape: &[4, 4],
                    strides: &[1, 1],
                    ..view
                },
                "storage",
            ),
            (
                ViewOf {
                    strides: &[1],
                    ..view
                },
                "strides",
            ),
            (
                ViewOf {
                    shape: &[i32::MAX, i32::MAX],
                    strides: &[i32::MAX, 1],
                    ..view
                },
                "storage",
            ),
            (
                ViewOf {
                    elements: 7,
                    ..view
                },
                "elements",
            ),
            (
                ViewOf {
                    elements: 5,
                    shape: &[5],
                    strides: &[1],
                    ..view
                },
                "elements",
            ),
            (
                ViewOf {
                    class: "HalfStorage",
                    ..view
                },
                "elements",
            ),
            (ViewOf { key: "1", ..view }, "data/1"),
            (
                ViewOf {
                    key: "../data.pkl",
                    ..view
                },
                "data/../data.pkl",
            ),
        ] {
            let pickle = Pickle::dictionary(&[("good", view), ("t", bad)]);
            refused(
                Format::Torch,
                pickled(&pickle),
                "bad_tensor",
                &["`t`", word],
            );
        }
        for bad in [
            ViewOf { first: -1, ..view },
            ViewOf {
                shape: &[2, -3],
                ..view
            },
            ViewOf {
                strides: &[-3, 1],
                ..view
            },
            ViewOf {
                elements: -6,
                ..view
            },
            ViewOf {
                shape: &[1; 9],
                strides: &[1; 9],
                ..view
            },
        ] {
            let pickle = Pickle::dictionary(&[("t", bad)]);
            refused(
                Format::Torch,
                pickled(&pickle),
                "malformed_file",
                &["pickle"],
            );
        }
    }

    // === Archives ===

    #[test]
    fn archives_that_are_cut_packed_or_lying_are_refused() {
        let pickle = Pickle::dictionary(&[("t", ViewOf::default())]);
        let data = floats([0.0; 6]);
        let whole = archive(&pickle, &[&data]);
        assert!(read(Format::Torch, whole.clone()).is_ok());
        for length in 0..whole.len() {
            refused_somehow(Format::Torch, whole[..length].to_vec());
        }

        let torch = |entries: &[(&str, u16, &[u8])]| zip(entries);
        let storage = ("a/data/0", 0, &data[..]);
        for (file, word) in [
            // Deflated: a bomb would have to be unpacked to be one.
            (torch(&[("a/data.pkl", 8, &pickle), storage]), "packed"),
            (
                torch(&[("a/data.pkl", 0, &pickle), ("a/data/0", 8, &data)]),
                "packed",
            ),
            (torch(&[storage]), "data.pkl"),
            (
                torch(&[("a/data.pkl", 0, &pickle), ("b/data.pkl", 0, &pickle)]),
                "data.pkl",
            ),
            (
                torch(&[("a/data.pkl", 0, &pickle), storage, storage]),
                "twice",
            ),
            (
                torch(&[("a/data.pkl", 0, &pickle), ("a/byteorder", 0, b"big")]),
                "big-endian",
            ),
            (
                torch(&[("a/data.pkl", 0, &pickle), ("a/byteorder", 0, &[b' '; 17])]),
                "17 bytes",
            ),
            (
                torch(&[("a/data.pkl", 0, &vec![b'N'; (16 << 20) + 1])]),
                "data.pkl",
            ),
        ] {
            refused(Format::Torch, file, "malformed_file", &[word]);
        }
        let missing = torch(&[("a/data.pkl", 0, &pickle)]);
        refused(Format::Torch, missing, "bad_tensor", &["`t`", "a/data/0"]);

        // Fields of the directory entry of the storage: packed size, size, header offset.
        let central = whole
            .windows(4)
            .rposition(|bytes| bytes == b"PK\x01\x02")
            .unwrap();
        for field in [20, 24, 42] {
            for value in [0, 5, 0x7fff_ffff, u32::MAX - 1, u32::MAX] {
                let mut lying = whole.clone();
                lying[central + field..][..4].copy_from_slice(&value.to_le_bytes());
                refused_somehow(Format::Torch, lying);
            }
        }
        // The end record: length and offset of the directory.
        for (field, value) in [(10, u32::MAX - 1), (10, u32::MAX), (6, u32::MAX), (6, 3)] {
            let mut lying = whole.clone();
            let at = lying.len() - field;
            lying[at..at + 4].copy_from_slice(&value.to_le_bytes());
            refused_somehow(Format::Torch, lying);
        }
        let old = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
        refused(Format::Torch, old, "malformed_file", &["1.6"]);
    }

    // === Folders ===

    fn opened(folder: &Path) -> Error {
        Checkpoint::open(folder)
            .map(drop)
            .expect_err("must be refused")
    }

    fn with_index(map: &serde_json::Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let header = json!({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
        let file = safetensors_with(&header.to_string(), &[0; 4]);
        std::fs::write(folder.path().join("one.safetensors"), file).unwrap();
        let index = json!({"weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        folder
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = opened(empty.path());
        assert_eq!((error.code(), error.exit_status()), ("file_missing", 65));
        assert_eq!(opened(&empty.path().join("absent")).code(), "file_missing");

        let good = with_index(&json!({"a": "one.safetensors"}));
        assert_eq!(Checkpoint::open(good.path()).unwrap().tensors().count(), 1);

        let error = opened(with_index(&json!({"a": "two.safetensors"})).path());
        assert_eq!(error.code(), "file_missing");
        assert!(error.to_string().contains("two.safetensors"), "{error}");

        let map = json!({"a": "one.safetensors", "b": "one.safetensors"});
        let error = opened(with_index(&map).path());
        assert_eq!((error.code(), error.exit_status()), ("tensor_missing", 65));
        assert!(
            error.to_string().contains("one.safetensors: tensor `b`"),
            "{error}"
        );

        for map in [json!({}), json!([]), json!({"a": 3}), json!(null)] {
            assert_eq!(opened(with_index(&map).path()).code(), "malformed_file");
        }
        let many: serde_json::Map<_, _> = (0..300)
            .map(|n| (format!("t{n}"), json!(format!("{n}.safetensors"))))
            .collect();
        let error = opened(with_index(&many.into()).path());
        assert!(error.to_string().contains("300"), "{error}");
    }

    #[test]
    fn an_index_names_files_of_its_folder_only() {
        for name in [
            "../one.safetensors",
            "/etc/passwd",
            "./one.safetensors",
            "x/../one.safetensors",
            "one.safetensors/",
            "..",
            ".",
            "",
            "a\\b",
            "a\0b",
        ] {
            let error = opened(with_index(&json!({"a": name})).path());
            assert_eq!(
                (error.code(), error.exit_status()),
                ("malformed_file", 65),
                "{name:?}"
            );
            assert!(error.to_string().contains("`a`"), "{error}");
        }
    }

    #[test]
    fn links_lead_to_files_or_to_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        let target = fixture("glm-edge").join("model.safetensors");
        symlink(&target, &weights).unwrap();
        assert!(Checkpoint::open(folder.path()).unwrap().tensors().count() > 0);

        for (to, code) in [
            ("/dev/zero", "malformed_file"),
            ("/", "malformed_file"),
            ("nowhere", "io"),
        ] {
            std::fs::remove_file(&weights).unwrap();
            symlink(to, &weights).unwrap();
            let error = opened(folder.path());
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
        std::fs::remove_file(&weights).unwrap();
        symlink("nowhere", folder.path().join("two.safetensors")).unwrap();
        let index = json!({"weight_map": {"a": "two.safetensors"}}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(opened(folder.path()).code(), "file_missing");
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_fails_the_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::copy(fixture("glm-edge").join("model.safetensors"), &path).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(10_000).unwrap();
        let results: Vec<_> = checkpoint
            .tensors()
            .map(|(name, _)| all(&checkpoint, name))
            .collect();
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        assert!(failed.clone().count() > 0);
        for error in failed {
            assert_eq!((error.code(), error.exit_status()), ("io", 74), "{error}");
        }
    }

    // === Mutations of real files ===

    /// One change of a file, at places given as shares of its length.
    #[derive(Clone, Debug)]
    enum Change {
        Cut(f64),
        Set(f64, u8),
        Number(f64, u32),
        Swap(f64, f64),
        Insert(f64, Vec<u8>),
        Remove(f64, usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        // Headers are a few per cent of a file, at its beginning or end.
        let place = || prop_oneof![0.0..0.04, 0.0..1.0, 0.9..1.0];
        let number = prop_oneof![Just(u32::MAX), Just(0), any::<u32>(), 0_u32..200];
        prop_oneof![
            place().prop_map(Change::Cut),
            (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
            (place(), number).prop_map(|(at, n)| Change::Number(at, n)),
            (place(), place()).prop_map(|(a, b)| Change::Swap(a, b)),
            (place(), prop::collection::vec(any::<u8>(), 1..9))
                .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
            (place(), 1_usize..9).prop_map(|(at, count)| Change::Remove(at, count)),
        ]
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "any byte of the file will do"
    )]
    fn changed(mut file: Vec<u8>, changes: &[Change]) -> Vec<u8> {
        for change in changes {
            let length = file.len();
            if length < 8 {
                break;
            }
            let at = |share: f64| (share * (length - 4) as f64) as usize;
            match change {
                Change::Cut(to) => file.truncate(at(*to)),
                Change::Set(to, byte) => file[at(*to)] = *byte,
                Change::Number(to, n) => file[at(*to)..][..4].copy_from_slice(&n.to_le_bytes()),
                Change::Swap(a, b) => file.swap(at(*a), at(*b)),
                Change::Insert(to, bytes) => {
                    file.splice(at(*to)..at(*to), bytes.iter().copied());
                }
                Change::Remove(to, count) => {
                    let from = at(*to);
                    file.drain(from..length.min(from + count));
                }
            }
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn mutated_files_are_read_or_refused(
            file in prop::sample::select(vec![
                ("glm4-hf", "model-00001-of-00002.safetensors", Format::Safetensors),
                ("glm-edge-untied", "model.safetensors", Format::Safetensors),
                ("chatglm3", "pytorch_model-00001-of-00002.bin", Format::Torch),
                ("chatglm-6b", "pytorch_model.bin", Format::Torch),
            ]),
            changes in prop::collection::vec(change(), 1..4),
        ) {
            let (fixture_name, name, format) = file;
            let folder = fixture(fixture_name);
            let bytes = changed(std::fs::read(folder.join(name)).unwrap(), &changes);
            let length = bytes.len();
            match read(format, bytes) {
                Err(error) => {
                    prop_assert_eq!(error.exit_status(), 65);
                    prop_assert!(error.to_string().contains("weights.file"), "{}", error);
                }
                Ok(checkpoint) => {
                    let spec = spec_of(&folder);
                    // No family of this spec may panic on it, fit or not.
                    let _ = FamilyWeights::new(&checkpoint, &spec).map(|weights| weights.unused().len());
                    for (name, tensor) in checkpoint.tensors() {
                        if let Ok(values) = all(&checkpoint, name) {
                            prop_assert_eq!(Some(values.len()), tensor.elements());
                            prop_assert!(values.len() * 2 <= length);
                        }
                    }
                }
            }
        }
    }
}
