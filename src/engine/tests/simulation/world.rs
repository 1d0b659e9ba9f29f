//! A machine with a gibibyte of memory, other processes, and a backend that takes memory of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use glm_engine::backend::{Backend, BackendError, Capabilities, Logits, MemoryUse, SeqId, Step};
use glm_engine::memory::headroom::floor;
use glm_engine::memory::telemetry::{
    Detail, Pressure, Process, Snapshot, Stalls, System, Telemetry, VmCounters,
};
use glm_engine::units::{Bytes, Clock};

use crate::support::{FakeBackend, TestClock};

/// Memory of the machine.
const TOTAL: Bytes = Bytes::mib(1024);
/// What other processes use in peace.
const OTHERS: Bytes = Bytes::mib(300);
/// Weights, mapped from a file.
pub const WEIGHTS: Bytes = Bytes::mib(300);
/// What the process uses besides.
const BASE: Bytes = Bytes::mib(24);
/// What a step takes for each token, and for each row of logits.
pub const TOKEN: Bytes = Bytes(160 << 10);
/// Others' growth within this time is not our fault.
const REACTION: Duration = Duration::from_secs(2);

/// Others take memory for a while: up over `ramp`, held for `length`, down at once.
#[derive(Clone, Copy, Debug)]
pub struct Squeeze {
    start: Duration,
    ramp: Duration,
    length: Duration,
    bytes: Bytes,
}

impl Squeeze {
    pub fn new(start: f64, ramp: f64, length: f64, bytes: Bytes) -> Self {
        let [start, ramp, length] = [start, ramp, length].map(Duration::from_secs_f64);
        Self {
            start,
            ramp,
            length,
            bytes,
        }
    }

    pub fn end(&self) -> Duration {
        self.start + self.ramp + self.length
    }

    fn at(&self, now: Duration) -> Bytes {
        if now < self.start || now >= self.end() {
            return Bytes(0);
        }
        let share = ((now - self.start).as_secs_f64() / self.ramp.as_secs_f64()).min(1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below `bytes`.
        Bytes((self.bytes.0 as f64 * share) as u64)
    }
}

/// What we held at one moment, and what we might have.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub at: Duration,
    pub own: Bytes,
    pub allowed: Bytes,
    /// Left when every clean page is dropped.
    pub spare: Bytes,
}

#[derive(Debug)]
pub struct State {
    squeezes: Vec<Squeeze>,
    pub loaded: bool,
    kv_resident: Bytes,
    /// Largest step since the peak was forgotten.
    step_peak: Bytes,
    /// Pages read back because they had been dropped.
    refaults: u64,
    waited: Duration,
    looked: Duration,
    /// Others' memory lately.
    lately: VecDeque<(Duration, Bytes)>,
    /// What one request may hold at most, which is never taken from it.
    pub one_request: Bytes,
    pub uses: Vec<Use>,
}

/// The machine; clones are the same one.
#[derive(Clone, Debug)]
pub struct Machine {
    state: Arc<Mutex<State>>,
    pub clock: Arc<TestClock>,
}

impl Machine {
    pub fn small(squeezes: &[Squeeze]) -> Self {
        let state = State {
            squeezes: squeezes.to_vec(),
            loaded: false,
            kv_resident: Bytes(0),
            step_peak: Bytes(0),
            refaults: 0,
            waited: Duration::ZERO,
            looked: Duration::ZERO,
            lately: VecDeque::new(),
            one_request: Bytes(0),
            uses: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            clock: Arc::default(),
        }
    }

