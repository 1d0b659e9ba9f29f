//! What the engine itself costs a step: queue, plan, rows, sampling of a tiny vocabulary, events.
//!
//! The backend does nothing and its time is taken off. Prints a table and a
//! line `N passed, N failed`; the promise is at most 50 us a step at 16 sequences.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glm::Tokens;
use glm::sampling::SamplingParams;
use glm_engine::backend::{
    Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, SeqId, Step,
};
use glm_engine::model::Model;
use glm_engine::request::Work;
use glm_engine::units::SystemClock;
use glm_engine::{Config, Engine, EngineHandle, Request, Result, Ticket};

#[path = "../tests/support/mod.rs"]
mod support;

use support::{END, VOCABULARY, context, generate, ids, info};

/// Median own time of a step at 16 sequences.
const TARGET: Duration = Duration::from_micros(50);
/// Steps of a measurement.
const STEPS: usize = 4_000;

/// Answers at once and counts the time that it takes.
struct Nothing {
    capabilities: Capabilities,
    spent: Arc<AtomicU64>,
}

impl Backend for Nothing {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let start = Instant::now();
        let wanted = step.rows.iter().filter(|row| row.logits).count();
        let values = (0..wanted * VOCABULARY).map(|i| if i % 7 == 3 { 1.0 } else { 0.5 });
        let logits = Logits {
            values: values.collect(),
            vocabulary: VOCABULARY,
        };
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.spent.fetch_add(nanos, Ordering::Relaxed);
        Ok(logits)
    }

    fn len(&self, _: SeqId) -> usize {
        0
    }

    fn fork(&mut self, _: SeqId, _: SeqId, _: usize) -> Result<(), BackendError> {
        Ok(())
    }

    fn truncate(&mut self, _: SeqId, _: usize) {}

    fn release(&mut self, _: SeqId) {}

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            free_blocks: self.capabilities.blocks,
            ..MemoryUse::default()
        }
    }

    fn shrink(&mut self) -> Bytes {
        Bytes(0)
    }
}

struct Setup {
    engine: Engine,
    handle: EngineHandle,
    spent: Arc<AtomicU64>,
}

impl Setup {
    fn new() -> Self {
        let capabilities = Capabilities {
            name: "nothing",
            vocabulary: VOCABULARY,
            max_tokens: 1 << 20,
            block_tokens: 32,
            block_bytes: Bytes(1),
            blocks: 1 << 20,
            max_sequences: usize::MAX,
            max_step_tokens: usize::MAX,
            chunked_prefill: true,
            fork: true,
        };
        let spent = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&spent);
        let source = move || -> Result<Model> {
            Ok(Model {
                info: info(capabilities.clone()),
                backend: Box::new(Nothing {
                    capabilities: capabilities.clone(),
                    spent: Arc::clone(&shared),
                }),
            })
        };
        let mut config = Config {
            unread_tokens: Tokens(usize::MAX),
            ..Config::default()
        };
        config.queue.tokens = Tokens(usize::MAX);
        let (mut engine, handle) =
            Engine::new(config, Box::new(source), Arc::new(SystemClock::default()));
        engine.turn();
        Self {
            engine,
            handle,
            spent,
        }
    }

    fn submit(&self, seed: u64, length: usize, max_tokens: usize) -> Ticket {
        let request = endless(generate(
            &context(&ids(seed, length), 0),
            1,
            max_tokens,
            seed,
        ));
        self.handle
            .submit(request)
            .expect("the queue has no bounds")
    }

    /// Own time of each of the next turns.
    fn measure(&mut self, turns: usize) -> Vec<Duration> {
        (0..turns)
            .map(|_| {
                let before = self.spent.load(Ordering::Relaxed);
                let start = Instant::now();
                self.engine.turn();
                let all = start.elapsed();
                let after = self.spent.load(Ordering::Relaxed);
                all.saturating_sub(Duration::from_nanos(after - before))
            })
            .collect()
    }
}

/// Greedy and never ending: the cost of choosing well is the sampler's, not ours.
fn endless(mut request: Request) -> Request {
    if let Work::Generate(work) = &mut request.work {
        work.sampling = SamplingParams {
            banned: vec![END],
            ..SamplingParams::greedy()
        };
    }
    request
}

fn main() -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    println!(
        "{:<44} {:>10} {:>10} {:>10}",
        "scheduler's own time a step", "median us", "p99 us", "target"
    );
    for (name, sequences, waiting, reading, bound) in [
        ("1 answer", 1, 0, false, None),
        ("4 answers", 4, 0, false, None),
        ("16 answers", 16, 0, false, Some(TARGET)),
        (
            "16 answers, 200 requests wait",
            16,
            200,
            false,
            Some(TARGET),
        ),
        (
            "15 answers, a prompt is being read",
            15,
            0,
            true,
            Some(TARGET),
        ),
    ] {
        let mut setup = Setup::new();
        let mut tickets: Vec<Ticket> = (0..sequences + waiting)
            .map(|seed| setup.submit(seed, 100, 100_000))
            .collect();
        setup.measure(100);
        if reading {
            // Pieces of 32 tokens while answers are under way: enough for the whole measurement.
            tickets.push(setup.submit(999, 500_000, 1));
            setup.measure(2);
        }
        let mut times = setup.measure(STEPS);
        times.sort_unstable();
        let (median, p99) = (times[STEPS / 2], times[STEPS * 99 / 100]);
        let good = bound.is_none_or(|bound| median <= bound);
        match good {
            true => passed += 1,
            false => failed += 1,
        }
        println!(
            "{name:<44} {:>10.1} {:>10.1} {:>10}",
            median.as_secs_f64() * 1e6,
            p99.as_secs_f64() * 1e6,
            match bound {
                None => String::new(),
                Some(bound) => format!("<= {}{}", bound.as_micros(), if good { "" } else { " !" }),
            }
        );
        drop(tickets);
    }
    println!("{passed} passed, {failed} failed");
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
