//! Connections that break, sessions that are forgotten or taken over, daemons that die or end.

use std::time::Duration;

use glmd::mqtt::Mqtt;
use serde_json::json;

use super::broker::{Accept, Broker, Packet, Publish};
use super::node::{Echo, Node};
use super::{RESUMED, again, asking, folder};

#[tokio::test]
async fn a_broker_that_dies_after_connack_is_tried_again() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.accept().await;
    line.accept(Accept::default()).await;
    drop(line);
    // The first wait is at least three quarters of a second: no busy loop.
    assert!(broker.stays_alone(Duration::from_millis(500)).await);
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(1, "a")).await;
    assert_eq!(line.answer().await.json()["data"]["text"], "A");
}

#[tokio::test]
async fn a_lost_acknowledgement_brings_the_same_bytes_and_no_second_computation() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let request = asking(1, "a");
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&request).await;
    let first = line.answer().await;
    drop(line);
    let mut line = broker.serve(RESUMED).await;
    line.publish(&again(&request)).await;
    let second = line.answer().await;
    assert_eq!(second.payload, first.payload);
    line.acknowledge(second.id).await;
    line.acknowledged(1).await;
    assert_eq!(echo.asked(), 1);
}

#[tokio::test]
async fn after_kill_9_the_answer_comes_from_the_journal() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let request = asking(1, "a");
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&request).await;
    let first = line.answer().await;
    node.kill().await;
    drop(line);
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let mut line = broker.serve(RESUMED).await;
    line.publish(&again(&request)).await;
    let second = line.answer().await;
    assert_eq!(second.payload, first.payload);
    line.acknowledge(second.id).await;
    line.acknowledged(1).await;
    assert_eq!(echo.asked(), 1);
}

#[tokio::test]
async fn a_broker_that_forgot_the_session_still_gets_the_answer() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(1, "slow")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(line);
    let mut line = broker.serve(Accept::default()).await;
    let answer = line.answer().await;
    assert_eq!(answer.json()["data"]["text"], "SLOW");
}

#[tokio::test]
async fn a_refused_subscription_is_not_hammered() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.accept().await;
    line.accept(Accept::default()).await;
    line.grant(0x87).await;
    // It hangs up rather than looking ready, and does not come back at once.
    loop {
        match line.next().await {
            None => break,
            Some(Packet::Publish(publish)) => assert_ne!(publish.payload, b"online"),
            Some(_) => {}
        }
    }
    assert!(broker.stays_alone(Duration::from_secs(3)).await);
}

#[tokio::test]
async fn a_session_that_was_taken_over_ends_with_a_word() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.dismiss(0x8e).await;
    let told = node.ended().await.expect_err("a fatal end").to_string();
    assert!(told.contains("mqtt.client_id"), "{told}");
}

#[tokio::test]
async fn what_a_node_that_ends_has_not_answered_stays_with_the_broker() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let requests = [asking(1, "slow"), asking(2, "late"), asking(3, "later")].map(|r| Publish {
        response_topic: Some("glmd/clients/1".to_owned()),
        ..r
    });
    let change = |c: &mut Mqtt| c.per_client = 2;
    let node = Node::start(broker.address(), folder.path(), echo.clone(), change);
    let mut line = broker.serve(Accept::default()).await;
    // The first is begun, the engine refuses the second since it ends, and the third waits for its turn.
    line.publish(&requests[0]).await;
    while echo.asked() == 0 {
        tokio::task::yield_now().await;
    }
    echo.end();
    line.publish(&requests[1]).await;
    line.publish(&requests[2]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.stop();
    let (mut answered, mut acknowledged) = (Vec::new(), Vec::new());
    while let Some(packet) = line.next().await {
        match packet {
            Packet::Publish(publish) => {
                if publish.qos > 0 {
                    line.acknowledge(publish.id).await;
                }
                if publish.topic == "glmd/clients/1" {
                    answered.push(publish.json()["data"]["text"].clone());
                }
            }
            Packet::PubAck(id) => acknowledged.push(id),
            Packet::Disconnect => break,
            _ => {}
        }
    }
    node.ended().await.expect("a good end");
    assert_eq!((answered, acknowledged), (vec![json!("SLOW")], vec![1]));
    let _node = Node::start(broker.address(), folder.path(), Echo::default(), change);
    let mut line = broker.serve(RESUMED).await;
    for (request, text) in requests[1..].iter().zip(["LATE", "LATER"]) {
        line.publish(&again(request)).await;
        let answer = line.answer().await;
        assert_eq!(answer.json()["data"]["text"], text);
        line.acknowledge(answer.id).await;
    }
}

#[tokio::test]
async fn answers_survive_any_number_of_deaths() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let requests: Vec<Publish> = (1..=20)
        .map(|id| asking(id, &format!("text {id}")))
        .collect();
    let mut answers: Vec<Option<Vec<u8>>> = vec![None; requests.len()];
    let mut open: Vec<usize> = (0..requests.len()).collect();
    let mut round = 0;
    while !open.is_empty() {
        let node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
        let mut line = broker.serve(RESUMED).await;
        for index in &open {
            let request = &requests[*index];
            let sent = if round == 0 {
                request.clone()
            } else {
                again(request)
            };
            line.publish(&sent).await;
        }
        // Each life takes a few answers to the broker and dies.
        let mut taken = 0;
        while taken < 4 && !open.is_empty() {
            match line.packet().await {
                Packet::Publish(publish) if publish.topic.starts_with("glmd/clients/") => {
                    let id: usize = publish.topic[13..].parse().expect("a number");
                    let known = answers[id - 1].get_or_insert_with(|| publish.payload.clone());
                    assert_eq!(*known, publish.payload, "two answers to {id}");
                    line.acknowledge(publish.id).await;
                }
                Packet::Publish(publish) if publish.qos > 0 => {
                    line.acknowledge(publish.id).await;
                }
                Packet::PubAck(id) => {
                    open.retain(|index| *index != usize::from(id) - 1);
                    taken += 1;
                }
                _ => {}
            }
        }
        node.kill().await;
        round += 1;
        assert!(round < 30, "no progress");
    }
    assert!(answers.iter().all(Option::is_some));
}
