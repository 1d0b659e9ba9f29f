//! A device: publishes prompts and counts what comes back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};

/// Prompts of one client that wait for the broker's acknowledgement.
const OPEN: usize = 8;
/// Beyond this the broker has lost the publish, which is the client's to send again.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// How often a test looks whether what it waits for has come.
const POLL: Duration = Duration::from_millis(5);

/// Waits until the node says that it takes requests. What is published before that, no broker keeps for it.
pub async fn until_online(port: u16, node: &str) {
    let mut options = MqttOptions::new("observer", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut connection) = AsyncClient::new(options, 4);
    client
        .try_subscribe(format!("glmd/{node}/state"), QoS::AtLeastOnce)
        .expect("room for the first packet");
    let online = async {
        loop {
            if let Ok(Event::Incoming(Packet::Publish(publish))) = connection.poll().await
                && publish.payload == "online"
            {
                return;
            }
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), online).await;
    assert!(seen.is_ok(), "the node does not come online");
}

/// What all clients have seen.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    answers: HashMap<Vec<u8>, Vec<u8>>,
    /// Times that each prompt was published.
    published: HashMap<Vec<u8>, usize>,
    /// Prompts that the broker has acknowledged.
    taken: HashSet<Vec<u8>>,
    repeated: usize,
    unexplained: usize,
    differing: usize,
    impatient: usize,
    errors: usize,
}

