//! What an answer is: its text, its end, its probabilities, and what it shares with others. On a model without weights.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::Arc;

use glm::TokenId;
use glm_engine::answer::Reason;
use glm_engine::backend::Capabilities;
use glm_engine::request::Work;
use glm_engine::{Config, Event, Ticket};

use support::{Answer, END, Rig, capabilities, context, generate, ids, infill, score};

#[test]
fn an_answer_ends_where_the_model_ends_it_or_at_its_limit() {
    let mut rig = Rig::usual();
    let mut reasons = Vec::new();
    for seed in 0..30 {
        let answer = rig.answer(generate(&context(&ids(seed, 20), 0), 1, 40, seed));
        let ids = answer.ids(0);
        let reason = answer.reasons[0].unwrap();
        match reason {
            Reason::Complete => assert_eq!(ids.last(), Some(&END.0)),
            Reason::Length => assert_eq!(ids.len(), 40),
            Reason::Stop(_) => panic!("no stop string was given"),
        }
        let words: Vec<String> = (ids.iter().filter(|id| **id != END.0))
            .map(|id| format!("w{id}"))
            .collect();
        assert_eq!(answer.texts[0], words.join(" "));
        assert_eq!(answer.finished().usage.completion_tokens, ids.len());
        reasons.push(reason);
    }
    assert!(reasons.contains(&Reason::Complete) && reasons.contains(&Reason::Length));
}

#[test]
fn the_first_event_is_started_and_the_last_is_final() {
    let mut rig = Rig::usual();
    let mut ticket = rig.submit(generate(&context(&ids(1, 9), 0), 1, 5, 1));
    rig.run();
    assert!(matches!(ticket.try_next(), Some(Event::Started { .. })));
    let mut last = None;
    while let Some(event) = ticket.next_blocking() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Finished(_))));
    assert_eq!(ticket.next_blocking(), None);
}

#[test]
fn a_stop_string_across_tokens_ends_the_answer_and_is_not_sent() {
    let mut rig = Rig::usual();
    let prompt = context(&ids(5, 12), 0);
    let free = rig.answer(generate(&prompt, 1, 30, 5));
    let whole = free.ids(0);
    // The third and fourth word, with the border between them.
    let stop = format!("{} w{}", whole[2], whole[3]);
    let mut request = generate(&prompt, 1, 30, 5);
    if let Work::Generate(g) = &mut request.work {
        g.sampling.stop = vec![stop];
    }
    let stopped = rig.answer(request);
    assert_eq!(stopped.reasons[0], Some(Reason::Stop(0)));
    assert_eq!(stopped.texts[0], format!("w{} w{} w", whole[0], whole[1]));
    assert_eq!(stopped.ids(0), whole[..4]);
}

#[test]
fn answers_of_one_request_share_the_prompt_and_differ_by_seed() {
    let mut rig = Rig::usual();
    let prompt = context(&ids(3, 100), 0);
    let three = rig.answer(generate(&prompt, 3, 20, 40));
    let prompt_rows: usize = rig
        .steps()
        .iter()
        .flatten()
        .filter(|r| r.position.first < 100)
        .count();
    assert_eq!(prompt_rows, 100, "the prompt is computed once");
    for choice in 0..3 {
        let alone = rig.answer(generate(&prompt, 1, 20, 40 + choice as u64));
        assert_eq!(three.tokens[choice], alone.tokens[0]);
    }
    assert_ne!(three.ids(0), three.ids(1));
}

#[test]
fn a_repeated_prefix_is_not_computed_again() {
    let mut rig = Rig::usual();
    let first = ids(7, 100);
    let answer = rig.answer(generate(&context(&first, 0), 1, 4, 1));
    assert_eq!(answer.finished().usage.cached_tokens, 0);
    rig.steps();
    // The same beginning and another end: whole blocks of 8 are reused.
    let mut second = first[..61].to_vec();
    second.extend(ids(8, 20));
    let answer = rig.answer(generate(&context(&second, 0), 1, 4, 1));
    assert_eq!(answer.finished().usage.cached_tokens, 56);
    let rows: usize = rig.steps()[0].len();
    assert_eq!(rows, 81 - 56);
    // Exactly the result of an engine that never saw the prefix.
    let fresh = Rig::usual().answer(generate(&context(&second, 0), 1, 4, 1));
    assert_eq!(fresh.tokens, answer.tokens);
}

#[test]
fn a_bidirectional_prefix_runs_whole_and_is_reused_only_on_an_exact_match() {
    let mut rig = Rig::usual();
    let text = ids(9, 61);
    // 60 tokens of Part A and the start of a piece.
    let answer = rig.answer(generate(&context(&text, 60), 1, 4, 1));
    let first = &rig.steps()[0];
    assert!(first.iter().take(60).all(|row| row.visible == 60));
    let again = rig.answer(generate(&context(&text, 60), 1, 4, 1));
    assert_eq!(again.finished().usage.cached_tokens, 60);
    assert_eq!(again.tokens, answer.tokens);
    let mut other = text.clone();
    other[59] += 1;
    let other = rig.answer(generate(&context(&other, 60), 1, 4, 1));
    assert_eq!(other.finished().usage.cached_tokens, 0);
}

