//! Whatever happens in whatever order: every accepted request ends exactly once, an answer does not
//! depend on what else was going on, and nothing is left behind.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use glm::{TokenId, Tokens};
use glm_engine::backend::Capabilities;
use glm_engine::control::{Admit, Allowance};
use glm_engine::engine::Turn;
use glm_engine::units::{Level, Priority};
use glm_engine::{Config, Drain, Request, Ticket};
use proptest::prelude::*;

use support::{Answer, Rig, capabilities, context, generate, ids, infill, info, score, source};

const BUDGET: usize = 24;

/// A request, described so that it can be made twice.
#[derive(Clone, Copy, Debug)]
struct Ask {
    score: bool,
    /// Fills two blanks, and reads its context again in between.
    infill: Option<bool>,
    /// Few values, so that prompts repeat.
    prompt: u64,
    length: usize,
    bidirectional: bool,
    n: usize,
    max_tokens: usize,
    seed: u64,
    priority: usize,
    deadline: Option<u64>,
    key: Option<u8>,
}

#[derive(Clone, Debug)]
enum Happening {
    Submit(Ask),
    Turns(usize),
    Cancel(usize),
    Drop(usize),
    FailSteps(usize),
    Panic,
    Wait(u64),
    Reload,
    /// The governor changes its mind.
    Memory(Level, usize, usize),
    Preempt,
}

/// What the levels mean, as the governor says it.
fn allowance(level: Level, step_tokens: usize, blocks: usize) -> Allowance {
    Allowance {
        level,
        step_tokens: Tokens(step_tokens),
        blocks,
        sequences: if level >= Level::Orange {
            1
        } else {
            usize::MAX
        },
        admit: match level {
            Level::Green => Admit::From(Priority::Low),
            Level::Yellow | Level::Orange => Admit::From(Priority::Normal),
            Level::Red | Level::Black => Admit::Nobody,
        },
        keep_prefixes: level < Level::Orange,
        loaded: level < Level::Black,
        preempt_one: level >= Level::Red,
        shrink: level >= Level::Orange,
        rest: 0,
    }
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![
        2 => Just(Level::Green),
        1 => Just(Level::Yellow),
        1 => Just(Level::Orange),
        1 => Just(Level::Red),
        1 => Just(Level::Black),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    (
        (0..4u8, 0..4u64, 1..60usize, any::<bool>()),
        (1..4usize, 1..25usize, 0..3u64, 0..3usize),
        (
            prop::option::weighted(0.2, 0..400u64),
            prop::option::weighted(0.2, 0..2u8),
        ),
    )
        .prop_map(
            |(
                (kind, prompt, length, bidirectional),
                (n, max_tokens, seed, priority),
                (deadline, key),
            )| Ask {
                score: kind == 0,
                infill: (kind == 1).then_some(seed == 0),
                prompt,
                length,
                bidirectional,
                n,
                max_tokens,
                seed,
                priority,
                deadline,
                key,
            },
        )
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => ask().prop_map(Happening::Submit),
        8 => (1..12usize).prop_map(Happening::Turns),
        2 => any::<usize>().prop_map(Happening::Cancel),
        1 => any::<usize>().prop_map(Happening::Drop),
        2 => (1..4usize).prop_map(Happening::FailSteps),
        1 => Just(Happening::Panic),
        1 => (1..300u64).prop_map(Happening::Wait),
        1 => Just(Happening::Reload),
        3 => (level(), 1..BUDGET, 8..48usize)
            .prop_map(|(level, tokens, blocks)| Happening::Memory(level, tokens, blocks)),
        2 => Just(Happening::Preempt),
    ]
}

fn make(ask: &Ask) -> Request {
    let text = ids(ask.prompt, ask.length);
    let part_a = if ask.bidirectional { ask.length - 1 } else { 0 };
    let prompt = context(&text, part_a);
    let mut request = if ask.score {
        let candidates = vec![vec![1], ids(ask.seed, ask.n + 1), vec![2, 3]];
        score(&vec![(prompt, candidates); ask.n])
    } else if let Some(restart) = ask.infill {
        infill(&prompt, 2, restart, ask.n, ask.seed)
    } else {
        generate(&prompt, ask.n, ask.max_tokens, ask.seed)
    };
    request.priority = [Priority::Low, Priority::Normal, Priority::High][ask.priority];
    request.deadline = ask.deadline.map(Duration::from_millis);
    request.coalesce_key = ask.key.map(|key| key.to_string().into());
    request
}

fn config() -> Config {
    let mut config = Config {
        step_tokens: Tokens(BUDGET),
        sequences: 6,
        logits_rows: 8,
        cache_tokens: Some(Tokens(96)),
        ..Config::default()
    };
    config.queue.requests = 12;
    config
}

/// A pool so small that requests wait for each other.
fn tight(chunked_prefill: bool, fork: bool) -> Capabilities {
    Capabilities {
        blocks: 48,
        max_step_tokens: 84,
        chunked_prefill,
        fork,
        ..capabilities()
    }
}

fn alone(ask: &Ask, capabilities: Capabilities) -> Answer {
    let quiet = Ask {
        deadline: None,
        key: None,
        ..*ask
    };
    Rig::new(Config::default(), capabilities).answer(make(&quiet))
}

