//! Sampling against plain re-computations, and stop strings against plain search.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use glm::sampling::{Banned, Sampler, SamplingParams, StopMatcher, log_probs};
use glm::spec::SpecialIds;
use glm::{Error, TokenId};
use proptest::prelude::*;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, Banned::default()).unwrap()
}

fn draw(params: &SamplingParams, logits: &[f32], count: usize) -> Vec<TokenId> {
    let mut s = sampler(params.clone());
    (0..count)
        .map(|_| s.sample(logits, &[]).unwrap().id)
        .collect()
}

/// Probabilities by the book: every step over the whole vocabulary, sorted in full.
fn reference(p: &SamplingParams, logits: &[f32], seen: &[TokenId]) -> Vec<f64> {
    let n = logits.len();
    let mut z: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    for (i, x) in z.iter_mut().enumerate() {
        if seen.iter().any(|s| s.index() == i) {
            let r = f64::from(p.repetition_penalty);
            *x = if *x < 0.0 { *x * r } else { *x / r };
        }
        if p.banned.iter().any(|b| b.index() == i) {
            *x = f64::NEG_INFINITY;
        }
        *x /= f64::from(p.temperature);
    }
    let softmax = |z: &[f64]| -> Vec<f64> {
        let m = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = z.iter().map(|x| (x - m).exp()).collect();
        let t: f64 = e.iter().sum();
        e.iter().map(|x| x / t).collect()
    };
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
    if p.top_k > 0 {
        for i in order.iter().skip(p.top_k) {
            z[*i] = f64::NEG_INFINITY;
        }
    }
    let q = softmax(&z);
    let mut mass = 0.0;
    for i in &order {
        if p.top_p < 1.0 && mass >= f64::from(p.top_p) {
            z[*i] = f64::NEG_INFINITY;
        }
        mass += q[*i];
    }
    let q = softmax(&z);
    let best = q.iter().copied().fold(0.0, f64::max);
    for i in 0..n {
        if q[i] < f64::from(p.min_p) * best {
            z[i] = f64::NEG_INFINITY;
        }
    }
    softmax(&z)
}

#[test]
#[allow(clippy::cast_precision_loss)]
fn frequencies_follow_the_distribution() {
    let logits = [1.0, 0.5, -0.3, 2.0, -4.0, 0.0, 1.9, -1.0];
    let seen = [TokenId(3), TokenId(2), TokenId(3)];
    let base = SamplingParams {
        seed: 11,
        ..SamplingParams::default()
    };
    for params in [
        base.clone(),
        SamplingParams {
            temperature: 0.7,
            top_k: 5,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.8,
            ..base.clone()
        },
        SamplingParams {
            min_p: 0.2,
            repetition_penalty: 1.5,
            ..base.clone()
        },
        SamplingParams {
            top_k: 6,
            top_p: 0.9,
            min_p: 0.1,
            banned: vec![TokenId(6)],
            ..base.clone()
        },
    ] {
        let wanted = reference(&params, &logits, &seen);
        let mut s = sampler(params.clone());
        let mut counts = [0u32; 8];
        let draws = 20_000;
        for _ in 0..draws {
            counts[s.sample(&logits, &seen).unwrap().id.index()] += 1;
        }
        for (count, p) in counts.iter().zip(&wanted) {
            let share = f64::from(*count) / f64::from(draws);
            // Five standard deviations of a share.
            let slack = 5.0 * (p * (1.0 - p) / f64::from(draws)).sqrt();
            assert!((share - p).abs() <= slack, "{params:?}: {share} of {p}");
        }
    }
}

#[test]
fn temperature_zero_takes_the_best_and_the_lower_id_of_equals() {
    let greedy = SamplingParams::greedy();
    assert_eq!(draw(&greedy, &[0.0, 3.0, 3.0, -1.0], 3), [TokenId(1); 3]);
    let banned = SamplingParams {
        banned: vec![TokenId(1)],
        ..greedy.clone()
    };
    assert_eq!(draw(&banned, &[0.0, 3.0, 3.0, -1.0], 1), [TokenId(2)]);
    assert_eq!(
        draw(&greedy, &[f32::NAN, f32::NEG_INFINITY, -9.0], 1),
        [TokenId(2)]
    );
    let mut s = sampler(SamplingParams {
        repetition_penalty: 2.0,
        ..greedy
    });
    assert_eq!(s.sample(&[3.0, 2.0], &[TokenId(0)]).unwrap().id, TokenId(1));
    assert_eq!(
        s.sample(&[-1.0, -1.5], &[TokenId(0)]).unwrap().id,
        TokenId(1)
    );
    // A token that the table does not have is nobody's repetition.
    assert_eq!(s.sample(&[3.0, 2.0], &[TokenId(9)]).unwrap().id, TokenId(0));
}

