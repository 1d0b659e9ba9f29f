//! The promise of MQTT where everything fails.
//!
//! `cargo test -p glmd --test mqtt_faults -- --prompts 2000 --rounds 5 --cut 30`
//!
//! | part | what it is |
//! |---|---|
//! | `deaths` | broker, link and daemon die again and again |
//! | `ends` | the daemon is told to end, again and again |
//! | `pool` | three nodes share a queue, one dies, for good or not |
//! | `nonsense` | messages that nobody should send |
//! | `week` | a week of lost connections, in wound-up time |
//!
//! `--only PART` runs one. Without arguments a bounded form of all runs; parts
//! that need mosquitto are skipped where it is not installed.
#![allow(clippy::tests_outside_test_module, reason = "a program of its own")]

#[allow(dead_code, reason = "this program needs less of it than its own tests")]
#[path = "../mqtt/broker.rs"]
mod broker;
mod client;
mod deaths;
mod ends;
mod link;
#[path = "../mqtt/mosquitto.rs"]
mod mosquitto;
#[allow(dead_code, reason = "this program needs less of it than its own tests")]
#[path = "../mqtt/node.rs"]
mod node;
mod nonsense;
mod pool;
mod servers;
mod week;

use std::process::ExitCode;
use std::time::Duration;

use mosquitto::Mosquitto;

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    prompts: usize,
    clients: usize,
    rounds: usize,
    cut: Duration,
    messages: usize,
    hours: usize,
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|a| a == name)?;
    arguments.next()
}

impl Plan {
    /// From the command line; anything else on it is for the test harness and means nothing here.
    fn read() -> Self {
        let number = |name: &str, default: usize| {
            argument(name)
                .and_then(|a| a.parse().ok())
                .unwrap_or(default)
        };
        Self {
            prompts: number("--prompts", 60),
            clients: number("--clients", 6),
            rounds: number("--rounds", 1),
            cut: Duration::from_secs(number("--cut", 2) as u64),
            messages: number("--messages", 20_000),
            hours: number("--hours", 2),
        }
    }
}

fn main() -> ExitCode {
    if std::env::args().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let (plan, only) = (Plan::read(), argument("--only"));
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let (mut passed, mut failed) = (0, 0);
    let mut count = |good: bool| if good { passed += 1 } else { failed += 1 };
    if wanted("nonsense") {
        count(nonsense::run(plan.messages));
    }
    if wanted("week") {
        count(week::run(plan.hours));
    }
    if let Some(program) = Mosquitto::find() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a run-time");
        if wanted("deaths") {
            count(runtime.block_on(deaths::run(plan, &program)));
        }
        if wanted("ends") {
            count(runtime.block_on(ends::run(plan, &program)));
        }
        if wanted("pool") {
            for fate in [pool::Fate::Dead, pool::Fate::Replaced] {
                let run = pool::run(plan.prompts, plan.clients, fate, &program);
                count(runtime.block_on(run));
            }
        }
    } else {
        println!("mosquitto is not installed: the fault tests with a real broker are skipped.");
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
