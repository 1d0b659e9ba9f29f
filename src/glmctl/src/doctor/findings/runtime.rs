//! What runs the model: the daemon, its backend, the library, kernels and threads.

use std::io::ErrorKind;
use std::path::Path;

use glm_engine::backend::library::{Candidate, Origin, Unusable};
use glm_engine::loading::{BackendKind, Report};
use glm_engine::units::Level;
use glm_kernels::{ISA_VARIABLE, Isa};

use super::super::look::{Daemon, Seen};
use super::Topic;
use crate::commands::operate::duration;

/// Where to put a library: the first of the folders that a user may fill.
const LIBRARY_FOLDER: &str = "~/.local/share/glmd/onnxruntime";

pub(super) fn daemon(seen: &Seen, topic: &mut Topic<'_>) {
    let socket = seen.socket.display();
    match &seen.daemon {
        Daemon::Up(status) => {
            let up = duration(status.uptime_s);
            let what = format!(
                "glmd {} answers on {socket}, up {up}, {}",
                status.version, status.phase
            );
            match (status.phase.as_str(), &status.model) {
                ("unloaded", _) if status.level == Level::Black.name() => {
                    topic.warning(what, "free memory: it loads its model again by itself");
                }
                ("unloaded", _) => topic.warning(what, "glmctl reload"),
                _ => topic.ok(what),
            }
        }
        Daemon::Down(ErrorKind::PermissionDenied, _) => topic.warning(
            format!("{socket} may not be used by you"),
            "sudo usermod -aG glmd-clients $USER, then log in again",
        ),
        Daemon::Down(ErrorKind::NotFound, _) => topic.warning(
            format!("glmd does not run: there is no {socket}"),
            "sudo systemctl start glmd, or glmd --model DIR; or name its socket with --socket",
        ),
        Daemon::Down(ErrorKind::ConnectionRefused, _) => topic.warning(
            format!("glmd has ended: nobody listens on {socket}"),
            "journalctl -u glmd -e tells why; sudo systemctl start glmd",
        ),
        Daemon::Down(_, reason) => topic.warning(
            format!("{socket} cannot be reached: {reason}"),
            "name the socket of glmd with --socket",
        ),
        Daemon::Odd(reason) => topic.problem(reason, "sudo systemctl restart glmd"),
    }
}

pub(super) fn backend(seen: &Seen, topic: &mut Topic<'_>) {
    if let Some(model) = seen
        .daemon
        .status()
        .and_then(|status| status.model.as_ref())
    {
        let mut what = format!("glmd runs {} on {}", model.id, model.backend);
        if !model.provider.is_empty() {
            what.push_str(&format!(", {}", model.provider));
        }
        match model.backend_reason.as_str() {
            "" => topic.ok(format!("{what}, the best there is")),
            reason => topic.warning(format!("{what}, for {reason}"), better(reason)),
        }
        matmul(&model.matmul, topic);
    }
    match &seen.model {
        Some((folder, Ok(report))) => loaded(folder, report, topic),
        Some((folder, Err(reason))) => topic.problem(
            reason.clone(),
            &format!("glmctl model verify {}", folder.display()),
        ),
        None if seen.daemon.status().is_none() => {
            let best = match (&seen.search.library, seen.tract) {
                (Some(_), _) => BackendKind::OrtPaged,
                (None, true) => BackendKind::TractPaged,
                (None, false) => {
                    topic.problem(
                        "there is neither a libonnxruntime nor tract in this program",
                        "install libonnxruntime, or build with the feature `tract`",
                    );
                    return;
                }
            };
            topic.note(
                format!("models would run on {best}"),
                "glmctl doctor --model DIR loads one and tells for sure",
            );
        }
        None => {}
    }
}

fn loaded(folder: &Path, report: &Report, topic: &mut Topic<'_>) {
    let name = report.backend.map_or("none", BackendKind::name);
    let mut what = format!("{} runs on {name}", folder.display());
    if let Some((off, most)) = report.deviation {
        what.push_str(&format!(
            ", its test prompts are off by {off:.4} of {most:.4} allowed"
        ));
    }
    what.push_str(&format!(
        ", loaded in {} ms, {} threads, kernels {}",
        report.elapsed.as_millis(),
        report.threads,
        report.kernels.unwrap_or("of the runtime"),
    ));
    topic.ok(what);
    let verdict = report.matmul.as_ref().map(ToString::to_string);
    matmul(&verdict.unwrap_or_default(), topic);
    for attempt in &report.attempts {
        let reason = format!("{} was not taken: {}", attempt.backend, attempt.reason);
        topic.warning(reason, better(&attempt.reason));
    }
}

/// Whose products are used and why, where there is a choice.
fn matmul(verdict: &str, topic: &mut Topic<'_>) {
    let what = format!("products by {verdict}");
    if verdict.contains("do not work") {
        topic.warning(
            what,
            "set model.matmul = \"glmd\"; please report this machine",
        );
    } else if !verdict.is_empty() {
        topic.ok(what);
    }
}

