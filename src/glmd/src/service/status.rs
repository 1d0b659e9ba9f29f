//! The daemon at a glance, for people and for dashboards.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use glm_engine::control::{Cause, Report};
use glm_engine::model::ModelInfo;
use glm_engine::status::Phase;
use glm_wire::status::{
    BatchStatus, MemoryStatus, ModelEntry, ModelList, ModelStatus, RequestCounts, RunningRequest,
    Status,
};

use super::{Service, registry, wire_priority};
use crate::process;

impl Service {
    /// The daemon at a glance.
    #[must_use]
    pub fn status(&self) -> Status {
        let engine = self.engine().status();
        let model = self.engine().model();
        let c = &engine.counters;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started().elapsed().as_secs_f64(),
            phase: engine.phase.name().to_owned(),
            model: model.map(|info| ModelStatus {
                id: info.id.clone(),
                family: info.spec.family.name().to_owned(),
                backend: info.capabilities.name.to_owned(),
                provider: (info.report.placement.as_ref())
                    .map_or_else(String::new, ToString::to_string),
                backend_reason: info.report.backend_reason().unwrap_or_default(),
                matmul: (info.report.matmul.as_ref()).map_or_else(String::new, ToString::to_string),
                operations: operations(&info),
                tasks: info.tasks.keys().cloned().collect(),
                quantisation: info.report.quantisation.clone().unwrap_or_default(),
                sha256: info.digest.clone(),
                max_tokens: info.capabilities.max_tokens,
            }),
            level: engine.level.name().to_owned(),
            level_reason: reason(engine.report.as_ref()),
            requests: RequestCounts {
                queued: engine.queued_requests,
                queued_tokens: engine.queued_tokens,
                running: engine.running.len(),
                answered: c.finished,
                refused: c.refused,
                failed: c.failed + c.expired,
                cancelled: c.cancelled + c.superseded,
            },
            batch: BatchStatus {
                sequences: engine.batch,
                tokens: engine.step_tokens,
                token_budget: engine.step_budget,
                token_budget_max: self.step_tokens(),
            },
            memory: MemoryStatus {
                reserved: engine.reserved.0,
                kv_used: engine.memory.kv_used.0,
                kv_resident: engine.memory.kv_resident.0,
                weights: engine.memory.weights.0,
                anonymous: process::memory().anonymous,
                headroom: engine.report.as_ref().map_or(0, headroom),
            },
            tokens_per_second: engine.decode_rate,
            temperature_c: engine.report.as_ref().and_then(|report| report.temperature),
            running: self.running(&engine.running),
        }
    }

    /// Served requests as the engine knows them, then those that wait.
    fn running(&self, served: &[glm_engine::status::Running]) -> Vec<RunningRequest> {
        let served_by_id: HashMap<_, _> = served.iter().map(|r| (r.id, r)).collect();
        let now = Instant::now();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let listed = self.registry().all();
        let mut all: Vec<RunningRequest> = listed
            .into_iter()
            .map(|(id, entry)| {
                let base = RunningRequest {
                    id: registry::public(id),
                    state: "queued".to_owned(),
                    priority: entry.priority,
                    prompt_tokens: entry.prompt_tokens,
                    completion_tokens: 0,
                    age_ms: ms(now.saturating_duration_since(entry.since)),
                };
                match served_by_id.get(&id) {
                    None => base,
                    Some(running) => RunningRequest {
                        state: match running.completion_tokens {
                            0 => "prefill",
                            _ => "decode",
                        }
                        .to_owned(),
                        priority: wire_priority(running.priority),
                        prompt_tokens: running.prompt_tokens,
                        completion_tokens: running.completion_tokens,
                        ..base
                    },
                }
            })
            .collect();
        // A stable sort: those that wait keep their order.
        all.sort_by_key(|request| request.state == "queued");
        all
    }

    /// The models, in OpenAI's shape: one or none.
    #[must_use]
    pub fn models(&self) -> ModelList {
        let started = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(self.started().elapsed());
        let data = self.engine().model().map(|info| ModelEntry {
            id: info.id.clone(),
            object: "model".to_owned(),
            created: started.as_secs(),
            owned_by: "glmd".to_owned(),
        });
        ModelList {
            object: "list".to_owned(),
            data: data.into_iter().collect(),
        }
    }

    /// Whether requests are answered: at once, or as soon as they have brought the model back.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.engine().status().phase, Phase::Ready | Phase::Idle)
    }
}

/// Why the level is what it is, in words.
fn reason(report: Option<&Report>) -> String {
    let Some(report) = report else {
        return "memory is not watched".to_owned();
    };
    let mib = headroom(report) >> 20;
    let bound = &report.bound;
    match report.cause {
        Cause::None => format!("{mib} MiB above the floor, by {bound}"),
        Cause::Headroom => format!("{mib} MiB are left above the floor, by {bound}"),
        Cause::Stall => "tasks wait for memory".to_owned(),
        Cause::Limit => format!("the control group is at its limit: {bound}"),
        Cause::Thrash => "the system reads back what it has just dropped".to_owned(),
        Cause::Dwell => format!("memory was short; {mib} MiB are free above the floor again"),
        Cause::Heat => "the processor is hot or slowed down".to_owned(),
    }
}

/// Bytes above the floor; 0 below it.
pub(crate) fn headroom(report: &Report) -> u64 {
    u64::try_from(report.headroom.0).unwrap_or(0)
}

/// What the model can be asked.
fn operations(info: &ModelInfo) -> Vec<String> {
    let mut names = Vec::new();
    if info.spec.family.fills_blanks() {
        names.extend(["infill", "classify"]);
    }
    names.push("completions");
    if info.spec.family.chats() {
        names.push("chat");
    }
    names.into_iter().map(str::to_owned).collect()
}
