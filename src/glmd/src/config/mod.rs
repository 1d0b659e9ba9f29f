//! What an operator can set.
//!
//! Every key has a default, so an empty file is a good configuration.
//! [`layers`] reads the sources and merges them, [`show`] prints the result.

pub mod layers;
pub mod show;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use glm_engine::backend::Bytes;
use glm_engine::backend::provider::{self, ProviderKind};
use glm_engine::loading::{self, BackendKind, MatmulOptions};
use serde::{Deserialize, Serialize};

pub use layers::{Loaded, Origin, Sources, load};

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is served.
    pub model: Model,
    /// How programs on this machine reach it.
    pub http: Http,
    /// How requests share a step.
    pub engine: Engine,
    /// What is left to the rest of the machine.
    pub memory: Memory,
    /// Who may wait.
    pub queue: Queue,
    /// How devices reach it.
    pub mqtt: crate::mqtt::Mqtt,
    /// What is told to the operator.
    pub log: Log,
    /// How the daemon ends.
    pub shutdown: Shutdown,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Folder of an exported model.
    pub path: PathBuf,
    /// What runs it: `auto` takes the best that works; else `ort-paged`, `tract-paged` or `ort-portable`.
    pub backend: String,
    /// Accelerator to try before `backend`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Whose kernel computes quantised products on `ort-paged`.
    pub matmul: Matmul,
    /// libonnxruntime to use before those that are found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
    /// Threads of a step; 0 = as many as this machine has use for.
    pub threads: usize,
    /// Most memory for keys and values in MiB. It is taken as it is used.
    pub kv_mib: u64,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Hash every file of the model before it is used, rather than only compare sizes.
    pub verify: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: "/var/lib/glmd/model".into(),
            backend: AUTO.into(),
            provider: None,
            matmul: Matmul::Measured,
            onnxruntime: None,
            threads: 0,
            kv_mib: 512,
            kv_type: KvType::F16,
            verify: false,
        }
    }
}

/// An execution provider of ONNX Runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// `qnn`, `openvino`, `cuda` or `tensorrt`.
    pub name: String,
    /// Plug-in library of `qnn` or `openvino`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// Whether the CPU may run what the provider does not take; `status` tells how much that is.
    pub partial: bool,
    /// Folder that keeps what `qnn` compiled for the next start; systemd's cache directory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Options of the provider, by its own names.
    pub options: BTreeMap<String, String>,
}

/// Lets the machine decide which backend runs the model.
const AUTO: &str = "auto";
/// Most MiB that a configuration may ask for: 1 TiB is more than the boxes have.
const MAX_MIB: u64 = 1 << 20;

/// Whose kernel computes quantised products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matmul {
    /// glmd's, or ONNX Runtime's where those are clearly faster and memory allows them.
    #[default]
    Measured,
    /// glmd's, which reads weights where they lie in the file.
    Glmd,
    /// ONNX Runtime's, which packs weights into memory of its own.
    OnnxRuntime,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// Bytes with a scale for every token and head: half the memory, a little less exact.
    Int8,
}

/// What is left to the rest of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether memory is watched and the engine held back when it is short.
    pub govern: bool,
    /// MiB that are always left alone; computed from the size of the machine when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_mib: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            govern: true,
            floor_mib: None,
        }
    }
}

/// HTTP on a Unix socket, and on TCP when asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Path of the socket. A runtime file, so below `/run` as the FHS wants it.
    pub socket: PathBuf,
    /// Permissions of the socket, in octal.
    pub mode: String,
    /// Group that may use the socket. When absent, `glmd-clients` where it exists and may be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Most connections at a time; more are answered 503 and closed.
    pub connections: usize,
    /// Most requests at a time of one user, by uid; 0 = no limit.
    pub requests_per_user: usize,
    /// Largest body in bytes; at most 1 MiB.
    pub body_bytes: usize,
    /// Most bytes of all bodies that are being read.
    pub body_bytes_total: usize,
    /// Seconds in which the head of a request must come, and for which an idle connection is kept.
    pub head_timeout_s: u64,
    /// Seconds in which the body must come.
    pub body_timeout_s: u64,
    /// Seconds for which a client may leave an answer unread.
    pub write_timeout_s: u64,
    /// The same on TCP. Off unless it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            socket: "/run/glmd/glmd.sock".into(),
            mode: "0660".into(),
            group: None,
            // A few KiB each; a small box has dozens of local programs, not hundreds.
            connections: 256,
            requests_per_user: 0,
            body_bytes: glm_wire::MAX_BODY_BYTES,
            // Sixteen of the largest bodies: more text than a small box answers in an hour.
            body_bytes_total: 16 << 20,
            head_timeout_s: 30,
            body_timeout_s: 30,
            write_timeout_s: 30,
            tcp: None,
        }
    }
}

/// HTTP on TCP: loopback only, every request with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Address, such as `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// File with the token that clients send as `Authorization: Bearer`.
    pub token_file: PathBuf,
}

