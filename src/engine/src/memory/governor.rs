//! The memory governor as the engine knows it: looks at the machine, asks the policy, remembers the answer.

use std::path::PathBuf;
use std::time::Duration;

use glm::{Position, TokenId};

use crate::backend::{Backend, BackendError, Row, SeqId, Step};
use crate::control::{Allowance, Control, Load, Report};
use crate::events;
use crate::handle::EngineHandle;
use crate::memory::cost::{Observed, StepCost};
use crate::memory::policy::{Policy, Seen, Settings};
use crate::memory::telemetry::{Detail, Machine, Telemetry};
use crate::memory::watch::{Offer, Watch};
use crate::units::{Bytes, Moment};

/// How often the machine is looked at while all is well: half of the time in which pressure is to be answered.
const CALM: Duration = Duration::from_secs(1);
/// And while memory is short. A look takes about a fifth of a millisecond.
const ALERT: Duration = Duration::from_millis(250);
/// How long it stays alert after the last reason.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How often temperatures are read: sensors on a slow bus take milliseconds.
const THOROUGH: Duration = Duration::from_secs(2);
/// Tokens of the two steps that are measured when a model was loaded: few enough for the slowest box,
/// far enough apart to tell the slope.
const MEASURED: [usize; 2] = [8, 40];

/// The governor of this machine, or of a simulated one.
#[derive(Debug)]
pub struct Governor {
    policy: Policy,
    telemetry: Box<dyn Telemetry>,
    watch: Watch,
    last: Allowance,
    next: Moment,
    thorough: Moment,
    alert: Option<Moment>,
    since: Since,
    report: Report,
}

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    used_up: bool,
    largest: Observed,
    /// Blocks that were resident, in bytes: the peak tells of steps only while they did not go.
    resident: Bytes,
    shrunk: bool,
}

impl Governor {
    /// Governs by `telemetry`, and looks at once when `watch` fires.
    #[must_use]
    pub fn new(settings: Settings, telemetry: Box<dyn Telemetry>, watch: Watch) -> Self {
        Self {
            policy: Policy::new(settings),
            telemetry,
            last: Allowance::default(),
            next: Moment::default(),
            thorough: Moment::default(),
            alert: None,
            since: Since::default(),
            report: Report {
                watch: watch.name(),
                ..Report::default()
            },
            watch,
        }
    }

    /// The governor of this machine, for the engine behind `handle`.
    #[must_use]
    pub fn of_this_machine(settings: Settings, handle: &EngineHandle) -> Self {
        let mut machine = Machine::default();
        let snapshot = machine.snapshot(Detail::Quick);
        // The own group first: what others suffer from does not concern us as much.
        let own = snapshot.groups.pressure_file.iter().cloned();
        let system = snapshot
            .pressure
            .map(|_| PathBuf::from("/proc/pressure/memory"));
        let handle = handle.clone();
        let watch = Watch::start(
            Offer::from_environment(),
            own.chain(system).collect(),
            move || handle.wake(),
        );
        events::governing(watch.name(), &snapshot);
        Self::new(settings, Box::new(machine), watch)
    }

    /// The decider.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    fn look(&mut self, now: Moment, load: &Load, fired: bool) -> Allowance {
        let thorough = now >= self.thorough;
        let snapshot = self.telemetry.snapshot(match thorough {
            true => Detail::Full,
            false => Detail::Quick,
        });
        if thorough {
            self.thorough = now.after(THOROUGH);
        }
        let since = std::mem::take(&mut self.since);
        if let Some(process) = &snapshot.process {
            let step = Observed {
                peak: process.peak.less(process.resident()),
                ..since.largest
            };
            let steady = !since.shrunk && load.memory.kv_resident >= since.resident;
            if steady && self.policy.observed(&step) {
                events::step_cost_raised(&step);
            }
            self.telemetry.forget_peak();
        }
        let decision = self.policy.decide(
            now,
            &Seen {
                snapshot: &snapshot,
                load,
                fired,
                used_up: since.used_up,
            },
        );
        if decision.alert {
            self.alert = Some(now);
        }
        let alert = (self.alert).is_some_and(|then| now.since(then) < AFTERMATH);
        self.next = now.after(if alert { ALERT } else { CALM });
        self.since = Since {
            resident: load.memory.kv_resident,
            shrunk: decision.allowance.shrink,
            ..Since::default()
        };
        self.report.clone_from(self.policy.report());
        self.report.watch = self.watch.name();
        decision.allowance
    }
}

