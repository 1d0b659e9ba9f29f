//! The promise of MQTT against a broker that misbehaves on purpose: every
//! request is answered, never with two different answers, and the link heals.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

mod bridge;
mod broker;
#[allow(dead_code, reason = "the fault tests need more of it")]
mod mosquitto;
mod node;
mod tls;

use std::time::Duration;

use broker::{Accept, Broker, Packet, Publish};
use glmd::mqtt::Mqtt;
use glmd::operations::Operation;
use node::{Echo, Node};
use serde_json::json;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

const RESUMED: Accept = Accept {
    session_present: true,
    receive_maximum: None,
    packet_bytes: None,
};

/// A request with its packet id as correlation data.
fn asking(id: u16, text: &str) -> Publish {
    Publish {
        id,
        qos: 1,
        topic: "glmd/n1/request/infill".to_owned(),
        payload: json!({ "text": text }).to_string().into_bytes(),
        response_topic: Some(format!("glmd/clients/{id}")),
        correlation: Some(vec![u8::try_from(id).expect("small")]),
        ..Publish::default()
    }
}

fn again(request: &Publish) -> Publish {
    Publish {
        dup: true,
        ..request.clone()
    }
}

#[tokio::test]
async fn a_request_is_acknowledged_when_the_broker_has_its_answer() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(7, "hello")).await;
    let answer = line.answer().await;
    assert_eq!(answer.topic, "glmd/clients/7");
    assert_eq!(answer.correlation, Some(vec![7]));
    assert_eq!(answer.qos, 1);
    let body = answer.json();
    assert_eq!(
        (&body["status"], &body["data"]["text"]),
        (&json!("ok"), &json!("HELLO"))
    );
    // Not before: the next packets are still about other things.
    line.publish(&Publish {
        qos: 0,
        ..asking(8, "bye")
    })
    .await;
    let other = line.answer().await;
    assert_eq!(other.topic, "glmd/clients/8");
    line.acknowledge(answer.id).await;
    line.acknowledge(other.id).await;
    line.acknowledged(7).await;
}

#[tokio::test]
async fn the_node_says_that_it_is_there_and_that_it_leaves() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.accept().await;
    line.accept(Accept::default()).await;
    let filters = line.grant(1).await;
    assert!(filters.contains(&"glmd/n1/request/classify".to_owned()));
    let mut said = Vec::new();
    while said.last() != Some(&("glmd/n1/state".to_owned(), b"online".to_vec())) {
        if let Packet::Publish(publish) = line.packet().await {
            assert!(publish.retain || publish.topic.ends_with("stats"));
            if publish.qos > 0 {
                line.acknowledge(publish.id).await;
            }
            said.push((publish.topic, publish.payload));
        }
    }
    assert!(said.iter().any(|(topic, _)| topic == "glmd/n1/info"));
    node.stop();
    let mut left = false;
    while let Some(packet) = line.next().await {
        match packet {
            Packet::Publish(publish) if publish.payload == b"offline" => {
                line.acknowledge(publish.id).await;
                left = true;
            }
            Packet::Disconnect => break,
            _ => {}
        }
    }
    assert!(left);
    node.ended().await.expect("a good end");
}

