//! Where the broker is and what it is told at CONNECT.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{NetworkOptions, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::super::message::Message;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// Everything that a connection needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Version of the protocol.
    pub protocol: Protocol,
    /// Where the broker is.
    pub address: Address,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// The session's name with the broker.
    pub client_id: String,
    /// Longest silence; at least 5 s.
    pub keep_alive: Duration,
    /// How long the broker keeps the session without us (MQTT 5).
    pub session_expiry: Duration,
    /// Requests that the broker may hand over before one is acknowledged (MQTT 5).
    pub receive_maximum: u16,
    /// Largest packet that we read.
    pub packet_bytes: usize,
    /// What the broker says when we are gone, and how long it waits for our return (MQTT 5).
    pub will: Message,
    /// See [`will`](Self::will).
    pub will_delay: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The login holds a secret.
        f.debug_struct("Settings")
            .field("address", &self.address)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// Where a broker is.
#[derive(Clone)]
pub enum Address {
    /// TCP.
    Tcp(String, u16),
    /// TCP with TLS.
    Tls(String, u16, Arc<ClientConfig>),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "mqtt://{host}:{port}"),
            Self::Tls(host, port, _) => write!(f, "mqtts://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Files and names for TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Certificates of the authorities that may sign the broker's; the system's when absent.
    pub ca: Option<PathBuf>,
    /// Certificate and key of the client.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Names of application protocols, where a broker shares a port with something else.
    pub alpn: Vec<String>,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    /// It is not one of the known forms.
    #[error("`mqtt.broker`: `{0}` is not mqtt://HOST[:PORT], mqtts://HOST[:PORT] or unix://PATH")]
    Form(String),
    /// A file of TLS cannot be used.
    #[error("{key}: {}: {reason}", path.display())]
    File {
        /// Key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS to the broker: {0}")]
    Tls(String),
}

impl Address {
    /// Reads `mqtt://`, `mqtts://` and `unix://`.
    ///
    /// # Errors
    /// [`BadAddress`], naming the key and the file.
    pub fn parse(text: &str, tls: &TlsFiles) -> Result<Self, BadAddress> {
        let bad = || BadAddress::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad())
            };
        }
        let (secure, rest) = match text.split_once("://").ok_or_else(bad)? {
            ("mqtt", rest) => (false, rest),
            ("mqtts", rest) => (true, rest),
            _ => return Err(bad()),
        };
        let default = if secure { 8883 } else { 1883 };
        // An IPv6 address stands in brackets, which the resolver wants to see too.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (rest, default),
        };
        let colons = host.contains(':') && !host.starts_with('[');
        if host.is_empty() || colons || host.contains(['/', '@']) {
            return Err(bad());
        }
        if secure {
            Ok(Self::Tls(host.to_owned(), port, client_config(tls)?))
        } else {
            Ok(Self::Tcp(host.to_owned(), port))
        }
    }

    /// In rumqttc's words: host or path, port, transport.
    pub(super) fn parts(&self) -> (String, u16, Transport) {
        match self {
            Self::Tcp(host, port) => (host.clone(), *port, Transport::Tcp),
            Self::Tls(host, port, config) => (
                host.clone(),
                *port,
                Transport::tls_with_config(rumqttc::TlsConfiguration::Rustls(Arc::clone(config))),
            ),
            Self::Unix(path) => (path.to_string_lossy().into_owned(), 0, Transport::Unix),
        }
    }
}

/// What rumqttc is told about sockets.
pub(super) fn network() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    // Nagle's algorithm holds an acknowledgement or an answer back until the broker has acknowledged the segment before,
    // which it may take 40 ms for.
    options.set_tcp_nodelay(true);
    options
}

fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, BadAddress> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &files.ca {
        for certificate in certificates("mqtt.ca_file", path)? {
            roots.add(certificate).map_err(|e| BadAddress::File {
                key: "mqtt.ca_file",
                path: path.clone(),
                reason: e.to_string(),
            })?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let reason = "this system has no list of authorities; name one in `mqtt.ca_file`";
            return Err(BadAddress::Tls(reason.to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BadAddress::Tls(e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &files.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("mqtt.cert_file", certificate)?;
            let bad_key = |reason: String| BadAddress::File {
                key: "mqtt.key_file",
                path: key.clone(),
                reason,
            };
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_key(e.to_string()))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|e| bad_key(e.to_string()))?
        }
    };
    config.alpn_protocols = files
        .alpn
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Ok(Arc::new(config))
}

fn certificates(
    key: &'static str,
    path: &PathBuf,
) -> Result<Vec<CertificateDer<'static>>, BadAddress> {
    let bad = |reason: String| BadAddress::File {
        key,
        path: path.clone(),
        reason,
    };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| bad(e.to_string()))?;
    if all.is_empty() {
        return Err(bad("holds no certificate in PEM form".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let shown = |text: &str| {
            Address::parse(text, &TlsFiles::default()).map(|address| format!("{address:?}"))
        };
        for (text, expected) in [
            ("mqtt://broker", "mqtt://broker:1883"),
            ("mqtt://10.0.0.1:2883", "mqtt://10.0.0.1:2883"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
            ("mqtt://[::1]:99", "mqtt://[::1]:99"),
            ("unix:///run/m.sock", "unix:///run/m.sock"),
        ] {
            assert_eq!(shown(text).expect(text), expected);
        }
        for bad in [
            "broker",
            "http://x",
            "mqtt://",
            "mqtt://a:b",
            "mqtt://::1",
            "unix://m.sock",
            "mqtt://user@host",
            "mqtt://host/path",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_file_is_named_with_its_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "no certificate").expect("a file");
        let tls = TlsFiles {
            ca: Some(path),
            ..TlsFiles::default()
        };
        let told = Address::parse("mqtts://broker", &tls)
            .expect_err("no certificate")
            .to_string();
        assert!(
            told.contains("mqtt.ca_file") && told.contains("ca.pem"),
            "{told}"
        );
    }
}
