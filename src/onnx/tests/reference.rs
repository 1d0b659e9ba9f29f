//! The plain forward pass against transformers, SwissArmyTransformer and an
//! independent numpy model. It reads the checkpoints of every family, so this
//! also proves the readers.

#[cfg(test)]
#[path = "golden/mod.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use glm_onnx::checkpoint::{Checkpoint, FamilyWeights};
    use glm_onnx::reference::{Reference, Wanted};

    use crate::golden::{FIXTURES, cases, folder, worst};

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
