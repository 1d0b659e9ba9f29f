//! The engine thread: one turn of its loop after the other.
//!
//! A turn reads top-down: who gave up, then commands, then who may start,
//! then one step of the model. All state lives here and is touched by one
//! thread only; the outside sees the `inbox`.
//!
//! | module | what it does |
//! |---|---|
//! | `admission` | from the queue to served, and back when memory is short |
//! | `governing` | doing what the memory governor says |
//! | `absence` | the model gone for a while, and its return |
//! | `step` | plan, run, commit; what happens when a step fails |
//! | `lifecycle` | loading, unloading, stopping, panics |
//! | `replace` | one model after another |

mod absence;
mod admission;
mod governing;
mod lifecycle;
mod replace;
mod step;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use glm::Tokens;
use glm::sampling::Banned;

use crate::answer::Event;
use crate::backend::{Backend, SeqId};
use crate::control::{Allowance, Control, Unlimited};
use crate::error::Error;
use crate::events;
use crate::handle::EngineHandle;
use crate::inbox::{Done, Inbox, Job};
use crate::model::{ModelInfo, ModelSource};
use crate::prefix::PrefixCache;
use crate::scheduler::cost::CostModel;
use crate::scheduler::queue::{QueueLimits, Waiting};
use crate::serving::Served;
use crate::status::{Counters, Phase, Running, Status};
use crate::units::{Bytes, Clock, Moment, RequestId};

use absence::Absence;
use lifecycle::Ending;
use replace::Coming;

/// How often the engine looks around when nothing happens.
const IDLE: Duration = Duration::from_millis(500);
/// How often a busy engine describes itself.
const PUBLISH: Duration = Duration::from_millis(100);

/// Bounds of the engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most tokens of a step.
    pub step_tokens: Tokens,
    /// Most sequences that are served side by side.
    pub sequences: usize,
    /// Most rows of logits of a step; each is a vocabulary of `f32`.
    pub logits_rows: usize,
    /// Longest time that a request waits before it is answered `overloaded`, whatever the reason.
    pub patience: Duration,
    /// Most tokens of the prefix cache; a quarter of the key/value cache when `None`.
    pub cache_tokens: Option<Tokens>,
    /// Most tokens of an answer that wait for a slow reader before it is cancelled.
    pub unread_tokens: Tokens,
    /// Time without requests after which the model is unloaded until the next one; never when `None`.
    pub idle_unload: Option<Duration>,
    /// Bounds of the queue.
    pub queue: QueueLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Enough to reach the matmul's full speed; a step still ends soon enough to cancel.
            step_tokens: Tokens(256),
            // Decoding stops gaining where the weights are no longer what is read most.
            sequences: 16,
            // 64 rows of a vocabulary of 150,000 are 38 MB.
            logits_rows: 64,
            // Memory that is short for so long will not come back for this request.
            patience: Duration::from_secs(600),
            cache_tokens: None,
            // A reader so far behind, at a small box's speed, has not read for a minute.
            unread_tokens: Tokens(2048),
            // The first answer after it takes as long as loading does: whoever wants that says so.
            idle_unload: None,
            queue: QueueLimits::default(),
        }
    }
}

/// What a turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Work was done; there may be more.
    Worked,
    /// Nothing can be done before something arrives or this time is over.
    Idle(Duration),
    /// The engine has stopped.
    Stopped,
}

/// A loaded model with what belongs to it.
struct Loaded {
    info: Arc<ModelInfo>,
    backend: Box<dyn Backend>,
    banned: Banned,
    cache: PrefixCache,
}

