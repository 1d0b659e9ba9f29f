//! Classification by cloze against numbers worked out by hand, and what must hold for every question.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use glm::cloze::{Cloze, Normalize, Pattern, Question, Scoring};
use glm::prompt::{Fit, Layout, Truncation};
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{Additions, Tokenizer};
use glm::{ModelSpec, TokenId};
use proptest::prelude::*;

const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nit\nwas\ngreat\nbad\nreally\n##ly\nlamp\noff\n.\n[\nmask\n]\nn\n/\na\n";
const GREAT: u32 = 7;
const BAD: u32 = 8;
const REALLY: u32 = 9;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_wordpiece(WORDS.as_bytes(), Additions::GlmBert).unwrap()
}

fn layout(tokenizer: &Tokenizer) -> Layout {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints/glm-large/config.json");
    let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let spec = ModelSpec::from_config(&config, &Hints::default()).unwrap();
    let mut special = SpecialIds {
        part_a_end: Some(TokenId(0)),
        eos: vec![TokenId(0)],
        ..SpecialIds::default()
    };
    special.complete(|name| tokenizer.special(name));
    Layout::new(&spec, special).unwrap()
}

fn question(labels: &[(&str, &[&str])]) -> Question {
    Question {
        labels: (labels.iter())
            .map(|(name, words)| {
                let words = words.iter().map(|w| (*w).to_owned()).collect();
                ((*name).to_owned(), words)
            })
            .collect(),
        ..Question::default()
    }
}

fn cloze(question: &Question) -> glm::Result<Cloze> {
    let tokenizer = tokenizer();
    let pattern = Pattern::new("{text} it was [MASK].").unwrap();
    Cloze::new(&tokenizer, &layout(&tokenizer), pattern, question)
}

fn fit(limit: usize) -> Fit {
    Fit {
        limit,
        truncation: Truncation::Cut,
    }
}

fn ids(cloze: &Cloze) -> Vec<Vec<u32>> {
    let tokenizer = tokenizer();
    let prompt = cloze
        .prompt(&tokenizer, &layout(&tokenizer), "lamp", fit(99))
        .unwrap();
    let candidates = cloze.candidates(&prompt);
    (candidates.iter())
        .map(|c| c.iter().map(|t| t.id.0).collect())
        .collect()
}

#[test]
fn one_token_verbalizers_need_one_forward_pass() {
    let cloze = cloze(&question(&[("neg", &["bad"]), ("pos", &["great"])])).unwrap();
    assert_eq!(cloze.scoring(), None);
    assert_eq!(cloze.growth(), 0);
    assert_eq!(ids(&cloze), [[BAD], [GREAT]]);
    let tokenizer = tokenizer();
    let prompt = cloze
        .prompt(
            &tokenizer,
            &layout(&tokenizer),
            " lamp [MASK] off ",
            fit(99),
        )
        .unwrap();
    // Only the pattern's mask is a blank.
    assert_eq!(prompt.blanks.len(), 1);
    let expected = "[CLS] lamp [ mask ] off it was [MASK] . [PAD]";
    let spelled: Vec<String> = (prompt.ids().take(prompt.bidirectional))
        .map(|id| tokenizer.token_text(id).unwrap())
        .collect();
    assert_eq!(spelled.join(" "), expected);
    let place = cloze.candidates(&prompt)[0][0].position;
    assert_eq!((place.first, place.second), (8, 2));
}

