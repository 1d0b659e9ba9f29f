//! The deciders of the memory governor one by one.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use glm::Tokens;
use glm_engine::backend::MemoryUse;
use glm_engine::control::{Admit, Allowance, Cause, Control, Load};
use glm_engine::engine::Turn;
use glm_engine::memory::budget::Budget;
use glm_engine::memory::cost::{Observed, StepCost};
use glm_engine::memory::headroom::floor;
use glm_engine::memory::heat::{Thermostat, Warmth};
use glm_engine::memory::ladder::Ladder;
use glm_engine::memory::policy::{Policy, Seen};
use glm_engine::memory::strain::Strain;
use glm_engine::memory::telemetry::{
    Clockrate, Detail, GroupEvents, Heat, Pressure, Process, Snapshot, Stalls, Telemetry,
    VmCounters, Zone,
};
use glm_engine::memory::watch::Watch;
use glm_engine::memory::{Governor, Settings};
use glm_engine::units::{Bytes, Level, Margin, Moment, Priority};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use support::told::{TOTAL, Told, machine};
use support::{Rig, Shared, TestClock, capabilities, context, generate, ids, info, source};

fn at(seconds: f64) -> Moment {
    Moment(Duration::from_secs_f64(seconds))
}

const HOLD: Duration = Duration::from_secs(5);

#[test]
fn a_budget_halves_at_once_and_grows_after_the_hold() {
    let mut budget = Budget::new(Tokens(8), Tokens(256), HOLD);
    budget.cut(at(1.0));
    assert_eq!(budget.tokens(), 128);
    budget.cut(at(1.5));
    assert_eq!(budget.tokens(), 128, "one squeeze, many signs");
    budget.cut(at(2.0));
    assert_eq!(budget.tokens(), 64);
    budget.grow(at(6.9), usize::MAX);
    assert_eq!(budget.tokens(), 64);
    budget.grow(at(7.0), usize::MAX);
    assert_eq!(budget.tokens(), 96);
    budget.grow(at(7.5), usize::MAX);
    assert_eq!(budget.tokens(), 96, "no faster than a step a second");
    budget.grow(at(8.0), 127);
    assert_eq!(budget.tokens(), 96, "no further than there is room");
    for second in 8..20 {
        budget.grow(at(f64::from(second)), usize::MAX);
    }
    assert_eq!(budget.tokens(), 256);
    budget.limit(at(20.0), 100);
    assert_eq!(budget.tokens(), 100);
    budget.limit(at(20.0), 0);
    assert_eq!(budget.tokens(), 8, "never nothing");
}

proptest! {
    #[test]
    fn a_budget_stays_in_bounds_and_recovers(
        least in 0usize..300, most in 1usize..5000, cuts in 0u32..20,
    ) {
        let mut budget = Budget::new(Tokens(least), Tokens(most), HOLD);
        for second in 0..cuts {
            budget.cut(at(f64::from(second)));
            prop_assert!(budget.tokens() >= least.min(most) && budget.tokens() <= most);
        }
        let calm = at(f64::from(cuts)).0;
        let end = calm + budget.recovery();
        let mut now = calm;
        while now < end {
            budget.grow(Moment(now), usize::MAX);
            now += Duration::from_millis(250);
        }
        prop_assert_eq!(budget.tokens(), most);
    }
}

#[test]
fn levels_rise_at_once_and_fall_to_the_worst_of_the_dwell() {
    let mut ladder = Ladder::new(HOLD);
    assert_eq!(ladder.observe(at(0.0), Level::Red, Level::Red), Level::Red);
    assert_eq!(
        ladder.observe(at(1.0), Level::Green, Level::Green),
        Level::Red
    );
    assert_eq!(
        ladder.observe(at(4.0), Level::Yellow, Level::Yellow),
        Level::Red
    );
    assert_eq!(
        ladder.observe(at(6.0), Level::Green, Level::Green),
        Level::Yellow
    );
    assert_eq!(
        ladder.observe(at(7.0), Level::Green, Level::Green),
        Level::Yellow
    );
    assert_eq!(
        ladder.observe(at(12.0), Level::Green, Level::Green),
        Level::Green
    );
    // Good enough not to enter again, not good enough to leave.
    ladder.observe(at(100.0), Level::Orange, Level::Orange);
    for second in 101..140 {
        let level = ladder.observe(at(f64::from(second)), Level::Green, Level::Orange);
        assert_eq!(level, Level::Orange);
    }
}

