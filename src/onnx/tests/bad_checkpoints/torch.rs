//! Files of PyTorch: pickles, which are read and never executed, and the archives that hold them.

use glm_onnx::checkpoint::Format;

use crate::support::zip::zip;
use crate::support::{Pickle, ViewOf, archive, floats};
use crate::{all, read, refused, refused_somehow};

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