#[test]
fn rows_without_a_usable_logit_are_an_error() {
    for logits in [
        &[f32::NAN, f32::NAN][..],
        &[f32::NEG_INFINITY],
        &[f32::INFINITY],
        &[],
    ] {
        for params in [SamplingParams::default(), SamplingParams::greedy()] {
            let got = sampler(params).sample(logits, &[]);
            assert!(matches!(got, Err(Error::NoFiniteLogit)), "{logits:?}");
        }
        assert!(log_probs::log_sum_exp(logits).is_err());
        assert!(log_probs::top(logits, 1).is_err());
    }
    let all = SamplingParams {
        banned: vec![TokenId(0)],
        ..SamplingParams::default()
    };
    assert!(sampler(all).sample(&[1.0], &[]).is_err());
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let base = SamplingParams::default;
    let nan = f32::NAN;
    for (field, params) in [
        (
            "temperature",
            SamplingParams {
                temperature: nan,
                ..base()
            },
        ),
        (
            "temperature",
            SamplingParams {
                temperature: -0.1,
                ..base()
            },
        ),
        (
            "temperature",
            SamplingParams {
                temperature: f32::INFINITY,
                ..base()
            },
        ),
        (
            "top_p",
            SamplingParams {
                top_p: 0.0,
                ..base()
            },
        ),
        (
            "top_p",
            SamplingParams {
                top_p: nan,
                ..base()
            },
        ),
        (
            "min_p",
            SamplingParams {
                min_p: 1.5,
                ..base()
            },
        ),
        (
            "min_p",
            SamplingParams {
                min_p: nan,
                ..base()
            },
        ),
        (
            "repetition_penalty",
            SamplingParams {
                repetition_penalty: 0.0,
                ..base()
            },
        ),
        (
            "repetition_penalty",
            SamplingParams {
                repetition_penalty: nan,
                ..base()
            },
        ),
        (
            "stop",
            SamplingParams {
                stop: vec![String::new()],
                ..base()
            },
        ),
        (
            "stop",
            SamplingParams {
                stop: vec!["x".to_owned(); 17],
                ..base()
            },
        ),
        (
            "stop",
            SamplingParams {
                stop: vec!["x".repeat(1025)],
                ..base()
            },
        ),
        (
            "logprobs",
            SamplingParams {
                logprobs: Some(21),
                ..base()
            },
        ),
    ] {
        match Sampler::new(params, Banned::default()) {
            Err(Error::Input { field: got, .. }) => assert_eq!(got, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(base().validate().is_ok());
}

#[test]
fn special_tokens_that_end_nothing_are_banned() {
    let special = SpecialIds {
        mask: Some(TokenId(1)),
        sop: Some(TokenId(2)),
        eop: Some(TokenId(3)),
        user: Some(TokenId(4)),
        pad: Some(TokenId(5)),
        eos: vec![TokenId(5), TokenId(4)],
        banned: vec![TokenId(6)],
        tokenizer_size: Some(9),
        ..SpecialIds::default()
    };
    let banned = Banned::of(&special).with(&[TokenId(0)]);
    let got: Vec<u32> = (0..12).filter(|i| banned.contains(TokenId(*i))).collect();
    assert_eq!(got, [0, 1, 2, 6, 9, 10, 11]);
}

#[test]
fn log_probs_are_those_of_the_unmodified_distribution() {
    let logits = [0.0, 0.0, f32::NAN, 0.0, 0.0];
    let quarter = 0.25f64.ln();
    let params = SamplingParams {
        logprobs: Some(2),
        temperature: 0.1,
        banned: vec![TokenId(0)],
        ..SamplingParams::default()
    };
    let got = sampler(params).sample(&logits, &[]).unwrap();
    assert!((got.logprob.unwrap() - quarter).abs() < 1e-12);
    assert_eq!(got.top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [0, 1]);
    let of = log_probs::of(&logits, &[TokenId(2), TokenId(7), TokenId(3)]).unwrap();
    assert_eq!(of[..2], [f64::NEG_INFINITY; 2]);
    assert!((of[2] - quarter).abs() < 1e-12);
    // Large logits do not overflow.
    let big = log_probs::log_sum_exp(&[1e30, 1e30]).unwrap();
    assert!((big / f64::from(1e30f32) - 1.0).abs() < 1e-12);
}

/// By the definition: the first place where a stop string is complete, the longest that ends there.
fn plain_search(stops: &[String], text: &str) -> (String, Option<usize>) {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    for end in ends {
        let longest = (0..stops.len())
            .filter(|i| text[..end].ends_with(&stops[*i]))
            .max_by_key(|i| (stops[*i].len(), std::cmp::Reverse(*i)));
        if let Some(i) = longest {
            return (text[..end - stops[i].len()].to_owned(), Some(i));
        }
    }
    (text.to_owned(), None)
}

fn few() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "好", "\n"]), 1..5)
        .prop_map(|v| v.concat())
}