/// How requests share a step of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Most tokens of a step.
    pub step_tokens: usize,
    /// Most sequences that are served side by side.
    pub sequences: usize,
    /// Most rows of logits of a step.
    pub logits_rows: usize,
    /// Most tokens of prompts that are kept for those that begin the same way; 0 keeps none, and a quarter of
    /// the key/value cache is used when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_tokens: Option<usize>,
    /// Seconds that a request may wait before it is answered `overloaded`.
    pub patience_s: u64,
    /// Most tokens of an answer that a slow reader may leave unread.
    pub unread_tokens: usize,
    /// Seconds without requests after which the model is unloaded until the next one; 0 = never.
    pub idle_unload_s: u64,
}

impl Default for Engine {
    fn default() -> Self {
        let engine = glm_engine::Config::default();
        Self {
            step_tokens: engine.step_tokens.0,
            sequences: engine.sequences,
            logits_rows: engine.logits_rows,
            cache_tokens: None,
            patience_s: engine.patience.as_secs(),
            unread_tokens: engine.unread_tokens.0,
            idle_unload_s: engine.idle_unload.map_or(0, |time| time.as_secs()),
        }
    }
}

/// Who may wait for a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Most requests that wait.
    pub requests: usize,
    /// Most tokens that the waiting requests may cost together.
    pub tokens: usize,
    /// Seconds by which priorities differ.
    pub ageing_s: u64,
}

impl Default for Queue {
    fn default() -> Self {
        let limits = glm_engine::scheduler::queue::QueueLimits::default();
        Self {
            requests: limits.requests,
            tokens: limits.tokens.0,
            ageing_s: limits.ageing.as_secs(),
        }
    }
}

/// What is told to the operator, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Level, or levels by target: `info`, `info,glm_engine=debug`.
    pub level: String,
    /// Where it goes.
    pub to: LogTarget,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            to: LogTarget::Auto,
        }
    }
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// The journal when stderr is connected to it, else stderr.
    #[default]
    Auto,
    /// The journal, with fields.
    Journald,
    /// Lines for people on stderr.
    Stderr,
    /// JSON objects on stderr, one a line.
    Json,
}

/// How the daemon ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// Seconds in which accepted requests are still answered.
    pub drain_s: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        // Below the 90 s after which systemd kills.
        Self { drain_s: 20 }
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    /// Dotted name of the key.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl Config {
    /// Refuses values that parse but cannot work.
    ///
    /// # Errors
    /// The first such value.
    pub fn validate(&self) -> Result<(), BadValue> {
        let bad = |key, reason: &str| {
            Err(BadValue {
                key,
                reason: reason.to_owned(),
            })
        };
        let http = &self.http;
        if http.socket.as_os_str().is_empty() || !http.socket.is_absolute() {
            return bad("http.socket", "must be an absolute path");
        }
        // `sun_path` holds 108 bytes, and the socket is bound under a longer name first.
        if http.socket.as_os_str().len() > 100 {
            return bad(
                "http.socket",
                "is too long: a socket path has at most 100 bytes",
            );
        }
        if http.octal_mode().is_none() {
            return bad("http.mode", "must be octal permissions such as \"0660\"");
        }
        if self.model.backend().is_err() {
            return bad(
                "model.backend",
                "must be auto, ort-paged, tract-paged or ort-portable",
            );
        }
        if let Some(provider) = &self.model.provider {
            let Ok(kind) = provider.name.parse::<ProviderKind>() else {
                return bad(
                    "model.provider.name",
                    "must be qnn, openvino, cuda or tensorrt",
                );
            };
            if kind.is_plugin() && provider.library.is_none() {
                return bad(
                    "model.provider.library",
                    "must name the provider's plug-in library",
                );
            }
        }
        if !(1..=MAX_MIB).contains(&self.model.kv_mib) {
            return bad("model.kv_mib", "must be from 1 to 1048576");
        }
        if self.memory.floor_mib.is_some_and(|mib| mib > MAX_MIB) {
            return bad("memory.floor_mib", "must be at most 1048576");
        }
        let positive = [
            ("http.connections", http.connections),
            ("http.body_bytes", http.body_bytes),
            ("engine.step_tokens", self.engine.step_tokens),
            ("engine.sequences", self.engine.sequences),
            ("engine.logits_rows", self.engine.logits_rows),
            ("engine.unread_tokens", self.engine.unread_tokens),
            ("queue.requests", self.queue.requests),
            ("queue.tokens", self.queue.tokens),
        ];
        for (key, value) in positive {
            if value == 0 {
                return bad(key, "must be at least 1");
            }
        }
        let times = [
            ("http.head_timeout_s", http.head_timeout_s),
            ("http.body_timeout_s", http.body_timeout_s),
            ("http.write_timeout_s", http.write_timeout_s),
            ("engine.patience_s", self.engine.patience_s),
        ];
        for (key, value) in times {
            if !(1..=MAX_SECONDS).contains(&value) {
                return bad(key, "must be from 1 to 86400 seconds");
            }
        }
        if self.engine.idle_unload_s > MAX_SECONDS {
            return bad("engine.idle_unload_s", "must be at most 86400 seconds");
        }
        if self.shutdown.drain_s > MAX_SECONDS {
            return bad("shutdown.drain_s", "must be at most 86400 seconds");
        }
        if http.body_bytes > glm_wire::MAX_BODY_BYTES {
            return bad("http.body_bytes", "must be at most 1048576");
        }
        if http.body_bytes_total < http.body_bytes {
            return bad(
                "http.body_bytes_total",
                "must hold at least one body of http.body_bytes",
            );
        }
        if (http.tcp.as_ref()).is_some_and(|tcp| !tcp.listen.ip().is_loopback()) {
            return bad(
                "http.tcp.listen",
                "must be a loopback address; put a proxy with TLS in front to serve others",
            );
        }
        if self.log.targets().is_none() {
            return bad(
                "log.level",
                "must be like \"info\" or \"info,glm_engine=debug\"",
            );
        }
        Ok(())
    }

    /// The engine's part of the configuration.
    #[must_use]
    pub fn engine_config(&self) -> glm_engine::Config {
        glm_engine::Config {
            step_tokens: glm::Tokens(self.engine.step_tokens),
            sequences: self.engine.sequences,
            logits_rows: self.engine.logits_rows,
            cache_tokens: self.engine.cache_tokens.map(glm::Tokens),
            patience: Duration::from_secs(self.engine.patience_s),
            unread_tokens: glm::Tokens(self.engine.unread_tokens),
            idle_unload: (self.engine.idle_unload_s > 0)
                .then(|| Duration::from_secs(self.engine.idle_unload_s)),
            queue: glm_engine::scheduler::queue::QueueLimits {
                requests: self.queue.requests,
                tokens: glm::Tokens(self.queue.tokens),
                ageing: Duration::from_secs(self.queue.ageing_s),
            },
        }
    }
}

