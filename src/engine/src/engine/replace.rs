//! One model after another: the old one serves until the new one has passed its test.
//!
//! A new model is loaded on a thread of its own, which tests it too. It takes
//! over between two requests. Where memory does not allow two models, the
//! thread only checks the files of the new one, and the old one makes room
//! when that went well.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use crate::error::{Error, Result};
use crate::events;
use crate::inbox::{Command, Done};
use crate::model::{Model, ModelInfo, ModelSource, Reloaded};
use crate::status::Phase;
use crate::units::{Bytes, Level};

use super::Engine;
use super::lifecycle::{Ending, message};

/// A new model that is on its way.
pub(super) struct Coming {
    arrival: Receiver<Arrival>,
    done: Done<Reloaded>,
}

/// What the thread comes back with.
struct Arrival {
    source: Box<dyn ModelSource>,
    outcome: Result<Option<Model>>,
}

impl Engine {
    /// The next thing that an operator asked for and that can be begun. While a model is on its way only the
    /// end can.
    pub(super) fn next_command(&self) -> Option<Command> {
        let commands = &mut self.inbox.lock().commands;
        match &self.coming {
            None => commands.pop_front(),
            Some(_) => {
                let end = |command: &Command| matches!(command, Command::Shutdown(..));
                let at = commands.iter().position(end)?;
                commands.remove(at)
            }
        }
    }

    /// Begins a reload: in the background when there is a model that can serve meanwhile.
    pub(super) fn begin_reload(
        &mut self,
        mut source: Box<dyn ModelSource>,
        done: Done<Reloaded>,
    ) -> Option<Ending> {
        if self.loaded.is_none() {
            return Some(Ending::Reload(source, done));
        }
        let beside = self.has_room_for(source.size());
        events::replacing(beside);
        let (tell, arrival) = channel();
        let inbox = Arc::clone(&self.inbox);
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| match beside {
                true => source.load().map(Some),
                false => source.check().map(|()| None),
            }));
            let outcome = outcome.unwrap_or_else(|panic| {
                Err(Error::Load {
                    reason: message(&*panic),
                })
            });
            // Nobody waits for it when the engine has ended; the model goes then.
            let _ = tell.send(Arrival { source, outcome });
            inbox.wake();
        };
        let thread = std::thread::Builder::new().name("glm-load".into());
        match thread.spawn(work) {
            Ok(_) => self.coming = Some(Coming { arrival, done }),
            Err(error) => done(Err(Error::Load {
                reason: format!("no thread to load it: {error}"),
            })),
        }
        None
    }

    /// Looks whether the new model is there.
    pub(super) fn receive(&mut self) {
        let arrived = match self.coming.as_ref().map(|coming| coming.arrival.try_recv()) {
            None | Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(arrival)) => Some(arrival),
            Some(Err(TryRecvError::Disconnected)) => None,
        };
        let Some(Coming { done, .. }) = self.coming.take() else {
            return;
        };
        let Some(Arrival { source, outcome }) = arrived else {
            return done(Err(Error::Load {
                reason: "the thread that loads it has ended".to_owned(),
            }));
        };
        match outcome {
            // The end has come first: nothing changes any more.
            Ok(_) if self.ending.is_some() => done(Err(Error::ShuttingDown)),
            Ok(Some(model)) => self.ending = Some(Ending::Replace(source, Box::new(model), done)),
            Ok(None) => self.ending = Some(Ending::Reload(source, done)),
            Err(error) => {
                events::load_failed(&error);
                done(Err(error));
            }
        }
    }

    /// Nobody waits for a new model any more.
    pub(super) fn give_up_coming(&mut self) {
        if let Some(coming) = self.coming.take() {
            (coming.done)(Err(Error::ShuttingDown));
        }
    }

    /// Puts a model that has passed its test in the place of the one that serves.
    pub(super) fn replace(
        &mut self,
        source: Box<dyn ModelSource>,
        model: Model,
    ) -> Result<Reloaded> {
        let model = self.install(model)?;
        self.source = source;
        Ok(Reloaded {
            model,
            old_served: true,
        })
    }

    /// Unloads the old model before the new one is loaded; it comes back when the new one fails.
    pub(super) fn reload(&mut self, mut source: Box<dyn ModelSource>) -> Result<Reloaded> {
        self.inbox.lock().phase = Phase::Loading;
        self.unload();
        std::mem::swap(&mut self.source, &mut source);
        let outcome: Result<Arc<ModelInfo>> = self.load();
        if let Err(error) = &outcome {
            events::load_failed(error);
            self.source = source;
            // How it fails is in the log; the operator hears about the new one.
            let _ = self.load_or_give_up();
        }
        outcome.map(|model| Reloaded {
            model,
            old_served: false,
        })
    }

    /// Whether a model of this size may come beside the one that serves. Without a governor nobody watches
    /// memory, and there is room; with one there must be enough of it, and that must be known.
    fn has_room_for(&self, size: Option<Bytes>) -> bool {
        let Some(report) = self.control.report() else {
            return true;
        };
        let Some(size) = size else {
            return false;
        };
        // The step of the old model goes on meanwhile.
        let needed = size.plus(report.step);
        self.allowance.level == Level::Green && report.headroom >= needed.margin()
    }
}
