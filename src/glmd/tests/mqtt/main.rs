//! The promise of MQTT against a broker that misbehaves on purpose: every
//! request is answered, never with two different answers, and the link heals.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

mod bridge;
mod broker;
mod lives;
#[allow(dead_code, reason = "the fault tests need more of it")]
mod mosquitto;
mod node;
mod room;
mod tls;

use broker::{Accept, Broker, Packet, Publish};
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
