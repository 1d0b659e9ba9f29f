//! MQTT 3.1.1.

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Error as BadPacket, Event as Raw, EventLoop,
    LastWill, MqttOptions, Outgoing, Packet, Publish, QoS, StateError, SubscribeFilter,
    SubscribeReasonCode, TlsError,
};

use super::{Busy, Event, IN_FLIGHT, Lost, Meaning, Settings, Step, Steps, Terms, failure};
use crate::mqtt::message::{Message, Qos};
use crate::mqtt::request::Incoming;

pub(super) fn options(settings: &Settings) -> MqttOptions {
    let (host, port, transport) = settings.address.parts();
    let mut options = MqttOptions::new(&settings.client_id, host, port);
    options.set_transport(transport);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_session(false);
    options.set_manual_acks(true);
    options.set_inflight(IN_FLIGHT);
    options.set_max_packet_size(settings.packet_bytes, settings.packet_bytes);
    if let Some((user, password)) = &settings.login {
        options.set_credentials(user, password);
    }
    let will = &settings.will;
    options.set_last_will(LastWill {
        topic: will.topic.clone(),
        message: will.payload.clone(),
        qos: qos(will.qos),
        retain: will.retain,
    });
    options
}

const fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

pub(super) fn publish(client: &AsyncClient, message: &Message) -> Result<(), Busy> {
    client
        .try_publish(
            message.topic.as_str(),
            qos(message.qos),
            message.retain,
            message.payload.to_vec(),
        )
        .map_err(|_| Busy)
}

pub(super) fn acknowledge(client: &AsyncClient, ack: u16) -> Result<(), Busy> {
    let publish = Publish {
        pkid: ack,
        ..Publish::new("", QoS::AtLeastOnce, Vec::new())
    };
    client.try_ack(&publish).map_err(|_| Busy)
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> Result<(), Busy> {
    let filters = filters
        .iter()
        .map(|path| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce));
    client.try_subscribe_many(filters).map_err(|_| Busy)
}

/// The library's event loop, and the largest packet that is sent, since the broker cannot name its own.
pub(super) struct Poller(pub(super) EventLoop, pub(super) usize);

impl Steps for Poller {
    async fn step(&mut self) -> Step {
        match self.0.poll().await {
            Ok(Raw::Incoming(packet)) => incoming(packet, self.1),
            Ok(Raw::Outgoing(Outgoing::Publish(id))) => Step::Sent(id),
            Ok(Raw::Outgoing(Outgoing::AwaitAck(_))) => Step::Stuck,
            Ok(Raw::Outgoing(_)) => Step::Event(Event::Progress),
            Err(error) => Step::Event(Event::Lost(lost(&error))),
        }
    }
}

fn incoming(packet: Packet, limit: usize) -> Step {
    let event = match packet {
        Packet::ConnAck(ack) => Event::Connected(Terms {
            session_present: ack.session_present,
            packet_bytes: limit,
            in_flight: usize::from(IN_FLIGHT),
        }),
        Packet::SubAck(ack) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| matches!(code, SubscribeReasonCode::Success(_)))
                .collect(),
        ),
        Packet::Publish(publish) => Event::Message {
            ack: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
            message: Box::new(Incoming {
                topic: publish.topic,
                payload: publish.payload,
                retained: publish.retain,
                redelivered: publish.dup,
                ..Incoming::default()
            }),
        },
        Packet::PubAck(ack) => {
            return Step::Acknowledged {
                id: ack.pkid,
                refused: None,
            };
        }
        _ => Event::Progress,
    };
    Step::Event(event)
}

fn lost(error: &ConnectionError) -> Lost {
    let meaning = match error {
        ConnectionError::Tls(TlsError::TLS(error)) => return failure::of_tls(error),
        ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::Io(error)
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(BadPacket::Io(error)),
        ) => return failure::of_stream(error),
        ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable) => Meaning::Gone,
        ConnectionError::ConnectionRefused(_) | ConnectionError::Tls(_) => Meaning::Refused,
        // 3.1.1 has no word for a session that was taken over; the broker just hangs up.
        _ => Meaning::Gone,
    };
    Lost {
        reason: error.to_string(),
        meaning,
    }
}
