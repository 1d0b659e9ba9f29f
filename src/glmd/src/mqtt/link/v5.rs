//! MQTT 5.

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill,
    LastWillProperties, Packet, PubAck, PubAckReason, Publish, PublishProperties,
    RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as BadPacket, QoS};
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event as Raw, EventLoop, MqttOptions, StateError, TlsError,
};

use super::settings::network;
use super::{Busy, Event, IN_FLIGHT, Lost, Meaning, Settings, Step, Steps, Terms, failure};
use crate::mqtt::message::{Message, Properties, Qos};
use crate::mqtt::request::Incoming;

/// Largest packet of the protocol: what a broker takes that names no limit.
const PROTOCOL_LIMIT: usize = 268_435_460;

pub(super) fn options(settings: &Settings) -> MqttOptions {
    let (host, port, transport) = settings.address.parts();
    let mut options = MqttOptions::new(&settings.client_id, host, port);
    options.set_transport(transport);
    options.set_network_options(network());
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_start(false);
    options.set_manual_acks(true);
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval =
        Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX));
    properties.receive_maximum = Some(settings.receive_maximum);
    properties.max_packet_size = Some(u32::try_from(settings.packet_bytes).unwrap_or(u32::MAX));
    properties.request_problem_info = Some(1);
    options.set_connect_properties(properties);
    if let Some((user, password)) = &settings.login {
        options.set_credentials(user, password);
    }
    let will = &settings.will;
    options.set_last_will(LastWill {
        topic: will.topic.clone().into(),
        message: will.payload.clone(),
        qos: qos(will.qos),
        retain: will.retain,
        properties: Some(LastWillProperties {
            delay_interval: Some(u32::try_from(settings.will_delay.as_secs()).unwrap_or(u32::MAX)),
            payload_format_indicator: Some(1),
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        }),
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
        .try_publish_with_properties(
            message.topic.as_str(),
            qos(message.qos),
            message.retain,
            message.payload.clone(),
            properties(&message.properties),
        )
        .map_err(|_| Busy)
}

fn properties(p: &Properties) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: p.expiry_s,
        correlation_data: p.correlation.clone(),
        user_properties: p.user.clone(),
        content_type: p.json.then(|| "application/json".to_owned()),
        ..PublishProperties::default()
    }
}

pub(super) fn acknowledge(client: &AsyncClient, ack: u16) -> Result<(), Busy> {
    let publish = Publish {
        qos: QoS::AtLeastOnce,
        pkid: ack,
        ..Publish::default()
    };
    client.try_ack(&publish).map_err(|_| Busy)
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> Result<(), Busy> {
    let filters = filters.iter().map(|path| Filter {
        // A retained request is never wanted, not even once.
        retain_forward_rule: RetainForwardRule::Never,
        preserve_retain: true,
        ..Filter::new(path.as_str(), QoS::AtLeastOnce)
    });
    client.try_subscribe_many(filters).map_err(|_| Busy)
}

impl Steps for EventLoop {
    async fn step(&mut self) -> Step {
        match self.poll().await {
            Ok(Raw::Incoming(packet)) => incoming(packet),
            Ok(Raw::Outgoing(Outgoing::Publish(id))) => Step::Sent(id),
            Ok(Raw::Outgoing(Outgoing::AwaitAck(_))) => Step::Stuck,
            Ok(Raw::Outgoing(_)) => Step::Event(Event::Progress),
            Err(error) => Step::Event(Event::Lost(lost(&error))),
        }
    }
}

fn incoming(packet: Packet) -> Step {
    let event = match packet {
        Packet::ConnAck(ack) => Event::Connected(terms(&ack)),
        Packet::SubAck(ack) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| matches!(code, SubscribeReasonCode::Success(_)))
                .collect(),
        ),
        Packet::Publish(publish) => message(publish),
        Packet::PubAck(PubAck { pkid, reason, .. }) => {
            let refused = match reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                other => Some(format!("{other:?}")),
            };
            return Step::Acknowledged { id: pkid, refused };
        }
        _ => Event::Progress,
    };
    Step::Event(event)
}

fn terms(ack: &ConnAck) -> Terms {
    let properties = ack.properties.as_ref();
    Terms {
        session_present: ack.session_present,
        packet_bytes: properties
            .and_then(|p| p.max_packet_size)
            .map_or(PROTOCOL_LIMIT, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        in_flight: usize::from(
            properties
                .and_then(|p| p.receive_max)
                .unwrap_or(IN_FLIGHT)
                .min(IN_FLIGHT),
        ),
    }
}

fn message(publish: Publish) -> Event {
    let ack = (publish.qos != QoS::AtMostOnce).then_some(publish.pkid);
    let p = publish.properties.unwrap_or_default();
    Event::Message {
        message: Box::new(Incoming {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            retained: publish.retain,
            redelivered: publish.dup,
            response_topic: p.response_topic,
            correlation: p.correlation_data,
            expiry_s: p.message_expiry_interval,
        }),
        ack,
    }
}

fn lost(error: &ConnectionError) -> Lost {
    let meaning = match error {
        ConnectionError::Tls(TlsError::TLS(error)) => return failure::of_tls(error),
        ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::Io(error)
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(BadPacket::Io(error)),
        ) => return failure::of_stream(error),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            match reason_code {
                DisconnectReasonCode::SessionTakenOver => Meaning::TakenOver,
                DisconnectReasonCode::NotAuthorized => Meaning::Refused,
                _ => Meaning::Gone,
            }
        }
        ConnectionError::ConnectionRefused(code)
        | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => match code {
            ConnectReturnCode::ServerUnavailable
            | ConnectReturnCode::ServerBusy
            | ConnectReturnCode::ServiceUnavailable
            | ConnectReturnCode::ConnectionRateExceeded
            | ConnectReturnCode::UnspecifiedError => Meaning::Gone,
            _ => Meaning::Refused,
        },
        // A certificate does not get better by asking again at once.
        ConnectionError::Tls(_) => Meaning::Refused,
        _ => Meaning::Gone,
    };
    Lost {
        reason: error.to_string(),
        meaning,
    }
}
