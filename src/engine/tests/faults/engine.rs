//! The engine under the limit, with 200 requests in flight all the time.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use glm::TokenId;
use glm::spec::Visibility;
use glm_engine::loading::{Loader, Options};
use glm_engine::memory::telemetry::{Detail, Machine, Telemetry};
use glm_engine::memory::{Governor, Settings};
use glm_engine::model::ModelSource;
use glm_engine::request::Work;
use glm_engine::units::{Bytes, Priority, SystemClock};
use glm_engine::{Config, Drain, Engine, EngineHandle, Event, Request};

use crate::group;
use crate::support::{context, dice, generate, ids};
use crate::touching;

/// Requests in flight.
const CLIENTS: u64 = 200;
/// Different requests; each is asked again and again, and its answer must stay the same.
const KINDS: u64 = 64;

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU64,
    finished: AtomicU64,
    /// Ended by an error.
    failed: AtomicU64,
    /// Accepted, and the answer ended without a last event.
    lost: AtomicU64,
    /// More came after the last event.
    doubled: AtomicU64,
    /// Another answer than the first time.
    wrong: AtomicU64,
    /// Told to come back later.
    refused: AtomicU64,
    answers: Mutex<HashMap<u64, Vec<TokenId>>>,
}

/// Milliseconds since 1970: the same for all three processes.
pub fn millis() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Prints a sample every 20 ms until standard input ends, and the tally then.
///
/// Arguments: the floor in bytes or `-`, the model directory or `-`, then the folders of the group.
pub fn run(arguments: &[String]) {
    let (floor, model) = (&arguments[0], &arguments[1]);
    group::join(&arguments[2..]);
    let source: Box<dyn ModelSource> = match model.as_str() {
        "-" => Box::new(touching::source()),
        folder => Box::new(real(folder.into())),
    };
    let (engine, handle) = Engine::new(Config::default(), source, Arc::new(SystemClock::default()));
    let settings = Settings {
        floor: floor.parse().ok().map(Bytes),
        ..Settings::default()
    };
    let governor = Governor::of_this_machine(settings, &handle);
    let thread = engine
        .governed_by(Box::new(governor))
        .spawn()
        .expect("a thread");
    while handle.model().is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    println!("ready");
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (handle, tally, stop) = (handle.clone(), Arc::clone(&tally), Arc::clone(&stop));
            let client = move || ask(client, &handle, &tally, &stop);
            thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(client)
                .expect("a thread")
        })
        .collect();
    let sampler = {
        let (handle, stop) = (handle.clone(), Arc::clone(&stop));
        thread::spawn(move || sample(&handle, &stop))
    };
    for _ in std::io::stdin().lock().lines() {}
    stop.store(true, Ordering::Relaxed);
    clients
        .into_iter()
        .for_each(|client| client.join().expect("a client panicked"));
    sampler.join().expect("the sampler panicked");
    handle.shutdown(Drain::For(Duration::from_secs(5)), Box::new(|_| {}));
    thread.join().expect("the engine panicked");
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "tally {} {} {} {} {} {} {}",
        count(&tally.accepted),
        count(&tally.finished),
        count(&tally.failed),
        count(&tally.lost),
        count(&tally.doubled),
        count(&tally.wrong),
        count(&tally.refused),
    );
}

/// The model of a directory, with the libonnxruntime that `ORT_DYLIB_PATH` names or the machine has.
fn real(folder: PathBuf) -> Loader {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let options = Options::of_process(library).expect("a running program has a name");
    Loader { folder, options }
}

fn sample(handle: &EngineHandle, stop: &AtomicBool) {
    let mut machine = Machine::default();
    while !stop.load(Ordering::Relaxed) {
        let status = handle.status();
        let process = machine.snapshot(Detail::Quick).process.unwrap_or_default();
        let report = status.report.clone().unwrap_or_default();
        println!(
            "sample {} {} {} {} {} {} {} {} {} {} {}",
            millis(),
            status.step_budget,
            status.level.name(),
            process.footprint().0,
            status.counters.sampled_tokens,
            status.queued_requests,
            status.counters.preemptions,
            report.cause.name(),
            report.watch,
            report.headroom,
            report.step,
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// One client: asks, waits for the answer, and asks again.
fn ask(client: u64, handle: &EngineHandle, tally: &Tally, stop: &AtomicBool) {
    let mut number = client;
    while !stop.load(Ordering::Relaxed) {
        let kind = dice(11, number) % KINDS;
        number += CLIENTS;
        let ticket = loop {
            match handle.submit(request(kind, handle)) {
                Ok(ticket) => break ticket,
                Err(error) => {
                    tally.refused.fetch_add(1, Ordering::Relaxed);
                    let wait = error.retry_after().unwrap_or_default();
                    thread::sleep(wait.min(Duration::from_millis(500)));
                }
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        };
        tally.accepted.fetch_add(1, Ordering::Relaxed);
        read(kind, ticket, tally);
    }
}

fn read(kind: u64, mut ticket: glm_engine::Ticket, tally: &Tally) {
    let mut tokens = Vec::new();
    let mut end = None;
    while let Some(event) = ticket.next_blocking() {
        if end.is_some() {
            tally.doubled.fetch_add(1, Ordering::Relaxed);
        }
        match event {
            Event::Part(part) => tokens.extend(part.tokens.iter().map(|token| token.id)),
            Event::Finished(_) => end = Some(Ok(())),
            Event::Failed(error) => end = Some(Err(error)),
            _ => {}
        }
    }
    match end {
        None => {
            tally.lost.fetch_add(1, Ordering::Relaxed);
        }
        Some(Err(_)) => {
            tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        Some(Ok(())) => {
            tally.finished.fetch_add(1, Ordering::Relaxed);
            let mut answers = tally.answers.lock().expect("a client panicked");
            if *answers.entry(kind).or_insert_with(|| tokens.clone()) != tokens {
                tally.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn request(kind: u64, handle: &EngineHandle) -> Request {
    let dice = dice(5, kind);
    let length = 8 + usize::try_from(dice % 160).unwrap_or(0);
    let max_tokens = 8 + usize::try_from((dice >> 8) % 56).unwrap_or(0);
    let model = handle.model();
    // Part A is read in both directions.
    let bidirectional = match model.as_ref().map(|model| model.spec.visibility()) {
        Some(Visibility::PrefixLm) => length,
        _ => 0,
    };
    let mut request = generate(
        &context(&ids(kind, length), bidirectional),
        1,
        max_tokens,
        kind,
    );
    if let Work::Generate(work) = &mut request.work {
        work.sampling.logprobs = None;
    }
    request.priority = match (dice >> 20) % 4 {
        0 => Priority::Low,
        1 => Priority::High,
        _ => Priority::Normal,
    };
    if let Some(model) = model {
        request.epoch = model.epoch;
    }
    request
}