/// A day: no wait of a daemon is longer on purpose.
const MAX_SECONDS: u64 = 86_400;

impl Model {
    /// The only backend to try; `None` for the best that works.
    ///
    /// # Errors
    /// When there is no backend of that name.
    pub fn backend(&self) -> Result<Option<BackendKind>, String> {
        match self.backend.as_str() {
            AUTO => Ok(None),
            name => name.parse().map(Some),
        }
    }

    /// How the kernel of quantised products is chosen.
    #[must_use]
    pub fn matmul_options(&self, floor: Option<Bytes>) -> MatmulOptions {
        MatmulOptions {
            only: match self.matmul {
                Matmul::Measured => None,
                Matmul::Glmd => Some(loading::Matmul::Glmd),
                Matmul::OnnxRuntime => Some(loading::Matmul::OnnxRuntime),
            },
            cache: cache_folder(|name| std::env::var_os(name)),
            floor,
            ..MatmulOptions::default()
        }
    }

    /// The accelerator to try first.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn accelerator(&self) -> Result<Option<provider::Provider>, String> {
        let Some(asked) = &self.provider else {
            return Ok(None);
        };
        Ok(Some(provider::Provider {
            kind: asked.name.parse()?,
            library: asked.library.clone(),
            options: asked.options.clone(),
            partial: asked.partial,
            cache: (asked.cache.clone())
                .or_else(|| std::env::var_os("CACHE_DIRECTORY").map(PathBuf::from)),
        }))
    }
}

/// Where things may be kept that can be made again: what systemd gives us, or the user's folder.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| {
        variable(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    folder("CACHE_DIRECTORY")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("glmd")))
        .or_else(|| Some(folder("HOME")?.join(".cache/glmd")))
}

impl Http {
    /// Permissions of the socket.
    #[must_use]
    pub fn octal_mode(&self) -> Option<u32> {
        let mode = u32::from_str_radix(&self.mode, 8).ok()?;
        (mode <= 0o777).then_some(mode)
    }
}

impl Log {
    /// The levels, when they are written as they should be.
    #[must_use]
    pub fn targets(&self) -> Option<tracing_subscriber::filter::Targets> {
        self.level.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_made_again_is_kept_where_services_and_users_keep_it() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<(String, OsString)> = set
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.into()))
                .collect();
            cache_folder(|name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let service = ("CACHE_DIRECTORY", "/var/cache/glmd");
        let user = ("HOME", "/home/joe");
        assert_eq!(with(&[service, user]), Some("/var/cache/glmd".into()));
        assert_eq!(with(&[user]), Some("/home/joe/.cache/glmd".into()));
        let moved = ("XDG_CACHE_HOME", "/tmp/joe");
        assert_eq!(with(&[user, moved]), Some("/tmp/joe/glmd".into()));
        assert_eq!(with(&[("HOME", "")]), None);
    }
}