#[test]
fn a_part_a_that_exceeds_the_budget_runs_alone() {
    let config = Config {
        step_tokens: glm::Tokens(32),
        ..Config::default()
    };
    let mut rig = Rig::new(config, capabilities());
    let writers: Vec<Ticket> = (0..4)
        .map(|seed| rig.submit(generate(&context(&ids(seed, 10), 0), 1, 60, seed)))
        .collect();
    rig.turns(5);
    let long = rig.submit(generate(&context(&ids(50, 101), 100), 1, 4, 1));
    rig.run();
    let steps = rig.steps();
    let whole: Vec<usize> = (steps.iter().map(Vec::len))
        .filter(|rows| *rows > 32)
        .collect();
    assert_eq!(whole, [100]);
    Answer::of(long).finished();
    for writer in writers {
        Answer::of(writer).finished();
    }
}

#[test]
fn scores_are_the_log_probabilities_of_the_candidates() {
    let mut rig = Rig::usual();
    let prompts = [context(&ids(1, 20), 0), context(&ids(2, 31), 30)];
    let candidates = vec![vec![5], vec![6, 7, 8], vec![6, 9], vec![]];
    let items: Vec<_> = (prompts.iter())
        .map(|prompt| (Arc::clone(prompt), candidates.clone()))
        .collect();
    let scores = rig.answer(score(&items)).finished().scores.clone();
    for (prompt, scores) in prompts.iter().zip(&scores) {
        for (candidate, scores) in candidates.iter().zip(scores) {
            assert_eq!(scores.len(), candidate.len());
            // Each token's probability is what a sampler reports that is led along the candidate.
            for (at, score) in scores.iter().enumerate() {
                let mut read: Vec<u32> = prompt.tokens.iter().map(|t| t.id.0).collect();
                read.extend(&candidate[..at]);
                let part = context(&read, prompt.bidirectional);
                let mut request = generate(&part, 1, 1, 0);
                if let Work::Generate(g) = &mut request.work {
                    let all = (0..64).filter(|id| *id != candidate[at]).map(TokenId);
                    g.sampling.banned = all.collect();
                }
                let led = rig.answer(request);
                assert_eq!(led.ids(0), [candidate[at]]);
                assert_eq!(led.tokens[0][0].logprob, Some(*score));
            }
        }
    }
}

#[test]
fn many_texts_are_one_batch() {
    let mut rig = Rig::usual();
    let items: Vec<_> = (0..6)
        .map(|i| (context(&ids(i, 13), 12), vec![vec![1], vec![2]]))
        .collect();
    let answer = rig.answer(score(&items));
    assert_eq!(answer.finished().scores.len(), 6);
    assert_eq!(rig.steps().len(), 1);
}

#[test]
fn prompt_log_probabilities_are_those_of_scoring_the_prompt() {
    let mut rig = Rig::usual();
    let text = ids(4, 90);
    let mut request = generate(&context(&text, 0), 2, 3, 1);
    if let Work::Generate(g) = &mut request.work {
        g.prompt_logprobs = Some(2);
    }
    let answer = rig.answer(request);
    assert_eq!(answer.prompt.len(), 90);
    assert_eq!(answer.prompt[0].logprob, None);
    let scored = rig.answer(score(&[(context(&text[..1], 0), vec![text[1..].to_vec()])]));
    let wanted: Vec<Option<f64>> = scored.finished().scores[0][0]
        .iter()
        .copied()
        .map(Some)
        .collect();
    let got: Vec<Option<f64>> = answer.prompt[1..].iter().map(|t| t.logprob).collect();
    assert_eq!(got, wanted);
    assert!(answer.prompt[1..].iter().all(|t| t.top.len() == 2));
}

#[test]
fn without_chunks_and_sharing_the_answers_are_the_same() {
    let plain = Capabilities {
        chunked_prefill: false,
        fork: false,
        ..capabilities()
    };
    let requests = || {
        vec![
            generate(&context(&ids(1, 70), 0), 3, 20, 1),
            generate(&context(&ids(2, 41), 40), 2, 20, 2),
            score(&[(context(&ids(3, 20), 0), vec![vec![1, 2, 3], vec![4, 5]])]),
        ]
    };
    let mut paged = Rig::usual();
    let mut portable = Rig::new(Config::default(), plain);
    for (a, b) in requests().into_iter().zip(requests()) {
        let (a, b) = (paged.answer(a), portable.answer(b));
        assert_eq!(a.tokens, b.tokens);
        assert_eq!(a.finished().scores, b.finished().scores);
    }
}

#[test]
fn blanks_are_filled_one_after_the_other_and_each_has_its_own_text() {
    let mut several_pieces = 0;
    for restart in [false, true] {
        for seed in 0..12 {
            let prompt = context(&ids(seed, 31), 30);
            let together = Rig::usual().answer(infill(&prompt, 3, restart, 3, seed));
            assert!(together.end.as_ref().unwrap().is_ok(), "{:?}", together.end);
            for choice in 0..3 {
                let alone = infill(&prompt, 3, restart, 1, seed + choice as u64);
                let ticket_of = |request| {
                    let mut rig = Rig::usual();
                    let ticket = rig.submit(request);
                    rig.run();
                    ticket.collect_blocking().unwrap()
                };
                let alone = ticket_of(alone);
                let tokens: Vec<_> = alone.choices[0].tokens().cloned().collect();
                assert_eq!(together.tokens[choice], tokens);
                for filled in &alone.choices[0].blanks {
                    let words: Vec<String> = (filled.tokens.iter().filter(|t| t.id != END))
                        .map(|t| format!("w{}", t.id))
                        .collect();
                    assert_eq!(filled.text, words.join(" "));
                }
                several_pieces += usize::from(alone.choices[0].blanks.len() > 1);
            }
        }
    }
    assert!(
        several_pieces > 20,
        "the case is too weak: {several_pieces}"
    );
}
