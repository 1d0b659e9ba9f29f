//! The plain forward pass against transformers, SwissArmyTransformer and an
//! independent numpy model. It reads the checkpoints of every family, so this
//! also proves the readers.

#[cfg(test)]
#[path = "golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use glm_onnx::Result;
    use glm_onnx::checkpoint::{Checkpoint, FamilyWeights};
    use glm_onnx::graph::{Block, Matrix, Quantisation, Scheme, Vector};
    use glm_onnx::quantise::{Layout, quantise};
    use glm_onnx::reference::{Reference, Wanted};
    use glm_onnx::weights::Weights;

    use crate::golden::{FIXTURES, assert_direction, cases, folder, worst};

    /// The most that two orders of the same f32 sums differ on these models.
    const BOUND: f32 = 2e-5;

    #[test]
    fn logits_of_every_family_are_those_of_others() {
        for fixture in FIXTURES {
            let checkpoint = Checkpoint::open(folder(fixture)).unwrap();
            for case in cases(fixture) {
                let weights = FamilyWeights::new(&checkpoint, &case.spec).unwrap();
                let reference = Reference::new(&case.spec, &weights, 2);
                let logits = reference
                    .logits(std::slice::from_ref(&case.prompt), Wanted::All, |_| Ok(()))
                    .unwrap();
                let worst = worst(&logits[0], &case.logits);
                println!("{:<34}{worst:.1e}", case.name);
                assert!(worst < BOUND, "{}: {worst}", case.name);
            }
        }
    }

    /// Weights as the quantiser leaves them.
    struct Rounded<'a> {
        inner: FamilyWeights<'a>,
        how: Quantisation,
    }

    impl Weights for Rounded<'_> {
        fn shape(&self, matrix: Matrix) -> (usize, usize) {
            self.inner.shape(matrix)
        }

        fn rows(&self, matrix: Matrix, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
            self.inner.rows(matrix, rows, out)?;
            let kept = matches!(
                matrix,
                Matrix::Embedding | Matrix::Head | Matrix::Positions | Matrix::BlockPositions
            );
            if !kept {
                let (_, inputs) = self.shape(matrix);
                let layout = Layout::new(self.how, inputs);
                let packed = quantise(self.how, inputs, out);
                let values = packed.values.chunks(layout.value_bytes());
                let scales = packed.scales.chunks(layout.blocks);
                for ((row, values), scales) in out.chunks_mut(inputs).zip(values).zip(scales) {
                    layout.dequantise(values, scales, &[], row);
                }
            }
            Ok(())
        }

        fn vector(&self, vector: Vector) -> Result<Vec<f32>> {
            self.inner.vector(vector)
        }
    }

    #[test]
    fn int8_weights_keep_the_direction_of_every_row() {
        for block in [Block::Of(32), Block::Row] {
            let how = Quantisation {
                scheme: Scheme::Int8,
                block,
            };
            for fixture in FIXTURES {
                let checkpoint = Checkpoint::open(folder(fixture)).unwrap();
                for case in cases(fixture) {
                    let inner = FamilyWeights::new(&checkpoint, &case.spec).unwrap();
                    let weights = Rounded { inner, how };
                    let prompts = std::slice::from_ref(&case.prompt);
                    let logits = Reference::new(&case.spec, &weights, 2)
                        .logits(prompts, Wanted::All, |_| Ok(()))
                        .unwrap();
                    assert_direction(&case, &logits[0]);
                }
            }
        }
    }

    #[test]
    fn prompts_side_by_side_and_last_rows_change_nothing() {
        for fixture in ["glm-post", "glm4-hf"] {
            let checkpoint = Checkpoint::open(folder(fixture)).unwrap();
            let cases = cases(fixture);
            let weights = FamilyWeights::new(&checkpoint, &cases[0].spec).unwrap();
            let reference = Reference::new(&cases[0].spec, &weights, 3);
            let prompts: Vec<_> = cases.iter().map(|case| case.prompt.clone()).collect();
            let last = reference
                .logits(&prompts, Wanted::Last, |_| Ok(()))
                .unwrap();
            for (case, row) in cases.iter().zip(last) {
                let expected = &case.logits[case.logits.len() - row.len()..];
                assert!(worst(&row, expected) < BOUND, "{}", case.name);
            }
        }
    }
}
