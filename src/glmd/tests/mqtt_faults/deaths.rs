//! One node whose broker, link and process die again and again.
//!
//! Clients publish prompts at QoS 1 while mosquitto is restarted, glmd is
//! killed with `kill -9`, and the link between them is cut, in turn. In the end
//! every prompt that the broker took has an answer, and no prompt two different
//! ones.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Plan;
use super::client::{Client, Setup, Tally, until_online};
use super::link::Cut;
use super::mosquitto::Mosquitto;
use super::servers::Glmd;

/// Requests and answers of a node that the broker may not have acknowledged when a fault comes: its Receive Maximum
/// as glmd announces it, and the publishes that glmd has under way.
const OPEN_AT_A_FAULT: usize = 32 + 16;
/// After the last fault, every prompt is answered within this.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs it; whether the promise held.
pub async fn run(plan: Plan, program: &Path) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let mut broker = Mosquitto::start(program, folder.path()).await;
    let cut = Cut::start(broker.port()).await;
    let mut glmd = Glmd::start(folder.path(), cut.port(), "n1", "").await;
    until_online(broker.port(), "n1").await;
    let began = Instant::now();
    let tally = Tally::default();
    let setup = Setup {
        port: broker.port(),
        topic: "glmd/n1/request/infill",
        repeat_after: None,
        tally: tally.clone(),
    };
    let each = plan.prompts.div_ceil(plan.clients);
    let clients: Vec<_> = (0..plan.clients)
        .map(|n| tokio::spawn(Client::new(n, setup.clone()).run(each)))
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
                glmd = Glmd::start(folder.path(), cut.port(), "n1", "").await;
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
    println!(
        "two different answers                {}",
        seen.differing + seen.impatient
    );
    println!("answered with an error               {}", seen.errors);
    println!(
        "time                                 {:.1?}",
        began.elapsed()
    );
    glmd.stop().await;
    let repeated_for_a_reason = before == 0 && seen.by_node <= faults * OPEN_AT_A_FAULT;
    complete
        && seen.answered == all
        && seen.differing + seen.impatient == 0
        && seen.errors == 0
        && repeated_for_a_reason
}
