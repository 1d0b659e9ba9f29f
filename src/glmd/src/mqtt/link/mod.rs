//! One connection to a broker, from CONNECT to its end.
//!
//! `rumqttc` speaks the protocol; this module keeps it to what it does well.
//! Its event loop is never used for a second connection: what it remembers
//! across a reconnection (stashed publishes, in-flight counts, old
//! acknowledgements) is where it goes wrong, and all of that is kept by
//! [`Outbox`](super::outbox::Outbox) and [`Acks`](super::acks::Acks) anyway. It
//! is polled by a task of its own that nothing else can hold up, and asked only
//! through calls that do not wait, so a full channel is an answer and not a
//! dead-lock. A panic in it ends the connection, not the daemon.
//!
//! | module | what it is for |
//! |---|---|
//! | `v5`, `v4` | MQTT 5 and 3.1.1 in the words of this module |
//! | `failure` | why a connection ended, and what to do about it |
//! | [`settings`] | where the broker is and what it is told |

mod failure;
pub mod settings;
mod v4;
mod v5;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::message::Message;
use super::request::Incoming;
pub use settings::{Protocol, Settings};

/// Packets between our side and the event loop. A few, so that a slow
/// connection is felt here, where messages can still be replaced or dropped.
const CHANNEL: usize = 16;
/// Publishes that rumqttc may have unacknowledged. It reserves a slot for each,
/// and its packet ids run up to it.
const IN_FLIGHT: u16 = 16;

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// The broker has accepted the connection.
    Connected(Terms),
    /// The broker's answer to the subscription: whether each filter was granted.
    Subscribed(Vec<bool>),
    /// A message.
    Message {
        /// The message.
        message: Box<Incoming>,
        /// Number for its acknowledgement; `None` at QoS 0.
        ack: Option<u16>,
    },
    /// A publish is acknowledged: its place among the unacknowledged ones, in the order of sending.
    Acknowledged {
        /// The place.
        index: usize,
        /// Why the broker did not take it, if it did not.
        refused: Option<String>,
    },
    /// Something was written: there may be room for more.
    Progress,
    /// The connection is over. The last event.
    Lost(Lost),
}

/// What the broker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether it remembers our subscriptions and open messages.
    pub session_present: bool,
    /// Largest packet that it takes.
    pub packet_bytes: usize,
    /// Publishes that it takes before it acknowledges one.
    pub in_flight: usize,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In words.
    pub reason: String,
    /// What it means for the next try.
    pub meaning: Meaning,
}

/// What the end of a connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The network or the broker went away.
    Gone,
    /// The broker will not have us until somebody changes something.
    Refused,
    /// Another client uses our client id.
    TakenOver,
}

/// The channel to the event loop is full: try again after the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

enum Client {
    V5(rumqttc::v5::AsyncClient),
    V4(rumqttc::AsyncClient),
}

/// A connection. Dropping it closes it without a farewell.
pub struct Connection {
    client: Client,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Begins to connect; [`Event::Connected`] or [`Event::Lost`] follows.
    #[must_use]
    pub fn open(settings: &Settings) -> Self {
        let (sender, events) = mpsc::channel(CHANNEL);
        let (client, task) = match settings.protocol {
            Protocol::V5 => {
                let (client, eventloop) =
                    rumqttc::v5::AsyncClient::new(v5::options(settings), CHANNEL);
                (Client::V5(client), tokio::spawn(run(eventloop, sender)))
            }
            Protocol::V311 => {
                let (client, mut eventloop) =
                    rumqttc::AsyncClient::new(v4::options(settings), CHANNEL);
                eventloop.set_network_options(settings::network());
                let poller = v4::Poller(eventloop, settings.packet_bytes);
                (Client::V4(client), tokio::spawn(run(poller, sender)))
            }
        };
        Self {
            client,
            events,
            task,
        }
    }

    /// The next event. Safe to drop while it waits.
    pub async fn next(&mut self) -> Event {
        // The task sends `Lost` before it ends, unless it panicked.
        self.events.recv().await.unwrap_or_else(|| {
            Event::Lost(Lost {
                reason: "the client library failed".to_owned(),
                meaning: Meaning::Gone,
            })
        })
    }

    /// Hands a message over.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn publish(&self, message: &Message) -> Result<(), Busy> {
        match &self.client {
            Client::V5(client) => v5::publish(client, message),
            Client::V4(client) => v4::publish(client, message),
        }
    }

    /// Acknowledges a message by its number.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn acknowledge(&self, ack: u16) -> Result<(), Busy> {
        match &self.client {
            Client::V5(client) => v5::acknowledge(client, ack),
            Client::V4(client) => v4::acknowledge(client, ack),
        }
    }

    /// Subscribes at QoS 1.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn subscribe(&self, filters: &[String]) -> Result<(), Busy> {
        match &self.client {
            Client::V5(client) => v5::subscribe(client, filters),
            Client::V4(client) => v4::subscribe(client, filters),
        }
    }

    /// Says farewell: the broker drops the last will.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn disconnect(&self) -> Result<(), Busy> {
        match &self.client {
            Client::V5(client) => client.try_disconnect().map_err(|_| Busy),
            Client::V4(client) => client.try_disconnect().map_err(|_| Busy),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What one poll of the library's event loop comes to.
enum Step {
    Event(Event),
    /// A publish with this packet id, or 0 at QoS 0, is on its way.
    Sent(u16),
    Acknowledged {
        id: u16,
        refused: Option<String>,
    },
    /// A packet id came round while its last use is open: this state is where rumqttc gets stuck.
    Stuck,
}

/// An event loop of either version.
trait Steps {
    fn step(&mut self) -> impl Future<Output = Step> + Send;
}

/// Polls until the connection ends. Nobody cancels a poll half-way, which could lose a packet.
async fn run(mut eventloop: impl Steps, events: mpsc::Sender<Event>) {
    let mut sent = Sent::default();
    loop {
        let event = match eventloop.step().await {
            Step::Event(event) => event,
            Step::Sent(id) => {
                sent.publish(id);
                Event::Progress
            }
            Step::Acknowledged { id, refused } => match sent.acknowledged(id) {
                Some(index) => Event::Acknowledged { index, refused },
                None => continue,
            },
            Step::Stuck => Event::Lost(Lost {
                reason: "the broker does not acknowledge".to_owned(),
                meaning: Meaning::Gone,
            }),
        };
        let last = matches!(event, Event::Lost(_));
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

/// Packet ids of publishes in the order of sending, to tell which one an acknowledgement is for.
#[derive(Debug, Default)]
struct Sent(Vec<u16>);

impl Sent {
    fn publish(&mut self, id: u16) {
        // QoS 0 has no id and is never acknowledged.
        if id != 0 {
            self.0.push(id);
        }
    }

    /// The place of an acknowledged publish, `None` for one that was never sent.
    fn acknowledged(&mut self, id: u16) -> Option<usize> {
        let index = self.0.iter().position(|sent| *sent == id)?;
        self.0.remove(index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_find_their_publish() {
        let mut sent = Sent::default();
        for id in [1, 0, 2, 3] {
            sent.publish(id);
        }
        assert_eq!(sent.acknowledged(2), Some(1));
        assert_eq!(sent.acknowledged(2), None);
        assert_eq!(sent.acknowledged(3), Some(1));
        assert_eq!(sent.acknowledged(1), Some(0));
    }
}
