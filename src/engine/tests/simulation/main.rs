//! The real engine under the real governor on a simulated machine: a gibibyte that others want too.
//!
//! Everything is deterministic: the clock is moved by steps and idle times, and
//! the machine's figures follow from a script.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod plot;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::time::Duration;

use glm_engine::control::Cause;
use glm_engine::units::{Bytes, Level, Priority};
use proptest::prelude::*;

use run::{Arrival, Run, Sample};
use world::{Machine, Squeeze};

/// The same as of the governor.
const HOLD: Duration = Duration::from_secs(5);
const STEP_TOKENS: usize = 256;
/// From pressure to a smaller budget.
const REACTION: Duration = Duration::from_secs(2);

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// So many requests a second, of mixed length and priority.
fn arrivals(rate: f64, until: f64, seed: u64) -> Vec<Arrival> {
    let mut at = 0.5;
    let mut number = seed * 1000;
    let mut arrivals = Vec::new();
    while at < until {
        let dice = support::dice(seed, number);
        arrivals.push(Arrival {
            at: secs(at),
            prompt: 8 + (dice % 160) as usize,
            max_tokens: 8 + (dice >> 8) as usize % 56,
            priority: match dice >> 20 & 7 {
                0 | 1 => Priority::Low,
                2 => Priority::High,
                _ => Priority::Normal,
            },
            seed: number,
        });
        number += 1;
        at += (0.5 + (dice >> 32 & 255) as f64 / 256.0) / rate;
    }
    arrivals
}

/// When the budget is whole and the level green for good.
fn recovered(samples: &[Sample]) -> Option<Duration> {
    let whole = |s: &&Sample| s.budget * 10 >= STEP_TOKENS * 9 && s.level == Level::Green;
    let tail = samples.iter().rev().take_while(whole).last()?;
    Some(tail.at)
}

/// Promises that hold whatever others do.
fn check(run: &Run) {
    run.check_answers();
    for used in &run.uses {
        assert!(
            used.own <= used.allowed,
            "{:?}: {} held, {} allowed",
            used.at,
            used.own,
            used.allowed
        );
        assert!(
            used.spare.0 > 0,
            "{:?}: the machine is out of memory",
            used.at
        );
    }
    // A fall of the level comes a dwell after the last rise; growth comes a hold after the last cut.
    let (mut rose, mut cut) = (None, None);
    for pair in run.samples.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        // The change lies between its two samples: what is held against it is certain.
        let early = |then: Option<Duration>| then.is_some_and(|t| after.at < t + HOLD);
        if after.level > before.level {
            rose = Some(before.at);
        }
        if after.level < before.level {
            assert!(!early(rose), "level falls at {:?}", after.at);
        }
        if after.budget < before.budget {
            cut = Some(before.at);
        }
        if after.budget > before.budget {
            assert!(
                !early(cut),
                "budget grows at {:?}, was cut at {cut:?}: {before:?} {after:?}",
                after.at
            );
        }
    }
}

#[test]
fn two_squeezes_one_beyond_all_help() {
    let squeezes = [
        Squeeze::new(20.0, 4.0, 12.0, Bytes::mib(305)),
        Squeeze::new(60.0, 5.0, 12.0, Bytes::mib(560)),
    ];
    let machine = Machine::small(&squeezes);
    let run = Run::new(machine, &arrivals(3.0, 110.0, 1), secs(120.0));
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/../memory-simulation.svg");
    std::fs::write(file, plot::svg(&run)).unwrap();
    check(&run);
    let at = |from: f64, to: f64| {
        let inside = move |s: &&Sample| s.at >= secs(from) && s.at < secs(to);
        run.samples.iter().filter(inside)
    };
    // Calm, then slower but serving.
    assert!(at(5.0, 20.0).all(|s| s.level == Level::Green && s.budget == STEP_TOKENS));
    let first = at(20.0, 36.0).map(|s| s.level).max().unwrap();
    assert!((Level::Yellow..Level::Black).contains(&first), "{first:?}");
    assert!(at(26.0, 36.0).all(|s| s.budget < STEP_TOKENS));
    // Between two requests that are served one after the other nobody is.
    let serving = at(26.0, 36.0).filter(|s| s.running > 0).count();
    assert!(serving * 10 >= at(26.0, 36.0).count() * 8, "{serving}");
    // Whole again in time.
    let whole = at(36.0, 60.0).find(|s| s.budget == STEP_TOKENS && s.level == Level::Green);
    assert!(whole.unwrap().at <= secs(36.0) + Duration::from_secs(15));
    // Then the model has to go, and comes back by itself.
    assert!(at(60.0, 77.0).any(|s| s.level == Level::Black && !s.loaded));
    assert!(recovered(&run.samples).unwrap() <= secs(77.0 + 30.0));
    assert!(at(60.0, 77.0).any(|s| s.cause == Cause::Headroom));
    let finished = run.answers.iter().filter(|a| a.is_finished()).count();
    assert!(
        finished * 10 > run.answers.len() * 7,
        "{finished} of {}",
        run.answers.len()
    );
}

