//! Three nodes that share a queue, one of which dies under load.
//!
//! mosquitto hands requests to the dead node until its session expires, and
//! forgets them then (the standard lets it: MQTT 5, section 4.8.2). If it stays
//! dead, clients publish a prompt again that is not answered in time, and the
//! nodes that live take it. If a node of its name comes, it gets them all.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{Client, Setup, Tally, until_online};
use super::mosquitto::Mosquitto;
use super::servers::Glmd;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The session of a node that stays dead lasts this long, and a client waits three times as long for an answer.
const EXPIRY: Duration = Duration::from_secs(5);
/// The session of a node that is replaced lasts longer than that takes.
const LONG: Duration = Duration::from_secs(3600);
/// How long there is no node of its name.
const AWAY: Duration = Duration::from_secs(2);
/// Everything is answered within this.
const PATIENCE: Duration = Duration::from_secs(180);

/// What becomes of the node that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays dead.
    Dead,
    /// A node with its name and its journal starts in its place.
    Replaced,
}

/// Runs it; whether no prompt was lost.
pub async fn run(prompts: usize, clients: usize, fate: Fate, program: &Path) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Mosquitto::start(program, folder.path()).await;
    let expiry = match fate {
        Fate::Dead => EXPIRY,
        Fate::Replaced => LONG,
    };
    let more = format!("pool = \"house\"\nsession_expiry_s = {}", expiry.as_secs());
    let mut nodes = Vec::new();
    for node in NODES {
        nodes.push(Glmd::start(folder.path(), broker.port(), node, &more).await);
        until_online(broker.port(), node).await;
    }
    let tally = Tally::default();
    let setup = Setup {
        port: broker.port(),
        topic: "glmd/pool/house/request/infill",
        repeat_after: (fate == Fate::Dead).then_some(3 * EXPIRY),
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
    if fate == Fate::Replaced {
        tokio::time::sleep(AWAY).await;
        nodes.push(Glmd::start(folder.path(), broker.port(), NODES[1], &more).await);
    }
    let complete = tally.wait_for_answers(all, PATIENCE).await;
    for client in clients {
        client.abort();
    }
    let seen = tally.report();
    println!("pool of {}, one killed, {fate:?}", NODES.len());
    println!("prompts                              {all}");
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
    let asked_once = fate == Fate::Dead || seen.asked_again == 0;
    complete && asked_once && seen.answered == all && seen.differing == 0 && seen.errors == 0
}
