//! A service manager that speaks the protocols of systemd over real sockets, and records what it is told.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::PATIENCE;

/// One datagram: assignments in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told(Vec<(String, String)>);

impl Told {
    fn parse(datagram: &[u8]) -> Self {
        let text = std::str::from_utf8(datagram).expect("UTF-8");
        let line = |line: &str| {
            let (key, value) = line.split_once('=').expect("an assignment");
            (key.to_owned(), value.to_owned())
        };
        Self(text.lines().map(line).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub fn says(&self, key: &str, value: &str) -> bool {
        self.get(key) == Some(value)
    }
}

/// Listens where `NOTIFY_SOCKET` points.
pub struct Manager {
    folder: TempDir,
    notify: UnixDatagram,
}

/// A program that was started by the manager; killed when the test is over.
pub struct Unit(Child);

impl Manager {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let notify = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        Self { folder, notify }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, told where to report. `$$` in a value of `environment` is its process id, as
    /// `LISTEN_PID` and `WATCHDOG_PID` want it; `handed` becomes descriptor 3.
    fn command(
        &self,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        handed: Option<OwnedFd>,
    ) -> Command {
        let mut script = "exec 3<&0 </dev/null; ".to_owned();
        if handed.is_none() {
            script = "exec </dev/null; ".to_owned();
        }
        for (name, value) in environment {
            script.push_str(&format!("export {name}={value}; "));
        }
        script.push_str("exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(program);
        command.args(arguments).env_clear();
        command.env("NOTIFY_SOCKET", self.path("notify"));
        command.stdin(handed.map_or_else(Stdio::null, Stdio::from));
        command
    }

    /// Starts glmd.
    pub fn start(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        handed: Option<OwnedFd>,
    ) -> Unit {
        let program = Path::new(env!("CARGO_BIN_EXE_glmd"));
        self.start_program(program, arguments, environment, handed)
    }

    /// Starts another program as if it were glmd.
    pub fn start_program(
        &self,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        handed: Option<OwnedFd>,
    ) -> Unit {
        let log = File::create(self.path("log")).expect("a file");
        let mut command = self.command(program, arguments, environment, handed);
        Unit(command.stderr(log).spawn().expect("it starts"))
    }

    /// Runs glmd until it ends by itself.
    pub fn run(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        handed: Option<OwnedFd>,
    ) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_glmd"));
        let mut command = self.command(program, arguments, environment, handed);
        command.output().expect("it starts")
    }

    /// The next datagram; `None` when none comes in this time.
    pub fn next_within(&self, time: Duration) -> Option<Told> {
        self.notify.set_read_timeout(Some(time)).expect("a socket");
        let mut datagram = [0; 4096];
        match self.notify.recv(&mut datagram) {
            Ok(length) => Some(Told::parse(&datagram[..length])),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                None
            }
        }
    }

    /// Datagrams up to the first that `is_it`.
    pub fn until(&self, is_it: impl Fn(&Told) -> bool) -> Vec<Told> {
        let end = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let log = || std::fs::read_to_string(self.path("log"));
            let told = self.next_within(left.max(Duration::from_millis(1)));
            let told = told.unwrap_or_else(|| panic!("not told: {all:?}, {:?}", log()));
            all.push(told.clone());
            if is_it(&told) {
                return all;
            }
        }
    }

    pub fn until_ready(&self) -> Vec<Told> {
        self.until(|told| told.says("READY", "1"))
    }
}

impl Unit {
    pub fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.expect("kill").success());
    }

    /// Its exit status.
    pub fn wait(mut self) -> Option<i32> {
        self.0.wait().expect("its own child").code()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
