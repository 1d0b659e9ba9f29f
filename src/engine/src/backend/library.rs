//! Finding a libonnxruntime that works on this machine.
//!
//! A shared library may be missing, truncated, too old, or built for a CPU
//! that this one is not, and then it ends the process that loads it. So every
//! candidate is loaded in a short-lived child first: the child is this same
//! program with [`PROBE_VARIABLE`] set, and [`answer_probe`], called first in
//! `main`, does the loading there. What was tried comes back as data, for the
//! log, `status` and `doctor`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Variable that makes this program a probe of the library that it names.
pub const PROBE_VARIABLE: &str = "GLMD_PROBE_ONNXRUNTIME";
/// What the probe writes before the library's description.
const MARK: &str = "onnxruntime-probe: ";
/// A cold library of 35 MB is read from an SD card in about two seconds; a
/// library that hangs must not keep the daemon from its fallback.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the child is asked whether it is done.
const GLANCE: Duration = Duration::from_millis(5);

/// Who named a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration.
    Config,
    /// The variable `ORT_DYLIB_PATH`.
    Variable,
    /// The folder that the build or an installation fills.
    Bundled,
    /// The library folders of the system.
    System,
}

/// A place where a library may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Who named it.
    pub origin: Origin,
}

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The file that the configuration names; nothing else is tried then.
    pub config: Option<PathBuf>,
    /// The file in `ORT_DYLIB_PATH`.
    pub variable: Option<PathBuf>,
    /// Folders that a build or an installation fills.
    pub bundled: Vec<PathBuf>,
    /// Library folders of the system.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// The places of this process: beside the program, the user's data folder, the system's folders.
    #[must_use]
    pub fn of_process(config: Option<PathBuf>) -> Self {
        let program = env::current_exe().ok();
        // `target/debug/glmd` and `/usr/bin/glmd` both find their neighbours.
        let beside = program
            .as_deref()
            .and_then(Path::parent)
            .and_then(Path::parent);
        let data = env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
        let bundled = [
            beside.map(|folder| folder.join("onnxruntime")),
            beside.map(|folder| folder.join("lib/glmd")),
            data.map(|folder| folder.join("glmd/onnxruntime")),
        ];
        let triple = format!("{}-linux-gnu", env::consts::ARCH);
        let system = [
            "/usr/local/lib",
            &format!("/usr/lib/{triple}"),
            "/usr/lib64",
            "/usr/lib",
        ];
        Self {
            config,
            variable: env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
            bundled: bundled.into_iter().flatten().collect(),
            system: system.map(PathBuf::from).to_vec(),
        }
    }

    /// The candidates in the order in which they are tried.
    ///
    /// A file that someone named is a candidate even if it is not there, so
    /// that the report can say so; folders yield what they hold.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let named = |path: &PathBuf, origin| Candidate {
            path: path.clone(),
            origin,
        };
        if let Some(path) = &self.config {
            return vec![named(path, Origin::Config)];
        }
        let mut found: Vec<_> = self
            .variable
            .iter()
            .map(|path| named(path, Origin::Variable))
            .collect();
        for (folders, origin) in [
            (&self.bundled, Origin::Bundled),
            (&self.system, Origin::System),
        ] {
            for folder in folders {
                found.extend(
                    libraries_in(folder)
                        .into_iter()
                        .map(|path| Candidate { path, origin }),
                );
            }
        }
        found
    }
}

/// One library of a folder: the versions of a name are links to one file, the longest is the file.
fn libraries_in(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let rest = name.strip_prefix("libonnxruntime.so");
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
        .max_by_key(|path| (path.as_os_str().len(), path.clone()))
}

/// Why a library cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// The loader or the version check refused it.
    #[error("not loadable: {0}")]
    Refused(String),
    /// It ended the probe: built for another CPU, or broken.
    #[error("loading it ends the process ({0})")]
    Fatal(String),
    /// It did not load in time.
    #[error("not loaded after {} s", PATIENCE.as_secs())]
    Hangs,
    /// The probe itself did not start.
    #[error("the probe did not start: {0}")]
    NoProbe(String),
}

