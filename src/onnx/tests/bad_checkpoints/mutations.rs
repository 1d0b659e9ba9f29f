//! Real files with bytes changed, lost and added.

use glm_onnx::checkpoint::{FamilyWeights, Format};
use proptest::prelude::*;

use crate::support::{fixture, spec_of};
use crate::{all, read};

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
