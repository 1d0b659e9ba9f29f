//! What the engine does when the governor takes memory away, and gives it back. On a model without weights.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use glm::Tokens;
use glm_engine::backend::MemoryUse;
use glm_engine::control::{Admit, Allowance};
use glm_engine::model::{ModelSource, Reloaded};
use glm_engine::request::Work;
use glm_engine::status::Phase;
use glm_engine::units::{Level, Priority};
use glm_engine::{Config, Engine, Error, Request, Ticket};

use support::{
    Answer, END, Rig, Shared, TestClock, capabilities, context, generate, ids, info, score, source,
};

/// An answer of exactly `max_tokens`.
fn long(seed: u64, max_tokens: usize) -> Request {
    let mut request = generate(&context(&ids(seed, 20), 0), 1, max_tokens, seed);
    if let Work::Generate(work) = &mut request.work {
        work.sampling.banned = vec![END];
    }
    request
}

fn alone(request: Request) -> Answer {
    Rig::usual().answer(request)
}

#[test]
fn a_preempted_request_goes_on_and_its_answer_is_the_same() {
    let mut rig = Rig::usual();
    let first = rig.submit(long(1, 60));
    let second = rig.submit(long(2, 60));
    for _ in 0..4 {
        rig.turns(8);
        rig.allow(|now| now.preempt_one = true);
    }
    rig.run();
    let (first, second) = (Answer::of(first), Answer::of(second));
    assert_eq!(
        first.finished().usage.preemptions,
        0,
        "the newest gives way"
    );
    assert_eq!(second.finished().usage.preemptions, 4);
    assert_eq!(first.tokens, alone(long(1, 60)).tokens);
    assert_eq!(second.tokens, alone(long(2, 60)).tokens);
}

#[test]
fn the_lowest_priority_gives_way_first() {
    let mut rig = Rig::usual();
    let mut low = long(1, 60);
    low.priority = Priority::Low;
    let low = rig.submit(low);
    let normal = rig.submit(long(2, 60));
    rig.turns(8);
    rig.allow(|now| {
        now.preempt_one = true;
        now.admit = Admit::Nobody;
    });
    let status = rig.look();
    assert_eq!(status.running.len(), 1);
    assert_eq!(status.running[0].id, normal.id());
    rig.allow(|now| *now = Allowance::default());
    rig.run();
    Answer::of(low).finished();
    Answer::of(normal).finished();
}

#[test]
fn a_smaller_budget_holds_from_the_next_step_on() {
    let mut rig = Rig::usual();
    let tickets: Vec<Ticket> = (0..3)
        .map(|seed| rig.submit(generate(&context(&ids(seed, 200), 0), 1, 10, seed)))
        .collect();
    rig.turns(1);
    assert_eq!(rig.steps()[0].len(), 256);
    rig.allow(|now| now.step_tokens = Tokens(10));
    rig.run();
    assert!(rig.steps().iter().all(|rows| rows.len() <= 10));
    tickets.into_iter().for_each(|ticket| {
        Answer::of(ticket).finished();
    });
}

#[test]
fn a_smaller_pool_sends_back_what_no_longer_fits() {
    let mut rig = Rig::usual();
    let tickets: Vec<Ticket> = (0..4).map(|seed| rig.submit(long(seed, 60))).collect();
    rig.turns(20);
    assert_eq!(rig.look().running.len(), 4);
    // Each may need 10 blocks: 80 tokens in blocks of 8.
    rig.allow(|now| now.blocks = 25);
    let status = rig.look();
    assert_eq!((status.running.len(), status.queued_requests), (2, 2));
    assert_eq!(status.counters.preemptions, 2);
    rig.run();
    for (seed, ticket) in (0..).zip(tickets) {
        assert_eq!(Answer::of(ticket).tokens, alone(long(seed, 60)).tokens);
    }
}

#[test]
fn who_fits_passes_by_who_cannot_run_at_all() {
    let mut rig = Rig::usual();
    rig.allow(|now| now.blocks = 15);
    let large = rig.submit(long(1, 200));
    let small = rig.submit(long(2, 40));
    rig.run();
    Answer::of(small).finished();
    assert_eq!(rig.handle.status().queued_requests, 1);
    rig.allow(|now| now.blocks = 100);
    rig.run();
    Answer::of(large).finished();
}