    pub fn now(&self) -> Duration {
        self.clock.now().0
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn others(&self) -> Bytes {
        let now = self.now();
        let more = self.state().squeezes.iter().map(|s| s.at(now)).max();
        OTHERS
            .plus(more.unwrap_or_default())
            .min(TOTAL.less(BASE).less(Bytes::mib(80)))
    }

    /// Left above the floor while the weights are in memory.
    pub fn headroom(&self) -> glm_engine::units::Margin {
        let others = self.others();
        let used = others.plus(BASE).plus(WEIGHTS).plus(floor(TOTAL));
        TOTAL.over(used.plus(self.state().kv_resident))
    }

    /// Writes down what we hold during a step of `tokens` tokens.
    fn note(&self, tokens: usize) {
        let (now, others) = (self.now(), self.others());
        let mut state = self.state();
        let step = Bytes(TOKEN.0 * tokens as u64);
        state.step_peak = state.step_peak.max(step);
        state.lately.push_back((now, others));
        while state
            .lately
            .front()
            .is_some_and(|(then, _)| now - *then > REACTION)
        {
            state.lately.pop_front();
        }
        let least = state
            .lately
            .iter()
            .map(|(_, others)| *others)
            .min()
            .unwrap_or(others);
        let floor = floor(TOTAL);
        let share = TOTAL.less(least).less(BASE).less(WEIGHTS).less(floor);
        // A quarter of the floor stands behind what was promised, and one request always goes on.
        let allowed = share.plus(Bytes(floor.0 / 4));
        let one = state.one_request.plus(Bytes(TOKEN.0 * 8));
        let own = state.kv_resident.plus(step);
        let spare = TOTAL.less(others).less(BASE).less(own);
        state.uses.push(Use {
            at: now,
            own,
            allowed: allowed.max(one),
            spare,
        });
    }
}

impl Telemetry for Machine {
    fn snapshot(&mut self, _: Detail) -> Snapshot {
        let (now, others) = (self.now(), self.others());
        let mut state = self.state();
        let available = TOTAL.less(others).less(BASE).less(state.kv_resident);
        // Weights that do not fit are read again and again, and everybody waits meanwhile.
        let missing = WEIGHTS.less(available);
        let time = now - state.looked;
        state.looked = now;
        if state.loaded && missing.0 > 0 {
            state.refaults += missing.0 / 4096;
            state.waited += time / 2;
        }
        let stalls = Stalls {
            percent: 0.0,
            micros: u64::try_from(state.waited.as_micros()).unwrap(),
        };
        let anonymous = BASE.plus(state.kv_resident);
        Snapshot {
            system: Some(System {
                total: TOTAL,
                available,
                ..System::default()
            }),
            counters: Some(VmCounters {
                refaults: state.refaults,
                ..VmCounters::default()
            }),
            process: Some(Process {
                anonymous,
                file: WEIGHTS,
                peak: anonymous.plus(WEIGHTS).plus(state.step_peak),
                ..Process::default()
            }),
            pressure: Some(Pressure {
                some: stalls,
                full: stalls,
            }),
            ..Snapshot::default()
        }
    }

    fn forget_peak(&mut self) {
        self.state().step_peak = Bytes(0);
    }
}

/// The fake with memory: blocks stay resident when they are freed, until the backend is told to shrink.
pub struct Hungry {
    inner: FakeBackend,
    machine: Machine,
}

impl Hungry {
    pub fn new(inner: FakeBackend, machine: Machine) -> Self {
        machine.state().loaded = true;
        Self { inner, machine }
    }

    fn grow(&self) {
        let used = self.inner.memory().kv_used;
        let mut state = self.machine.state();
        state.kv_resident = state.kv_resident.max(used);
    }
}

impl Drop for Hungry {
    fn drop(&mut self) {
        let mut state = self.machine.state();
        state.loaded = false;
        state.kv_resident = Bytes(0);
    }
}

impl Backend for Hungry {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let logits = self.inner.forward(step)?;
        self.grow();
        self.machine.note(step.rows.len());
        Ok(logits)
    }

    fn len(&self, seq: SeqId) -> usize {
        self.inner.len(seq)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        self.inner.fork(parent, child, tokens)
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        self.inner.truncate(seq, tokens);
    }

    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights: WEIGHTS,
            mapped: WEIGHTS,
            kv_resident: self.machine.state().kv_resident,
            ..self.inner.memory()
        }
    }

    fn shrink(&mut self) -> Bytes {
        let used = self.inner.memory().kv_used;
        let mut state = self.machine.state();
        let given = state.kv_resident.less(used);
        state.kv_resident = used;
        given
    }
}