/// The engine: [`spawn`](Engine::spawn) runs it on its own thread; tests [`turn`](Engine::turn) it by hand.
pub struct Engine {
    inbox: Arc<Inbox>,
    config: Config,
    source: Box<dyn ModelSource>,
    /// Who wants to know how the first load went.
    first_load: Option<Done<Arc<ModelInfo>>>,
    control: Box<dyn Control>,
    /// The governor's last word.
    allowance: Allowance,
    /// Why the model is not in memory although it will come back by itself.
    absence: Option<Absence>,
    /// When there was last something to do.
    busy: Moment,
    loaded: Option<Loaded>,
    running: Vec<Served>,
    /// Requests of a step that failed, each to be tried alone.
    suspects: VecDeque<RequestId>,
    cost: CostModel,
    counters: Counters,
    /// Number of the last step; the first is 1.
    step: u64,
    reading_went_first: bool,
    batch: usize,
    /// Tokens of the last step.
    step_tokens: usize,
    next_seq: u64,
    next_epoch: u64,
    ending: Option<Ending>,
    /// A model that is loaded while another serves.
    coming: Option<Coming>,
    published: Option<Moment>,
    /// News that the last turn has seen.
    seen: u64,
    /// No step before this moment: the processor rests.
    rests_until: Moment,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("running", &self.running.len())
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that loads its model in its first turn.
    #[must_use]
    pub fn new(
        config: Config,
        source: Box<dyn ModelSource>,
        clock: Arc<dyn Clock>,
    ) -> (Self, EngineHandle) {
        let inbox = Arc::new(Inbox::new(clock, config.queue, config.unread_tokens.0));
        let handle = EngineHandle::new(Arc::clone(&inbox));
        let engine = Self {
            inbox,
            config,
            source,
            first_load: None,
            control: Box::new(Unlimited),
            allowance: Allowance::default(),
            absence: None,
            busy: Moment::default(),
            loaded: None,
            running: Vec::new(),
            suspects: VecDeque::new(),
            cost: CostModel::default(),
            counters: Counters::default(),
            step: 0,
            reading_went_first: false,
            batch: 0,
            step_tokens: 0,
            next_seq: 1,
            next_epoch: 1,
            ending: None,
            coming: None,
            published: None,
            seen: 0,
            rests_until: Moment::default(),
        };
        (engine, handle)
    }

    /// Lets `control` decide what the engine may use.
    #[must_use]
    pub fn governed_by(mut self, control: Box<dyn Control>) -> Self {
        self.control = control;
        self
    }

    /// Tells `done` how the first load went, once requests are answered or it is known that they are not.
    #[must_use]
    pub fn reporting(mut self, done: Done<Arc<ModelInfo>>) -> Self {
        self.first_load = Some(done);
        self
    }