/// A turn, whose step keeps to the budget or is one piece that cannot be divided.
fn turn(rig: &mut Rig) -> Result<(), TestCaseError> {
    let budget = BUDGET.min(rig.allowance.lock().unwrap().step_tokens.0);
    rig.engine.turn();
    for rows in rig.steps() {
        let alone = rows.iter().all(|row| row.seq == rows[0].seq);
        prop_assert!(rows.len() <= budget || alone, "{} rows", rows.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        // A failing case is printed in full; no file of seeds beside the tests.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_ends_once_with_the_answer_it_would_get_alone(
        happenings in prop::collection::vec(happening(), 1..60),
        chunked: bool,
        fork: bool,
        stop_at_once: bool,
    ) {
        let capabilities = tight(chunked, fork);
        let mut rig = Rig::new(config(), capabilities.clone());
        let mut open: Vec<(Ask, Ticket)> = Vec::new();
        let mut accepted = 0;
        let reloads = Arc::new(AtomicUsize::new(0));
        for happening in &happenings {
            match happening {
                Happening::Submit(ask) => {
                    let mut request = make(ask);
                    if let Some(model) = rig.handle.model() {
                        request.epoch = model.epoch;
                    }
                    if let Ok(ticket) = rig.handle.submit(request) {
                        accepted += 1;
                        open.push((*ask, ticket));
                    }
                }
                Happening::Turns(count) => {
                    for _ in 0..*count {
                        turn(&mut rig)?;
                        rig.clock.advance(Duration::from_millis(1));
                    }
                }
                Happening::Cancel(which) if !open.is_empty() => {
                    let _ = rig.handle.cancel(open[which % open.len()].1.id());
                }
                Happening::Drop(which) if !open.is_empty() => {
                    open.swap_remove(which % open.len());
                }
                Happening::FailSteps(count) => rig.script.lock().unwrap().fail_steps = *count,
                Happening::Panic => {
                    // Whatever is under way panics once.
                    rig.script.lock().unwrap().panic_on = Some(TokenId(7));
                    turn(&mut rig)?;
                    rig.script.lock().unwrap().panic_on = None;
                }
                Happening::Wait(time) => rig.clock.advance(Duration::from_millis(*time)),
                Happening::Reload => {
                    let again = source(
                        info(capabilities.clone()),
                        Arc::clone(&rig.script),
                        Arc::clone(&rig.clock),
                    );
                    reloads.fetch_add(1, Ordering::SeqCst);
                    let done = Arc::clone(&reloads);
                    let done = move |_| {
                        done.fetch_sub(1, Ordering::SeqCst);
                    };
                    rig.handle.reload(Box::new(again), Box::new(done));
                }
                Happening::Memory(level, tokens, blocks) => {
                    rig.allow(|now| *now = allowance(*level, *tokens, *blocks));
                }
                Happening::Preempt => rig.allow(|now| now.preempt_one = true),
                Happening::Cancel(_) | Happening::Drop(_) => {}
            }
        }
        rig.script.lock().unwrap().fail_steps = 0;
        if !stop_at_once {
            rig.allow(|now| *now = Allowance::default());
            rig.run();
            // New models come on threads of their own; the figures below are of the last one.
            while reloads.load(Ordering::SeqCst) > 0 {
                thread::yield_now();
                rig.run();
            }
            let status = rig.look();
            prop_assert_eq!(status.queued_requests, 0);
            prop_assert!(status.running.is_empty());
            // Only the prefix cache still holds sequences.
            prop_assert_eq!(rig.script.lock().unwrap().sequences, status.cache.entries);
            prop_assert!(status.cache.tokens <= 96);
        }
        rig.handle.shutdown(Drain::Now, Box::new(|_| {}));
        while rig.engine.turn() != Turn::Stopped {}
        for (ask, ticket) in open {
            // `Answer::of` refuses events after the last; a missing end shows here.
            let answer = Answer::of(ticket);
            let Some(end) = answer.end.as_ref() else {
                return Err(TestCaseError::fail(format!("no end: {ask:?}")));
            };
            if let Ok(finished) = end {
                let calm = alone(&ask, capabilities.clone());
                prop_assert_eq!(&answer.tokens, &calm.tokens);
                prop_assert_eq!(&answer.texts, &calm.texts);
                prop_assert_eq!(&answer.reasons, &calm.reasons);
                prop_assert_eq!(&finished.scores, &calm.finished().scores);
            }
        }
        let c = rig.handle.status().counters;
        prop_assert_eq!(c.accepted, accepted);
    }

    #[test]
    fn what_was_reserved_is_enough(
        asks in prop::collection::vec((ask(), 0..6usize), 1..30), chunked: bool, fork: bool,
    ) {
        // Nobody takes memory away, so nobody who runs may have to give way.
        let mut rig = Rig::new(config(), tight(chunked, fork));
        let mut tickets = Vec::new();
        for (ask, turns) in &asks {
            let quiet = Ask { deadline: None, key: None, ..*ask };
            tickets.extend(rig.handle.submit(make(&quiet)));
            for _ in 0..*turns {
                turn(&mut rig)?;
            }
        }
        rig.run();
        let counters = rig.look().counters;
        prop_assert_eq!(counters.preemptions, 0);
        prop_assert_eq!(counters.failed, 0);
        prop_assert_eq!(counters.finished, tickets.len() as u64);
    }
}