#[test]
fn a_level_that_was_left_too_soon_is_left_later() {
    let mut ladder = Ladder::new(HOLD);
    let mut now = 0.0;
    let mut dwells = Vec::new();
    for _ in 0..6 {
        ladder.observe(at(now), Level::Red, Level::Red);
        let start = now;
        while ladder.observe(at(now), Level::Green, Level::Green) == Level::Red {
            now += 0.25;
        }
        dwells.push(now - start);
        now += 1.0;
    }
    assert_eq!(dwells, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
    ladder.observe(at(now + 70.0), Level::Green, Level::Green);
    assert_eq!(ladder.dwell(), HOLD, "forgotten after a calm");
}

#[test]
fn signs_are_rates_beyond_what_is_usual() {
    let machine = |refaults, stalls, max, micros| Snapshot {
        counters: Some(VmCounters {
            refaults,
            stalls,
            ..VmCounters::default()
        }),
        groups: glm_engine::memory::telemetry::Groups {
            events: Some(GroupEvents {
                max,
                ..GroupEvents::default()
            }),
            pressure: Some(Pressure {
                some: Stalls {
                    percent: 0.0,
                    micros,
                },
                ..Pressure::default()
            }),
            ..Default::default()
        },
        ..Snapshot::default()
    };
    let mut strain = Strain::default();
    // The counts since boot are no rates.
    let first = strain.observe(at(0.0), &machine(1 << 40, 1 << 40, 9, 1 << 40), true);
    assert_eq!(first, Default::default());
    let mut strain = Strain::default();
    let mut refaults = 0;
    // A machine that always reads back 400 pages a second.
    for second in 0..300 {
        refaults += 400;
        let signs = strain.observe(at(f64::from(second)), &machine(refaults, 0, 0, 0), true);
        assert!(!signs.thrash);
    }
    for second in 300..310 {
        refaults += 1200;
        let signs = strain.observe(at(f64::from(second)), &machine(refaults, 0, 0, 0), false);
        assert!(!signs.thrash, "three times the usual");
    }
    let mut thrash = 0;
    for second in 310..320 {
        refaults += 4000;
        let signs = strain.observe(at(f64::from(second)), &machine(refaults, 0, 0, 0), false);
        thrash += usize::from(signs.thrash);
    }
    assert!(thrash >= 7, "{thrash}");
    let signs = strain.observe(at(320.0), &machine(refaults, 0, 1, 100_000), false);
    assert!(signs.limit && signs.stall);
    let signs = strain.observe(at(321.0), &machine(refaults, 0, 1, 150_000), false);
    assert!(!signs.limit && !signs.stall);
    let signs = strain.observe(at(322.0), &machine(refaults, 100, 1, 150_000), false);
    assert!(signs.thrash, "allocations wait");
    // Counters that vanish or start over are no signs.
    strain.observe(at(323.0), &Snapshot::default(), false);
    let signs = strain.observe(at(324.0), &machine(5, 5, 5, 5), false);
    assert!(!signs.limit && !signs.stall && !signs.killed);
}

fn zone(temperature: i64, throttles: Option<i64>, shuts_down: Option<i64>) -> Zone {
    Zone {
        name: "cpu".into(),
        temperature,
        throttles_at: throttles,
        shuts_down_at: shuts_down,
    }
}

fn heat(temperature: i64, now: u64) -> Heat {
    Heat {
        zones: vec![zone(temperature, None, Some(110_000))],
        clocks: vec![Clockrate {
            now,
            allowed: 1800,
            most: 1800,
        }],
    }
}

#[test]
fn heat_is_told_by_trip_points_and_by_the_clock() {
    let cases = [
        // A Raspberry Pi: it throttles below where it says it shuts down.
        (heat(55_000, 600), true, Warmth::Cool),
        (heat(70_000, 1800), true, Warmth::Cool),
        (heat(70_000, 1200), true, Warmth::Warm),
        (heat(70_000, 1000), true, Warmth::Hot),
        (heat(70_000, 600), false, Warmth::Cool),
        (heat(81_000, 1800), true, Warmth::Warm),
        (heat(86_000, 1800), true, Warmth::Hot),
        (heat(106_000, 1800), true, Warmth::Critical),
    ];
    for (heat, busy, expected) in cases {
        assert_eq!(Warmth::of(&heat, busy), expected, "{heat:?}");
    }
    let jetson = |temperature| Heat {
        zones: vec![
            zone(20_000, None, None),
            zone(temperature, Some(97_000), Some(104_500)),
        ],
        clocks: Vec::new(),
    };
    assert_eq!(Warmth::of(&jetson(91_000), true), Warmth::Cool);
    assert_eq!(Warmth::of(&jetson(92_000), true), Warmth::Warm);
    assert_eq!(Warmth::of(&jetson(97_000), true), Warmth::Hot);
    // The kernel lowered the clock: that counts even when idle.
    let mut capped = heat(75_000, 1800);
    capped.clocks[0].allowed = 900;
    assert_eq!(Warmth::of(&capped, false), Warmth::Hot);
    assert_eq!(Warmth::of(&Heat::default(), true), Warmth::Cool);
    let mut thermostat = Thermostat::default();
    assert_eq!(thermostat.observe(at(0.0), Warmth::Hot), Warmth::Hot);
    assert_eq!(thermostat.observe(at(1.0), Warmth::Cool), Warmth::Hot);
    assert_eq!(thermostat.observe(at(9.0), Warmth::Warm), Warmth::Hot);
    assert_eq!(thermostat.observe(at(11.0), Warmth::Warm), Warmth::Warm);
}

#[test]
fn the_cost_of_a_step_is_a_line_that_is_raised_by_what_is_seen() {
    let step = |tokens, peak| Observed {
        tokens,
        rows: 1,
        peak: Bytes(peak),
    };
    // 1000 + 50 a token + 8 for each of 100 logits.
    let mut cost = StepCost::fit(&step(8, 2200), &step(40, 3800), 100);
    assert_eq!(cost.of(0, 0), Bytes(1000));
    assert_eq!(cost.of(100, 2), Bytes(1000 + 5000 + 1600));
    assert_eq!(cost.tokens_in(Bytes(7600), 2), 100);
    assert_eq!(cost.tokens_in(Bytes(7599), 2), 99);
    assert_eq!(cost.tokens_in(Bytes(0), 2), 0);
    assert!(!cost.correct(&step(40, 4500)), "within a fifth");
    assert!(cost.correct(&step(40, 5000)));
    assert!(cost.of(40, 1) >= Bytes(5000));
    let before = cost.of(40, 1);
    cost.correct(&step(40, 1 << 40));
    assert!(
        cost.of(40, 1).0 <= before.0 * 2 + 40,
        "one outlier does not end service"
    );
    for _ in 0..200 {
        assert!(!cost.correct(&step(40, 3800)));
    }
    assert_eq!(
        cost.of(40, 1),
        Bytes(1000 + 2000 + 800),
        "what was seen once is forgotten"
    );
    // A peak that does not depend on the size, or falls with it.
    let flat = StepCost::fit(&step(8, 5000), &step(40, 4000), 0);
    assert_eq!(
        (flat.of(1000, 0), flat.tokens_in(Bytes(1), 0)),
        (Bytes(5000), usize::MAX)
    );
}

fn load(resident: u64, reserved: usize) -> Load {
    Load {
        running: 2,
        loaded: true,
        block_bytes: Bytes::mib(1),
        blocks: 400,
        reserved_blocks: reserved,
        memory: MemoryUse {
            weights: Bytes::mib(1000),
            mapped: Bytes::mib(1000),
            kv_used: Bytes::mib(resident),
            kv_resident: Bytes::mib(resident),
            free_blocks: 400 - usize::try_from(resident).unwrap(),
        },
        ..Load::default()
    }
}

fn decide(policy: &mut Policy, now: f64, snapshot: &Snapshot, load: &Load) -> Allowance {
    let seen = Seen {
        snapshot,
        load,
        fired: false,
        used_up: true,
    };
    policy.decide(at(now), &seen).allowance
}

/// A machine on which so much is left above floor, weights and the smallest step.
fn spare(bytes: Bytes) -> Snapshot {
    let step = StepCost::default().of(8, 1);
    machine(bytes.plus(floor(TOTAL)).plus(Bytes::mib(1000)).plus(step))
}

#[test]
fn each_level_does_without_what_it_says() {
    // 4 % of 4 GiB are needed: 164 MiB.
    let need = floor(TOTAL);
    let levels = [
        (Bytes(need.0 * 2), Level::Green),
        (Bytes(need.0 * 3 / 4), Level::Yellow),
        (Bytes(need.0 * 3 / 8), Level::Orange),
        (Bytes(need.0 / 8), Level::Red),
    ];
    for (left, expected) in levels {
        let mut policy = Policy::new(Settings::default());
        let now = decide(&mut policy, 1.0, &spare(left), &load(0, 0));
        assert_eq!(now.level, expected, "{left}");
        let admit = match expected {
            Level::Green => Admit::From(Priority::Low),
            Level::Yellow | Level::Orange => Admit::From(Priority::Normal),
            _ => Admit::Nobody,
        };
        assert_eq!(now.admit, admit);
        assert_eq!(now.keep_prefixes, expected < Level::Orange);
        assert_eq!(now.sequences == 1, expected >= Level::Orange);
        assert_eq!(now.step_tokens.0 <= 128, expected >= Level::Yellow);
        assert!(now.loaded && !now.preempt_one);
        // Never more blocks than there is memory for.
        assert!(
            now.blocks as u64 <= left.0 >> 20,
            "{} of {left}",
            now.blocks
        );
    }
}

#[test]
fn without_hope_the_model_goes_and_comes_back_where_it_can_serve() {
    let mut policy = Policy::new(Settings::default());
    let none = machine(Bytes::mib(900));
    let first = decide(&mut policy, 1.0, &none, &load(0, 0));
    assert_eq!((first.level, first.loaded), (Level::Red, true));
    let later = decide(&mut policy, 3.1, &none, &load(0, 0));
    assert_eq!((later.level, later.loaded), (Level::Black, false));
    let unloaded = Load {
        loaded: false,
        ..Load::default()
    };
    // Enough for the model, not for serving with it.
    let bare = machine(Bytes::mib(1000).plus(floor(TOTAL)));
    for second in 4..60 {
        assert!(!decide(&mut policy, f64::from(second), &bare, &unloaded).loaded);
    }
    let free = machine(Bytes::mib(2500));
    assert!(!decide(&mut policy, 60.0, &free, &unloaded).loaded);
    let back = decide(&mut policy, 65.0, &free, &unloaded);
    assert_eq!((back.loaded, back.level), (true, Level::Green));
}

#[test]
fn promises_are_kept_while_a_quarter_of_the_floor_stands_behind_them() {
    let mut policy = Policy::new(Settings::default());
    let give = |policy: &mut Policy, now, left: u64, reserved| {
        decide(policy, now, &spare(Bytes::mib(left)), &load(50, reserved)).blocks
    };
    assert_eq!(give(&mut policy, 1.0, 600, 0), 400, "the whole pool");
    // 300 above the floor and 50 held; a whole step beside them.
    let fewer = give(&mut policy, 2.0, 300, 350);
    assert_eq!(fewer, 350, "what was promised stays");
    let new = give(&mut policy, 2.2, 300, 0);
    assert!((300..350).contains(&new), "{new}");
    // A dip is remembered for those who come next.
    give(&mut policy, 3.0, 200, 0);
    assert!(give(&mut policy, 4.0, 600, 0) < 250);
    assert_eq!(give(&mut policy, 8.5, 600, 0), 400);
    // Far beyond what was promised some have to go.
    assert!(give(&mut policy, 9.0, 100, 350) < 200);
}

#[test]
fn triggers_count_at_once_and_lasting_congestion_counts_more() {
    let mut policy = Policy::new(Settings::default());
    let plenty = spare(Bytes::mib(1000));
    let quiet = load(0, 0);
    assert_eq!(
        decide(&mut policy, 1.0, &plenty, &quiet).step_tokens,
        Tokens(256)
    );
    let fire = |policy: &mut Policy, now| {
        let seen = Seen {
            snapshot: &plenty,
            load: &quiet,
            fired: true,
            used_up: true,
        };
        policy.decide(at(now), &seen).allowance
    };
    let fired = fire(&mut policy, 1.1);
    assert_eq!(
        (fired.level, fired.step_tokens),
        (Level::Yellow, Tokens(128))
    );
    assert_eq!(policy.report().cause, Cause::Stall);
    fire(&mut policy, 2.5);
    let lasting = fire(&mut policy, 4.2);
    assert_eq!((lasting.level, lasting.sequences), (Level::Orange, 1));
    // The level stays for a while, and says that memory is free again.
    let after = decide(&mut policy, 4.5, &plenty, &quiet);
    assert!(after.level > Level::Green);
    assert_eq!(policy.report().cause, Cause::Dwell);
    for second in 5..30 {
        decide(&mut policy, f64::from(second), &plenty, &quiet);
    }
    let calm = decide(&mut policy, 30.0, &plenty, &quiet);
    assert_eq!((calm.level, calm.step_tokens), (Level::Green, Tokens(256)));
}

#[test]
fn heat_is_a_second_limit() {
    let mut policy = Policy::new(Settings::default());
    let mut snapshot = spare(Bytes::mib(1000));
    snapshot.heat = heat(88_000, 1800);
    let hot = decide(&mut policy, 1.0, &snapshot, &load(0, 0));
    assert_eq!(
        (hot.level, hot.step_tokens, hot.rest),
        (Level::Green, Tokens(64), 33)
    );
    assert_eq!(policy.report().cause, Cause::Heat);
    assert_eq!(policy.report().temperature, Some(88.0));
    // Without any figure of memory heat still counts.
    snapshot.system = None;
    let blind = decide(
        &mut Policy::new(Settings::default()),
        1.0,
        &snapshot,
        &load(0, 0),
    );
    assert_eq!((blind.step_tokens, blind.blocks), (Tokens(64), usize::MAX));
}

proptest! {
    /// With less memory nothing is allowed that would not be allowed with more.
    #[test]
    fn less_memory_never_allows_more(
        available in 0u64..4096, less in 0u64..2000, resident in 0u64..400, reserved in 0usize..400,
    ) {
        let look = |mib| {
            let mut policy = Policy::new(Settings::default());
            decide(&mut policy, 1.0, &machine(Bytes::mib(mib)), &load(resident, reserved))
        };
        let (more, less) = (look(available), look(available.saturating_sub(less)));
        prop_assert!(less.level >= more.level);
        prop_assert!(less.step_tokens <= more.step_tokens);
        prop_assert!(less.sequences <= more.sequences);
        // A smaller step leaves a little more for blocks; the sum is what counts.
        let all = |a: &Allowance| (a.blocks as u64) * (1 << 20) + StepCost::default().of(a.step_tokens.0, 2).0;
        prop_assert!(all(&less) <= all(&more) + (1 << 20));
    }
}

#[test]
fn the_machine_is_looked_at_once_a_second_and_more_often_when_it_matters() {
    let told = Told::default();
    let mut governor = Governor::new(
        Settings::default(),
        Box::new(told.clone()),
        Watch::polling(),
    );
    let mut minute = |available: u64, from: u32| {
        told.say(Bytes::mib(available));
        let before = told.looks();
        for tick in 0..600 {
            governor.allow(at(f64::from(from) + f64::from(tick) / 10.0), &load(0, 0));
        }
        told.looks() - before
    };
    assert_eq!(minute(4000, 0), 60);
    assert!((190..=241).contains(&minute(1180, 60)));
    assert!(
        (80..120).contains(&minute(4000, 120)),
        "alert for a while after"
    );
}

#[test]
fn orders_are_given_once() {
    let told = Told::default();
    told.say(Bytes::mib(1000));
    let mut governor = Governor::new(Settings::default(), Box::new(told), Watch::polling());
    let mut busy = load(40, 300);
    busy.memory.kv_used = Bytes::mib(20);
    let first = governor.allow(at(1.0), &busy);
    assert!(first.preempt_one && first.shrink, "{first:?}");
    let second = governor.allow(at(1.1), &busy);
    assert!(!second.preempt_one && !second.shrink);
    assert_eq!(second.blocks, first.blocks);
    let report = Control::report(&governor).unwrap();
    assert!(report.headroom < Margin(0));
    assert_eq!((&*report.bound, report.watch), ("system", "polling"));
}

#[test]
fn steps_are_measured_when_a_model_was_loaded() {
    /// Resident memory rises by a known amount in each step.
    #[derive(Debug)]
    struct Peaks(usize);
    impl Telemetry for Peaks {
        fn snapshot(&mut self, _: Detail) -> Snapshot {
            // Before and after each of the steps of 40, 8 and 40 tokens.
            let peak = [0, 700, 0, 300 + 8 * 20, 0, 300 + 40 * 20][self.0 % 6];
            self.0 += 1;
            Snapshot {
                process: Some(Process {
                    anonymous: Bytes::mib(10),
                    peak: Bytes::mib(10).plus(Bytes(peak * 1024)),
                    ..Process::default()
                }),
                ..machine(Bytes::mib(4000))
            }
        }
    }
    let mut governor = Governor::new(Settings::default(), Box::new(Peaks(0)), Watch::polling());
    let script = Shared::default();
    let clock = Arc::new(TestClock::default());
    let mut model = source(info(capabilities()), Arc::clone(&script), clock)().unwrap();
    governor.loaded(at(0.0), &mut *model.backend, glm_engine::backend::SeqId(7));
    // The fake's blocks are counted apart: 1 KiB for 8 tokens; the vocabulary has 64 logits.
    let cost = governor.policy().cost();
    let token = (cost.of(1001, 1).0 - cost.of(1, 1).0) / 1000;
    assert!((19 * 1024..=20 * 1024).contains(&token), "{token}");
    assert_eq!(
        script.lock().unwrap().sequences,
        0,
        "nothing is left in the backend"
    );
    assert_eq!(script.lock().unwrap().violations, Vec::<String>::new());
}

#[test]
fn rest_is_time_without_steps() {
    let mut rig = Rig::usual();
    rig.script.lock().unwrap().step_time = Duration::from_millis(100);
    rig.allow(|now| now.rest = 50);
    let ticket = rig.submit(generate(&context(&ids(1, 5), 0), 1, 4, 1));
    assert_eq!(rig.engine.turn(), Turn::Worked);
    assert_eq!(rig.engine.turn(), Turn::Idle(Duration::from_millis(50)));
    rig.clock.advance(Duration::from_millis(20));
    assert_eq!(rig.engine.turn(), Turn::Idle(Duration::from_millis(30)));
    rig.clock.advance(Duration::from_millis(30));
    assert_eq!(rig.engine.turn(), Turn::Worked);
    drop(ticket);
}

#[test]
fn prefixes_give_way_to_a_smaller_pool() {
    let mut rig = Rig::usual();
    for seed in 0..4 {
        rig.answer(generate(&context(&ids(seed, 100), 0), 1, 4, seed));
    }
    let used = |rig: &Rig| 256 - rig.script.lock().unwrap().free_blocks;
    assert!(used(&rig) > 40);
    rig.allow(|now| now.blocks = 20);
    rig.run();
    assert!(used(&rig) <= 20 && used(&rig) > 0, "{}", used(&rig));
    // And to a request that needs the blocks.
    rig.answer(generate(&context(&ids(9, 100), 0), 1, 50, 9))
        .finished();
    assert!(used(&rig) <= 20);
}