impl Unusable {
    /// Stable name of the kind of failure.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "library_missing",
            Self::Refused(_) => "library_refused",
            Self::Fatal(_) => "library_fatal",
            Self::Hangs => "library_hangs",
            Self::NoProbe(_) => "probe_failed",
        }
    }
}

/// A library that loads on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// File and who named it.
    pub candidate: Candidate,
    /// What the library says of its build.
    pub build: String,
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The first candidate that loads.
    pub library: Option<Library>,
    /// The candidates before it, and why not.
    pub tried: Vec<(Candidate, Unusable)>,
}

/// Starts probes.
#[derive(Clone, Debug)]
pub struct Prober {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Prober {
    /// Probes with this program, whose `main` must begin with [`answer_probe`].
    ///
    /// # Errors
    /// [`Unusable::NoProbe`] when the system does not tell which program this is.
    pub fn this_program() -> Result<Self, Unusable> {
        let program = env::current_exe().map_err(|error| Unusable::NoProbe(error.to_string()))?;
        Ok(Self::new(program, Vec::new()))
    }

    /// Probes with a program that calls [`answer_probe`] when it is given `arguments`.
    #[must_use]
    pub const fn new(program: PathBuf, arguments: Vec<OsString>) -> Self {
        Self { program, arguments }
    }

    /// The first of `candidates` that loads.
    #[must_use]
    pub fn search(&self, candidates: Vec<Candidate>) -> Search {
        let mut tried = Vec::new();
        for candidate in candidates {
            match self.probe(&candidate.path) {
                Ok(build) => {
                    let library = Some(Library { candidate, build });
                    return Search { library, tried };
                }
                Err(reason) => tried.push((candidate, reason)),
            }
        }
        Search {
            library: None,
            tried,
        }
    }

    /// Loads `path` in a child; returns what the library says of its build.
    ///
    /// # Errors
    /// [`Unusable`], with the loader's message or the way the child ended.
    pub fn probe(&self, path: &Path) -> Result<String, Unusable> {
        if !path.is_file() {
            return Err(Unusable::Missing);
        }
        let no_probe = |error: std::io::Error| Unusable::NoProbe(error.to_string());
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env(PROBE_VARIABLE, path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(no_probe)?;
        let started = Instant::now();
        // The child writes one short line, which fits the pipe: it never waits for us.
        while child.try_wait().map_err(no_probe)?.is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().map_err(no_probe)?;
                child.wait().map_err(no_probe)?;
                return Err(Unusable::Hangs);
            }
            thread::sleep(GLANCE);
        }
        let output = child.wait_with_output().map_err(no_probe)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = text
            .lines()
            .find_map(|line| line.split_once(MARK))
            .map(|(_, rest)| rest);
        match answer.and_then(|answer| answer.split_once(' ')) {
            Some(("usable", build)) if output.status.success() => Ok(build.to_owned()),
            Some(("refused", reason)) => Err(Unusable::Refused(reason.to_owned())),
            _ => Err(Unusable::Fatal(output.status.to_string())),
        }
    }
}

/// Loads the library that [`PROBE_VARIABLE`] names and tells on standard output how it went.
///
/// `None` in a process that is no probe, which then goes on as usual. To be
/// called first in `main`, before threads start, and its code returned.
#[must_use]
pub fn answer_probe() -> Option<ExitCode> {
    let path = PathBuf::from(env::var_os(PROBE_VARIABLE)?);
    let loaded = ort::init_from(&path)
        .map_err(|error| error.to_string())
        .and_then(|builder| {
            builder
                .with_telemetry(false)
                .build()
                .map_err(|error| error.to_string())
        });
    match loaded {
        Ok(_environment) => {
            println!("{MARK}usable {}", one_line(ort::info()));
            Some(ExitCode::SUCCESS)
        }
        Err(reason) => {
            println!("{MARK}refused {}", one_line(&reason));
            Some(ExitCode::FAILURE)
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
