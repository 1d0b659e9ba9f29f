//! An engine that is turned by hand, and what comes out of its tickets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm_engine::answer::{Finished, Reason, Token};
use glm_engine::backend::{Capabilities, Row};
use glm_engine::control::{Allowance, Control, Load};
use glm_engine::engine::Turn;
use glm_engine::model::ModelInfo;
use glm_engine::status::Status;
use glm_engine::units::Moment;
use glm_engine::{Config, Engine, EngineHandle, Error, Event, Request, Ticket};

use super::{Shared, TestClock, capabilities, info, source};

/// A governor that says what the test says. Orders are given once.
#[derive(Clone, Debug, Default)]
pub struct Dictated(pub Arc<Mutex<Allowance>>);

impl Control for Dictated {
    fn allow(&mut self, _: Moment, _: &Load) -> Allowance {
        let mut next = self.0.lock().unwrap();
        let now = *next;
        next.preempt_one = false;
        next.shrink = false;
        now
    }
}

pub struct Rig {
    pub engine: Engine,
    pub handle: EngineHandle,
    pub script: Shared,
    pub clock: Arc<TestClock>,
    pub allowance: Arc<Mutex<Allowance>>,
}

impl Rig {
    pub fn new(config: Config, capabilities: Capabilities) -> Self {
        Self::with(config, info(capabilities))
    }

    /// With a model that describes itself like this.
    pub fn with(config: Config, info: ModelInfo) -> Self {
        let script = Shared::default();
        let clock = Arc::new(TestClock::default());
        let source = source(info, Arc::clone(&script), Arc::clone(&clock));
        let (mut engine, handle) =
            Engine::new(config, Box::new(source), Arc::clone(&clock) as Arc<_>);
        let control = Dictated::default();
        let allowance = Arc::clone(&control.0);
        engine = engine.governed_by(Box::new(control));
        engine.turn();
        script.lock().unwrap().record = true;
        Self {
            engine,
            handle,
            script,
            clock,
            allowance,
        }
    }

    /// Changes what the governor says.
    pub fn allow(&self, change: impl FnOnce(&mut Allowance)) {
        change(&mut self.allowance.lock().unwrap());
    }

    pub fn usual() -> Self {
        Self::new(Config::default(), capabilities())
    }

    pub fn submit(&self, request: Request) -> Ticket {
        self.handle.submit(request).unwrap()
    }

    /// Turns the engine until it has nothing to do.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            match self.engine.turn() {
                Turn::Worked => self.clock.advance(Duration::from_millis(1)),
                Turn::Idle(_) | Turn::Stopped => return,
            }
        }
        panic!("the engine does not come to rest");
    }

    /// One more turn, late enough for the engine to describe itself.
    pub fn look(&mut self) -> Arc<Status> {
        self.clock.advance(Duration::from_secs(1));
        self.engine.turn();
        self.handle.status()
    }

    pub fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.engine.turn();
        }
    }

    pub fn answer(&mut self, request: Request) -> Answer {
        let ticket = self.submit(request);
        self.run();
        Answer::of(ticket)
    }

    /// Rows of each step so far, and forgets them.
    pub fn steps(&self) -> Vec<Vec<Row>> {
        std::mem::take(&mut self.script.lock().unwrap().steps)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let script = self.script.lock().unwrap_or_else(|p| p.into_inner());
        if !std::thread::panicking() {
            assert_eq!(script.violations, Vec::<String>::new());
        }
    }
}

/// All that came out of a ticket.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub texts: Vec<String>,
    pub tokens: Vec<Vec<Token>>,
    pub reasons: Vec<Option<Reason>>,
    pub prompt: Vec<Token>,
    pub end: Option<Result<Finished, Error>>,
}

impl Answer {
    pub fn of(mut ticket: Ticket) -> Self {
        let mut answer = Self::default();
        while let Some(event) = ticket.try_next() {
            assert!(answer.end.is_none(), "{event:?} after the last event");
            match event {
                Event::Started { .. } => {}
                Event::Prompt(tokens) => answer.prompt = tokens,
                Event::Part(part) => {
                    answer.grow(part.choice);
                    answer.texts[part.choice].push_str(&part.text);
                    answer.tokens[part.choice].extend(part.tokens);
                }
                Event::ChoiceEnded { choice, reason } => {
                    answer.grow(choice);
                    assert_eq!(answer.reasons[choice].replace(reason), None);
                }
                Event::Finished(finished) => answer.end = Some(Ok(*finished)),
                Event::Failed(error) => answer.end = Some(Err(error)),
            }
        }
        answer
    }

    pub fn grow(&mut self, choice: usize) {
        let length = self.texts.len().max(choice + 1);
        self.texts.resize(length, String::new());
        self.tokens.resize(length, Vec::new());
        self.reasons.resize(length, None);
    }

    pub fn ids(&self, choice: usize) -> Vec<u32> {
        self.tokens[choice].iter().map(|t| t.id.0).collect()
    }

    pub fn finished(&self) -> &Finished {
        self.end.as_ref().unwrap().as_ref().unwrap()
    }

    pub fn error(&self) -> &Error {
        self.end.as_ref().unwrap().as_ref().unwrap_err()
    }
}
