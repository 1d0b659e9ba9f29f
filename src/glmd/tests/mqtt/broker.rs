//! A broker that does what a test tells it to, byte by byte (MQTT 5, section 3).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Nothing here takes this long; it only ends a test that hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A packet from the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Subscribe { id: u16, filters: Vec<String> },
    Publish(Publish),
    PubAck(u16),
    Ping,
    Disconnect,
}

/// A message, in either direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publish {
    pub id: u16,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    pub topic: String,
    pub payload: Vec<u8>,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
    pub user: Vec<(String, String)>,
}

impl Publish {
    /// The content as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).expect("JSON")
    }
}

/// What CONNACK says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accept {
    pub session_present: bool,
    pub receive_maximum: Option<u16>,
    pub packet_bytes: Option<u32>,
}

pub struct Broker {
    listener: TcpListener,
}

impl Broker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { listener }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    /// The next connection, before CONNACK.
    pub async fn accept(&self) -> Line {
        let accepted = timeout(LIMIT, self.listener.accept()).await;
        let (stream, _) = accepted.expect("a client").expect("a client");
        stream.set_nodelay(true).expect("a TCP stream");
        let mut line = Line { stream };
        let (kind, _, _) = line.frame().await.expect("a packet");
        assert_eq!(kind, 1, "CONNECT comes first");
        line
    }

    /// The next connection, accepted and subscribed.
    pub async fn serve(&self, accept: Accept) -> Line {
        let mut line = self.accept().await;
        line.accept(accept).await;
        line.grant(0).await;
        line
    }

    /// Whether nobody connects within `time`.
    pub async fn stays_alone(&self, time: Duration) -> bool {
        timeout(time, self.listener.accept()).await.is_err()
    }
}

/// One connection.
pub struct Line {
    stream: TcpStream,
}

impl Line {
    pub async fn accept(&mut self, accept: Accept) {
        let mut properties = Vec::new();
        if let Some(maximum) = accept.receive_maximum {
            properties.push(0x21);
            properties.extend(maximum.to_be_bytes());
        }
        if let Some(bytes) = accept.packet_bytes {
            properties.push(0x27);
            properties.extend(bytes.to_be_bytes());
        }
        let length = u8::try_from(properties.len()).expect("few");
        let mut body = vec![u8::from(accept.session_present), 0, length];
        body.extend(properties);
        self.send(0x20, &body).await;
    }

    /// Answers SUBSCRIBE with one reason code for every filter.
    pub async fn grant(&mut self, code: u8) -> Vec<String> {
        loop {
            if let Packet::Subscribe { id, filters } = self.packet().await {
                let mut body = id.to_be_bytes().to_vec();
                body.push(0);
                body.extend(filters.iter().map(|_| code));
                self.send(0x90, &body).await;
                return filters;
            }
        }
    }

    pub async fn publish(&mut self, publish: &Publish) {
        let mut properties = Vec::new();
        if let Some(topic) = &publish.response_topic {
            properties.push(0x08);
            string(topic.as_bytes(), &mut properties);
        }
        if let Some(data) = &publish.correlation {
            properties.push(0x09);
            string(data, &mut properties);
        }
        let mut body = Vec::new();
        string(publish.topic.as_bytes(), &mut body);
        if publish.qos > 0 {
            body.extend(publish.id.to_be_bytes());
        }
        varint(properties.len(), &mut body);
        body.extend(properties);
        body.extend(&publish.payload);
        let flags = u8::from(publish.dup) << 3 | publish.qos << 1 | u8::from(publish.retain);
        self.send(0x30 | flags, &body).await;
    }

    pub async fn acknowledge(&mut self, id: u16) {
        self.send(0x40, &id.to_be_bytes()).await;
    }

    /// DISCONNECT with a reason.
    pub async fn dismiss(&mut self, reason: u8) {
        self.send(0xe0, &[reason, 0]).await;
    }

    pub async fn pong(&mut self) {
        self.send(0xd0, &[]).await;
    }