    /// Runs the engine on its own thread until it is shut down.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(mut self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new()
            .name("glm-engine".into())
            .spawn(move || {
                loop {
                    match self.turn_safely() {
                        Turn::Worked => {}
                        Turn::Idle(time) => self.inbox.wait(self.seen, time),
                        Turn::Stopped => break,
                    }
                }
            })
    }

    /// One turn of the loop: at most one step of the model.
    pub fn turn(&mut self) -> Turn {
        let now = self.inbox.clock.now();
        self.seen = self.inbox.lock().begin_turn();
        self.sweep(now);
        self.obey(now);
        if self.phase() == Phase::Stopped {
            return Turn::Stopped;
        }
        self.govern(now);
        self.come_and_go(now);
        self.admit(now);
        let rest = self.rests_until.since(now);
        let worked = rest.is_zero() && self.step(now);
        self.publish(now, !worked);
        match worked {
            true => Turn::Worked,
            false if rest.is_zero() => Turn::Idle(IDLE),
            false => Turn::Idle(rest.min(IDLE)),
        }
    }

    fn phase(&self) -> Phase {
        self.inbox.lock().phase
    }

    /// Ends the requests that were given up or can no longer be in time, served or waiting.
    fn sweep(&mut self, now: Moment) {
        let verdict = |cancelled: bool, deadline: Option<Moment>| match deadline {
            _ if cancelled => Some(Error::Cancelled),
            Some(deadline) if now > deadline => Some(Error::Deadline),
            _ => None,
        };
        let patience = self.config.patience;
        let mut state = self.inbox.lock();
        let gone = state.queue.take_if(|waiting| {
            now.since(waiting.submitted) > patience
                || verdict(waiting.payload.outbox().is_cancelled(), waiting.deadline).is_some()
        });
        let gone: Vec<_> = (gone.into_iter())
            .map(|waiting| {
                let cancelled = waiting.payload.outbox().is_cancelled();
                let error = verdict(cancelled, waiting.deadline).unwrap_or(Error::Overloaded {
                    reason: "there was no room in all the time that a request may wait",
                    retry_after: state.retry_after(waiting.id),
                });
                (waiting, error)
            })
            .collect();
        drop(state);
        for (waiting, error) in gone {
            self.dismiss(&waiting, error);
        }
        let mut index = 0;
        while let Some(served) = self.running.get(index) {
            match verdict(served.outbox.is_cancelled(), served.deadline) {
                Some(error) => self.fail(index, error),
                None => index += 1,
            }
        }
        let running = &self.running;
        (self.suspects).retain(|id| running.iter().any(|served| served.id == *id));
    }

    /// Ends a waiting request with an error.
    fn dismiss(&mut self, waiting: &Waiting<Job>, error: Error) {
        self.count(&error);
        events::failed(waiting.id, &error);
        let _ = waiting.payload.outbox().send(Event::Failed(error));
        self.inbox.forget(waiting.id);
    }

    /// Ends a served request with an error.
    fn fail(&mut self, index: usize, error: Error) {
        let mut served = self.running.remove(index);
        self.evict(&mut served);
        self.count(&error);
        events::failed(served.id, &error);
        served.fail(error);
        self.inbox.forget(served.id);
    }

    /// Takes away what the backend holds of a request.
    fn evict(&mut self, served: &mut Served) {
        for branch in &mut served.branches {
            if let (Some(seq), Some(loaded)) = (branch.evict(), &mut self.loaded) {
                loaded.backend.release(seq);
            }
        }
    }

    fn count(&mut self, error: &Error) {
        let counter = match error {
            Error::Cancelled | Error::SlowReader { .. } => &mut self.counters.cancelled,
            Error::Deadline => &mut self.counters.expired,
            _ => &mut self.counters.failed,
        };
        *counter += 1;
    }

    const fn fresh_seq(&mut self) -> SeqId {
        let seq = SeqId(self.next_seq);
        self.next_seq += 1;
        seq
    }

    /// Describes the engine to the outside, at once when it goes idle.
    fn publish(&mut self, now: Moment, idle: bool) {
        let due = self.published.is_none_or(|last| now.since(last) >= PUBLISH);
        let running_tokens = self.running.iter().map(Served::remaining).sum();
        let status = (due || idle).then(|| Arc::new(self.describe(now)));
        let mut state = self.inbox.lock();
        state.running_tokens = running_tokens;
        if let Some(rate) = self.cost.decode_rate() {
            state.rate = rate;
        }
        if let Some(status) = status {
            state.status = status;
            drop(state);
            self.published = Some(now);
        }
    }

    fn describe(&self, now: Moment) -> Status {
        let running = self.running.iter().map(|served| Running {
            id: served.id,
            client: served.client.clone(),
            priority: served.priority,
            prompt_tokens: served.usage.prompt_tokens,
            completion_tokens: served.usage.completion_tokens,
            age: now.since(served.submitted),
        });
        let loaded = self.loaded.as_ref();
        Status {
            level: self.allowance.level,
            backend: loaded.map(|l| l.info.capabilities.name),
            running: running.collect(),
            batch: self.batch,
            step_tokens: self.step_tokens,
            step_budget: self.budget(),
            decode_rate: self.cost.decode_rate().unwrap_or(0.0),
            memory: loaded.map(|l| l.backend.memory()).unwrap_or_default(),
            reserved: loaded
                .map(|l| l.info.capabilities.block_bytes.0 * self.reserved_blocks() as u64)
                .map(Bytes)
                .unwrap_or_default(),
            cache: loaded.map(|l| l.cache.status()).unwrap_or_default(),
            report: self.control.report(),
            counters: self.counters,
            ..Status::default()
        }
    }

    /// Blocks that may be in use. What was reserved before the governor changed its mind is kept as long as
    /// it is not preempted, so that the prefix cache gives way and never a running request fails.
    fn usable_blocks(&self) -> usize {
        self.allowance.blocks.max(self.reserved_blocks())
    }

    /// Tokens that a step may have.
    fn budget(&self) -> usize {
        let loaded = self.loaded.as_ref();
        let hard = loaded.map_or(usize::MAX, |l| l.info.capabilities.max_step_tokens);
        let allowed = self.allowance.step_tokens.0;
        self.config.step_tokens.0.min(hard).min(allowed).max(1)
    }

    /// Sequences that are served side by side.
    fn sequences(&self) -> usize {
        let loaded = self.loaded.as_ref();
        let hard = loaded.map_or(usize::MAX, |l| l.info.capabilities.max_sequences);
        let allowed = self.allowance.sequences;
        self.config.sequences.min(hard).min(allowed).max(1)
    }
}