#[test]
fn longer_verbalizers_count_their_end_or_not() {
    let mut question = question(&[("neg", &["bad"]), ("pos", &["really great"])]);
    let end = tokenizer().special("<|endofpiece|>").unwrap().0;
    let by_evaluation = cloze(&question).unwrap();
    assert_eq!(by_evaluation.scoring(), Some(Scoring::Evaluation));
    assert_eq!(
        ids(&by_evaluation),
        [vec![BAD, end], vec![REALLY, GREAT, end]]
    );
    assert_eq!(by_evaluation.growth(), 2);
    question.scoring = Scoring::MultipleChoice;
    let by_choice = cloze(&question).unwrap();
    assert_eq!(ids(&by_choice), [vec![BAD], vec![REALLY, GREAT]]);
    assert_eq!(by_choice.growth(), 1);
    // Sum and mean of the same numbers.
    let scores = [vec![-2.0], vec![-1.5, -0.9]];
    let verdict = by_choice.verdict(&scores, None).unwrap();
    assert_eq!(verdict.label, "neg");
    assert!((verdict.logprobs["pos"] + 2.4).abs() < 1e-12);
    let expected = (-2.0f64).exp() / ((-2.0f64).exp() + (-2.4f64).exp());
    assert!((verdict.scores["neg"] - expected).abs() < 1e-12);
    question.normalize = Normalize::Mean;
    let verdict = cloze(&question).unwrap().verdict(&scores, None).unwrap();
    assert_eq!(verdict.label, "pos");
    assert!((verdict.logprobs["pos"] + 1.2).abs() < 1e-12);
}

#[test]
fn verbalizers_of_a_label_add_up() {
    let cloze = cloze(&question(&[
        ("neg", &["bad"]),
        ("pos", &["great", "really"]),
    ]))
    .unwrap();
    let p = |x: f64| vec![x.ln()];
    let verdict = cloze.verdict(&[p(0.3), p(0.2), p(0.2)], None).unwrap();
    assert_eq!(verdict.label, "pos");
    assert!((verdict.scores["pos"] - 4.0 / 7.0).abs() < 1e-12);
    assert!((verdict.logprobs["pos"] - 0.4f64.ln()).abs() < 1e-12);
}

#[test]
fn calibration_divides_by_what_the_pattern_prefers() {
    let cloze = cloze(&question(&[("neg", &["bad"]), ("pos", &["great"])])).unwrap();
    let p = |neg: f64, pos: f64| vec![vec![neg.ln()], vec![pos.ln()]];
    // The pattern alone: 0.2 and 0.8, then 0.4 and 0.6; on average 0.3 and 0.7.
    let baseline = cloze.baseline(&[p(0.02, 0.08), p(0.2, 0.3)]).unwrap();
    let plain = cloze.verdict(&p(0.4, 0.6), None).unwrap();
    assert_eq!(plain.label, "pos");
    let verdict = cloze.verdict(&p(0.4, 0.6), Some(&baseline)).unwrap();
    assert_eq!(verdict.label, "neg");
    let (neg, pos) = (0.4 / 0.3, 0.6 / 0.7);
    assert!((verdict.scores["neg"] - neg / (neg + pos)).abs() < 1e-12);
    // What is reported as log-probability is the model's own.
    assert_eq!(verdict.logprobs, plain.logprobs);
}

#[test]
fn unusable_questions_are_refused_by_name() {
    for (labels, part) in [
        (vec![("pos", vec!["great"])], "at least two labels"),
        (
            vec![("neg", vec![]), ("pos", vec!["great"])],
            "`neg` has no",
        ),
        (
            vec![("neg", vec!["awful"]), ("pos", vec!["great"])],
            "`awful`",
        ),
        (
            vec![("neg", vec![" "]), ("pos", vec!["great"])],
            "cannot express",
        ),
        (
            vec![("neg", vec!["great"]), ("pos", vec!["GREAT"])],
            "share",
        ),
    ] {
        let labels: Vec<(&str, &[&str])> = labels.iter().map(|(n, w)| (*n, &w[..])).collect();
        let error = cloze(&question(&labels)).unwrap_err();
        assert_eq!(error.code(), "bad_input");
        assert!(error.to_string().contains(part), "{error}");
    }
    let ok = cloze(&question(&[("neg", &["bad"]), ("pos", &["great"])])).unwrap();
    assert!(ok.verdict(&[vec![0.0]], None).is_err());
    let impossible = vec![vec![f64::NEG_INFINITY]; 2];
    assert_eq!(
        ok.verdict(&impossible, None).unwrap_err().code(),
        "no_finite_logit"
    );
}

