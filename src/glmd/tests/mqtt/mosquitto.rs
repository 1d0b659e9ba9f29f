//! A real broker.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

/// A program that is not there by then will not come.
const START: Duration = Duration::from_secs(60);

pub async fn until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + START;
    while !ready().await {
        assert!(Instant::now() < end, "{what} does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A real broker that keeps its state over a restart.
pub struct Mosquitto {
    program: PathBuf,
    config: PathBuf,
    port: u16,
    child: Child,
}

impl Mosquitto {
    /// Where the program is.
    pub fn find() -> Option<PathBuf> {
        [
            "/usr/sbin/mosquitto",
            "/usr/bin/mosquitto",
            "/usr/local/sbin/mosquitto",
        ]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
    }

    pub async fn start(program: &Path, folder: &Path) -> Self {
        Self::start_with(program, folder, "").await
    }

    /// Starts it with `more` lines of configuration.
    pub async fn start_with(program: &Path, folder: &Path, more: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let state = folder.join("mosquitto");
        fs::create_dir(&state).expect("a folder");
        let config = folder.join("mosquitto.conf");
        // The queue of a client that is away is unbounded here: its bound is the broker's promise, not ours.
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {}/\nautosave_interval 1\nmax_queued_messages 0\n\
             user root\nlog_dest none\n{more}",
            state.display()
        );
        fs::write(&config, text).expect("a file");
        let child = Self::spawn(program, &config);
        let mut broker = Self {
            program: program.to_owned(),
            config,
            port,
            child,
        };
        broker.wait().await;
        broker
    }

    fn spawn(program: &Path, config: &Path) -> Child {
        Command::new(program)
            .arg("-c")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto")
    }

    async fn wait(&mut self) {
        let port = self.port;
        until("mosquitto", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in the usual way, as an update does, and starts it again.
    pub async fn restart(&mut self) {
        terminate(&self.child);
        self.child.wait().expect("an end");
        self.child = Self::spawn(&self.program, &self.config);
        self.wait().await;
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SIGTERM, as a service manager sends it.
pub fn terminate(child: &Child) {
    signal(child, "TERM");
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(done.is_ok_and(|s| s.success()), "kill");
}
