//! Loading, unloading, stopping, and what happens after a panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use glm::Tokens;
use glm::sampling::Banned;

use crate::backend::SeqId;
use crate::error::{Error, Result};
use crate::events;
use crate::inbox::{Command, Done, Drain, Job};
use crate::model::{Model, ModelInfo, ModelSource, Reloaded};
use crate::prefix::PrefixCache;
use crate::scheduler::queue::Waiting;
use crate::status::Phase;
use crate::units::{Epoch, Moment};

use super::{Engine, Loaded, Turn};

/// When a client should ask again after the operator has unloaded the model.
const UNLOADED: Duration = Duration::from_secs(30);

/// Sequences that a governor may make when a model was loaded.
const WARM_UP: u64 = 16;

/// A change that waits until the running requests are answered.
pub(super) enum Ending {
    /// The old model goes, then the new one is loaded.
    Reload(Box<dyn ModelSource>, Done<Reloaded>),
    /// The new one is loaded and takes the place of the old one.
    Replace(Box<dyn ModelSource>, Box<Model>, Done<Reloaded>),
    Unload(Done<()>),
    Stop(Option<Moment>, Done<()>),
}

impl Engine {
    /// A turn that survives a panic anywhere in it.
    pub(super) fn turn_safely(&mut self) -> Turn {
        match catch_unwind(AssertUnwindSafe(|| self.turn())) {
            Ok(turn) => turn,
            Err(panic) => {
                let reason = message(&*panic);
                events::panicked(&reason);
                // Unlike a panic of the backend this one may have left requests half changed.
                for served in self.running.drain(..) {
                    self.counters.failed += 1;
                    served.fail(Error::Internal {
                        reason: "the engine panicked",
                    });
                    self.inbox.forget(served.id);
                }
                self.suspects.clear();
                self.replace_backend();
                Turn::Worked
            }
        }
    }

    /// Whether the model is about to change, so that nobody should start.
    pub(super) const fn is_waiting_to_change(&self) -> bool {
        matches!(
            self.ending,
            Some(Ending::Reload(..) | Ending::Replace(..) | Ending::Unload(_))
        )
    }

    /// Does what operators asked, and loads the model in the first turn.
    pub(super) fn obey(&mut self, now: Moment) {
        if self.phase() == Phase::Loading && self.loaded.is_none() {
            let outcome = self.load_or_give_up();
            if let Some(done) = self.first_load.take() {
                done(outcome);
            }
        }
        self.receive();
        while self.ending.is_none() {
            let Some(command) = self.next_command() else {
                break;
            };
            self.ending = match command {
                Command::Reload(source, done) => self.begin_reload(source, done),
                Command::Unload(done) => Some(Ending::Unload(done)),
                Command::Shutdown(drain, done) => {
                    self.inbox.lock().phase = Phase::Draining;
                    self.dismiss_fresh();
                    Some(match drain {
                        Drain::For(time) => Ending::Stop(Some(now.after(time)), done),
                        Drain::Now => Ending::Stop(None, done),
                    })
                }
            };
        }
        match self.ending.take() {
            Some(Ending::Reload(source, done)) if self.running.is_empty() => {
                done(self.reload(source));
            }
            Some(Ending::Replace(source, model, done)) if self.running.is_empty() => {
                done(self.replace(source, *model));
            }
            Some(Ending::Unload(done)) if self.running.is_empty() => {
                self.unload();
                self.be_unloaded();
                done(Ok(()));
            }
            Some(Ending::Stop(until, done)) => {
                let idle = self.running.is_empty() && self.inbox.lock().queue.is_empty();
                let hopeless = self.loaded.is_none() && self.absence.is_none();
                if idle || hopeless || until.is_none_or(|until| now >= until) {
                    self.stop();
                    done(Ok(()));
                } else {
                    self.ending = Some(Ending::Stop(until, done));
                }
            }
            other => self.ending = other,
        }
    }

    /// Loads the model from its source.
    pub(super) fn load(&mut self) -> Result<Arc<ModelInfo>> {
        let source = &mut self.source;
        let model = catch_unwind(AssertUnwindSafe(|| source.load())).unwrap_or_else(|panic| {
            Err(Error::Load {
                reason: message(&*panic),
            })
        })?;
        self.install(model)
    }