#[tokio::test]
async fn refusals_are_told_as_they_happen() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let mut line = broker.accept().await;
    line.accept(Accept::default()).await;
    line.grant(1).await;
    // It has looked once when its figures come.
    let event = loop {
        let Packet::Publish(publish) = line.packet().await else {
            continue;
        };
        match publish.topic.as_str() {
            "glmd/n1/stats" => echo.refuse(2),
            "glmd/n1/event" => break publish,
            _ if publish.qos > 0 => line.acknowledge(publish.id).await,
            _ => {}
        }
    };
    assert_eq!((event.qos, event.retain), (1, false));
    let told = json!({"type": "refused", "count": 2, "level": "green"});
    assert_eq!(event.json(), told);
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
async fn a_broker_that_takes_one_message_at_a_time_gets_one_at_a_time() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let accept = Accept {
        receive_maximum: Some(1),
        ..Accept::default()
    };
    let mut line = broker.serve(accept).await;
    for id in 1..=5 {
        line.publish(&asking(id, "a")).await;
    }
    let mut open: Option<u16> = None;
    let mut answers = 0;
    while answers < 5 {
        let packet = line.packet().await;
        if let Packet::Publish(publish) = packet
            && publish.qos > 0
        {
            assert_eq!(open, None, "a second one before the first was acknowledged");
            answers += usize::from(publish.topic.starts_with("glmd/clients/"));
            // Gives a second one time to come, if it would.
            tokio::time::sleep(Duration::from_millis(20)).await;
            open = Some(publish.id);
        }
        if let Some(id) = open.take() {
            line.acknowledge(id).await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_the_broker_would_not_take_becomes_an_error() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let accept = Accept {
        packet_bytes: Some(2000),
        ..Accept::default()
    };
    let mut line = broker.serve(accept).await;
    line.publish(&asking(1, "long")).await;
    let answer = line.answer().await;
    assert_eq!(answer.json()["error"]["code"], "answer_too_large");
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
async fn an_engine_without_room_is_asked_again() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::busy(3));
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(1, "a")).await;
    assert_eq!(line.answer().await.json()["data"]["text"], "A");
}

#[tokio::test]
async fn a_panic_is_an_answer_too() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(1, "panic")).await;
    assert_eq!(line.answer().await.json()["error"]["code"], "internal");
}

#[tokio::test]
async fn cancel_ends_the_computation_and_answers_both() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let mut line = broker.serve(Accept::default()).await;
    let request = asking(1, "forever");
    line.publish(&request).await;
    while echo.asked() == 0 {
        tokio::task::yield_now().await;
    }
    let cancel = Publish {
        id: 2,
        topic: "glmd/n1/request/cancel".to_owned(),
        payload: b"{}".to_vec(),
        ..request
    };
    line.publish(&cancel).await;
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let answer = line.answer().await;
        line.acknowledge(answer.id).await;
        bodies.push(answer.json());
    }
    assert!(
        bodies.iter().any(|b| b["data"]["cancelled"] == true),
        "{bodies:?}"
    );
    assert!(
        bodies.iter().any(|b| b["error"]["code"] == "cancelled"),
        "{bodies:?}"
    );
    assert_eq!(echo.cancelled(), ["forever"]);
}

#[tokio::test]
async fn a_daemon_that_allows_it_is_operated() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |c| {
        c.admin = true
    });
    let mut line = broker.serve(Accept::default()).await;
    let press = |id, payload: &str| Publish {
        topic: "glmd/n1/admin/reload".to_owned(),
        payload: payload.as_bytes().to_vec(),
        ..asking(id, "")
    };
    line.publish(&press(1, "{}")).await;
    let answer = line.answer().await;
    assert_eq!(answer.json()["data"]["status"], "reload");
    line.acknowledge(answer.id).await;
    line.acknowledged(1).await;
    line.publish(&press(2, r#"{"model": "other"}"#)).await;
    let answer = line.answer().await;
    assert_eq!(answer.json()["error"]["param"], "model");
    // A button that was pressed long ago is not pressed again.
    line.acknowledge(answer.id).await;
    line.publish(&Publish {
        retain: true,
        ..press(3, "{}")
    })
    .await;
    line.acknowledged(2).await;
    line.acknowledged(3).await;
    assert_eq!(echo.operated(), [Operation::Reload]);
}

#[tokio::test]
async fn a_daemon_that_does_not_allow_it_is_not_operated() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |_| {});
    let mut line = broker.accept().await;
    line.accept(Accept::default()).await;
    let filters = line.grant(1).await;
    assert!(filters.iter().all(|f| !f.contains("admin")), "{filters:?}");
    line.publish(&Publish {
        topic: "glmd/n1/admin/unload".to_owned(),
        payload: b"{}".to_vec(),
        ..asking(1, "")
    })
    .await;
    line.acknowledged(1).await;
    assert_eq!(echo.operated(), []);
}

