//! The promise of MQTT with a real mosquitto and a real glmd that die again and again.
//!
//! `cargo test -p glmd --test mqtt_faults -- --prompts 2000 --rounds 5 --cut 30`
//!
//! Clients publish prompts at QoS 1 while mosquitto is restarted, glmd is
//! killed with `kill -9`, and the link between them is cut, in turn. In the end
//! every prompt that the broker took has an answer, and no prompt two different
//! ones. Without arguments a bounded form runs.
#![allow(clippy::tests_outside_test_module, reason = "a program of its own")]

mod client;
mod link;
mod servers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use client::{Client, Tally};
use link::Cut;
use servers::{Glmd, Mosquitto};

/// How much to do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    prompts: usize,
    clients: usize,
    rounds: usize,
    cut: Duration,
}

impl Plan {
    /// From the command line; anything else on it is for the test harness and means nothing here.
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let number = |name: &str, default: usize| {
            let place = arguments.iter().position(|a| a == name);
            place
                .and_then(|p| arguments.get(p + 1)?.parse().ok())
                .unwrap_or(default)
        };
        Self {
            prompts: number("--prompts", 60),
            clients: number("--clients", 6),
            rounds: number("--rounds", 1),
            cut: Duration::from_secs(number("--cut", 2) as u64),
        }
    }
}

/// Requests and answers of a node that the broker may not have acknowledged when a fault comes: its Receive Maximum
/// as glmd announces it, and the publishes that glmd has under way.
const OPEN_AT_A_FAULT: usize = 32 + 16;
/// After the last fault, every prompt is answered within this.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    if std::env::args().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let Some(program) = Mosquitto::find() else {
        println!("mosquitto is not installed: the fault test of MQTT is skipped.");
        return ExitCode::SUCCESS;
    };
    let plan = Plan::read();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a run-time");
    let passed = runtime.block_on(run(plan, &program));
    println!("{} passed, {} failed", u8::from(passed), u8::from(!passed));
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run(plan: Plan, program: &std::path::Path) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let mut broker = Mosquitto::start(program, folder.path()).await;
    let cut = Cut::start(broker.port()).await;
    let mut glmd = Glmd::start(folder.path(), cut.port()).await;
    client::until_online(broker.port()).await;
    let began = Instant::now();
    let tally = Tally::default();
    let each = plan.prompts.div_ceil(plan.clients);
    let clients: Vec<_> = (0..plan.clients)
        .map(|n| tokio::spawn(Client::new(n, broker.port(), tally.clone()).run(each)))
        .collect();
    let all = each * plan.clients;
    let faults = plan.rounds * 3;
    tally.wait_for_answers(all / (faults + 1), PATIENCE).await;
    let before = tally.report().repeated;
    for fault in 0..faults {
        // Spread over the work, so that each finds requests under way.
        let due = all * (fault + 1) / (faults + 1);
        tally
            .wait_for_answers(due.min(all / 2 + fault), PATIENCE)
            .await;
        match fault % 3 {
            0 => {
                glmd.kill().await;
                glmd = Glmd::start(folder.path(), cut.port()).await;
            }
            1 => {
                broker.restart().await;
            }
            _ => cut.off_for(plan.cut).await,
        }
    }
    let complete = tally.wait_for_answers(all, PATIENCE).await;
    for client in clients {
        client.abort();
    }
    let seen = tally.report();
    println!(
        "prompts                              {all} from {} clients",
        plan.clients
    );
    println!(
        "mosquitto restarted / glmd killed -9 {} / {}",
        plan.rounds, plan.rounds
    );
    println!(
        "link cut                             {} times for {:?}",
        plan.rounds, plan.cut
    );
    println!("answered                             {}", seen.answered);
    println!("repeated deliveries, same bytes      {}", seen.repeated);
    println!("  before the first fault             {before}");
    println!(
        "  published again by the node        {} of at most {}",
        seen.by_node,
        faults * OPEN_AT_A_FAULT
    );
    println!("two different answers                {}", seen.differing);
    println!("answered with an error               {}", seen.errors);
    println!(
        "time                                 {:.1?}",
        began.elapsed()
    );
    glmd.stop().await;
    let repeated_for_a_reason = before == 0 && seen.by_node <= faults * OPEN_AT_A_FAULT;
    complete
        && seen.answered == all
        && seen.differing == 0
        && seen.errors == 0
        && repeated_for_a_reason
}
