//! The command line, and what it starts.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::layers::ConfigError;
use crate::config::{Loaded, Sources, load, show};
use crate::daemon::{Daemon, Parts, Signal};
use crate::error::Error;
use crate::logging;

/// Where the configuration is unless `--config` says otherwise.
const CONFIG: &str = "/etc/glmd/glmd.toml";
/// Threads for requests that take long to read: long texts and grammars.
const WORKERS: usize = 2;
/// Signals that may wait; more say nothing new.
const SIGNALS: usize = 4;

/// What the manual page tells beside the options.
const MORE: &str = "\
Signals: TERM and INT answer what was accepted and end, a second one ends at once; HUP reads configuration and \
model again and keeps the old ones where the new ones are bad.

Files: /etc/glmd/glmd.toml and /etc/glmd/glmd.toml.d/*.toml are the configuration, `glmd check --effective` prints \
it; /var/lib/glmd/model is the model; /run/glmd/glmd.sock is the socket, for root and the group glmd-clients.

Exit status: 0 ended when asked; 64 bad command line; 69 the socket is taken; 70 the model cannot be loaded; \
71 the system refuses; 78 bad configuration.";

/// Serve one GLM to the programs of this machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "glmd", version, about, after_long_help = MORE)]
pub struct Cli {
    /// Configuration; FILE.d/*.toml is read after it.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Folder of the model (model.path).
    #[arg(long, value_name = "DIR", global = true)]
    pub model: Option<PathBuf>,
    /// Unix socket to serve (http.socket).
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Log level, or levels by target (log.level).
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
    /// Any key of the configuration, such as `--set queue.requests=64`.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check the configuration; exit status 78 when it is bad.
    Check {
        /// Print every key with its value and where it comes from.
        #[arg(long)]
        effective: bool,
    },
    /// Print the manual page, for packages.
    #[command(hide = true)]
    Man,
}

impl Cli {
    /// Where the configuration comes from.
    ///
    /// # Errors
    /// When a `--set` is not `KEY=VALUE`.
    pub fn sources(&self) -> Result<Sources, ConfigError> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, key: &str, value: String| {
            flags.push((name.to_owned(), key.to_owned(), value));
        };
        for assignment in &self.set {
            let Some((key, value)) = assignment.split_once('=') else {
                return Err(ConfigError::Malformed {
                    origin: crate::config::Origin::Flag("--set".to_owned()),
                    reason: format!("`{assignment}` is not KEY=VALUE"),
                });
            };
            flag("--set", key, value.to_owned());
        }
        // Paths that are not UTF-8 cannot stand in a TOML file either.
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let named = [
            ("--model", "model.path", self.model.as_ref().map(text)),
            ("--socket", "http.socket", self.socket.as_ref().map(text)),
            ("--log-level", "log.level", self.log_level.clone()),
        ];
        for (name, key, value) in named {
            if let Some(value) = value {
                flag(name, key, value);
            }
        }
        Ok(Sources {
            file: self.config.clone().unwrap_or_else(|| CONFIG.into()),
            required: self.config.is_some(),
            environment: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
            flags,
        })
    }

    /// Does what the command line says.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn run(&self, parts: Parts) -> Result<(), Error> {
        match self.command {
            Some(Command::Check { effective }) => {
                let loaded = load(&self.sources()?)?;
                match effective {
                    true => print!("{}", show::effective(&loaded)),
                    false => println!("The configuration is good."),
                }
                Ok(())
            }
            Some(Command::Man) => {
                let page = clap_mangen::Man::new(Self::command()).section("8");
                Ok(page.render(&mut std::io::stdout())?)
            }
            None => {
                let sources = self.sources()?;
                serve(load(&sources)?, sources, parts)
            }
        }
    }
}

/// Runs the daemon until a signal ends it.
fn serve(loaded: Loaded, sources: Sources, parts: Parts) -> Result<(), Error> {
    let path = &loaded.config.model.path;
    if let Err(reason) = std::fs::read_dir(path) {
        return Err(Error::NoModel {
            path: path.display().to_string(),
            reason: reason.to_string(),
        });
    }
    let log = logging::start(&loaded.config.log);
    // One thread carries every connection: the work is done by the engine's.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORKERS)
        .build()?;
    let outcome = runtime.block_on(async {
        let signals = listen()?;
        let daemon = Daemon::start(loaded, Some(sources), Some(log), parts).await?;
        daemon.run(signals).await
    });
    // A worker in the middle of a grammar is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Turns signals of the system into [`Signal`]s.
fn listen() -> Result<mpsc::Receiver<Signal>, Error> {
    let (sender, receiver) = mpsc::channel(SIGNALS);
    let kinds = [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::hangup(), Signal::Reload),
    ];
    for (kind, meaning) in kinds {
        let mut arrivals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                // Full: the same was asked already.
                let _ = sender.try_send(meaning);
            }
        });
    }
    Ok(receiver)
}
