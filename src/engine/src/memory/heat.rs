//! Heat as a second limit: how hot the machine is and what it may do then.
//!
//! Trip points say where the kernel or the firmware slows the processor down.
//! Going slower a little earlier, on our own terms, keeps answers even; a
//! processor that was slowed down already shows in its clock rate.

use std::time::Duration;

use crate::memory::telemetry::{Heat, Zone};
use crate::units::Moment;

/// A zone is warm this far below its trip point, and cools down this far before it counts as cooler; in
/// thousandths of a degree.
const NEAR: i64 = 5_000;
/// Where the firmware throttles and the kernel only knows where it shuts down: so far below. A Raspberry
/// Pi shuts down at 110 degrees and throttles at 85.
const BELOW_SHUTDOWN: i64 = 25_000;
/// A low clock rate is heat only above this temperature; below, somebody wants it so.
const NOT_COOL: i64 = 60_000;
/// Share of the full clock rate, in percent, below which a busy processor is throttled, and strongly so.
const THROTTLED: (u64, u64) = (85, 65);
/// A state lasts at least this long: temperatures move in seconds, not faster.
const DWELL: Duration = Duration::from_secs(10);

/// How hot the machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Warmth {
    /// Nothing to do.
    #[default]
    Cool,
    /// Near the point where it is slowed down.
    Warm,
    /// Slowed down.
    Hot,
    /// Near the point where it shuts down.
    Critical,
}

impl Warmth {
    /// Of these readings. Clock rates count only when the processor is busy: an idle one is slow by itself.
    #[must_use]
    pub fn of(heat: &Heat, busy: bool) -> Self {
        let zones = heat.zones.iter().map(of_zone);
        let hottest = heat.zones.iter().map(|zone| zone.temperature).max();
        let throttled = || {
            let share = heat.clocks.iter().map(|clock| {
                let now = if busy { clock.now } else { clock.most };
                now.min(clock.allowed).saturating_mul(100) / clock.most.max(1)
            });
            match share.min() {
                Some(share) if share < THROTTLED.1 => Self::Hot,
                Some(share) if share < THROTTLED.0 => Self::Warm,
                _ => Self::Cool,
            }
        };
        let by_clock = match hottest {
            Some(hottest) if hottest >= NOT_COOL => throttled(),
            _ => Self::Cool,
        };
        zones.max().unwrap_or_default().max(by_clock)
    }

    /// Tokens of a step, of `most`.
    #[must_use]
    pub const fn tokens(self, most: usize) -> usize {
        match self {
            Self::Cool => most,
            Self::Warm => most / 2,
            Self::Hot => most / 4,
            Self::Critical => most / 16,
        }
    }

    /// Rest after a step, in percent of its time. Only rest cools: a smaller step leaves the processor as busy.
    #[must_use]
    pub const fn rest(self) -> u32 {
        match self {
            Self::Cool | Self::Warm => 0,
            Self::Hot => 33,
            Self::Critical => 300,
        }
    }
}

fn of_zone(zone: &Zone) -> Warmth {
    let shutdown = zone.shuts_down_at;
    let throttle = (zone.throttles_at).or_else(|| shutdown.map(|at| at - BELOW_SHUTDOWN));
    let reaches =
        |at: Option<i64>, margin: i64| at.is_some_and(|at| zone.temperature >= at - margin);
    match () {
        () if reaches(shutdown, NEAR) => Warmth::Critical,
        () if reaches(throttle, 0) => Warmth::Hot,
        () if reaches(throttle, NEAR) => Warmth::Warm,
        () => Warmth::Cool,
    }
}

/// The warmth, without flutter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thermostat {
    warmth: Warmth,
    cooler_since: Option<Moment>,
}

impl Thermostat {
    /// Takes a reading: hotter at once, cooler after a while.
    pub fn observe(&mut self, now: Moment, reading: Warmth) -> Warmth {
        let cooler = reading < self.warmth;
        let since = match cooler {
            true => *self.cooler_since.get_or_insert(now),
            false => now,
        };
        if !cooler || now.since(since) >= DWELL {
            self.warmth = reading;
            self.cooler_since = None;
        }
        self.warmth
    }
}