proptest! {
    #[test]
    fn same_seed_same_answer(seed: u64, logits in prop::collection::vec(-8f32..8.0, 1..600)) {
        let params = SamplingParams { seed, top_p: 0.9, ..SamplingParams::default() };
        let first = draw(&params, &logits, 16);
        prop_assert_eq!(&first, &draw(&params, &logits, 16));
        // A clone in mid-answer goes on alike.
        let mut a = sampler(params);
        a.sample(&logits, &[]).unwrap();
        let mut b = a.clone();
        prop_assert_eq!(a.sample(&logits, &[]).unwrap(), b.sample(&logits, &[]).unwrap());
    }

    /// What is drawn is what the plain computation allows; in particular top-p keeps the smallest set.
    #[test]
    fn only_tokens_of_the_reference_set_are_drawn(
        logits in prop::collection::vec(-6f32..6.0, 1..900),
        top_p in 0.05f32..=1.0, min_p in 0f32..0.3, top_k in 0usize..40, temperature in 0.3f32..3.0, seed: u64,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() };
        let wanted = reference(&params, &logits, &[]);
        for id in draw(&params, &logits, 24) {
            prop_assert!(wanted[id.index()] > 0.0, "{id} has no mass");
        }
    }

    #[test]
    fn probabilities_sum_to_one(logits in prop::collection::vec(-50f32..50.0, 1..300)) {
        let all = log_probs::top(&logits, logits.len()).unwrap();
        let sum: f64 = all.iter().map(|(_, lp)| lp.exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-9);
        prop_assert!(all.is_sorted_by(|a, b| a.1 >= b.1));
    }

    /// However the text is cut, the answer is that of a plain search; what was sent is never taken back.
    #[test]
    fn stops_are_found_under_any_split(
        stops in prop::collection::vec(few(), 0..4),
        parts in prop::collection::vec(prop_oneof![few(), Just(String::new())], 0..12),
    ) {
        let text = parts.concat();
        let (wanted, which) = plain_search(&stops, &text);
        let mut matcher = StopMatcher::new(&stops);
        let mut sent = String::new();
        let mut found = None;
        for part in &parts {
            let got = matcher.push(part);
            sent.push_str(&got.text);
            prop_assert!(wanted.starts_with(&sent), "{sent:?} leaks beyond {wanted:?}");
            found = found.or(got.stop);
        }
        sent.push_str(&matcher.finish());
        prop_assert_eq!((sent, found), (wanted, which));
    }

    /// Text is held back only while it is the beginning of a stop string.
    #[test]
    fn nothing_is_held_back_needlessly(stop in few(), text in few()) {
        let mut matcher = StopMatcher::new(std::slice::from_ref(&stop));
        if matcher.push(&text).stop.is_none() {
            let held = matcher.finish();
            prop_assert!(stop.starts_with(&held) && held.len() < stop.len());
        }
    }
}