#[tokio::test]
async fn a_stream_comes_in_numbered_pieces_and_ends_with_the_whole() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    let payload = json!({"text": "one two three", "stream": true});
    line.publish(&Publish {
        payload: payload.to_string().into_bytes(),
        ..asking(1, "")
    })
    .await;
    let (mut pieces, mut seqs) = (Vec::new(), Vec::new());
    loop {
        let answer = line.answer().await;
        let user = |name: &str| {
            let found = answer.user.iter().find(|(key, _)| key == name);
            found.expect("a user property").1.clone()
        };
        seqs.push(user("seq"));
        if user("final") == "true" {
            assert_eq!(answer.json()["data"]["text"], "ONE TWO THREE");
            break;
        }
        for piece in answer.json()["data"].as_array().expect("pieces") {
            pieces.push(piece["delta"].as_str().expect("text").to_owned());
        }
    }
    assert_eq!(pieces, ["one", "two", "three"]);
    let expected: Vec<String> = (0..seqs.len()).map(|n| n.to_string()).collect();
    assert_eq!(seqs, expected);
}

#[tokio::test]
async fn a_chatty_client_does_not_delay_a_quiet_one() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |c| c.per_client = 2);
    let mut line = broker.serve(Accept::default()).await;
    for id in 1..=10 {
        let chatty = Publish {
            response_topic: Some("glmd/clients/chatty".to_owned()),
            ..asking(id, "slow")
        };
        line.publish(&chatty).await;
    }
    line.publish(&asking(11, "quick")).await;
    let first = line.answer().await;
    assert_eq!(first.topic, "glmd/clients/11");
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

#[tokio::test]
async fn what_a_broker_hands_over_beyond_the_room_waits_with_it() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo.clone(), |c| {
        (c.in_flight, c.packet_bytes) = (1, 8192);
    });
    let requests: Vec<Publish> = (1..=24)
        .map(|id| asking(id, &format!("text {id}")))
        .collect();
    let mut open = requests.clone();
    let mut answered = Vec::new();
    let mut connections = 0;
    while !open.is_empty() {
        let mut line = broker.serve(RESUMED).await;
        connections += 1;
        assert!(connections < 10, "no progress");
        for request in &open {
            let sent = if connections == 1 {
                request.clone()
            } else {
                again(request)
            };
            line.publish(&sent).await;
        }
        while !open.is_empty() {
            match line.next().await {
                None | Some(Packet::Disconnect) => break,
                Some(Packet::PubAck(id)) => {
                    assert_eq!(
                        id,
                        open.remove(0).id,
                        "acknowledged in the order of arrival"
                    );
                }
                Some(Packet::Publish(publish)) => {
                    if publish.qos > 0 {
                        line.acknowledge(publish.id).await;
                    }
                    if publish.topic.starts_with("glmd/clients/") {
                        assert_eq!(publish.json()["status"], "ok", "none is refused");
                        answered.push(publish.topic);
                    }
                }
                Some(_) => {}
            }
        }
    }
    assert!(connections > 1, "all of it had room: this tests nothing");
    answered.sort();
    let mut expected: Vec<String> = requests
        .into_iter()
        .filter_map(|r| r.response_topic)
        .collect();
    expected.sort();
    assert_eq!(answered, expected, "each is answered once");
    assert_eq!(echo.asked(), 24);
}

#[tokio::test]
async fn nonsense_is_answered_or_ignored_and_hurts_nobody() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::default());
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    let payloads: [&[u8]; 6] = [
        b"",
        b"[",
        b"\xff\xfe",
        b"7",
        b"{\"reply_to\":1}",
        &[b'['; 9000],
    ];
    let mut id = 0;
    for payload in payloads {
        for topic in [
            "glmd/n1/request/infill",
            "glmd/n1/request/cancel",
            "other/topic",
        ] {
            for response_topic in [
                None,
                Some("glmd/clients/x"),
                Some("not/allowed"),
                Some("a/#"),
            ] {
                id += 1;
                line.publish(&Publish {
                    id,
                    qos: 1,
                    topic: topic.to_owned(),
                    payload: payload.to_vec(),
                    response_topic: response_topic.map(str::to_owned),
                    ..Publish::default()
                })
                .await;
                // One at a time, so that Receive Maximum is kept: each is acknowledged in the end.
                line.acknowledged(id).await;
            }
        }
    }
    line.publish(&asking(100, "alive")).await;
    assert_eq!(line.answer().await.json()["data"]["text"], "ALIVE");
}