#[test]
fn low_priority_waits_and_is_refused_while_memory_is_short() {
    let mut rig = Rig::usual();
    let with = |priority, seed| {
        let mut request = long(seed, 5);
        request.priority = priority;
        request
    };
    let waits = rig.submit(with(Priority::Low, 1));
    rig.allow(|now| now.admit = Admit::From(Priority::Normal));
    let runs = rig.submit(with(Priority::Normal, 2));
    rig.run();
    Answer::of(runs).finished();
    let refused = rig.handle.submit(with(Priority::Low, 3)).unwrap_err();
    assert_eq!(refused.code(), "overloaded");
    assert!(refused.retry_after().is_some());
    rig.allow(|now| *now = Allowance::default());
    rig.run();
    Answer::of(waits).finished();
}

#[test]
fn without_room_for_the_model_requests_wait_for_its_return() {
    let mut rig = Rig::usual();
    let running = rig.submit(long(1, 60));
    rig.turns(10);
    let waiting = rig.submit(long(2, 60));
    rig.allow(|now| {
        now.level = Level::Black;
        now.loaded = false;
    });
    rig.run();
    let status = rig.handle.status();
    assert_eq!(
        (status.phase, status.level),
        (Phase::Unloaded, Level::Black)
    );
    assert_eq!(status.backend, None);
    let refused = rig.handle.submit(long(3, 5)).unwrap_err();
    assert_eq!(refused.code(), "model_not_loaded");
    rig.allow(|now| *now = Allowance::default());
    rig.run();
    assert_eq!(rig.script.lock().unwrap().loads, 2);
    assert_eq!(Answer::of(running).tokens, alone(long(1, 60)).tokens);
    assert_eq!(Answer::of(waiting).tokens, alone(long(2, 60)).tokens);
}

#[test]
fn a_request_does_not_wait_for_ever() {
    let mut rig = Rig::usual();
    let ticket = rig.submit(long(1, 60));
    rig.turns(10);
    rig.allow(|now| now.loaded = false);
    rig.run();
    rig.clock.advance(Duration::from_secs(601));
    rig.run();
    let answer = Answer::of(ticket);
    assert_eq!(answer.error().code(), "overloaded");
    assert!(answer.error().retry_after().is_some());
    assert!(
        !answer.tokens[0].is_empty(),
        "what was written stays with its owner"
    );
}

#[test]
fn prefixes_go_when_they_are_not_allowed() {
    let mut rig = Rig::usual();
    let prompt = context(&ids(1, 100), 0);
    rig.answer(generate(&prompt, 1, 4, 1));
    rig.allow(|now| now.keep_prefixes = false);
    rig.run();
    assert_eq!(rig.handle.status().cache.entries, 0);
    assert_eq!(rig.script.lock().unwrap().sequences, 0);
    let again = rig.answer(generate(&prompt, 1, 4, 1));
    assert_eq!(again.finished().usage.cached_tokens, 0);
    assert_eq!(rig.script.lock().unwrap().free_blocks, 256);
}

#[test]
fn scores_resume_where_they_were() {
    let items = || -> Vec<_> {
        (0..8)
            .map(|seed| (context(&ids(seed, 30), 0), vec![vec![1, 2, 3], vec![4, 5]]))
            .collect()
    };
    let calm = alone(score(&items()));
    let mut rig = Rig::usual();
    let other = rig.submit(long(1, 60));
    let ticket = rig.submit(score(&items()));
    for _ in 0..3 {
        rig.turns(1);
        rig.allow(|now| {
            now.preempt_one = true;
            now.step_tokens = Tokens(20);
        });
    }
    // Less room than it was started with.
    rig.allow(|now| now.sequences = 3);
    rig.run();
    let answer = Answer::of(ticket);
    assert!(answer.finished().usage.preemptions > 0);
    assert_eq!(answer.finished().scores, calm.finished().scores);
    Answer::of(other).finished();
}

/// An engine that unloads its model after a minute without requests.
fn patient() -> Rig {
    let config = Config {
        idle_unload: Some(Duration::from_secs(60)),
        ..Config::default()
    };
    Rig::new(config, capabilities())
}

/// Lets so many seconds go by, with a turn in each.
fn seconds(rig: &mut Rig, count: usize) {
    for _ in 0..count {
        rig.look();
    }
}

