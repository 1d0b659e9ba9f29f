//! What is loaded and how it fares: `GET /v1/status`, `GET /v1/models`, MQTT `stats` and `info`.

use serde::{Deserialize, Serialize};

use crate::Priority;

/// The daemon at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// What the engine does with its model: `loading`, `ready`, `unloaded`, `idle` (unloaded until the next
    /// request), `draining` or `stopped`.
    #[serde(default)]
    pub phase: String,
    /// The loaded model, if any.
    pub model: Option<ModelStatus>,
    /// Memory level: green, yellow, orange, red or black.
    pub level: String,
    /// Why the level is what it is, in words.
    pub level_reason: String,
    /// Requests.
    pub requests: RequestCounts,
    /// The step that runs and its limits.
    pub batch: BatchStatus,
    /// Memory in bytes.
    pub memory: MemoryStatus,
    /// Tokens written a second, over the last seconds.
    pub tokens_per_second: f64,
    /// Hottest thermal zone in degrees Celsius, where one can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f64>,
    /// Requests that run or wait.
    #[serde(default)]
    pub running: Vec<RunningRequest>,
}

/// The loaded model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its name.
    pub id: String,
    /// Family: `glm`, `glm-edge`, ...
    pub family: String,
    /// Backend that runs it.
    pub backend: String,
    /// Execution provider, and how many nodes of the graph it runs: `qnn: 120 of 124 nodes`; empty on the CPU.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provider: String,
    /// Why this backend, and what was tried before it.
    pub backend_reason: String,
    /// Whose kernel computes the quantised products, `glmd` or `onnxruntime`, and why; empty where there is no choice.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub matmul: String,
    /// Bits a weight and block, such as `int8/32`.
    pub quantisation: String,
    /// SHA-256 of the weights.
    pub sha256: String,
    /// Longest sequence in tokens.
    pub max_tokens: usize,
    /// What it can do: `infill`, `classify`, `completions`, `chat`.
    pub operations: Vec<String>,
    /// Named tasks.
    pub tasks: Vec<String>,
}

/// Requests since the start, and now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Waiting.
    pub queued: usize,
    /// Tokens of the waiting.
    pub queued_tokens: usize,
    /// Running.
    pub running: usize,
    /// Answered since the start.
    pub answered: u64,
    /// Refused since the start.
    pub refused: u64,
    /// Failed since the start.
    pub failed: u64,
    /// Cancelled since the start.
    pub cancelled: u64,
}

/// The step that runs and its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// Sequences in the last step.
    pub sequences: usize,
    /// Tokens in the last step.
    pub tokens: usize,
    /// Most tokens of a step now.
    pub token_budget: usize,
    /// Most tokens of a step ever.
    pub token_budget_max: usize,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What may still be taken before the floor.
    pub headroom: u64,
    /// What admitted requests may still take.
    pub reserved: u64,
    /// Keys and values in use.
    pub kv_used: u64,
    /// Keys and values that are resident.
    pub kv_resident: u64,
    /// Weights.
    pub weights: u64,
    /// Anonymous memory of the process and its swap.
    pub anonymous: u64,
}

/// A request that runs or waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningRequest {
    /// Its identity.
    pub id: String,
    /// `queued`, `prefill` or `decode`.
    pub state: String,
    /// Who goes first.
    pub priority: Priority,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub completion_tokens: usize,
    /// Milliseconds since it arrived.
    pub age_ms: f64,
}

/// `POST /admin/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// `reloaded`.
    pub status: String,
    /// Name of the model that serves now.
    pub model: String,
    /// SHA-256 over its files.
    pub sha256: String,
    /// Whether the old model served until the new one had passed its test. Where memory did not allow two
    /// models, the files of the new one were checked, then the old one made room.
    pub old_served: bool,
}

/// `GET /v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelEntry>,
}

/// One model, in OpenAI's shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// `glmd`.
    pub owned_by: String,
}
