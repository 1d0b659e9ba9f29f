//! What follows from what was seen: findings, each with what to type.

use std::io::ErrorKind;
use std::path::Path;

use glm_engine::backend::library::{Candidate, Origin, Unusable};
use glm_engine::loading::{BackendKind, Report};
use glm_engine::memory::telemetry::GroupVersion;
use glm_engine::units::{Bytes, Level};
use glm_kernels::{ISA_VARIABLE, Isa};
use glm_wire::status::Status;
use serde::Serialize;

use crate::commands::operate::{bytes, duration};

use super::look::{Daemon, Seen};

/// Share of the last ten seconds in which tasks wait for memory, in percent, from which on that is felt.
const FELT: f64 = 5.0;
/// Where to put a library: the first of the folders that a user may fill.
const LIBRARY_FOLDER: &str = "~/.local/share/glmd/onnxruntime";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Good to know; it could be better.
    Note,
    /// It costs speed or memory, or is about to.
    Warning,
    /// glmd cannot work.
    Problem,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub topic: &'static str,
    /// How bad it is.
    pub state: State,
    /// What it is.
    pub what: String,
    /// What to type, or to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Findings about one topic.
struct Topic<'a>(&'static str, &'a mut Vec<Finding>);

impl Topic<'_> {
    fn add(&mut self, state: State, what: impl Into<String>, fix: Option<String>) {
        self.1.push(Finding {
            topic: self.0,
            state,
            what: what.into(),
            fix,
        });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.add(State::Ok, what, None);
    }

    fn note(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Note, what, Some(fix.to_owned()));
    }

    fn warning(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Warning, what, Some(fix.to_owned()));
    }

    fn problem(&mut self, what: impl Into<String>, fix: &str) {
        self.add(State::Problem, what, Some(fix.to_owned()));
    }
}

/// All findings, from the daemon down to the heat of the processor.
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let mut all = Vec::new();
    daemon(seen, &mut Topic("daemon", &mut all));
    backend(seen, &mut Topic("backend", &mut all));
    library(seen, &mut Topic("onnxruntime", &mut all));
    kernels(seen, &mut Topic("kernels", &mut all));
    threads(seen, &mut Topic("threads", &mut all));
    memory(seen, &mut Topic("memory", &mut all));
    groups(seen, &mut Topic("cgroup", &mut all));
    pressure(seen, &mut Topic("pressure", &mut all));
    heat(seen, &mut Topic("heat", &mut all));
    all
}

