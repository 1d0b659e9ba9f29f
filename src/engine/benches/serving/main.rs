//! What clients feel, on a real model: many at once, a long prompt beside a running answer, a prompt that was
//! read before, cancelling, and memory over many requests.
//!
//! Prints a table and a line `N passed, N failed`. The model is made the first
//! time (70 million random weights, INT8); `--model DIR` measures another one.

mod counted;
mod model;
#[path = "../../tests/support/mod.rs"]
mod support;
mod trend;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use glm::sampling::SamplingParams;
use glm_engine::backend::library::answer_probe;
use glm_engine::loading::{Loader, Options};
use glm_engine::memory::telemetry::{Detail, Machine, Telemetry};
use glm_engine::memory::{Governor, Settings};
use glm_engine::request::Work;
use glm_engine::units::SystemClock;
use glm_engine::{Config, Drain, Engine, EngineHandle, Event, Request, Ticket};

use counted::{CountedLoader, Steps};
use support::{context, generate, ids};

use trend::slope;

/// A prompt that takes a while to read.
const LONG: usize = 512;
/// Bound of the soak.
const SOAK: Duration = Duration::from_secs(90);
/// Requests of the soak, if the time allows.
const REQUESTS: u64 = 20_000;
/// Growth over 10,000 requests that is noise of the allocator: half of a mebibyte.
const NOISE: f64 = 512.0;

struct Served {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
    steps: Steps,
    /// Ends answers; never sampled here.
    ends: Vec<glm::TokenId>,
}

impl Served {
    fn open(folder: PathBuf, config: Config) -> Result<Self, Box<dyn std::error::Error>> {
        let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let loader = Loader {
            folder,
            options: Options::of_process(library)?,
        };
        let steps = Steps::default();
        let loader = CountedLoader {
            loader,
            steps: steps.clone(),
        };
        let clock = Arc::new(SystemClock::default());
        let (engine, handle) = Engine::new(config, Box::new(loader), clock);
        let governor = Governor::of_this_machine(Settings::default(), &handle);
        let thread = engine.governed_by(Box::new(governor)).spawn()?;
        let model = loop {
            if let Some(model) = handle.model() {
                break model;
            }
            if thread.is_finished() || handle.status().phase == glm_engine::status::Phase::Unloaded
            {
                return Err("the model cannot be loaded".into());
            }
            thread::sleep(Duration::from_millis(20));
        };
        println!(
            "{}: {}, {} threads",
            model.id, model.capabilities.name, model.report.threads
        );
        Ok(Self {
            handle,
            thread: Some(thread),
            steps,
            ends: model.special.eos.clone(),
        })
    }

    /// An answer of exactly `max_tokens` tokens to a prompt of `length`.
    fn request(&self, seed: u64, length: usize, max_tokens: usize) -> Request {
        self.ask(&ids(seed, length), max_tokens)
    }

    fn ask(&self, prompt: &[u32], max_tokens: usize) -> Request {
        let mut request = generate(&context(prompt, 0), 1, max_tokens, 1);
        if let Work::Generate(work) = &mut request.work {
            work.sampling = SamplingParams {
                banned: self.ends.clone(),
                ..SamplingParams::greedy()
            };
        }
        request.epoch = self
            .handle
            .model()
            .map_or(request.epoch, |model| model.epoch);
        request
    }

