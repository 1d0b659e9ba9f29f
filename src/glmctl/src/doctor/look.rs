//! Looks at the daemon and at the machine.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glm_engine::backend::library::Search;
use glm_engine::backend::threads::{self, Processors, Threads};
use glm_engine::control::{Load, Report as Governed};
use glm_engine::loading::{self, Options, Report};
use glm_engine::memory::Settings;
use glm_engine::memory::policy::{Policy, Seen as Asked};
use glm_engine::memory::telemetry::{Detail, Machine, Snapshot, Telemetry};
use glm_engine::units::{Level, Moment};
use glm_kernels::{ISA_VARIABLE, Isa, Kernels};
use glm_wire::status::Status;

use crate::client::Client;
use crate::failure::Result;
use crate::options::runtime;

use super::Doctor;

/// Model directory of the packaged service.
const SERVICE_MODEL: &str = "/var/lib/glmd/model";
/// Time in which a daemon that is alive describes itself, whatever it does else.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Words of `/proc/cpuinfo` that say which kernels can run.
const FEATURES: [&str; 12] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
];

/// All that was seen.
#[derive(Debug)]
pub struct Seen {
    /// The socket that was tried.
    pub socket: PathBuf,
    /// Who answers there.
    pub daemon: Daemon,
    /// Whether a libonnxruntime works.
    pub search: Search,
    /// Execution providers of that library, or why they are not known.
    pub providers: Result<Vec<String>, String>,
    /// Whether tract is built in.
    pub tract: bool,
    /// A model that was loaded here: which, and how that went.
    pub model: Option<(PathBuf, Result<Report, String>)>,
    /// The processor.
    pub processor: Processor,
    /// What the system says about processors.
    pub processors: Processors,
    /// Processors that the machine has.
    pub online: usize,
    /// What follows for the threads of a step.
    pub threads: Threads,
    /// Memory, groups, pressure and heat.
    pub snapshot: Snapshot,
    /// What a governor that looks now would say.
    pub level: Level,
    /// And why.
    pub governed: Governed,
}

/// Who answers on the socket.
#[derive(Debug)]
pub enum Daemon {
    /// glmd.
    Up(Box<Status>),
    /// Nobody can be connected to.
    Down(io::ErrorKind, String),
    /// Somebody, but not as glmd should.
    Odd(String),
}

impl Daemon {
    /// What glmd says of itself.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Up(status) => Some(status),
            _ => None,
        }
    }
}

/// What the processor can do.
#[derive(Clone, Debug)]
pub struct Processor {
    /// Its features that matter here.
    pub features: Vec<&'static str>,
    /// Instruction sets that kernels are written for and that it has, slowest first.
    pub available: Vec<Isa>,
    /// The set that is used, or what is wrong with the wish for another.
    pub isa: Result<Isa, String>,
    /// The wish.
    pub wished: Option<String>,
}

/// Looks at everything.
pub fn look(doctor: &Doctor, socket: &Path) -> Result<Seen> {
    let daemon = daemon(socket)?;
    let options = Options::of_process(doctor.onnxruntime.clone())?;
    let search = loading::find_library(&options);
    let providers = match &search.library {
        Some(_) => loading::providers(&options).map_err(|error| error.to_string()),
        None => Ok(Vec::new()),
    };
    let service = PathBuf::from(SERVICE_MODEL);
    let unserved = daemon.status().is_none() && service.join(glm::manifest::FILE).exists();
    let folder = doctor.model.clone().or(unserved.then_some(service));
    // On a thread of its own: loading may keep its thread on some of the processors.
    let model = folder.map(|folder| {
        let loaded = std::thread::scope(|scope| {
            let load = scope.spawn(|| loading::open(&folder, &options).map(|m| m.info.report));
            load.join()
        });
        let report = match loaded {
            Ok(report) => report.map_err(|error| error.to_string()),
            Err(_) => Err("loading it panicked".to_owned()),
        };
        (folder, report)
    });
    let processors = threads::read(Path::new("/"));
    let snapshot = Machine::default().snapshot(Detail::Full);
    let mut policy = Policy::new(Settings::default());
    let load = Load::default();
    let asked = Asked {
        snapshot: &snapshot,
        load: &load,
        fired: false,
        used_up: false,
    };
    let decision = policy.decide(Moment::default(), &asked);
    Ok(Seen {
        socket: socket.to_owned(),
        daemon,
        search,
        providers,
        tract: cfg!(feature = "tract"),
        model,
        processor: processor(),
        threads: threads::decide(&processors, None),
        processors,
        online: online(),
        snapshot,
        level: decision.allowance.level,
        governed: policy.report().clone(),
    })
}

fn daemon(socket: &Path) -> Result<Daemon> {
    // Tried first by itself, for the kind of the failure tells what to do.
    if let Err(error) = UnixStream::connect(socket) {
        return Ok(Daemon::Down(error.kind(), error.to_string()));
    }
    let client = Client::new(socket.to_owned());
    let asked = runtime()?.block_on(async {
        let asked = client.get::<Status>("/v1/status");
        tokio::time::timeout(STATUS_LIMIT, asked).await
    });
    Ok(match asked {
        Ok(Ok(status)) => Daemon::Up(Box::new(status)),
        Ok(Err(failure)) => Daemon::Odd(failure.to_string()),
        Err(_) => Daemon::Odd(format!("no answer in {} s", STATUS_LIMIT.as_secs())),
    })
}

fn processor() -> Processor {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let words: Vec<&str> = text
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"))
        .map(|line| line.split_whitespace().collect())
        .unwrap_or_default();
    Processor {
        features: FEATURES.into_iter().filter(|f| words.contains(f)).collect(),
        available: Isa::available(),
        isa: Kernels::from_env()
            .map(Kernels::isa)
            .map_err(|error| error.to_string()),
        wished: std::env::var(ISA_VARIABLE).ok().filter(|w| !w.is_empty()),
    }
}

/// Processors that the kernel runs; 0 when it does not tell.
fn online() -> usize {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("cpu"))
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .count()
}
