//! The bodies of the fuzz targets, on seeds and mutations of them for a bounded count.

#[cfg(test)]
#[path = "../../../fuzz/bodies.rs"]
mod bodies;

mod support;
#[cfg(test)]
use support::zip;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::bodies;
    use crate::support::{Pickle, ViewOf, archive, floats, safetensors};

    /// A small input of each kind that reaches far into its reader.
    fn seeds() -> [Vec<u8>; 4] {
        let view = ViewOf::default();
        let turned = ViewOf {
            shape: &[3, 2],
            strides: &[1, 3],
            ..view
        };
        let pickle = Pickle::dictionary(&[("a", view), ("b", turned)]);
        let file = archive(&pickle, &[&floats([0.5; 6])]);
        // The storages that the target has for pickles are larger.
        let large = |view| ViewOf {
            elements: 7_680,
            ..view
        };
        let pickle = Pickle::dictionary(&[("a", large(view)), ("b", large(turned))]);
        let tensors = vec![
            ("a".to_owned(), vec![2, 3], vec![1.0; 6]),
            ("b".to_owned(), vec![4], vec![2.0; 4]),
        ];
        let prompt = b"\0\x3c\x04\x01\x05\x80\x07\x08\x82\x09\x0a\xff\x0b\x05\x06\x07\x05".to_vec();
        [safetensors(&tensors), file, pickle, prompt]
    }

    fn run(target: usize, data: &[u8]) {
        match target {
            0 => bodies::safetensors(data),
            1 => bodies::archive(data),
            2 => bodies::pickle(data),
            _ => bodies::prompt(data),
        }
    }

    #[test]
    fn seeds_pass() {
        for (target, seed) in seeds().iter().enumerate() {
            run(target, seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_pass(target in 0_usize..4, data in prop::collection::vec(any::<u8>(), 0..200)) {
            run(target, &data);
        }

        #[test]
        fn mutated_seeds_pass(
            target in 0_usize..4,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..6),
        ) {
            let [mut data] = [seeds()[target].clone()];
            for (index, byte, kind) in changes {
                if data.is_empty() {
                    break;
                }
                let at = index.index(data.len());
                match kind {
                    0 => data[at] = byte,
                    1 => data.insert(at, byte),
                    _ => drop(data.remove(at)),
                }
            }
            run(target, &data);
        }
    }
}