    fn submit(&self, request: Request) -> Ticket {
        // A refusal here is a fault of the measurement.
        self.handle.submit(request).expect("the queue is empty")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.shutdown(Drain::Now, Box::new(|_| {}));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Time of each token of an answer from now on.
fn times(mut ticket: Ticket) -> Vec<Instant> {
    let mut times = Vec::new();
    while let Some(event) = ticket.next_blocking() {
        match event {
            Event::Part(part) => times.extend(part.tokens.iter().map(|_| Instant::now())),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    times
}

fn seconds(times: &[Duration], share: f64) -> f64 {
    let mut all: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    all.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A share of a length.
    let index = ((all.len() as f64 - 1.0) * share).round() as usize;
    all.get(index).copied().unwrap_or(f64::NAN)
}

struct Row {
    name: String,
    figure: f64,
    target: Option<(f64, bool)>,
}

/// At least or at most.
fn row(name: impl Into<String>, figure: f64, target: Option<(f64, bool)>) -> Row {
    Row {
        name: name.into(),
        figure,
        target,
    }
}

fn together(served: &Served, rows: &mut Vec<Row>) {
    // Once unmeasured, so that the weights are in memory.
    times(served.submit(served.request(99, 16, 8)));
    // In turn, for a shared machine is not as fast in one second as in the next.
    let mut rounds: Vec<(f64, f64)> = (0..5).map(|round| one_round(served, round)).collect();
    rounds.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    let (alone, together) = rounds[rounds.len() / 2];
    rows.push(row("8 clients one after the other, tokens/s", alone, None));
    rows.push(row("8 clients at once, tokens/s", together, None));
    rows.push(row(
        "at once, times as fast, median of five",
        together / alone,
        Some((4.0, true)),
    ));
}

/// Tokens a second of eight clients one after the other, and at once.
fn one_round(served: &Served, round: u64) -> (f64, f64) {
    const CLIENTS: u64 = 8;
    const TOKENS: usize = 64;
    let first = 1000 * (round + 1);
    let tokens = CLIENTS as f64 * TOKENS as f64;
    let start = Instant::now();
    for seed in first..first + CLIENTS {
        times(served.submit(served.request(seed, 16, TOKENS)));
    }
    let alone = tokens / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let tickets: Vec<Ticket> = (first + 100..first + 100 + CLIENTS)
        .map(|seed| served.submit(served.request(seed, 16, TOKENS)))
        .collect();
    let readers: Vec<_> = tickets
        .into_iter()
        .map(|t| thread::spawn(|| times(t)))
        .collect();
    for reader in readers {
        assert_eq!(reader.join().expect("a reader panicked").len(), TOKENS);
    }
    (alone, tokens / start.elapsed().as_secs_f64())
}

fn beside(served: &Served, rows: &mut Vec<Row>) {
    let mut running = served.submit(served.request(7, 16, 600));
    let mut at = Vec::new();
    let mut long: Option<JoinHandle<(Instant, Instant)>> = None;
    let mut span = None;
    // Calm at first, then the long prompt, until that is read.
    while let Some(event) = running.next_blocking() {
        if let Event::Part(part) = event {
            at.extend(part.tokens.iter().map(|_| Instant::now()));
        }
        if at.len() == 100 && long.is_none() {
            let ticket = served.submit(served.request(8, LONG, 1));
            let start = Instant::now();
            long = Some(thread::spawn(move || (start, times(ticket)[0])));
        }
        if long.as_ref().is_some_and(JoinHandle::is_finished) {
            span = long.take().and_then(|long| long.join().ok());
            running.cancel();
        }
    }
    let gaps: Vec<(Instant, Duration)> = at.windows(2).map(|w| (w[1], w[1] - w[0])).collect();
    let calm: Vec<Duration> = gaps.iter().skip(20).take(80).map(|(_, gap)| *gap).collect();
    let Some((start, end)) = span else {
        rows.push(row(
            "token to token beside a 512-token prompt",
            f64::NAN,
            Some((3.0, false)),
        ));
        return;
    };
    let busy: Vec<Duration> = (gaps.iter())
        .filter(|(at, _)| *at > start && *at <= end)
        .map(|(_, gap)| *gap)
        .collect();
    let median = seconds(&calm, 0.5);
    rows.push(row("token to token, calm median, ms", median * 1e3, None));
    rows.push(row(
        format!("beside a {LONG}-token prompt, median, times that"),
        seconds(&busy, 0.5) / median,
        Some((3.0, false)),
    ));
    rows.push(row(
        "its 90th percentile, times that",
        seconds(&busy, 0.9) / median,
        Some((3.0, false)),
    ));
    rows.push(row(
        "the prompt's time to first token then, ms",
        (end - start).as_secs_f64() * 1e3,
        None,
    ));
}

fn again(served: &Served, rows: &mut Vec<Row>) {
    let first_token = |prompt: &[u32]| {
        let start = Instant::now();
        let times = times(served.submit(served.ask(prompt, 2)));
        times[0] - start
    };
    let mut ratios = Vec::new();
    let mut firsts = Vec::new();
    for seed in 20..25 {
        let prompt = ids(seed, LONG);
        let first = first_token(&prompt);
        // The same beginning, another end.
        let second = first_token(&[&prompt[..], &ids(seed + 50, 8)[..]].concat());
        ratios.push(second.div_duration_f64(first));
        firsts.push(first);
    }
    ratios.sort_by(f64::total_cmp);
    rows.push(row(
        format!("{LONG}-token prompt, time to first token, ms"),
        seconds(&firsts, 0.5) * 1e3,
        None,
    ));
    rows.push(row(
        "the same prefix again, share of that",
        ratios[2],
        Some((0.15, false)),
    ));
}

fn cancel(served: &Served, rows: &mut Vec<Row>) {
    let mut worst = 0;
    for seed in 40..60 {
        let mut ticket = served.submit(served.request(seed, LONG, 200));
        // In the middle of reading, and of writing.
        if seed % 2 == 0 {
            while !matches!(ticket.next_blocking(), Some(Event::Part(_)) | None) {}
        } else {
            thread::sleep(Duration::from_millis(30));
        }
        let before = served.steps.count();
        ticket.cancel();
        while ticket.next_blocking().is_some() {}
        // Long enough for many steps, if there were any.
        thread::sleep(Duration::from_millis(100));
        worst = worst.max(served.steps.count() - before);
    }
    #[allow(clippy::cast_precision_loss)] // A few steps.
    rows.push(row(
        "steps begun after a cancel",
        worst as f64,
        Some((1.0, false)),
    ));
}

fn soak(folder: PathBuf, rows: &mut Vec<Row>) -> Result<(), Box<dyn std::error::Error>> {
    let served = Served::open(folder, Config::default())?;
    let mut machine = Machine::default();
    let mut kib = || {
        let process = machine.snapshot(Detail::Full).process.unwrap_or_default();
        process.footprint().0 as f64 / 1024.0
    };
    let start = Instant::now();
    let mut points = Vec::new();
    let mut done = 0_u64;
    while done < REQUESTS && start.elapsed() < SOAK {
        let tickets: Vec<Ticket> = (0..16)
            .map(|n| {
                let number = done + n;
                let length = 4 + usize::try_from(number % 60).unwrap_or(0);
                served.submit(served.request(number % 997, length, 4))
            })
            .collect();
        for (n, ticket) in (0_u64..).zip(tickets) {
            // Some are given up.
            match (done + n) % 7 {
                0 => drop(ticket),
                _ => drop(times(ticket)),
            }
        }
        done += 16;
        if done.is_multiple_of(320) {
            points.push((done as f64, kib()));
        }
    }
    let half = &points[points.len() / 2..];
    rows.push(row("soak: requests", done as f64, None));
    rows.push(row(
        "soak: RssAnon + VmSwap at the end, MiB",
        kib() / 1024.0,
        None,
    ));
    rows.push(row(
        "soak: growth in 10,000 requests, KiB",
        slope(half) * 10_000.0,
        Some((NOISE, false)),
    ));
    Ok(())
}

fn measure() -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|a| a == "--model");
    let folder = match given.and_then(|at| arguments.get(at + 1)) {
        Some(folder) => PathBuf::from(folder),
        None => model::causal()?,
    };
    let mut rows = Vec::new();
    {
        let served = Served::open(folder, Config::default())?;
        together(&served, &mut rows);
        beside(&served, &mut rows);
        again(&served, &mut rows);
        cancel(&served, &mut rows);
    }
    soak(model::tiny()?, &mut rows)?;
    Ok(rows)
}

fn main() -> ExitCode {
    // A process that was only started to try a library out.
    if let Some(code) = answer_probe() {
        return code;
    }
    let rows = match measure() {
        Ok(rows) => rows,
        Err(error) => {
            println!("{error}");
            println!("0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for row in rows {
        let verdict = row.target.map(|(bound, least)| {
            let good = if least {
                row.figure >= bound
            } else {
                row.figure <= bound
            };
            if good {
                passed += 1;
            } else {
                failed += 1;
            }
            let sign = if least { ">=" } else { "<=" };
            format!("{sign} {bound} {}", if good { "ok" } else { "!" })
        });
        println!(
            "{:<52} {:>10.2}  {}",
            row.name,
            row.figure,
            verdict.unwrap_or_default()
        );
    }
    println!("{passed} passed, {failed} failed");
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
