//! The section `mqtt` of the configuration, and what it means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::desk::{JOB_BYTES, Limits};
use super::discovery::Discovery;
use super::link::settings::{Address, BadAddress, Protocol, Settings, TlsFiles};
use super::presence::Presence;
use super::session::Options;
use super::topics::Topics;

/// MQTT. Off unless a broker is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]` or `unix://PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
    /// `5` or `3.1.1`.
    pub protocol: Version,
    /// First level of all topics.
    pub base: String,
    /// Second level of the topics of this node. Derived from the machine id when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Name of the session with the broker; `glmd-<node>` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File with the password, such as a systemd credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Authorities that may sign the broker's certificate (PEM); the system's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate of this client (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Application protocols to offer in TLS.
    pub alpn: Vec<String>,
    /// Seconds of silence after which the broker is asked whether it lives; at least 5.
    pub keep_alive_s: u64,
    /// Seconds for which the broker keeps requests for a node that is away.
    pub session_expiry_s: u64,
    /// Requests that the broker may hand over before one is acknowledged.
    pub in_flight: u16,
    /// Requests of one client that are worked on at a time.
    pub per_client: usize,
    /// Largest packet in bytes.
    pub packet_bytes: usize,
    /// Bytes that may wait to be published.
    pub outbox_bytes: usize,
    /// Topics that a client may want its answer on, as filters; `{base}` and `{node}` are replaced.
    pub response_topics: Vec<String>,
    /// A queue that nodes share: `<base>/pool/<pool>/request/<op>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Name of the group that shares it.
    pub pool_group: String,
    /// Whether whoever may publish on `<base>/<node>/admin/#` may reload and unload the model.
    pub admin: bool,
    /// Seconds between two `stats`.
    pub stats_s: u64,
    /// Milliseconds for which pieces of a streamed answer are gathered.
    pub chunk_ms: u64,
    /// Seconds for which a request waits for room in the engine before its client is told.
    pub patience_s: u64,
    /// Prefix of Home Assistant's discovery; empty = do not tell it.
    pub discovery_prefix: String,
    /// Folder of the journal of answers; `mqtt` in the state directory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// Bytes of the journal.
    pub journal_bytes: u64,
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            broker: None,
            protocol: Version::default(),
            base: "glmd".into(),
            node: None,
            client_id: None,
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            alpn: Vec::new(),
            // A dead peer is found after at most twice this.
            keep_alive_s: 20,
            session_expiry_s: 3600,
            // More than any small board serves side by side, few enough to fit into memory at the largest packet.
            in_flight: 32,
            per_client: 4,
            packet_bytes: 256 << 10,
            outbox_bytes: 4 << 20,
            response_topics: vec!["{base}/{node}/response/#".into(), "{base}/clients/#".into()],
            pool: None,
            pool_group: "glmd".into(),
            admin: false,
            stats_s: 30,
            chunk_ms: 200,
            patience_s: 300,
            discovery_prefix: "homeassistant".into(),
            journal: None,
            journal_bytes: 2 << 20,
        }
    }
}

/// What is wrong with the section.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// A value that cannot be.
    #[error("`mqtt.{key}`: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
    /// The address or a file of TLS.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// A file that cannot be read.
    #[error("`mqtt.{key}`: {}: {reason}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The section as the session wants it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The connection.
    pub settings: Settings,
    /// The session.
    pub options: Options,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// Bytes of the journal.
    pub journal_bytes: u64,
}

/// Longest password file; a token of a broker is a few KiB at most.
const MAX_PASSWORD: u64 = 64 << 10;
/// Wait before the broker says that we are gone: hides a short loss of Wi-Fi.
const WILL_DELAY: Duration = Duration::from_secs(8);
/// Where the machine's identity is (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

