//! Where log lines go, and at which level; the level can be changed while the daemon runs.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogTarget};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Changes the level of a running daemon.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// Uses the levels of `log` from now on; the target stays.
    pub fn set(&self, log: &Log) {
        if let Some(targets) = log.targets() {
            // Fails only when the subscriber is gone, and with it the log.
            let _ = self.0.reload(targets);
        }
    }
}

/// Starts to log. The second call in a process changes nothing.
#[must_use]
pub fn start(log: &Log) -> LogLevel {
    let (filter, handle) = reload::Layer::new(log.targets().unwrap_or_default());
    let layer = output(log.to);
    // Fails when a test or an embedding program logs already; theirs is as good.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    LogLevel(handle)
}

fn output(target: LogTarget) -> BoxedLayer {
    let wants_journal = match target {
        LogTarget::Auto => stderr_is_journal(),
        LogTarget::Journald => true,
        LogTarget::Stderr | LogTarget::Json => false,
    };
    if wants_journal && let Ok(journal) = tracing_journald::layer() {
        return Box::new(journal.with_syslog_identifier("glmd".into()));
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match target {
        LogTarget::Json => Box::new(lines.json()),
        _ => Box::new(lines.with_ansi(std::io::stderr().is_terminal())),
    }
}

/// Whether stderr is the stream that systemd connected to the journal: `$JOURNAL_STREAM`, systemd.exec(5).
fn stderr_is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned();
    let Ok(meta) = stderr.and_then(|fd| std::fs::File::from(fd).metadata()) else {
        return false;
    };
    stream == format!("{}:{}", meta.dev(), meta.ino())
}
