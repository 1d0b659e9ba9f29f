//! What the daemon adds to a request: socket in, socket out, no model time.
//!
//! Clients send at a fixed rate whatever the answers do, so that a slow answer
//! is measured by those that wait behind it too. `tokenize` does not reach the
//! engine; `infill` does, with a model that answers at once.
#![allow(missing_docs, clippy::print_stdout)]

#[path = "../tests/daemon/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::{Rig, post};

/// Requests a second.
const RATE: u32 = 1000;
/// Connections, each with its share of the rate.
const CLIENTS: u32 = 10;
/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(5);

fn main() {
    // `cargo test --benches` only wants to know whether it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rig = Rig::usual();
    println!(
        "{RATE} requests/s on {CLIENTS} connections, {} s each; microseconds",
        TIME.as_secs()
    );
    println!(
        "{:<10} {:>8} {:>8} {:>8} {:>8}",
        "", "p50", "p90", "p99", "max"
    );
    measure(
        &rig,
        "health",
        "GET /health/live HTTP/1.1\r\n\r\n".to_owned(),
    );
    measure(
        &rig,
        "tokenize",
        post("/v1/tokenize", r#"{"text":"the lamp in the kitchen"}"#),
    );
    let infill = r#"{"text":"the lamp in the [MASK]","max_tokens":1}"#;
    measure(&rig, "infill", post("/v1/infill", infill));
    let memory = glmd::process::memory();
    println!(
        "anonymous memory of this process, clients included: {} KiB",
        memory.anonymous >> 10
    );
}

fn measure(rig: &Rig, name: &str, request: String) {
    let interval = Duration::from_secs(1) * CLIENTS / RATE;
    let start = Instant::now() + Duration::from_millis(50);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut wire = rig.connect();
            let request = request.clone();
            let first = start + interval * client / CLIENTS;
            std::thread::spawn(move || {
                let mut times = Vec::new();
                let mut due = first;
                while due < start + TIME {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    wire.send(&request);
                    let response = wire.response();
                    assert_eq!(response.status, 200, "{:?}", response.body);
                    times.push(due.elapsed());
                    due += interval;
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = clients
        .into_iter()
        .flat_map(|client| client.join().expect("no panic"))
        .collect();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    println!(
        "{name:<10} {:>8} {:>8} {:>8} {:>8}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
}
