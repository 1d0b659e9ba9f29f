//! One node that is told to end (SIGTERM) while requests wait, and starts again.
//!
//! What has begun is answered before it ends. What waits is not refused: it
//! stays with the broker, and the next life answers it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Plan;
use super::client::{Client, Setup, Tally, until_online};
use super::mosquitto::Mosquitto;
use super::servers::Glmd;

/// Everything is answered within this.
const PATIENCE: Duration = Duration::from_secs(180);
/// So few are worked on at a time that the others wait.
const NARROW: &str = "in_flight = 8\nper_client = 1";

/// Runs it; whether nothing was lost, refused or answered twice.
pub async fn run(plan: Plan, program: &Path) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Mosquitto::start(program, folder.path()).await;
    let mut glmd = Glmd::start(folder.path(), broker.port(), "n1", NARROW).await;
    until_online(broker.port(), "n1").await;
    let began = Instant::now();
    let tally = Tally::default();
    let setup = Setup {
        port: broker.port(),
        topic: "glmd/n1/request/infill",
        repeat_after: None,
        tally: tally.clone(),
    };
    let each = plan.prompts.div_ceil(plan.clients * plan.rounds);
    let mut clients = Vec::new();
    let (mut all, mut left) = (0, Vec::new());
    for round in 0..plan.rounds {
        // It stands still until all have asked: however fast it is, it ends with most of them waiting.
        glmd.pause();
        clients.extend((0..plan.clients).map(|n| {
            let number = round * plan.clients + n;
            tokio::spawn(Client::new(number, setup.clone()).run(each))
        }));
        let answered = all;
        all += each * plan.clients;
        let asked = tally.wait_until_taken(all, PATIENCE).await;
        assert!(asked, "the broker does not take all prompts");
        glmd.resume();
        tally.wait_for_answers(answered + 1, PATIENCE).await;
        glmd.stop().await;
        // The broker may still hand answers to clients; what glmd has not answered, it cannot any more.
        tokio::time::sleep(Duration::from_millis(500)).await;
        left.push(all - tally.report().answered);
        glmd = Glmd::start(folder.path(), broker.port(), "n1", NARROW).await;
        tally.wait_for_answers(all, PATIENCE).await;
    }
    for client in clients {
        client.abort();
    }
    let seen = tally.report();
    println!("told to end under load: prompts      {all}");
    println!("answered                             {}", seen.answered);
    println!("not answered when glmd had ended     {left:?}");
    println!("repeated deliveries                  {}", seen.repeated);
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
    seen.answered == all
        && seen.differing + seen.impatient == 0
        && seen.errors == 0
        && left.iter().all(|open| *open > 0)
}
