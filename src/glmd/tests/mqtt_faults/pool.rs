//! Three nodes that share a queue, one of which dies under load and stays dead.
//!
//! mosquitto hands requests to the dead node until its session expires, and
//! forgets them then (the standard lets it: MQTT 5, section 4.8.2). So clients
//! of a pool publish a prompt again that is not answered in time, and the nodes
//! that live take it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{Client, Setup, Tally, until_online};
use super::mosquitto::Mosquitto;
use super::servers::Glmd;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The dead node's session lasts this long, and a client waits three times as long for an answer.
const EXPIRY: Duration = Duration::from_secs(5);
/// Everything is answered within this.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs it; whether no prompt was lost.
pub async fn run(prompts: usize, clients: usize, program: &Path) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Mosquitto::start(program, folder.path()).await;
    let more = format!("pool = \"house\"\nsession_expiry_s = {}", EXPIRY.as_secs());
    let mut nodes = Vec::new();
    for node in NODES {
        nodes.push(Glmd::start(folder.path(), broker.port(), node, &more).await);
        until_online(broker.port(), node).await;
    }
    let tally = Tally::default();
    let setup = Setup {
        port: broker.port(),
        topic: "glmd/pool/house/request/infill",
        repeat_after: Some(3 * EXPIRY),
        tally: tally.clone(),
    };
    let each = prompts.div_ceil(clients);
    let all = each * clients;
    let began = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|n| tokio::spawn(Client::new(n, setup.clone()).run(each)))
        .collect();
    tally.wait_for_answers(all / 3, PATIENCE).await;
    nodes.swap_remove(1).kill().await;
    let complete = tally.wait_for_answers(all, PATIENCE).await;
    for client in clients {
        client.abort();
    }
    let seen = tally.report();
    println!("pool of {}, one killed: prompts      {all}", NODES.len());
    println!("answered                             {}", seen.answered);
    println!("published again by their client      {}", seen.asked_again);
    println!("two different answers, asked once    {}", seen.differing);
    println!("two different answers, asked again   {}", seen.impatient);
    println!("answered with an error               {}", seen.errors);
    println!(
        "time                                 {:.1?}",
        began.elapsed()
    );
    for node in nodes {
        node.stop().await;
    }
    complete && seen.answered == all && seen.differing == 0 && seen.errors == 0
}
