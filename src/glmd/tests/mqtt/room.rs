//! Room on either side: what a broker takes at once, what the engine takes, and who waits for whom.

use std::time::Duration;

use super::broker::{Accept, Broker, Packet, Publish};
use super::node::{Echo, Node};
use super::{RESUMED, again, asking, folder};

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
async fn an_engine_without_room_is_asked_again() {
    let (broker, folder, echo) = (Broker::start().await, folder(), Echo::busy(3));
    let _node = Node::start(broker.address(), folder.path(), echo, |_| {});
    let mut line = broker.serve(Accept::default()).await;
    line.publish(&asking(1, "a")).await;
    assert_eq!(line.answer().await.json()["data"]["text"], "A");
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