impl Mqtt {
    /// Checks the section and reads the files that it names; `None` when MQTT is off.
    ///
    /// # Errors
    /// [`BadConfig`], naming the key and the file.
    pub fn plan(&self, state: &Path, drain: Duration) -> Result<Option<Plan>, BadConfig> {
        let Some(broker) = &self.broker else {
            return Ok(None);
        };
        let node = match &self.node {
            Some(node) => node.clone(),
            None => derived_node(Path::new(MACHINE_ID))?,
        };
        for (key, level) in [
            ("base", &self.base),
            ("node", &node),
            ("pool_group", &self.pool_group),
            ("pool", self.pool.as_ref().unwrap_or(&node)),
        ] {
            let wild = level.contains(['+', '#', '\0', '$']);
            if level.is_empty() || wild || (key != "base" && level.contains('/')) {
                let reason = format!("`{level}` cannot be a level of a topic");
                return Err(BadConfig::Value { key, reason });
            }
        }
        let at_least = |key, value: u64, least: u64| {
            let reason = format!("{value} is below {least}");
            (value >= least)
                .then_some(())
                .ok_or(BadConfig::Value { key, reason })
        };
        at_least("keep_alive_s", self.keep_alive_s, 5)?;
        at_least("in_flight", self.in_flight.into(), 1)?;
        at_least("per_client", self.per_client as u64, 1)?;
        at_least("packet_bytes", self.packet_bytes as u64, 4096)?;
        at_least("journal_bytes", self.journal_bytes, 65_536)?;
        at_least("chunk_ms", self.chunk_ms, 50)?;
        at_least("stats_s", self.stats_s, 1)?;
        let client = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => {
                return Err(BadConfig::Value {
                    key: "cert_file",
                    reason: "a client certificate needs both `cert_file` and `key_file`".into(),
                });
            }
        };
        let tls = TlsFiles {
            ca: self.ca_file.clone(),
            client,
            alpn: self.alpn.clone(),
        };
        let pool = self
            .pool
            .as_deref()
            .map(|pool| (self.pool_group.as_str(), pool));
        let topics = Topics::new(&self.base, &node, pool).with_admin(self.admin);
        let prefix = Some(&self.discovery_prefix).filter(|prefix| !prefix.is_empty());
        let discovery = prefix.map(|prefix| Discovery::new(prefix, &node));
        let presence = Presence::new(topics, discovery);
        let settings = Settings {
            protocol: match self.protocol {
                Version::V5 => Protocol::V5,
                Version::V311 => Protocol::V311,
            },
            address: Address::parse(broker, &tls)?,
            login: self.login()?,
            client_id: self
                .client_id
                .clone()
                .unwrap_or_else(|| format!("glmd-{node}")),
            keep_alive: Duration::from_secs(self.keep_alive_s),
            session_expiry: Duration::from_secs(self.session_expiry_s),
            receive_maximum: self.in_flight,
            packet_bytes: self.packet_bytes,
            will: presence.offline(),
            will_delay: WILL_DELAY,
        };
        let in_flight = usize::from(self.in_flight);
        let place = |filter: &String| {
            filter
                .replace("{base}", &self.base)
                .replace("{node}", &node)
        };
        let options = Options {
            response_topics: self.response_topics.iter().map(place).collect(),
            limits: Limits {
                // What a broker that keeps to Receive Maximum can hand over.
                bytes: in_flight * (self.packet_bytes + JOB_BYTES),
                running: in_flight,
                running_of_one: self.per_client,
            },
            outbox_bytes: self.outbox_bytes,
            answer_bytes: usize::try_from(self.journal_bytes).unwrap_or(usize::MAX),
            chunk_every: Duration::from_millis(self.chunk_ms),
            stats_every: Duration::from_secs(self.stats_s),
            patience: Duration::from_secs(self.patience_s),
            drain,
            seed: seed(&settings.client_id),
            presence,
        };
        Ok(Some(Plan {
            settings,
            options,
            journal: self.journal.clone().unwrap_or_else(|| state.join("mqtt")),
            journal_bytes: self.journal_bytes,
        }))
    }

    fn login(&self) -> Result<Option<(String, String)>, BadConfig> {
        let Some(path) = &self.password_file else {
            return Ok(self.username.clone().map(|user| (user, String::new())));
        };
        let bad = |reason: String| BadConfig::File {
            key: "password_file",
            path: path.clone(),
            reason,
        };
        let length = fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
        if length > MAX_PASSWORD {
            return Err(bad(format!("has more than {MAX_PASSWORD} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        let Some(user) = self.username.clone() else {
            return Err(BadConfig::Value {
                key: "username",
                reason: "is needed with `password_file`".into(),
            });
        };
        Ok(Some((user, password)))
    }
}

/// A short name from the machine id, hashed since the id itself is confidential (machine-id(5)).
fn derived_node(file: &Path) -> Result<String, BadConfig> {
    let id = fs::read_to_string(file).map_err(|e| BadConfig::Value {
        key: "node",
        reason: format!("is not set, and {} cannot be read ({e})", file.display()),
    })?;
    let digest = Sha256::new()
        .chain_update(b"glmd node")
        .chain_update(id.trim())
        .finalize();
    Ok(digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn seed(client_id: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(client_id).into();
    let (first, _) = digest.split_first_chunk::<8>().unwrap_or((&[1; 8], &[]));
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mqtt: &Mqtt) -> Result<Option<Plan>, String> {
        mqtt.plan(Path::new("/var/lib/glmd"), Duration::from_secs(10))
            .map_err(|e| e.to_string())
    }

    fn local() -> Mqtt {
        Mqtt {
            broker: Some("mqtt://127.0.0.1".into()),
            node: Some("n1".into()),
            ..Mqtt::default()
        }
    }

    #[test]
    fn it_is_off_unless_a_broker_is_named() {
        assert!(plan(&Mqtt::default()).expect("a good section").is_none());
        let plan = plan(&local()).expect("a good section").expect("on");
        assert_eq!(plan.settings.client_id, "glmd-n1");
        assert_eq!(plan.options.response_topics[0], "glmd/n1/response/#");
        assert_eq!(plan.journal, Path::new("/var/lib/glmd/mqtt"));
    }

    #[test]
    fn what_cannot_be_is_named_with_its_key() {
        for (mqtt, key) in [
            (
                Mqtt {
                    node: Some("a/b".into()),
                    ..local()
                },
                "mqtt.node",
            ),
            (
                Mqtt {
                    base: "#".into(),
                    ..local()
                },
                "mqtt.base",
            ),
            (
                Mqtt {
                    keep_alive_s: 1,
                    ..local()
                },
                "mqtt.keep_alive_s",
            ),
            (
                Mqtt {
                    in_flight: 0,
                    ..local()
                },
                "mqtt.in_flight",
            ),
            (
                Mqtt {
                    broker: Some("x".into()),
                    ..local()
                },
                "mqtt.broker",
            ),
            (
                Mqtt {
                    cert_file: Some("/c".into()),
                    ..local()
                },
                "mqtt.cert_file",
            ),
            (
                Mqtt {
                    password_file: Some("/nowhere".into()),
                    ..local()
                },
                "mqtt.password_file",
            ),
        ] {
            let told = plan(&mqtt).expect_err(key);
            assert!(told.contains(key), "{told}");
        }
    }

    #[test]
    fn a_node_has_the_same_name_after_every_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("machine-id");
        fs::write(&file, "0123456789abcdef0123456789abcdef\n").expect("a file");
        let name = derived_node(&file).expect("a name");
        assert_eq!(name.len(), 8);
        assert_eq!(derived_node(&file).expect("a name"), name);
        assert!(!"0123456789abcdef0123456789abcdef".contains(&name));
    }
}
