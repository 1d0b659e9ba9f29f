//! A node under test: a real session over an answerer without a model.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm_wire::error::{ErrorDetail, ErrorKind};
use glmd::mqtt::{self, Answering, Ask, Fatal, Mqtt};
use glmd::operations::Operation;
use glmd::service::failure;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Answers with the text that was asked, in capitals, and a number that no two answers share.
#[derive(Clone, Debug, Default)]
pub struct Echo(Arc<State>);

#[derive(Debug, Default)]
struct State {
    asked: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    /// Refusals before the first answer.
    busy: AtomicUsize,
    ending: AtomicBool,
    /// Refusals as `stats` counts them.
    refused: AtomicUsize,
    cancelled: Mutex<Vec<String>>,
    operated: Mutex<Vec<Operation>>,
}

impl Echo {
    pub fn busy(times: usize) -> Self {
        let echo = Self::default();
        echo.0.busy.store(times, Ordering::SeqCst);
        echo
    }

    /// From now on it takes nothing new, as an engine that ends.
    pub fn end(&self) {
        self.0.ending.store(true, Ordering::SeqCst);
    }

    /// Counts so many refusals more.
    pub fn refuse(&self, times: usize) {
        self.0.refused.fetch_add(times, Ordering::SeqCst);
    }

    /// Times that an answer was begun.
    pub fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// What was done to the daemon.
    pub fn operated(&self) -> Vec<Operation> {
        self.0.operated.lock().expect("no panic").clone()
    }

    /// Texts whose answer was dropped half-way.
    pub fn cancelled(&self) -> Vec<String> {
        self.0.cancelled.lock().expect("no panic").clone()
    }
}

/// Notes a request that is dropped before its answer.
struct Begun(Echo, Option<String>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.0.running.fetch_sub(1, Ordering::SeqCst);
        if let Some(text) = self.1.take() {
            self.0.0.cancelled.lock().expect("no panic").push(text);
        }
    }
}

impl Answering for Echo {
    async fn answer(&self, ask: Ask) -> Result<Vec<u8>, ErrorDetail> {
        let body: Value = serde_json::from_slice(&ask.body).expect("JSON");
        let text = body["text"].as_str().unwrap_or_default().to_owned();
        if self.0.busy.load(Ordering::SeqCst) > 0 {
            self.0.busy.fetch_sub(1, Ordering::SeqCst);
            let detail = ErrorDetail::new(ErrorKind::Overloaded, "overloaded", "full");
            return Err(detail.with_retry_after_ms(1));
        }
        if self.0.ending.load(Ordering::SeqCst) {
            return Err(failure::detail(&glm_engine::Error::ShuttingDown));
        }
        let number = self.0.asked.fetch_add(1, Ordering::SeqCst);
        let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(running, Ordering::SeqCst);
        let mut begun = Begun(self.clone(), Some(text.clone()));
        if let Some(pieces) = &ask.pieces {
            for word in text.split(' ') {
                pieces
                    .send(json!({ "delta": word }).to_string().into_bytes())
                    .await;
            }
        }
        assert_ne!(text, "panic", "as asked");
        if text == "forever" {
            std::future::pending::<()>().await;
        }
        if text == "slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        begun.1 = None;
        let text = if text == "long" {
            "x".repeat(5000)
        } else {
            text.to_uppercase()
        };
        Ok(json!({"text": text, "number": number})
            .to_string()
            .into_bytes())
    }

    async fn operate(&self, operation: Operation) -> Result<Vec<u8>, ErrorDetail> {
        self.0.operated.lock().expect("no panic").push(operation);
        Ok(json!({"status": operation.name()}).to_string().into_bytes())
    }

    fn info(&self) -> Value {
        json!({"version": "0.1.0", "model": {"id": "echo"}})
    }

    fn stats(&self) -> Value {
        let refused = self.0.refused.load(Ordering::SeqCst);
        json!({"level": "green", "phase": "ready", "requests": {"queued": 0, "refused": refused}})
    }
}

/// A session that runs.
pub struct Node {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), Fatal>>,
}

impl Node {
    /// Starts a node with its journal in `folder`.
    pub fn start(
        broker: SocketAddr,
        folder: &Path,
        echo: Echo,
        change: impl FnOnce(&mut Mqtt),
    ) -> Self {
        let mut config = Mqtt {
            broker: Some(format!("mqtt://{broker}")),
            node: Some("n1".to_owned()),
            discovery_prefix: String::new(),
            ..Mqtt::default()
        };
        change(&mut config);
        let plan = config
            .plan(folder, Duration::from_secs(5))
            .expect("a good section")
            .expect("a broker");
        let session = mqtt::prepare(plan, echo).expect("a journal");
        let (stop, stopped) = watch::channel(false);
        Self {
            stop,
            task: tokio::spawn(session.run(stopped)),
        }
    }

    /// Dies without a word, as by `kill -9`.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Asks it to end.
    pub fn stop(&self) {
        self.stop.send(true).expect("it runs");
    }

    /// How it ended.
    pub async fn ended(self) -> Result<(), Fatal> {
        self.task.await.expect("no panic")
    }
}
