//! Operations on a model without weights: what goes to the engine and what comes back typed.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod bench;
mod blanks;
mod labels;
#[path = "../support/mod.rs"]
mod support;
mod texts;

use std::sync::Arc;

use glm::prompt::Truncation;
use glm_engine::Error;
use glm_engine::model::ModelInfo;
use glm_engine::ops::{Classify, Infill, Prepared, Terms};
use glm_engine::units::{Epoch, Priority};

use bench::Bench;

#[test]
fn tokenizing_shows_what_the_model_reads() {
    let operations = Bench::new().operations;
    let shown = operations.tokenize("w1 [MASK] w2").unwrap();
    let expected = ["[CLS]", "w1", "[MASK]", "w2", "[PAD]", "<|startofpiece|>"];
    assert_eq!(shown.pieces, expected);
    assert_eq!(shown.prompt.bidirectional, 5);
    let shown = operations.tokenize("w1").unwrap();
    assert_eq!(shown.pieces[2..], ["[gMASK]", "<|startofpiece|>"]);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let operations = Bench::new().operations;
    let infill = |ask: Infill| operations.infill(ask, Terms::default()).unwrap_err();
    let message = |error: Error| {
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        error.to_string()
    };
    assert!(message(infill(Infill::new("w1"))).contains("has no blank"));
    let unknown = Infill {
        task: Some("no".into()),
        ..Infill::new("w1")
    };
    assert!(message(infill(unknown)).contains("form, intent, severity"));
    let long = Infill::new(format!("{}[MASK]", "w1 ".repeat(600)));
    let error = infill(long);
    assert_eq!(error.code(), "prompt_too_long");
    let fits = Infill {
        truncation: Truncation::Cut,
        ..Infill::new(format!("{}[MASK]", "w1 ".repeat(600)))
    };
    let planned = operations.infill(fits, Terms::default()).unwrap();
    // All 512 positions: [CLS], text, mask, end, start, and 32 for the answer.
    assert_eq!(planned.reader.removed(), 600 - (512 - 32 - 4));
    for (max_tokens, code) in [(0, "bad_input"), (512, "prompt_too_long")] {
        let ask = Infill {
            max_tokens: Some(max_tokens),
            ..Infill::new("[MASK]")
        };
        assert_eq!(infill(ask).code(), code);
    }
    let classify = |ask: &Classify| {
        let planned = operations.classify(ask, Terms::default());
        message(planned.map(|_| ()).unwrap_err())
    };
    let ask = Classify {
        texts: vec!["w1".into()],
        ..Classify::default()
    };
    assert!(classify(&Classify::default()).contains("`text`"));
    assert!(classify(&ask).contains("`pattern`"));
    let both = Classify {
        task: Some("severity".into()),
        pattern: Some("{text} [MASK]".into()),
        ..ask.clone()
    };
    assert!(classify(&both).contains("`task`"));
    let wrong = Classify {
        task: Some("intent".into()),
        ..ask
    };
    assert!(classify(&wrong).contains("use infill"));
}

#[test]
fn terms_and_epoch_travel_with_the_request() {
    let bench = Bench::new();
    let terms = Terms {
        priority: Priority::High,
        client: "door".into(),
        coalesce_key: Some("k".into()),
        ..Terms::default()
    };
    let planned = bench
        .operations
        .infill(Infill::new("[MASK]"), terms)
        .unwrap();
    assert_eq!(planned.request.priority, Priority::High);
    assert_eq!(&*planned.request.client, "door");
    assert_eq!(planned.request.epoch, Epoch(1));
    let prepared = Prepared::default();
    let model = bench.rig.handle.model().unwrap();
    let first = prepared.get(&model).unwrap();
    assert!(Arc::ptr_eq(&first, &prepared.get(&model).unwrap()));
    let reloaded = Arc::new(ModelInfo {
        epoch: Epoch(2),
        ..ModelInfo::clone(&model)
    });
    assert!(!Arc::ptr_eq(&first, &prepared.get(&reloaded).unwrap()));
}