    /// Makes a model the one that serves, in the place of what is loaded. One that is no good changes nothing.
    pub(super) fn install(&mut self, model: Model) -> Result<Arc<ModelInfo>> {
        let Model {
            mut info,
            mut backend,
        } = model;
        let capabilities = backend.capabilities().clone();
        if capabilities.block_tokens == 0 || capabilities.max_tokens == 0 {
            return Err(Error::Load {
                reason: "the backend has blocks or sequences of no tokens".into(),
            });
        }
        let cache_tokens = self
            .config
            .cache_tokens
            .unwrap_or(Tokens(capabilities.blocks / 4 * capabilities.block_tokens));
        // Its measurements may use any number from here on, and ours go on after them.
        let now = self.inbox.clock.now();
        let first = SeqId(self.next_seq);
        catch_unwind(AssertUnwindSafe(|| {
            self.control.loaded(now, &mut *backend, first);
        }))
        .map_err(|panic| Error::Load {
            reason: format!("its first steps panicked: {}", message(&*panic)),
        })?;
        self.next_seq += WARM_UP;
        info.epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        info.capabilities = capabilities;
        let info = Arc::new(info);
        self.unload();
        self.absence = None;
        self.busy = self.inbox.clock.now();
        self.loaded = Some(Loaded {
            banned: Banned::of(&info.special),
            cache: PrefixCache::new(info.capabilities.block_tokens, cache_tokens),
            info: Arc::clone(&info),
            backend,
        });
        let mut state = self.inbox.lock();
        // The same files give the same tokens: prompts that wait stay good.
        let same = (state.model.as_ref()).is_some_and(|old| old.digest == info.digest);
        if !same {
            state.good_since = info.epoch;
        }
        state.model = Some(Arc::clone(&info));
        if state.phase != Phase::Draining {
            state.phase = Phase::Ready;
        }
        drop(state);
        events::loaded(&info);
        Ok(info)
    }

    /// Drops the model; the description stays until another takes its place.
    pub(super) fn unload(&mut self) {
        if let Some(loaded) = self.loaded.take() {
            // A broken backend may panic once more while it goes.
            if catch_unwind(AssertUnwindSafe(|| drop(loaded))).is_err() {
                events::panicked("while the model was unloaded");
            }
        }
    }

    /// After a panic nothing that the backend holds can be trusted: load the model anew, requests go on.
    pub(super) fn replace_backend(&mut self) {
        for served in &mut self.running {
            for branch in &mut served.branches {
                branch.evict();
            }
        }
        self.unload();
        let _ = self.load_or_give_up();
    }

    /// Loads the model; without one nobody can be served.
    pub(super) fn load_or_give_up(&mut self) -> Result<Arc<ModelInfo>> {
        let outcome = self.load();
        if let Err(error) = &outcome {
            events::load_failed(error);
            self.be_unloaded();
        }
        outcome
    }

    /// There is no model and none will come by itself: whoever waits should ask again later.
    fn be_unloaded(&mut self) {
        self.absence = None;
        let mut state = self.inbox.lock();
        if state.phase != Phase::Draining {
            state.phase = Phase::Unloaded;
        }
        state.model = None;
        drop(state);
        self.give_up_all(&Error::NotLoaded {
            retry_after: UNLOADED,
        });
    }

    /// Requests that have not begun will not any more.
    fn dismiss_fresh(&mut self) {
        let fresh = |waiting: &Waiting<Job>| matches!(waiting.payload, Job::Fresh(..));
        let waiting = self.inbox.lock().queue.take_if(fresh);
        for waiting in waiting {
            self.dismiss(&waiting, Error::ShuttingDown);
        }
    }

    fn stop(&mut self) {
        self.inbox.lock().phase = Phase::Stopped;
        self.give_up_coming();
        self.give_up_all(&Error::ShuttingDown);
        self.unload();
        // What was asked after the shutdown is answered too.
        let commands = std::mem::take(&mut self.inbox.lock().commands);
        for command in commands {
            match command {
                Command::Reload(_, done) => done(Err(Error::ShuttingDown)),
                Command::Unload(done) | Command::Shutdown(_, done) => done(Ok(())),
            }
        }
    }

    /// Ends everything with the same error.
    fn give_up_all(&mut self, error: &Error) {
        while !self.running.is_empty() {
            self.fail(0, error.clone());
        }
        self.suspects.clear();
        let waiting = self.inbox.lock().queue.take_if(|_| true);
        for waiting in waiting {
            self.dismiss(&waiting, error.clone());
        }
    }
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    (panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
