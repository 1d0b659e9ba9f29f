//! What MQTT adds to a request: the same question over the socket and through a
//! mosquitto on loopback at QoS 1, with a model that answers at once.
//!
//! Over MQTT an answer passes the broker twice, and is on the disk before it is
//! sent. Requests are sent at a fixed rate whatever the answers do.
#![allow(missing_docs, clippy::print_stdout)]

#[path = "../tests/mqtt/mosquitto.rs"]
#[allow(dead_code, reason = "it need not be restarted here")]
mod mosquitto;
#[path = "../tests/daemon/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use mosquitto::Mosquitto;
use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use support::{Rig, post};
use tokio::time::{Instant as TokioInstant, sleep_until, timeout};

/// Requests a second: more than any model on a small board answers.
const RATE: u32 = 100;
const REQUESTS: u32 = 1000;
const BODY: &str = r#"{"text":"the lamp in the [MASK]","max_tokens":1}"#;
const TOPIC: &str = "glmd/clients/bench";
/// An answer that takes this long is lost.
const LOST: Duration = Duration::from_secs(30);

fn main() {
    // `cargo test --benches` only wants to know whether it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let Some(program) = Mosquitto::find() else {
        println!("mosquitto is not installed: what MQTT adds is not measured.");
        return;
    };
    println!("{REQUESTS} requests, {RATE} a second; microseconds");
    println!(
        "{:<28} {:>7} {:>7} {:>7} {:>7}",
        "", "p50", "p90", "p99", "max"
    );
    for (name, more) in [
        ("mosquitto as it comes", ""),
        ("set_tcp_nodelay true", "set_tcp_nodelay true\n"),
    ] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a run-time");
        let folder = tempfile::tempdir().expect("a folder");
        let broker = runtime.block_on(Mosquitto::start_with(&program, folder.path(), more));
        let rig = Rig::with(|config| {
            config.mqtt.broker = Some(format!("mqtt://127.0.0.1:{}", broker.port()));
            config.mqtt.node = Some("bench".to_owned());
            config.mqtt.discovery_prefix = String::new();
            config.mqtt.journal = Some(folder.path().join("journal"));
        });
        println!("{name}");
        let socket = print("  socket", over_socket(&rig));
        let mqtt = print("  MQTT", runtime.block_on(over_mqtt(broker.port())));
        println!(
            "  MQTT adds                  {:>7} {:>7} {:>7}",
            mqtt[0].saturating_sub(socket[0]),
            mqtt[1].saturating_sub(socket[1]),
            mqtt[2].saturating_sub(socket[2]),
        );
    }
}

fn print(name: &str, mut times: Vec<Duration>) -> [u128; 4] {
    times.sort_unstable();
    let at = [50, 90, 99, 100].map(|share| times[(times.len() - 1) * share / 100].as_micros());
    println!(
        "{name:<28} {:>7} {:>7} {:>7} {:>7}",
        at[0], at[1], at[2], at[3]
    );
    at
}

fn over_socket(rig: &Rig) -> Vec<Duration> {
    let mut wire = rig.connect();
    let request = post("/v1/infill", BODY);
    let start = Instant::now();
    (0..REQUESTS)
        .map(|n| {
            let due = start + Duration::from_secs(1) * n / RATE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            wire.send(&request);
            assert_eq!(wire.response().status, 200);
            due.elapsed()
        })
        .collect()
}

async fn over_mqtt(port: u16) -> Vec<Duration> {
    let mut options = MqttOptions::new("bench", "127.0.0.1", port);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut connection) = AsyncClient::new(options, 64);
    for topic in [TOPIC, "glmd/bench/state"] {
        client
            .try_subscribe(topic, QoS::AtLeastOnce)
            .expect("room for two packets");
    }
    // What is published before the node listens, no broker keeps for it.
    while next(&mut connection).await.1 != "online" {}
    let start = TokioInstant::now();
    let due = |n: u32| start + Duration::from_secs(1) * n / RATE;
    let mut times = Vec::new();
    let mut sent = 0;
    while times.len() < REQUESTS as usize {
        tokio::select! {
            () = sleep_until(due(sent)), if sent < REQUESTS => {
                let properties = PublishProperties {
                    response_topic: Some(TOPIC.to_owned()),
                    correlation_data: Some(sent.to_be_bytes().to_vec().into()),
                    ..PublishProperties::default()
                };
                client
                    .try_publish_with_properties(
                        "glmd/bench/request/infill", QoS::AtLeastOnce, false, BODY, properties,
                    )
                    .expect("room for a packet");
                sent += 1;
            }
            (correlation, _) = next(&mut connection) => {
                let Some(number) = correlation.and_then(|c| c.as_ref().try_into().ok()) else {
                    continue;
                };
                times.push(due(u32::from_be_bytes(number)).elapsed());
            }
        }
    }
    times
}

/// Correlation data and content of the next message.
async fn next(connection: &mut EventLoop) -> (Option<bytes::Bytes>, bytes::Bytes) {
    loop {
        let event = timeout(LOST, connection.poll()).await.expect("an answer");
        if let Event::Incoming(Packet::Publish(publish)) = event.expect("a broker") {
            let properties = publish.properties.unwrap_or_default();
            return (properties.correlation_data, publish.payload);
        }
    }
}