#[test]
fn the_text_loses_its_end_and_the_pattern_nothing() {
    let cloze = cloze(&question(&[("neg", &["bad"]), ("pos", &["great"])])).unwrap();
    let tokenizer = tokenizer();
    let layout = layout(&tokenizer);
    let long = "lamp off ".repeat(500);
    let prompt = cloze.prompt(&tokenizer, &layout, &long, fit(20)).unwrap();
    assert_eq!(prompt.tokens.len(), 20);
    assert_eq!(prompt.removed, 1000 - 13);
    let spelled: Vec<String> = (prompt.ids().take(prompt.bidirectional))
        .map(|id| tokenizer.token_text(id).unwrap())
        .collect();
    assert!(spelled.join(" ").starts_with("[CLS] lamp off lamp off"));
    assert!(spelled.join(" ").ends_with("lamp it was [MASK] . [PAD]"));
    let refused = Fit {
        truncation: Truncation::Refuse,
        ..fit(20)
    };
    let error = cloze
        .prompt(&tokenizer, &layout, &long, refused)
        .unwrap_err();
    assert_eq!(error.code(), "prompt_too_long");
    // Not even the pattern alone fits.
    assert!(cloze.prompt(&tokenizer, &layout, &long, fit(6)).is_err());
}

#[test]
fn only_the_models_own_patterns_name_special_tokens() {
    let tokenizer = tokenizer();
    let sop = tokenizer.special("<|startofpiece|>").unwrap();
    let text = "a <|startofpiece|> [MASK]";
    for (pattern, expected) in [
        (Pattern::trusted("{text} <|startofpiece|> [MASK]"), 1),
        (Pattern::new("{text} <|startofpiece|> [MASK]"), 0),
    ] {
        let pieces = pattern.unwrap().pieces(&tokenizer, text).unwrap();
        let (ids, masks) = glm::tokenizer::flatten(&pieces);
        assert_eq!(ids.iter().filter(|id| **id == sop).count(), expected);
        assert_eq!(masks.len(), 1);
    }
}

proptest! {
    #[test]
    fn probabilities_sum_to_one(
        counts in prop::collection::vec(1usize..4, 2..4),
        scores in prop::collection::vec(-50.0f64..0.0, 12),
        baseline in prop::collection::vec(-50.0f64..0.0, 12),
        mean in any::<bool>(),
    ) {
        let words = ["great", "bad", "really", "lamp", "off", "it", "was", "a", "n"];
        let mut words = words.iter().map(|w| (*w).to_owned());
        let labels: BTreeMap<String, Vec<String>> = (counts.iter().enumerate())
            .map(|(i, n)| (format!("label{i}"), words.by_ref().take(*n).collect()))
            .collect();
        let question = Question {
            labels,
            normalize: if mean { Normalize::Mean } else { Normalize::Sum },
            ..Question::default()
        };
        let cloze = cloze(&question).unwrap();
        let total: usize = counts.iter().sum();
        let lists = |s: &[f64]| -> Vec<Vec<f64>> { s[..total].iter().map(|x| vec![*x]).collect() };
        let prior = cloze.baseline(&[lists(&baseline)]).unwrap();
        for prior in [None, Some(&prior)] {
            let verdict = cloze.verdict(&lists(&scores), prior).unwrap();
            let sum: f64 = verdict.scores.values().sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
            let best = verdict.scores[&verdict.label];
            prop_assert!(verdict.scores.values().all(|p| *p <= best));
        }
    }

    #[test]
    fn any_text_fits_any_room(text in "\\PC{0,200}", limit in 8usize..40) {
        let cloze = cloze(&question(&[("neg", &["bad"]), ("pos", &["great"])])).unwrap();
        let tokenizer = tokenizer();
        let layout = layout(&tokenizer);
        let prompt = cloze.prompt(&tokenizer, &layout, &text, fit(limit)).unwrap();
        prop_assert!(prompt.tokens.len() <= limit);
        let whole = cloze.prompt(&tokenizer, &layout, &text, fit(9999)).unwrap();
        if whole.tokens.len() <= limit {
            prop_assert_eq!(prompt, whole);
        } else {
            prop_assert!(prompt.removed > 0);
        }
    }
}
