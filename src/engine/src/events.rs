//! What the engine tells the operator: one function an event, so that the words are in one place.
//!
//! Never a prompt and never an answer. ERROR: an answer was lost. WARN: the
//! engine helped itself. INFO: the state changed. DEBUG: a request came or went.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::answer::Usage;
use crate::backend::BackendError;
use crate::error::Error;
use crate::memory::cost::{Observed, StepCost};
use crate::memory::telemetry::Snapshot;
use crate::model::ModelInfo;
use crate::units::{Level, RequestId};

pub(crate) fn loaded(model: &ModelInfo) {
    let c = &model.capabilities;
    info!(
        model = %model.id, digest = %model.digest, backend = c.name,
        blocks = c.blocks, block_tokens = c.block_tokens, positions = c.max_tokens,
        "model loaded"
    );
}

pub(crate) fn replacing(beside: bool) {
    match beside {
        true => info!("the new model is loaded and tested while the old one serves"),
        false => info!("no memory for two models: the new one is checked, then the old one goes"),
    }
}

pub(crate) fn idle(time: Duration) {
    info!(
        seconds = time.as_secs(),
        "nobody asks: the model is unloaded, and comes back with the next request"
    );
}

pub(crate) fn load_failed(reason: &Error) {
    error!(code = reason.code(), %reason, "model not loaded");
}

pub(crate) fn level_changed(from: Level, to: Level) {
    match to > from {
        true => warn!(from = from.name(), to = to.name(), "memory gets short"),
        false => info!(from = from.name(), to = to.name(), "memory is free again"),
    }
}

pub(crate) fn step_failed(reason: &str, requests: usize) {
    warn!(
        reason,
        requests, "step failed; its requests are tried one by one"
    );
}

pub(crate) fn panicked(reason: &str) {
    error!(
        reason,
        "panic in the engine thread; the model is loaded anew"
    );
}

pub(crate) fn preempted(id: RequestId) {
    warn!(request = %id, "request gives up its memory and will be continued");
}

pub(crate) fn failed(id: RequestId, reason: &Error) {
    match reason {
        Error::Cancelled
        | Error::Deadline
        | Error::Overloaded { .. }
        | Error::NotLoaded { .. }
        | Error::ShuttingDown => {
            debug!(request = %id, code = reason.code(), "request ended");
        }
        _ => error!(request = %id, code = reason.code(), %reason, "request failed"),
    }
}

pub(crate) fn finished(id: RequestId, usage: &Usage) {
    debug!(
        request = %id, prompt_tokens = usage.prompt_tokens, cached_tokens = usage.cached_tokens,
        completion_tokens = usage.completion_tokens, preemptions = usage.preemptions,
        "request finished"
    );
}

pub(crate) fn governing(watch: &str, snapshot: &Snapshot) {
    let limit = (snapshot.groups.levels.iter())
        .filter_map(|group| group.limit)
        .min();
    info!(
        watch,
        system = %sysinfo::System::long_os_version().unwrap_or_default(),
        kernel = %sysinfo::System::kernel_version().unwrap_or_default(),
        processor = %sysinfo::System::cpu_arch(),
        memory = %snapshot.system.map(|s| s.total).unwrap_or_default(),
        available = %snapshot.system.map(|s| s.available).unwrap_or_default(),
        group_limit = %limit.map_or("none".to_owned(), |limit| limit.to_string()),
        "memory is governed"
    );
}

pub(crate) fn step_cost(cost: &StepCost) {
    info!(
        step_of_one = %cost.of(1, 1),
        step_of_256 = %cost.of(256, 1),
        "memory of steps measured"
    );
}

pub(crate) fn step_cost_raised(step: &Observed) {
    info!(
        tokens = step.tokens, peak = %step.peak,
        "a step took more memory than expected; the expectation is raised"
    );
}

pub(crate) fn not_measured(reason: &BackendError) {
    warn!(%reason, "memory of steps not measured: the first steps failed");
}

pub(crate) fn compiled_refused(reason: &str) {
    warn!(
        reason,
        "what the provider compiled earlier is no good; the graph is compiled again"
    );
}

pub(crate) fn not_kept(reason: &std::io::Error) {
    warn!(%reason, "what the provider compiled is not kept for the next start");
}

pub(crate) fn times_not_kept(folder: &std::path::Path, reason: &std::io::Error) {
    warn!(
        folder = %folder.display(), %reason,
        "times of products are not kept; they are taken again at the next start"
    );
}

pub(crate) fn packed_refused(reason: &str) {
    warn!(
        reason,
        "products of onnxruntime do not work for this model; ours take their place"
    );
}