/// What to do against the reason why a backend was not taken.
pub(super) fn better(reason: &str) -> &'static str {
    if reason.contains(" on qnn: ") || reason.contains(" on openvino: ") {
        return "export the model with --profile npu, or set partial = true in [model.provider]";
    }
    if reason.contains("cannot run on paged caches") {
        "export the model with `glmctl export`, whose graphs the paged backends know"
    } else if reason.contains("self-test") {
        "glmctl model verify DIR; if the files are whole, please report this machine"
    } else if reason.contains("needs a restart") {
        "sudo systemctl restart glmd"
    } else {
        "see what is said of onnxruntime below"
    }
}

pub(super) fn library(seen: &Seen, topic: &mut Topic<'_>) {
    for (candidate, reason) in &seen.search.tried {
        let what = format!("{}: {reason}", candidate.path.display());
        topic.warning(what, &instead(candidate, reason));
    }
    match &seen.search.library {
        Some(found) => {
            let path = found.candidate.path.display();
            topic.ok(format!("{path}: {}", found.build));
        }
        None if seen.tract => topic.note(
            "no libonnxruntime was found; tract, which is built in, takes its place and is slower",
            &format!(
                "pip3 download --no-deps onnxruntime, unzip it, and copy onnxruntime/capi/libonnxruntime.so.* to {LIBRARY_FOLDER}"
            ),
        ),
        None => {}
    }
    if seen.search.library.is_some() {
        match &seen.providers {
            Ok(names) => topic.ok(format!("its execution providers: {}", names.join(", "))),
            Err(reason) => topic.warning(
                format!("its execution providers cannot be asked for: {reason}"),
                "use another build of libonnxruntime",
            ),
        }
    }
}

fn instead(candidate: &Candidate, reason: &Unusable) -> String {
    match (reason, candidate.origin) {
        (Unusable::Missing, Origin::Variable) => "unset ORT_DYLIB_PATH".to_owned(),
        (Unusable::Missing, _) => {
            "correct model.onnxruntime in glmd.toml, or leave it out".to_owned()
        }
        (Unusable::Refused(_), _) => {
            format!(
                "install ONNX Runtime 1.24 or later for {}",
                std::env::consts::ARCH
            )
        }
        (Unusable::Fatal(_), _) => format!(
            "it is broken or built for another processor: rm {}, or name a better one in model.onnxruntime",
            candidate.path.display()
        ),
        _ => {
            "try again when the disk is less busy, or name another in model.onnxruntime".to_owned()
        }
    }
}

pub(super) fn kernels(seen: &Seen, topic: &mut Topic<'_>) {
    let processor = &seen.processor;
    let names: Vec<&str> = processor.available.iter().map(|isa| isa.name()).collect();
    let features = processor.features.join(" ");
    match &processor.isa {
        Err(reason) => topic.problem(
            format!("{reason}; this processor has {}", names.join(", ")),
            &format!("unset {ISA_VARIABLE}"),
        ),
        Ok(isa) => {
            let what = format!(
                "{isa}, of {} that this processor has ({features})",
                names.join(", ")
            );
            let best = processor.available.last();
            match &processor.wished {
                Some(wish) if best != Some(isa) => topic.warning(
                    format!("{what}; {ISA_VARIABLE}={wish} asks for it"),
                    &format!("unset {ISA_VARIABLE}"),
                ),
                _ if *isa == Isa::Scalar => topic.warning(
                    format!(
                        "{what}: it lacks the vector instructions that kernels are written for"
                    ),
                    "use a processor with NEON or AVX2",
                ),
                _ => topic.ok(what),
            }
        }
    }
}

pub(super) fn threads(seen: &Seen, topic: &mut Topic<'_>) {
    let allowed = seen.processors.allowed.len();
    let count = seen.threads.count;
    topic.ok(format!(
        "{count} for a step, on a machine of {} processors",
        seen.online
    ));
    if !seen.threads.cpus.is_empty() {
        let cpus: Vec<String> = seen.threads.cpus.iter().map(ToString::to_string).collect();
        topic.ok(format!(
            "steps stay on the strong processors {}; the others would hold them up",
            cpus.join(", ")
        ));
    }
    if allowed > 0 && allowed < seen.online {
        topic.note(
            format!(
                "this program may run on {allowed} of {} processors",
                seen.online
            ),
            "if glmd may too: AllowedCPUs= of its unit, taskset, or the container's cpuset",
        );
    }
    if let Some(quota) = seen.processors.quota {
        let what = format!("the control group grants {quota:.2} processors");
        #[allow(clippy::cast_precision_loss, reason = "a few processors")]
        let short = quota < allowed as f64;
        match short {
            true => topic.note(
                what,
                "if glmd has the same quota: sudo systemctl set-property glmd CPUQuota=",
            ),
            false => topic.ok(what),
        }
    }
}
