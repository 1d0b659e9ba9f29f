//! Memory of the engine over 20,000 requests of every kind: does it stay flat?
//!
//! Answers, scores, cancelled and superseded requests, failing steps and
//! preemptions on a model without weights. Samples RssAnon + VmSwap and fits a
//! line over the second half, when all caches are full. Prints a table and a
//! line `N passed, N failed`.

#[path = "serving/trend.rs"]
mod trend;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use glm_engine::Config;

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Rig, capabilities, context, generate, ids, score};

use trend::slope;

/// Requests of a run.
const REQUESTS: u64 = 20_000;
/// A sample every so many requests.
const EVERY: u64 = 500;
/// Growth over 10,000 requests that is noise of the allocator: a quarter of a mebibyte.
const NOISE: f64 = 256.0;

#[allow(clippy::cast_possible_truncation)] // Small numbers.
fn main() -> ExitCode {
    let mut rig = Rig::new(Config::default(), capabilities());
    rig.script.lock().unwrap().record = false;
    let start = Instant::now();
    let mut samples: Vec<(f64, f64)> = Vec::new();
    let mut ended = 0_u64;
    println!("{:>10} {:>16}", "requests", "RssAnon+Swap KiB");
    for number in 0..REQUESTS {
        let prompt = context(&ids(number % 37, 10 + number as usize % 90), 0);
        let request = match number % 5 {
            0 => score(&[(prompt, vec![vec![1], vec![2, 3, 4]])]),
            1 => generate(&context(&ids(number, 33), 32), 2, 12, number),
            _ => generate(&prompt, 1 + number as usize % 3, 12, number),
        };
        let mut request = request;
        request.coalesce_key = (number % 11 == 0).then(|| "key".into());
        match number % 7 {
            0 => drop(rig.submit(request)),
            3 => {
                let mut older = generate(&context(&ids(number, 9), 0), 1, 4, number);
                older.coalesce_key = Some("key".into());
                request.coalesce_key = Some("key".into());
                let older = rig.submit(older);
                rig.answer(request);
                drop(older);
            }
            1 => {
                let ticket = rig.submit(request);
                rig.turns(3);
                rig.allow(|now| now.preempt_one = true);
                rig.run();
                drop(ticket);
            }
            2 => {
                rig.script.lock().unwrap().fail_steps = 1;
                rig.answer(request);
            }
            _ => {
                rig.answer(request);
            }
        }
        rig.run();
        rig.clock.advance(Duration::from_millis(7));
        ended += 1;
        if ended.is_multiple_of(EVERY) {
            let kib = anonymous_kib();
            samples.push((ended as f64, kib));
            if ended.is_multiple_of(REQUESTS / 10) {
                println!("{ended:>10} {kib:>16.0}");
            }
        }
    }
    let half = &samples[samples.len() / 2..];
    let slope = slope(half) * 10_000.0;
    let status = rig.handle.status();
    let leaked = rig.script.lock().unwrap().sequences - status.cache.entries;
    let checks = [
        ("slope, KiB in 10,000 requests", slope, slope <= NOISE),
        ("sequences left in the backend", leaked as f64, leaked == 0),
    ];
    let mut failed = 0;
    for (name, value, good) in checks {
        println!("{name:<34} {value:>8.1} {}", if good { "ok" } else { "!" });
        failed += usize::from(!good);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", checks.len() - failed);
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// RssAnon + VmSwap of this process; what is swapped out is a leak too.
fn anonymous_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("RssAnon:") || line.starts_with("VmSwap:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum()
}