#[test]
fn a_squeeze_shows_in_the_budget_within_two_seconds() {
    for start in [20.0, 20.3, 20.7] {
        let machine = Machine::small(&[Squeeze::new(start, 0.05, 10.0, Bytes::mib(330))]);
        let run = Run::new(machine, &arrivals(3.0, 40.0, 2), secs(40.0));
        check(&run);
        let smaller = run
            .samples
            .iter()
            .find(|s| s.at >= secs(start) && s.budget < STEP_TOKENS);
        let reaction = smaller.unwrap().at - secs(start);
        assert!(reaction <= REACTION, "{reaction:?}");
    }
}

#[test]
fn without_load_the_budget_comes_back_as_well() {
    let machine = Machine::small(&[Squeeze::new(10.0, 1.0, 8.0, Bytes::mib(400))]);
    let run = Run::new(machine, &arrivals(4.0, 14.0, 3), secs(60.0));
    check(&run);
    assert!(recovered(&run.samples).unwrap() <= secs(19.0) + Duration::from_secs(15));
}

#[test]
fn small_ups_and_downs_of_others_change_nothing() {
    let waves: Vec<Squeeze> = (0..40)
        .map(|n| Squeeze::new(2.0 + f64::from(n), 0.3, 0.3, Bytes::mib(20)))
        .collect();
    let run = Run::new(Machine::small(&waves), &arrivals(3.0, 40.0, 4), secs(45.0));
    check(&run);
    assert!(run.samples.iter().all(|s| s.level == Level::Green));
    assert_eq!(run.preemptions(), 0);
}

#[test]
fn a_squeeze_that_keeps_coming_back_is_met_with_patience() {
    let waves: Vec<Squeeze> = (0..12)
        .map(|n| Squeeze::new(10.0 + 16.0 * f64::from(n), 0.5, 4.0, Bytes::mib(330)))
        .collect();
    let run = Run::new(
        Machine::small(&waves),
        &arrivals(2.0, 200.0, 5),
        secs(280.0),
    );
    check(&run);
    let rises = (run.samples.windows(2)).filter(|pair| pair[0].level < pair[1].level);
    // Twelve squeezes, but the level does not follow each of them once it knows them.
    let times: Vec<Duration> = rises.map(|pair| pair[1].at).collect();
    let green = (run.samples.windows(2))
        .filter(|pair| pair[1].level == Level::Green && pair[0].level > Level::Green)
        .count();
    assert!(green <= 6, "green {green} times, rises at {times:?}");
    assert!(recovered(&run.samples).is_some());
}

fn squeeze() -> impl Strategy<Value = Squeeze> {
    // Others never take all: without us the machine lives.
    (8.0..40.0_f64, 0.05..6.0_f64, 1.0..15.0_f64, 0..600_u64)
        .prop_map(|(start, ramp, length, mib)| Squeeze::new(start, ramp, length, Bytes::mib(mib)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn whatever_others_do(
        squeezes in proptest::collection::vec(squeeze(), 1..4),
        seed in 0..1000_u64,
        rate in 0.5..6.0_f64,
    ) {
        let calm = squeezes.iter().map(Squeeze::end).max().unwrap();
        // Repeated squeezes make the governor patient, up to a minute.
        let patience = match squeezes.len() {
            1 => Duration::from_secs(17),
            _ => Duration::from_secs(60 + 17),
        };
        let end = calm + patience + secs(3.0);
        let run = Run::new(Machine::small(&squeezes), &arrivals(rate, end.as_secs_f64(), seed), end);
        check(&run);
        let whole = recovered(&run.samples);
        prop_assert!(whole.is_some_and(|at| at <= calm + patience), "{whole:?} after {calm:?}");
    }
}
