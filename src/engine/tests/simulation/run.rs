//! Requests arrive, the engine turns, and samples are taken.

use std::sync::Arc;
use std::time::Duration;

use glm::Tokens;
use glm_engine::backend::Capabilities;
use glm_engine::control::Cause;
use glm_engine::engine::Turn;
use glm_engine::memory::watch::Watch;
use glm_engine::memory::{Governor, Settings};
use glm_engine::model::Model;
use glm_engine::units::{Bytes, Level, Margin, Priority};
use glm_engine::{Config, Engine, EngineHandle, Error, Event, Result, Ticket};

use crate::support::{FakeBackend, Shared, capabilities, context, generate, ids, info};
use crate::world::{Hungry, Machine, Use};

/// Time between samples.
const SAMPLE: Duration = Duration::from_millis(100);

/// A request to come.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Duration,
    pub prompt: usize,
    pub max_tokens: usize,
    pub priority: Priority,
    pub seed: u64,
}

/// The engine at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Duration,
    pub level: Level,
    pub budget: usize,
    pub queue: usize,
    pub running: usize,
    pub loaded: bool,
    pub headroom: Margin,
    pub cause: Cause,
    pub preemptions: u64,
}

/// What a request came to.
#[derive(Debug)]
pub enum Fate {
    Refused(Error),
    /// Its last events; there must be one.
    Accepted(Vec<Result<(), Error>>),
}

impl Fate {
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Accepted(ends) if matches!(ends[..], [Ok(())]))
    }
}

#[derive(Debug)]
pub struct Run {
    pub samples: Vec<Sample>,
    pub uses: Vec<Use>,
    pub answers: Vec<Fate>,
}

impl Run {
    /// Runs until `end`, then until every request is answered.
    pub fn new(machine: Machine, arrivals: &[Arrival], end: Duration) -> Self {
        let pool = Capabilities {
            block_bytes: Bytes(256 << 10),
            blocks: 512,
            max_step_tokens: usize::MAX,
            ..capabilities()
        };
        // The longest request of `arrivals` in blocks of 8 tokens.
        let longest = arrivals
            .iter()
            .map(|a| (a.prompt + a.max_tokens).div_ceil(8))
            .max();
        let blocks = longest.unwrap_or(0) as u64 + 1;
        machine.state().one_request = Bytes(blocks * pool.block_bytes.0);
        let script = Shared::default();
        script.lock().unwrap().step_time = Duration::from_millis(25);
        script.lock().unwrap().row_time = Duration::from_micros(400);
        let source = source(pool, Arc::clone(&script), machine.clone());
        let (engine, handle) = Engine::new(
            Config::default(),
            Box::new(source),
            Arc::clone(&machine.clock) as Arc<_>,
        );
        let settings = Settings {
            step_tokens: Tokens(crate::STEP_TOKENS),
            ..Settings::default()
        };
        let governor = Governor::new(settings, Box::new(machine.clone()), Watch::polling());
        let mut engine = engine.governed_by(Box::new(governor));
        let mut run = Self {
            samples: Vec::new(),
            uses: Vec::new(),
            answers: Vec::new(),
        };
        engine.turn();
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        let mut coming = arrivals.iter().peekable();
        // Answers take their time under pressure; beyond this something hangs.
        let patience = end + Duration::from_secs(900);
        while machine.now() < end || (!tickets.is_empty() && machine.now() < patience) {
            let now = machine.now();
            while let Some(arrival) = coming.next_if(|arrival| arrival.at <= now) {
                let prompt = context(&ids(arrival.seed % 50, arrival.prompt), 0);
                let mut request = generate(&prompt, 1, arrival.max_tokens, arrival.seed);
                request.priority = arrival.priority;
                request.epoch = handle.model().map_or(request.epoch, |model| model.epoch);
                match handle.submit(request) {
                    Ok(ticket) => {
                        tickets.push((run.answers.len(), ticket));
                        run.answers.push(Fate::Accepted(Vec::new()));
                    }
                    Err(error) => run.answers.push(Fate::Refused(error)),
                }
            }
            if let Turn::Idle(time) = engine.turn() {
                let next = coming.peek().map(|arrival| arrival.at.saturating_sub(now));
                // As the engine thread sleeps: until its time is over or something arrives.
                machine
                    .clock
                    .advance(time.min(next.unwrap_or(time)).max(Duration::from_millis(1)));
            }
            run.read(&mut tickets);
            run.sample(&machine, &handle, end);
        }
        run.uses = std::mem::take(&mut machine.state().uses);
        assert_eq!(script.lock().unwrap().violations, Vec::<String>::new());
        run
    }

    fn read(&mut self, tickets: &mut Vec<(usize, Ticket)>) {
        tickets.retain_mut(|(index, ticket)| {
            let mut open = true;
            while let Some(event) = ticket.try_next() {
                let end = match event {
                    Event::Finished(_) => Ok(()),
                    Event::Failed(error) => Err(error),
                    _ => continue,
                };
                open = false;
                if let Fate::Accepted(ends) = &mut self.answers[*index] {
                    ends.push(end);
                }
            }
            open
        });
    }

    fn sample(&mut self, machine: &Machine, handle: &EngineHandle, end: Duration) {
        let at = machine.now();
        let last = self.samples.last().map(|sample| sample.at);
        if at > end || last.is_some_and(|last| at < last + SAMPLE) {
            return;
        }
        let status = handle.status();
        let report = status.report.clone().unwrap_or_default();
        self.samples.push(Sample {
            at,
            level: status.level,
            budget: status.step_budget,
            queue: status.queued_requests,
            running: status.running.len(),
            loaded: status.backend.is_some(),
            headroom: machine.headroom(),
            cause: report.cause,
            preemptions: status.counters.preemptions,
        });
    }

    pub fn preemptions(&self) -> u64 {
        self.samples.last().map_or(0, |sample| sample.preemptions)
    }

    /// Every accepted request ended exactly once, and none for a reason that the engine must not have.
    pub fn check_answers(&self) {
        for fate in &self.answers {
            match fate {
                Fate::Refused(Error::Overloaded { .. } | Error::NotLoaded { .. }) => {}
                Fate::Accepted(ends) if matches!(ends[..], [Ok(())]) => {}
                Fate::Accepted(ends) if matches!(ends[..], [Err(Error::Overloaded { .. })]) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn source(
    capabilities: Capabilities,
    script: Shared,
    machine: Machine,
) -> impl FnMut() -> Result<Model> + Send {
    move || {
        // Weights come from a card.
        machine.clock.advance(Duration::from_millis(1500));
        let fake = FakeBackend::new(
            capabilities.clone(),
            Arc::clone(&script),
            Arc::clone(&machine.clock),
        );
        Ok(Model {
            info: info(capabilities.clone()),
            backend: Box::new(Hungry::new(fake, machine.clone())),
        })
    }
}
