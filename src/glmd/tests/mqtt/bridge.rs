//! Two mosquittos and a bridge between them, as the documentation sets it up: the
//! node is at one, the device at the other.

use glmd::mqtt::Mqtt;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::broker::LIMIT;
use super::mosquitto::Mosquitto;
use super::node::{Echo, Node};

/// What the documentation says, with another address.
fn bridge_to(port: u16) -> String {
    let documented = include_str!("../../../../docs/brokers.md");
    let begin = documented.find("    connection glmd").expect("the bridge");
    let lines = documented[begin..].lines();
    let block: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
    assert!(block.len() > 5, "{block:?}");
    block
        .join("\n")
        .replace("192.168.1.2:1883", &format!("127.0.0.1:{port}"))
}

#[tokio::test]
async fn a_device_behind_a_bridge_asks_as_if_it_were_here() {
    let Some(program) = Mosquitto::find() else {
        println!("mosquitto is not installed: the bridge is not tested.");
        return;
    };
    let folders = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
    let here = Mosquitto::start(&program, folders[0].path()).await;
    let bridge = bridge_to(here.port());
    let there = Mosquitto::start_with(&program, folders[1].path(), &bridge).await;
    let address = ([127, 0, 0, 1], here.port()).into();
    let change = |_: &mut Mqtt| {};
    let _node = Node::start(address, folders[0].path(), Echo::default(), change);
    let options = MqttOptions::new("device", "127.0.0.1", there.port());
    let (client, mut connection) = AsyncClient::new(options, 8);
    let answer = async {
        loop {
            match connection.poll().await.expect("a connection") {
                Event::Incoming(Packet::ConnAck(_)) => {
                    for topic in ["glmd/clients/device", "glmd/n1/state"] {
                        client.try_subscribe(topic, QoS::AtLeastOnce).expect("room");
                    }
                }
                Event::Incoming(Packet::Publish(publish)) if publish.payload == "online" => {
                    let properties = PublishProperties {
                        response_topic: Some("glmd/clients/device".to_owned()),
                        correlation_data: Some("7".into()),
                        ..PublishProperties::default()
                    };
                    let body = json!({"text": "hello"}).to_string();
                    let topic = "glmd/n1/request/infill";
                    client
                        .try_publish_with_properties(
                            topic,
                            QoS::AtLeastOnce,
                            false,
                            body,
                            properties,
                        )
                        .expect("room");
                }
                Event::Incoming(Packet::Publish(publish)) => return publish,
                _ => {}
            }
        }
    };
    let answer = timeout(LIMIT, answer).await.expect("an answer in time");
    assert_eq!(answer.topic, "glmd/clients/device");
    let properties = answer.properties.expect("properties");
    assert_eq!(properties.correlation_data, Some("7".into()));
    let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(body["data"]["text"], "HELLO");
}
