//! What the engine may use, decided from a snapshot: no clock, no file.
//!
//! Two figures lead:
//! - the **headroom** is what is left above the floor now. While it is negative
//!   the step's budget is halved, blocks are given back and reservations that no
//!   longer fit go back to the queue;
//! - the **share** is the headroom plus the blocks that we hold: what all
//!   elastic memory of ours could be. It does not depend on what we do with it,
//!   so the levels, which follow it, cannot chase their own tail.
//!
//! | level | entered when | what the engine does without |
//! |---|---|---|
//! | green | | nothing |
//! | yellow | the share is below what service needs, or memory is congested | low priority, half of the step |
//! | orange | below a half, or congested for a while | prefix cache, more than one sequence |
//! | red | below a quarter | new requests; the newest give way while the floor is broken |
//! | black | half of the floor is used up even without blocks | the model |
//!
//! What service needs is the whole pool and a whole step, or as much as the
//! floor where those are larger than it.

use std::collections::VecDeque;
use std::time::Duration;

use glm::Tokens;

use crate::backend::MemoryUse;
use crate::control::{Admit, Allowance, Cause, Load, Report};
use crate::memory::budget::Budget;
use crate::memory::cost::{Observed, StepCost};
use crate::memory::headroom::{Headroom, Weights, headroom};
use crate::memory::heat::{Thermostat, Warmth};
use crate::memory::ladder::Ladder;
use crate::memory::strain::{Signs, Strain};
use crate::memory::telemetry::Snapshot;
use crate::units::{Bytes, Level, Margin, Moment, Priority};

/// Congestion of this length is more than a burst.
const LASTING: Duration = Duration::from_secs(3);
/// The share must be gone for so long before the model goes: loading it again takes longer.
const HOPELESS: Duration = Duration::from_secs(2);
/// New requests get what was there all this time, so that a dip does not take back what was just given.
const STEADY: Duration = Duration::from_secs(5);
/// Looks that are remembered for it; more come in only while triggers fire.
const LOOKS: usize = 64;
/// Signs of the whole system count only while less than this many floors are left: with more, somebody
/// else's limit is meant.
const ROOMY: u64 = 4;
/// Unused blocks are given back no more often than this.
const SHRINK: Duration = Duration::from_secs(1);
/// Levels are left when the figures are better by this many percent than where they were entered.
const HYSTERESIS: u64 = 25;

/// Bounds of the governor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Memory that is left alone; computed from the size of the machine when `None`.
    pub floor: Option<Bytes>,
    /// Most tokens of a step: as in [`Config`](crate::Config).
    pub step_tokens: Tokens,
    /// Least tokens of a step.
    pub least_step: Tokens,
    /// A smaller budget does not grow again for so long.
    pub hold: Duration,
    /// A level lasts at least so long after its reason is gone.
    pub dwell: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            floor: None,
            step_tokens: crate::Config::default().step_tokens,
            // The row tile of the kernels: fewer tokens take as long.
            least_step: Tokens(8),
            // Longer than a step of a small box, and than the kernel needs to calm down.
            hold: Duration::from_secs(5),
            dwell: Duration::from_secs(5),
        }
    }
}

/// What is known when a decision is due.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The machine.
    pub snapshot: &'a Snapshot,
    /// The engine.
    pub load: &'a Load,
    /// A pressure trigger fired since the last decision.
    pub fired: bool,
    /// A step was as large as it was allowed to be since the last decision.
    pub used_up: bool,
}

/// The state of the governor.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    cost: StepCost,
    budget: Budget,
    ladder: Ladder,
    strain: Strain,
    thermostat: Thermostat,
    /// Memory of the model when it was last loaded, and its pool.
    model: MemoryUse,
    pool: Bytes,
    congested_since: Option<Moment>,
    hopeless_since: Option<Moment>,
    shares: VecDeque<(Moment, Margin)>,
    shrunk: Option<Moment>,
    report: Report,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the engine may use.
    pub allowance: Allowance,
    /// Memory is short or was until now: look again soon.
    pub alert: bool,
}

