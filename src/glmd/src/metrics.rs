//! Figures for Prometheus.
//!
//! What happens to requests is counted where it happens; what the engine
//! already counts is read from its status when somebody asks. Names begin with
//! `glmd_`, units are seconds and bytes, and labels have few values: `op`,
//! `outcome`, `transport`, `reason`.

use std::fmt;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use glm_engine::EngineHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::process;
use crate::service::status::headroom;

/// MIME type of what [`Metrics::text`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    op: &'static str,
    transport: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    op: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rejection {
    reason: String,
}

type Histograms = Family<Operation, Histogram, fn() -> Histogram>;

/// From a millisecond to an hour: the answers of small boxes are that different.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.5, 17))
}

/// Every figure of the daemon.
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    rejected: Family<Rejection, Counter>,
    duration: Histograms,
    first_token: Histograms,
    queue_wait: Histograms,
    connections: Gauge<i64, AtomicI64>,
    refused_connections: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Figures of a daemon whose engine is `engine`.
    #[must_use]
    pub fn new(engine: EngineHandle) -> Self {
        let mut registry = Registry::with_prefix("glmd");
        let histograms = || Histograms::new_with_constructor(seconds as fn() -> Histogram);
        let metrics = Self {
            requests: Family::default(),
            rejected: Family::default(),
            duration: histograms(),
            first_token: histograms(),
            queue_wait: histograms(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Requests that ended, by operation, transport and outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "admission_rejected",
            "Requests that were not accepted, by the code of the error",
            metrics.rejected.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from acceptance to the end of the answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "Time from acceptance to the first token or score",
            Unit::Seconds,
            metrics.first_token.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time from acceptance to the first step",
            Unit::Seconds,
            metrics.queue_wait.clone(),
        );
        registry.register(
            "http_connections",
            "Open connections",
            metrics.connections.clone(),
        );
        registry.register(
            "http_connections_refused",
            "Connections that were closed at once because too many were open",
            metrics.refused_connections.clone(),
        );
        registry.register_collector(Box::new(EngineFigures {
            engine,
            started: Instant::now(),
        }));
        Self {
            registry,
            ..metrics
        }
    }

    /// A request was not accepted.
    pub fn rejected(&self, op: &'static str, transport: &'static str, code: &str) {
        self.ended(op, transport, "rejected");
        let reason = code.to_owned();
        self.rejected.get_or_create(&Rejection { reason }).inc();
    }

    /// A request ended.
    pub fn ended(&self, op: &'static str, transport: &'static str, outcome: &'static str) {
        let labels = Request {
            op,
            transport,
            outcome,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// A request left the queue.
    pub fn started(&self, op: &'static str, queued: Duration) {
        let histogram = self.queue_wait.get_or_create(&Operation { op });
        histogram.observe(queued.as_secs_f64());
    }

    /// A request was answered.
    pub fn answered(&self, op: &'static str, first_token: Duration, whole: Duration) {
        let op = Operation { op };
        let first = self.first_token.get_or_create(&op);
        first.observe(first_token.as_secs_f64());
        drop(first);
        self.duration
            .get_or_create(&op)
            .observe(whole.as_secs_f64());
    }

    /// Counts a connection until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    /// A connection was closed because too many were open.
    pub fn connection_refused(&self) {
        self.refused_connections.inc();
    }

    /// All figures in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// When a figure cannot be written, which memory that grows excludes.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(8 << 10);
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Keeps a connection counted.
#[derive(Debug)]
pub struct OpenConnection(Gauge<i64, AtomicI64>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What the engine says about itself, at the time of the question.
#[derive(Debug)]
struct EngineFigures {
    engine: EngineHandle,
    started: Instant,
}

impl Collector for EngineFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.engine.status();
        let count = |n: u64| ConstCounter::new(n);
        #[allow(clippy::cast_precision_loss)] // Figures, not accounts.
        let gauge = |n: u64| ConstGauge::new(n as f64);
        let c = &status.counters;
        let counters = [
            (
                "preemptions",
                "Times that a request gave up its memory",
                c.preemptions,
            ),
            ("steps", "Steps that ran", c.steps),
            (
                "steps_failed",
                "Steps that the backend failed",
                c.failed_steps,
            ),
            (
                "tokens_computed",
                "Tokens that went through the model",
                c.computed_tokens,
            ),
            (
                "tokens_sampled",
                "Tokens that were written",
                c.sampled_tokens,
            ),
            (
                "tokens_cached",
                "Prompt tokens found in the prefix cache",
                c.cached_tokens,
            ),
        ];
        for (name, help, value) in counters {
            let counter = count(value);
            let out = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(out)?;
        }
        let level = status.level as u64;
        let memory = &status.memory;
        let own = process::memory();
        let bytes = Some(&Unit::Bytes);
        let seconds = Some(&Unit::Seconds);
        let gauges = [
            (
                "queue_tokens",
                "Tokens of the requests that wait",
                None,
                gauge(status.queued_tokens as u64),
            ),
            (
                "queue_requests",
                "Requests that wait",
                None,
                gauge(status.queued_requests as u64),
            ),
            (
                "running_requests",
                "Requests that are served",
                None,
                gauge(status.running.len() as u64),
            ),
            (
                "batch_limit",
                "Tokens that a step may have now",
                None,
                gauge(status.step_budget as u64),
            ),
            (
                "batch_size",
                "Sequences of the last step",
                None,
                gauge(status.batch as u64),
            ),
            (
                "pressure_level",
                "0 green, 1 yellow, 2 orange, 3 red, 4 black",
                None,
                gauge(level),
            ),
            (
                "memory_headroom",
                "Memory left above the floor",
                bytes,
                gauge(status.report.as_ref().map_or(0, headroom)),
            ),
            (
                "memory_reserved",
                "Memory reserved for accepted requests",
                bytes,
                gauge(status.reserved.0),
            ),
            (
                "kv_used",
                "Keys and values in use",
                bytes,
                gauge(memory.kv_used.0),
            ),
            (
                "kv_resident",
                "Keys and values that are resident",
                bytes,
                gauge(memory.kv_resident.0),
            ),
            ("weights", "Weights", bytes, gauge(memory.weights.0)),
            (
                "model_loaded",
                "1 while the model is in memory",
                None,
                gauge(u64::from(status.backend.is_some())),
            ),
            (
                "process_anonymous",
                "Anonymous memory of the process and its swap",
                bytes,
                gauge(own.anonymous),
            ),
            (
                "decode_tokens_per_second",
                "Tokens written a second, smoothed",
                None,
                ConstGauge::new(status.decode_rate),
            ),
            (
                "uptime",
                "Time since the start",
                seconds,
                ConstGauge::new(self.started.elapsed().as_secs_f64()),
            ),
        ];
        for (name, help, unit, gauge) in gauges {
            let out = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(out)?;
        }
        Ok(())
    }
}
