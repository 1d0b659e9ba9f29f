//! What clients feel, on a machine that exists as a price list only: a step costs as much as reading
//! the weights, and each row adds its share. The clock is ours, so the figures are exact.
//!
//! The prices are those of a 1.5 B model on two cores: 10 tokens/s alone, 43 for eight together,
//! prompts at 60 tokens/s.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::time::Duration;

use glm_engine::request::Work;
use glm_engine::units::{Clock, Moment};
use glm_engine::{Config, Event, Request, Ticket};

use support::{Answer, END, Rig, capabilities, context, generate, ids};

const STEP: Duration = Duration::from_millis(84);
const ROW: Duration = Duration::from_millis(13);

fn rig() -> Rig {
    let mut capabilities = capabilities();
    capabilities.max_tokens = 2048;
    let rig = Rig::new(Config::default(), capabilities);
    let mut script = rig.script.lock().unwrap();
    script.step_time = STEP;
    script.row_time = ROW;
    drop(script);
    rig
}

/// An answer of exactly `tokens`.
fn exactly(seed: u64, prompt: usize, tokens: usize) -> Request {
    let mut request = generate(&context(&ids(seed, prompt), 0), 1, tokens, seed);
    if let Work::Generate(work) = &mut request.work {
        work.sampling.banned = vec![END];
    }
    request
}

/// Turns until `ticket` has its next part; returns when.
fn next_part(rig: &mut Rig, ticket: &mut Ticket) -> Moment {
    for _ in 0..10_000 {
        while let Some(event) = ticket.try_next() {
            match event {
                Event::Part(_) => return rig.clock.now(),
                other => assert!(!other.is_last(), "{other:?}"),
            }
        }
        rig.engine.turn();
    }
    panic!("no part comes");
}

#[test]
fn eight_clients_together_are_four_times_as_fast_as_one_after_the_other() {
    let mut together = rig();
    let start = together.clock.now();
    let tickets: Vec<Ticket> = (0..8)
        .map(|seed| together.submit(exactly(seed, 16, 64)))
        .collect();
    while together.handle.status().counters.finished < 8 {
        together.turns(1);
    }
    let time = together.clock.now().since(start);
    drop(tickets);
    let mut serial = rig();
    let start = serial.clock.now();
    for seed in 0..8 {
        serial.answer(exactly(seed, 16, 64)).finished();
    }
    let ratio = serial.clock.now().since(start).as_secs_f64() / time.as_secs_f64();
    // The prices allow 8 * 97 / 188 = 4.1 while all eight decode.
    assert!(ratio >= 3.5, "{ratio}");
}

#[test]
fn an_answer_under_way_slows_down_to_at_most_a_third_while_a_long_prompt_arrives() {
    let mut rig = rig();
    let mut watched = rig.submit(exactly(1, 16, 400));
    let mut last = next_part(&mut rig, &mut watched);
    let mut gaps = |rig: &mut Rig, count: usize| -> Vec<Duration> {
        (0..count)
            .map(|_| {
                let now = next_part(rig, &mut watched);
                let gap = now.since(last);
                last = now;
                gap
            })
            .collect()
    };
    let calm = gaps(&mut rig, 50)[25];
    let arriving = rig.submit(exactly(2, 512, 1));
    let busy = gaps(&mut rig, 100);
    let worst = *busy.iter().max().unwrap();
    assert!(worst > calm, "the prompt was read meanwhile");
    assert!(worst <= 3 * calm, "{worst:?} against {calm:?}");
    // And the prompt is not starved for it.
    Answer::of(arriving).finished();
}

#[test]
fn the_second_request_with_a_long_prefix_starts_at_once() {
    let mut rig = rig();
    let mut first_token = |seed, tail: u64| {
        let mut text = ids(seed, 512);
        text.extend(ids(tail, 8));
        let mut request = exactly(1, 1, 4);
        if let Work::Generate(work) = &mut request.work {
            work.prompt = context(&text, 0);
        }
        let start = rig.clock.now();
        let mut ticket = rig.submit(request);
        let time = next_part(&mut rig, &mut ticket).since(start);
        rig.run();
        time
    };
    let cold = first_token(7, 1);
    let warm = first_token(7, 2);
    assert!(
        warm.as_secs_f64() <= 0.15 * cold.as_secs_f64(),
        "{warm:?} after {cold:?}"
    );
}

#[test]
fn a_cancel_stops_the_compute_within_one_step() {
    let mut rig = rig();
    let reading = rig.submit(exactly(1, 1500, 4));
    rig.turns(1);
    reading.cancel();
    let before = rig.handle.status().counters.computed_tokens;
    let start = rig.clock.now();
    rig.turns(1);
    assert_eq!(rig.look().counters.computed_tokens, before.max(256));
    assert!(rig.clock.now().since(start) <= Duration::from_secs(1));
    assert_eq!(Answer::of(reading).error().code(), "cancelled");
}

#[test]
fn a_prompt_is_read_at_full_speed_when_nobody_waits_for_tokens() {
    let mut rig = rig();
    rig.answer(exactly(1, 512, 1)).finished();
    assert_eq!(rig.handle.status().counters.steps, 2);
}