#[test]
fn a_model_that_nobody_asks_goes_and_comes_back_with_the_next_request() {
    let mut rig = patient();
    seconds(&mut rig, 55);
    rig.answer(long(1, 5)).finished();
    seconds(&mut rig, 55);
    assert_eq!(rig.handle.status().phase, Phase::Ready);
    seconds(&mut rig, 10);
    let status = rig.handle.status();
    assert_eq!((status.phase, status.backend), (Phase::Idle, None));
    assert_eq!(status.memory, MemoryUse::default());
    assert!(rig.handle.model().is_some(), "prompts are still understood");
    assert_eq!(rig.script.lock().unwrap().loads, 1);

    let answer = rig.answer(long(2, 60));
    assert_eq!(answer.tokens, alone(long(2, 60)).tokens);
    assert_eq!(rig.handle.status().phase, Phase::Ready);
    assert_eq!(rig.script.lock().unwrap().loads, 2);
    seconds(&mut rig, 61);
    assert_eq!(rig.handle.status().phase, Phase::Idle, "and goes again");
}

#[test]
fn a_request_that_runs_or_waits_keeps_the_model() {
    let mut rig = patient();
    rig.script.lock().unwrap().step_time = Duration::from_secs(50);
    let running = rig.submit(long(1, 10));
    rig.run();
    Answer::of(running).finished();
    let waiting = rig.submit(long(2, 5));
    rig.allow(|now| now.admit = Admit::Nobody);
    seconds(&mut rig, 120);
    assert_eq!(rig.handle.status().phase, Phase::Ready);
    rig.allow(|now| *now = Allowance::default());
    rig.run();
    Answer::of(waiting).finished();
    assert_eq!(rig.script.lock().unwrap().loads, 1);
}

#[test]
fn a_model_that_nobody_asked_waits_for_memory_as_well() {
    let mut rig = patient();
    seconds(&mut rig, 61);
    let waiting = rig.submit(long(1, 60));
    rig.allow(|now| now.loaded = false);
    rig.run();
    assert_eq!(rig.handle.status().phase, Phase::Idle);
    assert_eq!(rig.script.lock().unwrap().loads, 1);
    rig.allow(|now| *now = Allowance::default());
    rig.run();
    assert_eq!(Answer::of(waiting).tokens, alone(long(1, 60)).tokens);
}

#[test]
fn an_operator_may_unload_and_reload_a_model_that_nobody_asks() {
    let mut rig = patient();
    seconds(&mut rig, 61);
    rig.handle.unload(Box::new(|outcome| outcome.unwrap()));
    rig.run();
    assert_eq!(rig.handle.status().phase, Phase::Unloaded);
    let refused = rig.handle.submit(long(1, 5)).unwrap_err();
    assert_eq!(refused.code(), "model_not_loaded");

    let mut rig = patient();
    seconds(&mut rig, 61);
    let new = source(
        info(capabilities()),
        Arc::clone(&rig.script),
        Arc::clone(&rig.clock),
    );
    let done = |outcome: Result<Reloaded, Error>| drop(outcome.unwrap());
    rig.handle.reload(Box::new(new), Box::new(done));
    rig.run();
    assert_eq!(rig.handle.status().phase, Phase::Ready);
    rig.answer(long(1, 5)).finished();
}

#[test]
fn whoever_asks_hears_when_the_model_cannot_come_back() {
    let (script, clock) = (Shared::default(), Arc::new(TestClock::default()));
    let mut good = source(info(capabilities()), script, Arc::clone(&clock));
    let mut first = true;
    let once = move || match std::mem::take(&mut first) {
        true => ModelSource::load(&mut good),
        false => Err(Error::Load {
            reason: "model.onnx: no such file".to_owned(),
        }),
    };
    let config = Config {
        idle_unload: Some(Duration::from_secs(60)),
        ..Config::default()
    };
    let (mut engine, handle) = Engine::new(config, Box::new(once), Arc::clone(&clock) as Arc<_>);
    engine.turn();
    clock.advance(Duration::from_secs(60));
    engine.turn();
    assert_eq!(handle.status().phase, Phase::Idle);
    let ticket = handle.submit(long(1, 5)).unwrap();
    engine.turn();
    assert_eq!(Answer::of(ticket).error().code(), "model_not_loaded");
    assert_eq!(handle.status().phase, Phase::Unloaded);
}
