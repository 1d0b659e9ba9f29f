//! Classification by cloze.

use std::collections::BTreeMap;

use glm::cloze::Normalize;
use glm_engine::ops::{Classify, Planned, Terms};

use crate::bench::Bench;

fn labels(labels: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    (labels.iter())
        .map(|(name, words)| {
            let words = words.iter().map(|w| (*w).to_owned()).collect();
            ((*name).to_owned(), words)
        })
        .collect()
}

#[test]
fn classification_is_one_request_for_all_texts() {
    let mut bench = Bench::new();
    let ask = Classify {
        texts: vec!["w4 w5".into(), "w6 [MASK] w7".into(), String::new()],
        task: Some("severity".into()),
        ..Classify::default()
    };
    let Planned { request, reader } = bench.operations.classify(&ask, Terms::default()).unwrap();
    bench.rig.steps();
    let collected = bench.run(request);
    let result = reader.read(&collected).unwrap();
    assert_eq!(result.verdicts.len(), 3);
    assert_eq!(result.scoring, None);
    for verdict in &result.verdicts {
        assert!((verdict.scores.values().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(verdict.scores.len(), 2);
    }
    assert_ne!(result.verdicts[0].scores, result.verdicts[1].scores);
    // One-token words: nothing is read beyond the prompts.
    let rows: usize = bench.rig.steps().iter().map(Vec::len).sum();
    assert_eq!(rows, result.usage.prompt_tokens);
    // By name or spelled out: the same.
    let spelled = Classify {
        task: None,
        pattern: Some("{text} w50 [MASK].".into()),
        labels: Some(labels(&[("high", &["w1", "w2"]), ("low", &["w3"])])),
        ..ask
    };
    let planned = bench.operations.classify(&spelled, Terms::default());
    let Planned { request, reader } = planned.unwrap();
    let collected = bench.run(request);
    assert_eq!(reader.read(&collected).unwrap().verdicts, result.verdicts);
}

#[test]
fn longer_words_and_calibration_go_through_the_engine() {
    let mut bench = Bench::new();
    let ask = Classify {
        texts: vec!["w4".into()],
        pattern: Some("{text} w50 [MASK].".into()),
        labels: Some(labels(&[
            ("high", &["w1 w2"]),
            ("low", &["w3", "w4 w5 w6"]),
        ])),
        normalize: Some(Normalize::Mean),
        ..Classify::default()
    };
    let Planned { request, reader } = bench.operations.classify(&ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let scores = &collected.finished.scores;
    // Each with its end.
    let lengths: Vec<usize> = scores[0].iter().map(Vec::len).collect();
    assert_eq!(lengths, [3, 2, 4]);
    let plain = reader.read(&collected).unwrap();
    let high = scores[0][0].iter().sum::<f64>() / 3.0;
    assert!((plain.verdicts[0].logprobs["high"] - high).abs() < 1e-12);

    let calibrated = Classify {
        calibrate: Some(true),
        ..ask
    };
    let planned = bench.operations.classify(&calibrated, Terms::default());
    let Planned { request, reader } = planned.unwrap();
    let collected = bench.run(request);
    assert_eq!(collected.finished.scores.len(), 3);
    let result = reader.read(&collected).unwrap();
    assert_eq!(result.verdicts.len(), 1);
    assert_eq!(result.verdicts[0].logprobs, plain.verdicts[0].logprobs);
    assert_ne!(result.verdicts[0].scores, plain.verdicts[0].scores);
}