/// The sums.
#[derive(Debug)]
pub struct Report {
    pub answered: usize,
    /// Answers that came again, whatever the reason.
    pub repeated: usize,
    /// Of these, those that neither the client asked for again nor the broker marked as delivered again: the node
    /// published them again, since the broker's acknowledgement of the answer or its own of the request was lost.
    pub by_node: usize,
    pub differing: usize,
    /// Two different answers to a prompt that its client had published again.
    pub impatient: usize,
    /// Prompts that were published more than once.
    pub asked_again: usize,
    pub errors: usize,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("no client panics")
    }

    fn answer(&self, correlation: Vec<u8>, payload: Vec<u8>, again: bool) {
        let mut seen = self.lock();
        match seen.answers.get(&correlation) {
            Some(first) if *first == payload => {
                seen.repeated += 1;
                let published = seen.published.get(&correlation);
                if !again && published.is_none_or(|times| *times < 2) {
                    seen.unexplained += 1;
                }
            }
            // A client that loses patience may be answered by two nodes of a pool.
            Some(_)
                if seen
                    .published
                    .get(&correlation)
                    .is_some_and(|times| *times > 1) =>
            {
                seen.impatient += 1;
            }
            Some(_) => seen.differing += 1,
            None => {
                let body: Value = serde_json::from_slice(&payload).unwrap_or_default();
                if body["status"] != "ok" {
                    seen.errors += 1;
                    println!("an answer that is an error: {body}");
                }
                seen.answers.insert(correlation, payload);
            }
        }
    }

    fn published(&self, correlation: Vec<u8>) {
        *self.lock().published.entry(correlation).or_default() += 1;
    }

    fn taken(&self, correlation: Vec<u8>) {
        self.lock().taken.insert(correlation);
    }

    fn has(&self, correlation: &[u8]) -> bool {
        self.lock().answers.contains_key(correlation)
    }

    /// Waits until so many prompts are answered; `false` when it takes too long.
    pub async fn wait_for_answers(&self, count: usize, most: Duration) -> bool {
        self.wait(|seen| seen.answers.len() >= count, most).await
    }

    /// Waits until the broker has so many prompts; `false` when it takes too long.
    pub async fn wait_until_taken(&self, count: usize, most: Duration) -> bool {
        self.wait(|seen| seen.taken.len() >= count, most).await
    }

    async fn wait(&self, met: impl Fn(&Seen) -> bool, most: Duration) -> bool {
        let end = Instant::now() + most;
        while !met(&self.lock()) {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    pub fn report(&self) -> Report {
        let seen = self.lock();
        Report {
            answered: seen.answers.len(),
            repeated: seen.repeated,
            by_node: seen.unexplained,
            differing: seen.differing,
            impatient: seen.impatient,
            asked_again: seen.published.values().filter(|times| **times > 1).count(),
            errors: seen.errors,
        }
    }
}

/// What all devices of a test have in common.
#[derive(Clone)]
pub struct Setup {
    /// Port of the broker.
    pub port: u16,
    /// Where prompts go.
    pub topic: &'static str,
    /// How long an answer is waited for before the prompt is published again; `None` = for ever.
    pub repeat_after: Option<Duration>,
    pub tally: Tally,
}

/// One device.
pub struct Client {
    number: usize,
    setup: Setup,
    /// Prompts that the broker has, and since when.
    taken: Vec<(usize, Instant)>,
}

/// A prompt that the broker has not acknowledged.
struct Unacknowledged {
    prompt: usize,
    since: Instant,
}

impl Client {
    pub const fn new(number: usize, setup: Setup) -> Self {
        Self {
            number,
            setup,
            taken: Vec::new(),
        }
    }

    /// Prompts whose answer is overdue.
    fn overdue(&mut self) -> Vec<usize> {
        let Some(patience) = self.setup.repeat_after else {
            return Vec::new();
        };
        let mut taken = std::mem::take(&mut self.taken);
        taken.retain(|(prompt, _)| !self.setup.tally.has(&self.correlation(*prompt)));
        let (late, rest) = taken
            .into_iter()
            .partition(|(_, since)| since.elapsed() > patience);
        self.taken = rest;
        Vec::into_iter(late).map(|(prompt, _)| prompt).collect()
    }

    fn topic(&self) -> String {
        format!("glmd/clients/{}", self.number)
    }

    fn correlation(&self, prompt: usize) -> Vec<u8> {
        format!("{}-{prompt}", self.number).into_bytes()
    }

    /// Publishes `count` prompts and listens until it is stopped.
    ///
    /// Connections are made anew after every loss and what was not acknowledged is published again by hand, so
    /// that this client loses nothing that it is asked to send.
    pub async fn run(mut self, count: usize) {
        let mut to_send: Vec<usize> = (0..count).rev().collect();
        let mut open: Vec<Unacknowledged> = Vec::new();
        loop {
            let mut options = MqttOptions::new(
                format!("device-{}", self.number),
                "127.0.0.1",
                self.setup.port,
            );
            options.set_clean_start(false);
            options.set_session_expiry_interval(Some(3600));
            options.set_keep_alive(Duration::from_secs(5));
            options.set_max_packet_size(Some(1 << 20));
            let (client, mut connection) = AsyncClient::new(options, 2 * OPEN);
            self.talk(&client, &mut connection, &mut to_send, &mut open)
                .await;
            to_send.extend(open.drain(..).map(|o| o.prompt));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn talk(
        &mut self,
        client: &AsyncClient,
        connection: &mut EventLoop,
        to_send: &mut Vec<usize>,
        open: &mut Vec<Unacknowledged>,
    ) {
        // Prompts in the order in which they were handed over, to learn their packet ids.
        let mut handed = std::collections::VecDeque::new();
        let mut ids: HashMap<u16, usize> = HashMap::new();
        let mut connected = false;
        loop {
            let event = match tokio::time::timeout(UNACKNOWLEDGED, connection.poll()).await {
                Ok(Ok(event)) => event,
                // The connection is gone, or silent for too long.
                Ok(Err(_)) | Err(_) => return,
            };
            match event {
                Event::Incoming(Packet::ConnAck(_)) => {
                    connected = true;
                    let topic = self.topic();
                    client
                        .try_subscribe(topic, QoS::AtLeastOnce)
                        .expect("room for the first packet");
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    let properties = publish.properties.unwrap_or_default();
                    let correlation = properties.correlation_data.expect("correlation data");
                    let payload = publish.payload.to_vec();
                    self.setup
                        .tally
                        .answer(correlation.to_vec(), payload, publish.dup);
                }
                Event::Incoming(Packet::PubAck(ack)) => {
                    if let Some(prompt) = ids.remove(&ack.pkid) {
                        open.retain(|o| o.prompt != prompt);
                        self.taken.push((prompt, Instant::now()));
                        self.setup.tally.taken(self.correlation(prompt));
                    }
                }
                Event::Outgoing(rumqttc::Outgoing::Publish(id)) => {
                    if let Some(prompt) = handed.pop_front() {
                        ids.insert(id, prompt);
                    }
                }
                _ => {}
            }
            if open.iter().any(|o| o.since.elapsed() > UNACKNOWLEDGED) {
                return;
            }
            to_send.extend(self.overdue());
            while connected && open.len() < OPEN {
                let Some(prompt) = to_send.pop() else { break };
                if self.setup.tally.has(&self.correlation(prompt)) {
                    continue;
                }
                if self.publish(client, prompt).is_err() {
                    to_send.push(prompt);
                    break;
                }
                self.setup.tally.published(self.correlation(prompt));
                handed.push_back(prompt);
                let since = Instant::now();
                open.push(Unacknowledged { prompt, since });
            }
        }
    }

    fn publish(&self, client: &AsyncClient, prompt: usize) -> Result<(), ()> {
        let text = format!("device {} says {prompt} and the [MASK] is off", self.number);
        let body = json!({"text": text, "max_tokens": 4}).to_string();
        let properties = PublishProperties {
            response_topic: Some(self.topic()),
            correlation_data: Some(self.correlation(prompt).into()),
            ..PublishProperties::default()
        };
        client
            .try_publish_with_properties(
                self.setup.topic,
                QoS::AtLeastOnce,
                false,
                body,
                properties,
            )
            .map_err(drop)
    }
}
