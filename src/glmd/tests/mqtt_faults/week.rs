//! A week on a bad network, in wound-up time: 24 connections an hour, each of
//! which does its work and breaks. Nothing may grow: no task, no subscription,
//! no memory.
//!
//! The clock stands while the node works and is wound by hand while it waits:
//! a clock that runs on by itself, as soon as nothing is ready, would outrun
//! the kernel and the thread that writes the journal.

use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::spawn_blocking;
use tokio::time::advance;

use super::broker::{Accept, Broker, Line, Packet, Publish};
use super::node::{Echo, Node};

const CONNECTIONS_AN_HOUR: usize = 24;
/// A connection lasts this long and the next one is there within seconds.
const LASTS: Duration = Duration::from_secs(148);
/// The clock is wound in steps of this, each of which leaves the kernel a moment to deliver what was sent.
const STEP: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_micros(50);
/// Growth that is noise of the allocator: 4,032 leaked connections of 1 KiB would show.
const GROWTH: u64 = 2 << 20;

/// Lives through it; whether nothing grew.
pub fn run(hours: usize) -> bool {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a run-time");
    // While something blocks, the clock does not run on by itself.
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || held.recv());
    let good = runtime.block_on(live(hours));
    drop(release);
    good
}

/// Winds the clock.
async fn wind(time: Duration) {
    let mut wound = Duration::ZERO;
    while wound < time {
        advance(STEP).await;
        let moment = spawn_blocking(|| std::thread::sleep(MOMENT));
        moment.await.expect("no panic");
        wound += STEP;
    }
}

async fn live(hours: usize) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start().await;
    let node = Node::start(broker.address(), folder.path(), Echo::default(), |c| {
        // The memory of answers is full soon, and grows no more.
        c.journal_bytes = 65_536;
    });
    let connections = hours * CONNECTIONS_AN_HOUR;
    let began = tokio::time::Instant::now();
    let (mut tasks, mut filters, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..connections {
        let mut line = tokio::select! {
            line = broker.accept() => line,
            () = wind(Duration::from_secs(3600)) => panic!("the node does not come back"),
        };
        let accept = Accept {
            session_present: n > 0,
            ..Accept::default()
        };
        line.accept(accept).await;
        filters.push(line.grant(0).await.len());
        work(&mut line, n).await;
        tasks.push(Handle::current().metrics().num_alive_tasks());
        memory.push(glmd::process::memory().anonymous);
        // Pings are answered, and what the node says of itself is acknowledged, until the network fails.
        tokio::select! {
            () = idle(&mut line) => {}
            () = wind(LASTS) => {}
        }
    }
    let simulated = began.elapsed();
    node.kill().await;
    let same = |counts: &[usize]| counts.iter().all(|count| *count == counts[0]);
    let settled = memory[connections / 2];
    let grown = memory[connections - 1].saturating_sub(settled);
    println!(
        "reconnections                        {connections} in {:.1} simulated hours",
        simulated.as_secs_f64() / 3600.0
    );
    println!(
        "tasks / subscriptions, first to last {} to {} / {} to {}",
        tasks[0],
        tasks[connections - 1],
        filters[0],
        filters[connections - 1]
    );
    println!("memory grown in the second half by   {} KiB", grown >> 10);
    same(&tasks) && same(&filters) && grown < GROWTH
}

async fn work(line: &mut Line, n: usize) {
    let id = u16::try_from(n % 60_000 + 1).expect("small");
    line.publish(&Publish {
        id,
        qos: 1,
        topic: "glmd/n1/request/infill".to_owned(),
        payload: format!(r#"{{"text":"connection {n}"}}"#).into_bytes(),
        response_topic: Some("glmd/clients/1".to_owned()),
        correlation: Some(n.to_be_bytes().to_vec()),
        ..Publish::default()
    })
    .await;
    let answer = line.answer().await;
    assert_eq!(answer.json()["status"], "ok");
    line.acknowledge(answer.id).await;
    line.acknowledged(id).await;
}

async fn idle(line: &mut Line) {
    while let Some(packet) = line.next().await {
        match packet {
            Packet::Ping => line.pong().await,
            Packet::Publish(publish) if publish.qos > 0 => line.acknowledge(publish.id).await,
            _ => {}
        }
    }
}
