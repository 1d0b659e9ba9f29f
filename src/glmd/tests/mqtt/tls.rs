//! TLS with a real mosquitto: who is trusted, who is not, and what an operator is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glmd::mqtt::Mqtt;
use glmd::mqtt::config::Version;
use glmd::mqtt::link::{Connection, Event, Lost, Meaning};
use glmd::mqtt::message::{Message, Properties, Qos};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::broker::LIMIT;
use super::mosquitto::Mosquitto;
use super::node::{Echo, Node};

/// An authority, and the folder with what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// What a certificate says of its subject.
fn named(name: &str, alternatives: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(alternatives).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A certificate and its key.
type Pair = (PathBuf, PathBuf);

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        fs::create_dir(&folder).expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = named(name, Vec::new());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(folder.join("ca.pem"), certificate.pem()).expect("a file");
        let issuer = Issuer::new(params, key);
        Self { issuer, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn signs(&self, name: &str) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let params = named(name, vec![name.to_owned()]);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |end: &str| self.folder.join(format!("{name}.{end}"));
        fs::write(file("pem"), certificate.pem()).expect("a file");
        fs::write(file("key"), key.serialize_pem()).expect("a file");
        (file("pem"), file("key"))
    }
}

/// A broker that wants client certificates, both authorities, and a certificate that it takes.
struct House {
    broker: Mosquitto,
    ours: Authority,
    theirs: Authority,
    folder: TempDir,
}

impl House {
    /// With a broker whose certificate is for `name`; `None` where there is no mosquitto.
    async fn with_broker(name: &str) -> Option<Self> {
        let Some(program) = Mosquitto::find() else {
            println!("mosquitto is not installed: TLS is not tested.");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let ours = Authority::new(folder.path(), "ours");
        let theirs = Authority::new(folder.path(), "theirs");
        let (certificate, key) = ours.signs(name);
        let more = format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            ours.file().display(),
            certificate.display(),
            key.display()
        );
        let broker = Mosquitto::start_with(&program, folder.path(), &more).await;
        Some(Self {
            broker,
            ours,
            theirs,
            folder,
        })
    }

    fn config(&self, authority: &Authority, client: Option<Pair>) -> Mqtt {
        let (cert_file, key_file) = client.unzip();
        Mqtt {
            broker: Some(format!("mqtts://127.0.0.1:{}", self.broker.port())),
            node: Some("n1".to_owned()),
            ca_file: Some(authority.file()),
            cert_file,
            key_file,
            discovery_prefix: String::new(),
            ..Mqtt::default()
        }
    }

    fn connect(&self, config: &Mqtt) -> Connection {
        let plan = config.plan(self.folder.path(), Duration::from_secs(1));
        let plan = plan.expect("a good section").expect("a broker");
        Connection::open(&plan.settings)
    }

    /// Why there is no connection.
    async fn refused(&self, config: &Mqtt) -> Lost {
        let mut connection = self.connect(config);
        let event = timeout(LIMIT, connection.next()).await;
        match event.expect("an end in time") {
            Event::Lost(lost) => lost,
            other => panic!("{other:?}"),
        }
    }
}

/// Both versions of the protocol have a client of their own.
fn versions(config: Mqtt) -> [Mqtt; 2] {
    [Version::V5, Version::V311].map(|protocol| Mqtt {
        protocol,
        ..config.clone()
    })
}

#[tokio::test]
async fn a_broker_and_a_node_that_know_each_other_talk() {
    let Some(house) = House::with_broker("127.0.0.1").await else {
        return;
    };
    let node = house.ours.signs("node");
    let nobody = ([127, 0, 0, 1], 0).into();
    let _node = Node::start(nobody, house.folder.path(), Echo::default(), |config| {
        *config = Mqtt {
            journal: config.journal.take(),
            ..house.config(&house.ours, Some(node))
        };
    });
    let mut device = house.config(&house.ours, Some(house.ours.signs("device")));
    device.client_id = Some("device".to_owned());
    let mut connection = house.connect(&device);
    let filters = ["glmd/n1/state", "glmd/clients/device"].map(str::to_owned);
    let answer = async {
        loop {
            match connection.next().await {
                Event::Connected(_) => connection.subscribe(&filters).expect("room"),
                Event::Message { message, .. } if message.payload == "online" => {
                    let body = json!({"text": "hello", "reply_to": "glmd/clients/device"});
                    let request = Message {
                        topic: "glmd/n1/request/infill".to_owned(),
                        payload: body.to_string().into(),
                        qos: Qos::AtLeastOnce,
                        retain: false,
                        properties: Properties::default(),
                    };
                    connection.publish(&request).expect("room");
                }
                Event::Message { message, .. } if message.topic == "glmd/clients/device" => {
                    let answer: Value = serde_json::from_slice(&message.payload).expect("JSON");
                    return answer;
                }
                Event::Lost(lost) => panic!("{lost:?}"),
                _ => {}
            }
        }
    };
    let answer = timeout(LIMIT, answer).await.expect("an answer in time");
    assert_eq!(answer["data"]["text"], "HELLO");
}

#[tokio::test]
async fn a_broker_of_an_unknown_authority_is_not_talked_to() {
    let Some(house) = House::with_broker("127.0.0.1").await else {
        return;
    };
    let client = house.ours.signs("node");
    for config in versions(house.config(&house.theirs, Some(client))) {
        let lost = house.refused(&config).await;
        assert_eq!(lost.meaning, Meaning::Refused, "{}", lost.reason);
        assert!(lost.reason.contains("mqtt.ca_file"), "{}", lost.reason);
    }
}

#[tokio::test]
async fn a_broker_with_another_name_is_not_talked_to() {
    let Some(house) = House::with_broker("broker.example").await else {
        return;
    };
    let client = house.ours.signs("node");
    for config in versions(house.config(&house.ours, Some(client))) {
        let lost = house.refused(&config).await;
        assert_eq!(lost.meaning, Meaning::Refused, "{}", lost.reason);
        assert!(lost.reason.contains("mqtt.broker"), "{}", lost.reason);
    }
}

#[tokio::test]
async fn a_node_without_a_certificate_is_told_to_have_one() {
    let Some(house) = House::with_broker("127.0.0.1").await else {
        return;
    };
    for config in versions(house.config(&house.ours, None)) {
        let lost = house.refused(&config).await;
        assert_eq!(lost.meaning, Meaning::Refused, "{}", lost.reason);
        assert!(lost.reason.contains("mqtt.cert_file"), "{}", lost.reason);
    }
}

#[tokio::test]
async fn a_node_with_a_certificate_of_another_authority_is_told_so() {
    let Some(house) = House::with_broker("127.0.0.1").await else {
        return;
    };
    let client = house.theirs.signs("node");
    for config in versions(house.config(&house.ours, Some(client))) {
        let lost = house.refused(&config).await;
        assert_eq!(lost.meaning, Meaning::Refused, "{}", lost.reason);
        assert!(lost.reason.contains("mqtt.cert_file"), "{}", lost.reason);
    }
}
