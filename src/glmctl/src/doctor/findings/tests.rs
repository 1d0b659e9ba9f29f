//! A Raspberry Pi that is new, and what doctor says as it changes.

use std::io::ErrorKind;
use std::path::PathBuf;

use glm_engine::backend::library::{Candidate, Library, Origin, Search, Unusable};
use glm_engine::backend::threads::{Processors, Threads};
use glm_engine::control;
use glm_engine::loading::verdict::{Measurement, Reason, Sample, Times, Verdict};
use glm_engine::loading::{BackendKind, Matmul, Report};
use glm_engine::memory::telemetry::{Clockrate, Heat, Snapshot, System, Zone};
use glm_engine::units::{Bytes, Level, Margin};
use glm_kernels::Isa;
use glm_wire::status::{ModelStatus, Status};

use super::super::look::{Daemon, Processor};
use super::runtime::better;
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