impl Policy {
    /// Nothing is short yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            cost: StepCost::default(),
            budget: Budget::new(settings.least_step, settings.step_tokens, settings.hold),
            ladder: Ladder::new(settings.dwell),
            strain: Strain::default(),
            thermostat: Thermostat::default(),
            model: MemoryUse::default(),
            pool: Bytes(0),
            congested_since: None,
            hopeless_since: None,
            shares: VecDeque::new(),
            shrunk: None,
            report: Report::default(),
            settings,
        }
    }

    /// Steps of the loaded model were measured.
    pub const fn measured(&mut self, cost: StepCost) {
        self.cost = cost;
    }

    /// What a step is thought to take.
    #[must_use]
    pub const fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// A step was watched; `true` when it took more than was thought.
    pub fn observed(&mut self, step: &Observed) -> bool {
        self.cost.correct(step)
    }

    /// What the last decision rests on.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Longest time from the end of a first shortage to the whole budget, when that is used.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        self.budget.recovery().max(self.ladder.dwell()) + LASTING
    }

    /// Decides.
    pub fn decide(&mut self, now: Moment, seen: &Seen<'_>) -> Decision {
        let busy = seen.load.running > 0;
        let warmth = (self.thermostat).observe(now, Warmth::of(&seen.snapshot.heat, busy));
        let most = self.settings.step_tokens.0;
        let hot = Allowance {
            step_tokens: Tokens(warmth.tokens(most).max(self.settings.least_step.0)),
            rest: warmth.rest(),
            ..Allowance::default()
        };
        self.report.heat_budget = hot.step_tokens.0;
        let zones = seen.snapshot.heat.zones.iter();
        #[expect(clippy::cast_precision_loss, reason = "shown as degrees")]
        let degrees = |milli: i64| milli as f64 / 1000.0;
        self.report.temperature = zones.map(|zone| zone.temperature).max().map(degrees);
        self.remember(seen.load);
        let weights = match seen.load.loaded {
            true => Weights::loaded(&self.model),
            false => Weights::unloaded(&self.model),
        };
        match headroom(seen.snapshot, weights, self.settings.floor) {
            Some(headroom) => self.decide_on(now, seen, &headroom, &hot),
            // Nothing is known about memory: the ledger of the engine is the only guard.
            None => Decision {
                allowance: hot,
                alert: false,
            },
        }
    }

    fn remember(&mut self, load: &Load) {
        if load.loaded {
            self.model = load.memory;
            self.pool = Bytes((load.block_bytes.0).saturating_mul(load.blocks as u64));
        }
    }

    fn decide_on(
        &mut self,
        now: Moment,
        seen: &Seen<'_>,
        left: &Headroom,
        hot: &Allowance,
    ) -> Decision {
        let load = seen.load;
        let rows = load.running.max(1);
        let roomy = left.floor.0.saturating_mul(ROOMY);
        let tight = left.margin < Bytes(roomy).margin();
        let signs = self.strain.observe(now, seen.snapshot, !tight);
        let cause = cause(seen, left, &signs, tight);
        let share = self.share(left, load);
        let need = self.need(left.floor);
        let level = self.level(now, share, need, left.floor, cause, signs.killed);
        if cause != Cause::None {
            self.budget.cut(now);
        }
        let most = self.settings.step_tokens.0;
        let least = self.settings.least_step.0;
        let fits = self.cost.tokens_in(left.margin.bytes(), rows);
        self.budget.limit(now, fits);
        // Where a whole step would come near the floor growth waits for use, as in Netflix's
        // concurrency-limits: a budget that nobody needs proves nothing.
        let whole = self.cost.of(most, rows).plus(left.floor);
        let wanted = seen.used_up || load.running == 0 || left.margin >= whole.margin();
        if cause == Cause::None && wanted {
            self.budget.grow(now, fits);
        }
        let mut memory = self.budget.tokens();
        if level >= Level::Yellow {
            memory = memory.min(most / 2);
        }
        let memory = memory.max(least);
        let step_tokens = memory.min(hot.step_tokens.0);
        let after_step = share.less(self.cost.of(step_tokens, rows));
        let broken = left.margin < Margin(0);
        let allowance = Allowance {
            level,
            step_tokens: Tokens(step_tokens),
            sequences: if level >= Level::Orange {
                1
            } else {
                usize::MAX
            },
            blocks: self.blocks(now, after_step, left.floor, load),
            admit: match level {
                Level::Green => Admit::From(Priority::Low),
                Level::Yellow | Level::Orange => Admit::From(Priority::Normal),
                Level::Red | Level::Black => Admit::Nobody,
            },
            keep_prefixes: level < Level::Orange,
            loaded: level < Level::Black,
            preempt_one: broken && level >= Level::Red,
            shrink: self.shrinks(now, broken || level >= Level::Orange, load),
            rest: hot.rest,
        };
        let why = match cause {
            // The level outlives its cause: memory that was short once is not trusted at once.
            Cause::None if level > Level::Green && share >= need.margin() => Cause::Dwell,
            Cause::None if level > Level::Green => Cause::Headroom,
            cause => cause,
        };
        self.tell(seen, left, memory, hot, why);
        Decision {
            allowance,
            alert: level > Level::Green
                || cause != Cause::None
                || left.margin < Bytes(left.floor.0.saturating_mul(2)).margin(),
        }
    }

    /// Memory that blocks could have, with the smallest step beside them.
    fn share(&self, left: &Headroom, load: &Load) -> Margin {
        let step = self.cost.of(self.settings.least_step.0, 1);
        left.margin.plus(load.memory.kv_resident).less(step)
    }

    /// What service needs: see the module.
    fn need(&self, floor: Bytes) -> Bytes {
        let step = self.cost.of(self.settings.step_tokens.0, 1);
        self.pool.plus(step).min(floor).max(Bytes(1))
    }

    fn level(
        &mut self,
        now: Moment,
        share: Margin,
        need: Bytes,
        floor: Bytes,
        cause: Cause,
        killed: bool,
    ) -> Level {
        let hopeless = share.plus(Bytes(floor.0 / 2)) < Margin(0);
        let since = match hopeless {
            true => *self.hopeless_since.get_or_insert(now),
            false => {
                self.hopeless_since = None;
                now
            }
        };
        let gone = hopeless && now.since(since) >= HOPELESS;
        // The model comes back only to where it can serve.
        let gone = gone || (self.ladder.level() == Level::Black && share < quarter(need, 1));
        let enter = by_share(share, need, 0, gone);
        let leave = by_share(share, need, HYSTERESIS, gone);
        let since = match cause {
            Cause::None => {
                self.congested_since = None;
                now
            }
            _ => *self.congested_since.get_or_insert(now),
        };
        let congestion = match cause {
            Cause::None if !killed => Level::Green,
            _ if killed || now.since(since) >= LASTING => Level::Orange,
            _ => Level::Yellow,
        };
        self.ladder
            .observe(now, enter.max(congestion), leave.max(congestion))
    }

    /// Blocks that may be reserved, when blocks may take `share` in all.
    fn blocks(&mut self, now: Moment, share: Margin, floor: Bytes, load: &Load) -> usize {
        self.shares.push_back((now, share));
        while self.shares.len() > LOOKS
            || (self.shares.front()).is_some_and(|(then, _)| now.since(*then) > STEADY)
        {
            self.shares.pop_front();
        }
        let steady = (self.shares.iter())
            .map(|(_, share)| *share)
            .min()
            .unwrap_or(share);
        let count = |bytes: Margin| {
            let blocks = bytes.bytes().0 / load.block_bytes.0.max(1);
            usize::try_from(blocks).unwrap_or(usize::MAX)
        };
        let (give, keep) = (count(steady), count(share.plus(Bytes(floor.0 / 4))));
        // What was promised is taken back only when a part of the floor does not cover it either.
        give.max(load.reserved_blocks.min(keep)).min(load.blocks)
    }

    fn shrinks(&mut self, now: Moment, short: bool, load: &Load) -> bool {
        let early = self.shrunk.is_some_and(|then| now.since(then) < SHRINK);
        let shrinks = short && !early && load.memory.kv_resident > load.memory.kv_used;
        if shrinks {
            self.shrunk = Some(now);
        }
        shrinks
    }

    fn tell(
        &mut self,
        seen: &Seen<'_>,
        left: &Headroom,
        memory: usize,
        hot: &Allowance,
        cause: Cause,
    ) {
        let heat = hot.rest > 0 || hot.step_tokens.0 < self.settings.step_tokens.0;
        let report = &mut self.report;
        report.headroom = left.margin;
        report.floor = left.floor;
        report.bound.clone_from(&left.bound);
        report.footprint = (seen.snapshot.process.as_ref())
            .map(crate::memory::telemetry::Process::footprint)
            .unwrap_or_default();
        report.step = self.cost.of(self.settings.step_tokens.0, 1);
        report.memory_budget = memory;
        report.cause = match cause {
            Cause::None if heat => Cause::Heat,
            cause => cause,
        };
    }
}

/// Why memory is congested, if it is.
fn cause(seen: &Seen<'_>, left: &Headroom, signs: &Signs, tight: bool) -> Cause {
    match () {
        () if left.margin < Margin(0) => Cause::Headroom,
        () if seen.fired || signs.stall || (signs.system_stall && tight) => Cause::Stall,
        // A limit is also met by page cache that has grown up to it and goes without a word.
        () if signs.killed || (signs.limit && tight) => Cause::Limit,
        () if signs.thrash && tight => Cause::Thrash,
        () => Cause::None,
    }
}

/// So many quarters.
fn quarter(need: Bytes, count: u64) -> Margin {
    Bytes((need.0 / 4).saturating_mul(count)).margin()
}

/// The level that a share asks for, when it has to be better by so many percent.
fn by_share(share: Margin, need: Bytes, percent: u64, gone: bool) -> Level {
    let need = Bytes(need.0.saturating_add(need.0 / 100 * percent));
    match () {
        () if gone => Level::Black,
        () if share < quarter(need, 1) => Level::Red,
        () if share < quarter(need, 2) => Level::Orange,
        () if share < quarter(need, 4) => Level::Yellow,
        () => Level::Green,
    }
}
