//! A daemon in this process with a model without weights, and a client that speaks raw bytes.
#![allow(dead_code, reason = "each test target uses a part")]

mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use glm_engine::control::Unlimited;
use glmd::config::{Config, Loaded};
use glmd::{Daemon, Error, Parts, Signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

pub use fake::Script;

/// Longest wait for something that must happen; a machine may be slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon.
pub struct Rig {
    pub folder: TempDir,
    pub socket: PathBuf,
    pub script: Arc<Script>,
    signals: mpsc::Sender<Signal>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Rig {
    pub fn usual() -> Self {
        Self::with(|_| {})
    }

    /// A daemon with another configuration, ready to answer.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::scripted(change, Arc::default())
    }

    pub fn scripted(change: impl FnOnce(&mut Config), script: Arc<Script>) -> Self {
        let rig = Self::unready(change, script);
        wait(|| {
            let running = rig
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished());
            assert!(running, "the daemon ended");
            rig.get("/health/ready").status == 200
        });
        rig
    }

    /// A daemon that may not be able to load its model.
    pub fn unready(change: impl FnOnce(&mut Config), script: Arc<Script>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::default();
        config.http.socket = folder.path().join("glmd.sock");
        // So that whatever the model holds belongs to a request.
        config.engine.cache_tokens = Some(0);
        change(&mut config);
        config.validate().expect("a good configuration");
        let socket = config.http.socket.clone();
        let (signals, receiver) = mpsc::channel(4);
        let theirs = Arc::clone(&script);
        let (bound, is_bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let parts = Parts {
                model: Box::new(move |_| {
                    let script = Arc::clone(&theirs);
                    Box::new(move || fake::load(&script))
                }),
                control: Box::new(|_, _| Box::new(Unlimited)),
                socket: None,
            };
            let loaded = Loaded {
                config,
                origins: std::collections::BTreeMap::new(),
            };
            runtime.block_on(async {
                let daemon = Daemon::start(loaded, None, None, parts).await;
                let _ = bound.send(());
                daemon?.run(receiver).await
            })
        });
        is_bound.recv().expect("started");
        Self {
            folder,
            socket,
            script,
            signals,
            thread: Some(thread),
        }
    }

    pub fn connect(&self) -> Wire {
        let stream = UnixStream::connect(&self.socket).expect("a connection");
        Wire::new(stream)
    }

    pub fn get(&self, path: &str) -> Response {
        let mut wire = self.connect();
        wire.send(format!("GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n"));
        wire.response()
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        let mut wire = self.connect();
        wire.send(post(path, body));
        wire.response()
    }

    pub fn signal(&self, signal: Signal) {
        self.signals.blocking_send(signal).expect("it listens");
    }

    /// Waits for the end.
    pub fn join(mut self) -> Result<(), Error> {
        let thread = self.thread.take().expect("joined once");
        thread.join().expect("no panic")
    }

    pub fn sequences(&self) -> usize {
        self.script.sequences.load(Ordering::SeqCst)
    }

    pub fn steps(&self) -> usize {
        self.script.steps.load(Ordering::SeqCst)
    }

    /// One figure of `/metrics`, 0 where it is not there yet.
    pub fn figure(&self, name: &str) -> f64 {
        let response = self.get("/metrics");
        let text = String::from_utf8(response.body).expect("text");
        let line = text.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Twice: a test that failed may have left a request that never ends.
        let _ = self.signals.try_send(Signal::Stop);
        let _ = self.signals.try_send(Signal::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until something is so.
pub fn wait(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A request with a body.
pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: whatever\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection that reads HTTP strictly.
pub struct Wire {
    pub stream: BufReader<UnixStream>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Code of the error that it must be.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_else(|| panic!("{} {}", self.status, self.json()))
            .to_owned()
    }
}

impl Wire {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("sent");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line");
        line
    }

    /// Status and headers.
    pub fn head(&mut self) -> Response {
        let line = self.line();
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let line = line.strip_suffix("\r\n").expect("CR LF");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect("a header");
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Response {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// A whole response.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        match response.header("content-length").map(str::to_owned) {
            Some(length) => {
                let length = length.parse().expect("a number");
                response.body = vec![0; length];
                self.stream.read_exact(&mut response.body).expect("a body");
            }
            None => {
                assert_eq!(response.header("transfer-encoding"), Some("chunked"));
                while let Some(chunk) = self.chunk() {
                    response.body.extend(chunk);
                }
            }
        }
        response
    }

    /// One chunk of a chunked body; `None` for the last.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk length");
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).expect("a chunk");
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// Whether the other side has closed: nothing is left to read.
    pub fn at_end(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(0) => true,
            Ok(_) => panic!("more: {:?}", String::from_utf8_lossy(&rest)),
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// The events of a stream, read as the standard says (WHATWG HTML 9.2.6) and stricter: UTF-8, no
/// carriage return, nothing but `data` and comments, ended by `[DONE]` and nothing behind it.
pub fn events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    assert!(!text.contains('\r'), "{text:?}");
    let blocks = text.strip_suffix("\n\n").expect("the last event is ended");
    let mut events = Vec::new();
    let mut done = false;
    for block in blocks.split("\n\n") {
        assert!(!done, "after [DONE]: {block}");
        let mut data = Vec::new();
        for line in block.split('\n') {
            if line.starts_with(':') {
                continue;
            }
            let (field, value) = line.split_once(": ").expect("a field");
            assert_eq!(field, "data", "{line}");
            data.push(value);
        }
        match data.join("\n").as_str() {
            "" => {}
            "[DONE]" => done = true,
            json => events.push(serde_json::from_str(json).expect("JSON")),
        }
    }
    assert!(done, "no [DONE]");
    events
}