fn daemon(seen: &Seen, topic: &mut Topic<'_>) {
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

fn backend(seen: &Seen, topic: &mut Topic<'_>) {
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
fn better(reason: &str) -> &'static str {
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

fn library(seen: &Seen, topic: &mut Topic<'_>) {
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

fn kernels(seen: &Seen, topic: &mut Topic<'_>) {
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

fn threads(seen: &Seen, topic: &mut Topic<'_>) {
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

fn memory(seen: &Seen, topic: &mut Topic<'_>) {
    if let Some(status) = seen.daemon.status() {
        let what = format!(
            "glmd is at level {}: {}; headroom {}, weights {}, keys and values {}",
            status.level,
            status.level_reason,
            bytes(status.memory.headroom),
            bytes(status.memory.weights),
            bytes(status.memory.kv_resident),
        );
        match status.level == Level::Green.name() {
            true => topic.ok(what),
            false => topic.warning(what, shortage(status)),
        }
    }
    let Some(system) = seen.snapshot.system else {
        topic.warning(
            "the system does not tell how much memory there is, so nothing protects it",
            "mount /proc",
        );
        return;
    };
    let swap = match system.swap_total {
        Bytes(0) => "no swap".to_owned(),
        total => format!(
            "{} of {} swap free",
            bytes(system.swap_free.0),
            bytes(total.0)
        ),
    };
    topic.ok(format!(
        "{} of {} available, {swap}; source MemAvailable",
        bytes(system.available.0),
        bytes(system.total.0)
    ));
    let governed = &seen.governed;
    let left = governed.headroom.0;
    let what = format!(
        "a model here would have {}{} above a floor of {}, by {}: level {}",
        if left < 0 { "-" } else { "" },
        bytes(left.unsigned_abs()),
        bytes(governed.floor.0),
        governed.bound,
        seen.level.name()
    );
    match seen.level {
        Level::Green => topic.ok(what),
        _ if &*governed.bound == "system" => topic.warning(
            what,
            "end what takes memory (ps aux --sort=-rss | head), or take a smaller model",
        ),
        _ => topic.warning(
            what,
            "sudo systemctl set-property glmd MemoryMax= with more",
        ),
    }
}

fn shortage(status: &Status) -> &'static str {
    if status.level_reason.contains("hot") {
        "cool the processor"
    } else {
        "end what takes memory (ps aux --sort=-rss | head), lower model.kv_mib, or take a smaller model"
    }
}

fn groups(seen: &Seen, topic: &mut Topic<'_>) {
    let groups = &seen.snapshot.groups;
    let version = match groups.version {
        Some(GroupVersion::V1) => "version 1",
        Some(GroupVersion::V2) => "version 2",
        None => {
            topic.note(
                "no control group tells of memory, so MemoryMax= has no effect here",
                "on a Raspberry Pi: append cgroup_enable=memory to the line in /boot/firmware/cmdline.txt and reboot",
            );
            return;
        }
    };
    let limited: Vec<String> = groups
        .levels
        .iter()
        .filter_map(|group| {
            let limit = group.limit?;
            Some(format!(
                "{} uses {} of {}",
                group.path,
                bytes(group.current.0),
                bytes(limit.0)
            ))
        })
        .collect();
    match limited.is_empty() {
        true => topic.ok(format!("{version}, without limits for this program")),
        false => topic.ok(format!("{version}: {}", limited.join("; "))),
    }
    if let Some(events) = groups.events
        && events.oom_kill > 0
    {
        topic.warning(
            format!(
                "{} processes of this group were killed for want of memory",
                events.oom_kill
            ),
            "journalctl -k -g oom tells which; raise MemoryMax= of their unit",
        );
    }
}

fn pressure(seen: &Seen, topic: &mut Topic<'_>) {
    let (whose, pressure) = match (seen.snapshot.groups.pressure, seen.snapshot.pressure) {
        (Some(own), _) => ("tasks of this control group", own),
        (None, Some(system)) => ("tasks of the system", system),
        (None, None) => {
            topic.note(
                "the kernel does not tell of stalls (PSI); rates of /proc/vmstat are used, which is slower to notice",
                "append psi=1 to the kernel command line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot",
            );
            return;
        }
    };
    let what = format!(
        "{whose} waited for memory in {:.1} % of the last ten seconds",
        pressure.some.percent
    );
    match pressure.some.percent < FELT {
        true => topic.ok(what),
        false => topic.warning(what, "end what takes memory (ps aux --sort=-rss | head)"),
    }
}

fn heat(seen: &Seen, topic: &mut Topic<'_>) {
    let heat = &seen.snapshot.heat;
    let slowed = heat.clocks.iter().find(|clock| clock.allowed < clock.most);
    if let Some(clock) = slowed {
        topic.warning(
            format!(
                "processors may run at {} of {} MHz",
                clock.allowed / 1000,
                clock.most / 1000
            ),
            "cool the processor, check its power supply, and see `cpupower frequency-info`",
        );
    }
    match heat.zones.iter().max_by_key(|zone| zone.temperature) {
        None => topic.ok("no temperature can be read here"),
        Some(zone) => {
            let what = format!("{} has {} °C", zone.name, zone.temperature / 1000);
            match zone.throttles_at {
                Some(at) if zone.temperature >= at => {
                    topic.warning(
                        what + ", where the kernel slows it down",
                        "cool the processor",
                    );
                }
                Some(at) => topic.ok(format!(
                    "{what}, it is slowed down from {} °C on",
                    at / 1000
                )),
                None => topic.ok(what),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use glm_engine::backend::library::{Library, Search};
    use glm_engine::backend::threads::{Processors, Threads};
    use glm_engine::control;
    use glm_engine::loading::Matmul;
    use glm_engine::loading::verdict::{Measurement, Reason, Sample, Times, Verdict};
    use glm_engine::memory::telemetry::{Clockrate, Heat, Snapshot, System, Zone};
    use glm_engine::units::Margin;
    use glm_wire::status::ModelStatus;

    use super::super::look::Processor;
    use super::*;

    /// A Raspberry Pi 5 as its image comes: no memory group, no PSI, no libonnxruntime, no daemon.
    fn pi() -> Seen {
        Seen {
            socket: PathBuf::from("/run/glmd/glmd.sock"),
            daemon: Daemon::Down(ErrorKind::NotFound, "No such file".to_owned()),
            search: Search {
                library: None,
                tried: Vec::new(),
            },
            providers: Ok(Vec::new()),
            tract: true,
            model: None,
            processor: Processor {
                features: vec!["asimd", "asimddp"],
                available: vec![Isa::Scalar, Isa::Neon, Isa::NeonDotprod],
                isa: Ok(Isa::NeonDotprod),
                wished: None,
            },
            processors: Processors {
                allowed: vec![0, 1, 2, 3],
                ..Processors::default()
            },
            online: 4,
            threads: Threads {
                count: 4,
                cpus: Vec::new(),
            },
            snapshot: Snapshot {
                system: Some(System {
                    total: Bytes::mib(8192),
                    available: Bytes::mib(7000),
                    ..System::default()
                }),
                ..Snapshot::default()
            },
            level: Level::Green,
            governed: control::Report {
                headroom: Margin(6 << 30),
                floor: Bytes::mib(327),
                bound: "system".into(),
                ..control::Report::default()
            },
        }
    }

    fn about<'a>(all: &'a [Finding], topic: &str) -> Vec<&'a Finding> {
        all.iter()
            .filter(|finding| finding.topic == topic)
            .collect()
    }

    fn fix(finding: &Finding) -> &str {
        finding.fix.as_deref().unwrap_or_default()
    }

    #[test]
    fn a_new_raspberry_pi_is_told_what_to_type() {
        let all = findings(&pi());
        assert!(all.iter().all(|f| f.state != State::Problem), "{all:?}");
        assert!(fix(about(&all, "daemon")[0]).contains("systemctl start glmd"));
        assert!(about(&all, "backend")[0].what.contains("tract-paged"));
        assert!(fix(about(&all, "onnxruntime")[0]).contains("pip3 download"));
        assert_eq!(about(&all, "kernels")[0].state, State::Ok);
        assert!(fix(about(&all, "cgroup")[0]).contains("cgroup_enable=memory"));
        assert!(fix(about(&all, "pressure")[0]).contains("psi=1"));
        // Whatever is not as it should be says what to do.
        let silent = |f: &&Finding| f.state != State::Ok && f.fix.is_none();
        assert_eq!(all.iter().find(silent), None);
    }

    #[test]
    fn nothing_to_run_on_is_a_problem() {
        let all = findings(&Seen {
            tract: false,
            ..pi()
        });
        assert_eq!(about(&all, "backend")[0].state, State::Problem);
    }

    #[test]
    fn a_library_that_is_named_and_missing_is_told_by_who_named_it() {
        let tried = |origin, reason| {
            let candidate = Candidate {
                path: PathBuf::from("/opt/libonnxruntime.so"),
                origin,
            };
            let seen = Seen {
                search: Search {
                    library: None,
                    tried: vec![(candidate, reason)],
                },
                ..pi()
            };
            let all = findings(&seen);
            fix(about(&all, "onnxruntime")[0]).to_owned()
        };
        assert_eq!(
            tried(Origin::Variable, Unusable::Missing),
            "unset ORT_DYLIB_PATH"
        );
        assert!(tried(Origin::Config, Unusable::Missing).contains("glmd.toml"));
        let fatal = Unusable::Fatal("signal: 4".to_owned());
        assert!(tried(Origin::System, fatal).contains("rm /opt/libonnxruntime.so"));
    }

    #[test]
    fn a_running_daemon_tells_why_it_has_no_better_backend() {
        let status = Status {
            version: "0.1.0".to_owned(),
            phase: "ready".to_owned(),
            level: "yellow".to_owned(),
            level_reason: "12 MiB are left above the floor, by system".to_owned(),
            model: Some(ModelStatus {
                id: "theirs".to_owned(),
                backend: "ort-portable".to_owned(),
                backend_reason: "ort-paged: the graph cannot run on paged caches: Foo".to_owned(),
                matmul: "glmd, for onnxruntime's are 0.71 times as fast".to_owned(),
                ..ModelStatus::default()
            }),
            ..Status::default()
        };
        let seen = Seen {
            daemon: Daemon::Up(Box::new(status)),
            search: Search {
                library: Some(Library {
                    candidate: Candidate {
                        path: PathBuf::from("/usr/lib/libonnxruntime.so"),
                        origin: Origin::System,
                    },
                    build: "ORT Build Info: git-branch=rel-1.27".to_owned(),
                }),
                tried: Vec::new(),
            },
            providers: Ok(vec!["CPUExecutionProvider (CPU)".to_owned()]),
            ..pi()
        };
        let refused = "ort-portable on qnn: it takes 2 of 31 nodes";
        assert!(better(refused).contains("--profile npu"));
        let all = findings(&seen);
        let backend = about(&all, "backend");
        assert!(backend[0].what.contains("Foo"), "{backend:?}");
        assert!(fix(backend[0]).contains("glmctl export"));
        assert!(backend[1].what.contains("products by glmd, for"));
        assert_eq!(backend[1].state, State::Ok);
        assert!(about(&all, "memory")[0].what.contains("12 MiB"));
        assert_eq!(about(&all, "memory")[0].state, State::Warning);
        assert!(
            about(&all, "onnxruntime")[1]
                .what
                .contains("CPUExecutionProvider")
        );
    }

    #[test]
    fn a_model_that_was_loaded_here_tells_whose_products_it_uses() {
        let about_model = |reason| {
            let matmul = Matmul::Glmd;
            let report = Report {
                backend: Some(BackendKind::OrtPaged),
                matmul: Some(Verdict { matmul, reason }),
                ..Report::default()
            };
            let seen = Seen {
                model: Some((PathBuf::from("/m"), Ok(report))),
                ..pi()
            };
            let all = findings(&seen);
            about(&all, "backend")[1].clone()
        };
        let times = |rows| Times {
            rows,
            glmd: 2_000_000,
            onnxruntime: 3_000_000,
        };
        let measured = Reason::Measured(Measurement {
            samples: vec![Sample {
                outputs: 2048,
                inputs: 2048,
                bits: 8,
                block: 32,
                count: 10.0,
                times: vec![times(1), times(8), times(32)],
            }],
            invariant: true,
            elapsed_ms: 180,
        });
        let found = about_model(measured);
        assert_eq!(found.state, State::Ok);
        assert!(
            found.what.contains("0.67 times as fast")
                && found.what.contains("1 row 20.00 and 30.00 ms"),
            "{found:?}"
        );
        let found = about_model(Reason::Failed("self-test: off".to_owned()));
        assert_eq!(found.state, State::Warning);
        assert!(fix(&found).contains("model.matmul"));
    }

    #[test]
    fn a_wish_for_slower_kernels_and_a_hot_processor_are_seen() {
        let mut seen = pi();
        seen.processor.isa = Ok(Isa::Neon);
        seen.processor.wished = Some("neon".to_owned());
        seen.snapshot.heat = Heat {
            zones: vec![Zone {
                name: "cpu-thermal".into(),
                temperature: 86_000,
                throttles_at: Some(85_000),
                shuts_down_at: None,
            }],
            clocks: vec![Clockrate {
                now: 1_000_000,
                allowed: 1_500_000,
                most: 2_400_000,
            }],
        };
        let all = findings(&seen);
        assert_eq!(fix(about(&all, "kernels")[0]), "unset GLMD_ISA");
        let heat = about(&all, "heat");
        assert!(heat.iter().all(|f| f.state == State::Warning), "{heat:?}");
        assert_eq!(heat.len(), 2);
        seen.processor.isa = Err("no kernels `sse9`".to_owned());
        assert_eq!(about(&findings(&seen), "kernels")[0].state, State::Problem);
    }
}