    /// The next packet but pings, which are answered.
    pub async fn packet(&mut self) -> Packet {
        loop {
            match self.next().await.expect("the client hung up") {
                Packet::Ping => self.pong().await,
                packet => return packet,
            }
        }
    }

    /// The next packet, `None` when the client has hung up.
    pub async fn next(&mut self) -> Option<Packet> {
        let (kind, flags, body) = self.frame().await?;
        Some(parse(kind, flags, &body))
    }

    /// The next answer: what the node says of itself is acknowledged and passed over.
    pub async fn answer(&mut self) -> Publish {
        loop {
            if let Packet::Publish(publish) = self.packet().await {
                if publish.topic.starts_with("glmd/clients/") {
                    return publish;
                }
                if publish.qos > 0 {
                    self.acknowledge(publish.id).await;
                }
            }
        }
    }

    /// Reads on until the request with this id is acknowledged.
    pub async fn acknowledged(&mut self, id: u16) {
        loop {
            match self.packet().await {
                Packet::PubAck(acked) => {
                    assert_eq!(acked, id);
                    return;
                }
                Packet::Publish(publish) if publish.qos > 0 => {
                    self.acknowledge(publish.id).await;
                }
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let read = async {
            let first = self.stream.read_u8().await.ok()?;
            let mut length = 0;
            for shift in [0, 7, 14, 21] {
                let byte = self.stream.read_u8().await.ok()?;
                length |= usize::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((first >> 4, first & 0xf, body))
        };
        timeout(LIMIT, read).await.expect("a packet in time")
    }

    async fn send(&mut self, first: u8, body: &[u8]) {
        let mut packet = vec![first];
        varint(body.len(), &mut packet);
        packet.extend(body);
        // The client may be gone, which its next read will tell.
        let _ = self.stream.write_all(&packet).await;
    }
}

fn varint(mut value: usize, into: &mut Vec<u8>) {
    loop {
        let digit = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        into.push(if value > 0 { digit | 0x80 } else { digit });
        if value == 0 {
            return;
        }
    }
}

fn string(bytes: &[u8], into: &mut Vec<u8>) {
    into.extend(u16::try_from(bytes.len()).expect("short").to_be_bytes());
    into.extend(bytes);
}

/// Takes fields off the front of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        let bytes = self.take(2);
        u16::from_be_bytes([bytes[0], bytes[1]])
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = self.u16();
        self.take(length.into())
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }

    fn varint(&mut self) -> usize {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8();
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
}

fn parse(kind: u8, flags: u8, body: &[u8]) -> Packet {
    let mut fields = Fields(body);
    match kind {
        3 => {
            let mut publish = Publish {
                topic: fields.text(),
                qos: flags >> 1 & 3,
                dup: flags & 8 != 0,
                retain: flags & 1 != 0,
                ..Publish::default()
            };
            if publish.qos > 0 {
                publish.id = fields.u16();
            }
            let length = fields.varint();
            let mut properties = Fields(fields.take(length));
            while !properties.0.is_empty() {
                match properties.u8() {
                    0x01 => drop(properties.u8()),
                    0x02 => drop(properties.take(4)),
                    0x03 => drop(properties.bytes()),
                    0x09 => publish.correlation = Some(properties.bytes().to_vec()),
                    0x26 => publish.user.push((properties.text(), properties.text())),
                    other => panic!("a property {other:#x} that a node never sends"),
                }
            }
            publish.payload = fields.0.to_vec();
            Packet::Publish(publish)
        }
        4 => Packet::PubAck(fields.u16()),
        8 => {
            let id = fields.u16();
            let length = fields.varint();
            fields.take(length);
            let mut filters = Vec::new();
            while !fields.0.is_empty() {
                filters.push(fields.text());
                fields.u8();
            }
            Packet::Subscribe { id, filters }
        }
        12 => Packet::Ping,
        14 => Packet::Disconnect,
        other => panic!("a packet {other} that a node never sends"),
    }
}