impl Control for Governor {
    fn allow(&mut self, now: Moment, load: &Load) -> Allowance {
        self.since.used_up |= load.budget_used_up && load.step_tokens > 0;
        if load.step_tokens > self.since.largest.tokens {
            self.since.largest.tokens = load.step_tokens;
            self.since.largest.rows = load.running;
        }
        let fired = self.watch.fired();
        let due = now >= self.next || load.loaded != self.last.loaded;
        if fired || due {
            self.last = self.look(now, load, fired);
            return self.last;
        }
        // Orders are given once.
        self.last.preempt_one = false;
        self.last.shrink = false;
        self.last
    }

    fn loaded(&mut self, _: Moment, backend: &mut dyn Backend, first: SeqId) {
        match measure(&mut *self.telemetry, backend, first) {
            Ok(Some(cost)) => {
                events::step_cost(&cost);
                self.policy.measured(cost);
            }
            // The machine does not tell: what steps take is guessed, and corrected when they take more.
            Ok(None) => {}
            Err(error) => events::not_measured(&error),
        }
        self.next = Moment::default();
    }

    fn report(&self) -> Option<Report> {
        Some(self.report.clone())
    }
}

/// Runs steps of two sizes and watches the peak of resident memory.
fn measure(
    telemetry: &mut dyn Telemetry,
    backend: &mut dyn Backend,
    first: SeqId,
) -> Result<Option<StepCost>, BackendError> {
    let capabilities = backend.capabilities();
    let vocabulary = capabilities.vocabulary;
    let room = (capabilities
        .blocks
        .saturating_mul(capabilities.block_tokens))
    .min(capabilities.max_tokens)
    .min(capabilities.max_step_tokens);
    let [small, large] = MEASURED.map(|tokens| tokens.min(room));
    if small == large {
        return Ok(None);
    }
    // The largest first and unmeasured: it brings the weights into memory and makes what is made once.
    let mut points = [Observed::default(); 3];
    for (number, (tokens, point)) in (0..).zip([large, small, large].into_iter().zip(&mut points)) {
        let seq = SeqId(first.0 + number);
        telemetry.forget_peak();
        let before = telemetry.snapshot(Detail::Quick).process;
        let held = backend.memory().kv_resident;
        let outcome = backend.forward(&step(seq, tokens, vocabulary));
        let grown = backend.memory().kv_resident.less(held);
        let after = telemetry.snapshot(Detail::Quick).process;
        backend.release(seq);
        outcome?;
        let Some((before, after)) = before.zip(after) else {
            return Ok(None);
        };
        *point = Observed {
            tokens,
            rows: 1,
            peak: after.peak.less(before.resident()).less(grown),
        };
    }
    let [_, small, large] = points;
    Ok(Some(StepCost::fit(&small, &large, vocabulary)))
}

/// A prompt of ids that every vocabulary has.
fn step(seq: SeqId, tokens: usize, vocabulary: usize) -> Step {
    let ids = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
    let rows = (0..u32::try_from(tokens).unwrap_or(u32::MAX)).map(|index| Row {
        seq,
        id: TokenId(index % ids),
        position: Position::context(index),
        visible: index + 1,
        logits: index as usize + 1 == tokens,
    });
    Step {
        rows: rows.collect(),
    }
}
