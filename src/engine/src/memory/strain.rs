//! Signs that memory is short beyond the amounts: pages that are read back as soon as they were dropped,
//! allocations that wait, groups that come to their limit.
//!
//! The counters of `/proc/vmstat` stand in for PSI where the kernel has none, as
//! on Raspberry Pi OS. They cover the whole system, so what is normal for this
//! machine is learned while memory is plentiful, and only a multiple of it counts.

use std::time::Duration;

use crate::memory::telemetry::{GroupEvents, Pressure, Snapshot, VmCounters};
use crate::units::Moment;

/// Rates are smoothed over about this time.
const SMOOTHING: Duration = Duration::from_secs(3);
/// What is normal is learned over about this time.
const LEARNING: Duration = Duration::from_secs(60);
/// Refaults a second that are never alarming: 2 MiB/s, which the slowest card delivers beside other work.
const REFAULTS: f64 = 512.0;
/// Waiting allocations a second that are never alarming.
const STALLS: f64 = 5.0;
/// How many times the usual rate is alarming.
const MULTIPLE: f64 = 4.0;
/// Share of time that tasks wait for memory which is alarming: the same as of the trigger, 200 ms in 2 s.
const WAITING: f64 = 0.1;

/// A rate, smoothed, and what is normal for it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    now: f64,
    usual: f64,
}

impl Rate {
    fn add(&mut self, count: u64, time: Duration, calm: bool) {
        let seconds = time.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = count as f64 / seconds;
        let weight = |over: Duration| -(-seconds / over.as_secs_f64()).exp_m1();
        self.now += weight(SMOOTHING) * (rate - self.now);
        if calm {
            self.usual += weight(LEARNING) * (rate - self.usual);
        }
    }

    fn alarming(self, least: f64) -> bool {
        self.now > least.max(self.usual * MULTIPLE)
    }
}

/// What the counters of two snapshots tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// The system drops what it needs, or allocations wait.
    pub thrash: bool,
    /// The own group came to its limit.
    pub limit: bool,
    /// The own group lost a process.
    pub killed: bool,
    /// Tasks of the own group wait for memory.
    pub stall: bool,
    /// Tasks of the system wait for memory.
    pub system_stall: bool,
}

/// Counters so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Strain {
    last: Option<(Moment, Counts)>,
    refaults: Rate,
    stalls: Rate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    vm: Option<VmCounters>,
    events: Option<GroupEvents>,
    own: Option<Pressure>,
    system: Option<Pressure>,
}

impl Strain {
    /// Takes new counters; when memory is plentiful (`calm`) they show what is normal.
    pub fn observe(&mut self, now: Moment, snapshot: &Snapshot, calm: bool) -> Signs {
        let counts = Counts {
            vm: snapshot.counters,
            events: snapshot.groups.events,
            own: snapshot.groups.pressure,
            system: snapshot.pressure,
        };
        let Some((then, before)) = self.last.replace((now, counts)) else {
            return Signs::default();
        };
        let time = now.since(then);
        if time.is_zero() {
            // Two looks at once tell nothing new; the older one is the better start.
            self.last = Some((then, before));
            return Signs::default();
        }
        if let Some((old, new)) = before.vm.zip(counts.vm) {
            let count = |pick: fn(&VmCounters) -> u64| pick(&new).saturating_sub(pick(&old));
            self.refaults.add(count(|vm| vm.refaults), time, calm);
            self.stalls.add(count(|vm| vm.stalls), time, calm);
        }
        let grown = |pick: fn(&GroupEvents) -> u64| {
            (before.events.zip(counts.events)).is_some_and(|(old, new)| pick(&new) > pick(&old))
        };
        let waiting = |old: Option<Pressure>, new: Option<Pressure>| {
            old.zip(new).is_some_and(|(old, new)| {
                let micros = new.some.micros.saturating_sub(old.some.micros);
                Duration::from_micros(micros).as_secs_f64() >= WAITING * time.as_secs_f64()
            })
        };
        Signs {
            thrash: self.refaults.alarming(REFAULTS) || self.stalls.alarming(STALLS),
            limit: grown(|e| e.high) || grown(|e| e.max),
            killed: grown(|e| e.oom) || grown(|e| e.oom_kill),
            stall: waiting(before.own, counts.own),
            system_stall: waiting(before.system, counts.system),
        }
    }
}
