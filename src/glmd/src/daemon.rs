//! The life of the process: start, serve, reload, drain, end.
//!
//! What is read top-down: [`Daemon::start`] binds the sockets and starts the
//! engine; [`Daemon::run`] serves until a signal says to stop. Signals come
//! through a channel, so that a program that embeds the daemon sends its own.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use glm_engine::backend::Bytes;
use glm_engine::control::{Control, Unlimited};
use glm_engine::loading::{KvType, Loader, Options};
use glm_engine::memory::{Governor, Settings};
use glm_engine::model::{ModelInfo, ModelSource};
use glm_engine::units::SystemClock;
use glm_engine::{Drain, Engine, EngineHandle};
use glm_wire::error::{ErrorDetail, ErrorKind};
use glm_wire::status::Reloaded;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::activation;
use crate::config::{self, Config, Loaded, Sources, load};
use crate::error::Error;
use crate::events;
use crate::http::{Server, Token, UnixSocket};
use crate::logging::LogLevel;
use crate::mqtt::{self, Served, Session};
use crate::operations::{Operations, ReloadDone};
use crate::service::{Service, failure};
use crate::systemd;

/// Where a service keeps its state (file-hierarchy(7)).
const STATE: &str = "/var/lib/glmd";
/// Time in which clients take their last answers after the engine has ended.
const GOODBYE: Duration = Duration::from_secs(2);
/// How much longer than the drain the engine may take to end: one step, however long.
const LAST_STEP: Duration = Duration::from_secs(10);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End: answer what was accepted, take nothing new. The second ends at once.
    Stop,
    /// Read configuration and model again.
    Reload,
}

/// Makes the source of the model.
pub type MakeSource = Box<dyn Fn(&Config) -> Box<dyn ModelSource> + Send + Sync>;

/// Makes the governor of the engine behind a handle.
pub type MakeControl = Box<dyn Fn(&Config, &EngineHandle) -> Box<dyn Control> + Send + Sync>;

/// Makes the parts that the configuration chooses.
pub struct Parts {
    /// Where the model comes from.
    pub model: MakeSource,
    /// Who limits the engine.
    pub control: MakeControl,
    /// A socket that somebody listens on for us already.
    pub socket: Option<UnixListener>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// A daemon that is bound and loads its model.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
    unix: UnixSocket,
    tcp: Option<TcpListener>,
    mqtt: Option<Session<Served>>,
    operations: mpsc::Receiver<ReloadDone>,
    first_load: oneshot::Receiver<glm_engine::Result<String>>,
    engine: JoinHandle<()>,
}

/// What reloads touch.
#[derive(Debug)]
struct Shared {
    service: Service,
    server: Arc<Server>,
    parts: Parts,
    config: Mutex<Config>,
    /// Where the configuration is read from again; `None` for a daemon without files.
    sources: Option<Sources>,
    log: Option<LogLevel>,
    /// One reload at a time.
    reload: tokio::sync::Mutex<()>,
}

impl Daemon {
    /// Binds the sockets and starts the engine. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a socket is taken or the configuration does not fit the machine.
    pub async fn start(
        loaded: Loaded,
        sources: Option<Sources>,
        log: Option<LogLevel>,
        mut parts: Parts,
    ) -> Result<Self, Error> {
        let config = loaded.config;
        events::starting(&config.model.path);
        let (tcp, token) = match &config.http.tcp {
            Some(tcp) => {
                let token = Token::read(&tcp.token_file)?;
                let listener = TcpListener::bind(tcp.listen).await.map_err(Error::Tcp)?;
                (Some(listener), Some(token))
            }
            None => (None, None),
        };
        let unix = match parts.socket.take() {
            Some(listener) => UnixSocket::inherited(listener)?,
            None => UnixSocket::bind(&config.http)?,
        };
        let (report, first_load) = oneshot::channel();
        let done = move |outcome: glm_engine::Result<Arc<ModelInfo>>| {
            // Nobody listens any more when the daemon ends.
            let _ = report.send(outcome.map(|info| info.id.clone()));
        };
        let clock = Arc::new(SystemClock::default());
        let source = (parts.model)(&config);
        let (engine, handle) = Engine::new(config.engine_config(), source, clock);
        let control = (parts.control)(&config, &handle);
        let engine = engine.governed_by(control).reporting(Box::new(done));
        let engine = engine.spawn()?;
        let service = Service::new(handle, config.engine.step_tokens);
        let (operations, requests) = Operations::new(service.engine().clone());
        let server = Server::new(service.clone(), &config.http, token, operations.clone());
        let drain = Duration::from_secs(config.shutdown.drain_s);
        let mqtt = match config.mqtt.plan(&state_folder(), drain)? {
            Some(plan) => Some(mqtt::prepare(
                plan,
                Served::new(service.clone(), operations),
            )?),
            None => None,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                service,
                server,
                parts,
                config: Mutex::new(config),
                sources,
                log,
                reload: tokio::sync::Mutex::default(),
            }),
            unix,
            tcp,
            mqtt,
            operations: requests,
            first_load,
            engine,
        })
    }

    /// The operations, for other transports.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.shared.service
    }

    /// Serves until a signal says to stop, or the model cannot be loaded at all.
    ///
    /// # Errors
    /// When the model cannot be loaded at the start.
    pub async fn run(self, mut signals: mpsc::Receiver<Signal>) -> Result<(), Error> {
        let Self {
            shared,
            unix,
            tcp,
            mqtt,
            mut operations,
            first_load,
            engine,
        } = self;
        let (stop, stopping) = watch::channel(false);
        let mut transports = JoinSet::new();
        let server = Arc::clone(&shared.server);
        events::listening(&unix.path().display());
        let flag = stopping.clone();
        transports.spawn(async move { server.serve_unix(unix, flag).await });
        if let Some(listener) = tcp {
            if let Ok(address) = listener.local_addr() {
                events::listening(&address);
            }
            let server = Arc::clone(&shared.server);
            let flag = stopping.clone();
            transports.spawn(async move { server.serve_tcp(listener, flag).await });
        }
        let (fatal, mqtt_ended) = oneshot::channel();
        if let Some(session) = mqtt {
            transports.spawn(async move {
                if let Err(error) = session.run(stopping).await {
                    // Nobody listens any more when the daemon ends anyway.
                    let _ = fatal.send(error);
                }
            });
        }
        let outcome = tokio::select! {
            outcome = shared.watch_over(first_load, &mut signals, &mut operations) => outcome,
            Ok(error) = mqtt_ended => Err(Error::MqttSession(error)),
        };
        // From here on requests are refused, and those that wait for a reload too.
        drop(operations);
        systemd::stopping();
        let _ = stop.send(true);
        shared.drain(outcome.is_ok(), &mut signals).await;
        // Whoever does not take its answer now never will.
        let all = async { while transports.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(GOODBYE, all).await;
        drop(transports);
        // A thread in the middle of a step is not waited for: the process ends.
        if engine.is_finished() {
            let _ = engine.join();
        }
        events::stopped();
        outcome
    }
}

impl Shared {
    /// Reloads on request until it is time to stop.
    async fn watch_over(
        self: &Arc<Self>,
        first_load: oneshot::Receiver<glm_engine::Result<String>>,
        signals: &mut mpsc::Receiver<Signal>,
        operations: &mut mpsc::Receiver<ReloadDone>,
    ) -> Result<(), Error> {
        let mut reloads = JoinSet::new();
        let mut first_load = std::pin::pin!(first_load);
        let mut loading = true;
        let mut patience = std::pin::pin!(systemd::loading());
        let mut watchdog = std::pin::pin!(systemd::live(self.service.engine()));
        loop {
            let done = tokio::select! {
                never = patience.as_mut(), if loading => match never {},
                never = watchdog.as_mut(), if !loading => match never {},
                outcome = first_load.as_mut(), if loading => {
                    loading = false;
                    match outcome {
                        Ok(Err(error)) => return Err(Error::Model(error)),
                        Ok(Ok(model)) => {
                            systemd::ready(&model);
                            events::ready(&model);
                        }
                        // The report is dropped without a word only by a panic.
                        Err(_) => {
                            return Err(Error::Model(glm_engine::Error::Load {
                                reason: "loading it panicked; see the log".into(),
                            }));
                        }
                    }
                    continue;
                }
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => None,
                    Some(Signal::Stop) | None => return Ok(()),
                },
                Some(done) = operations.recv() => Some(done),
                Some(_) = reloads.join_next() => continue,
            };
            let shared = Arc::clone(self);
            reloads.spawn(async move {
                systemd::reloading();
                let outcome = shared.reload().await;
                systemd::ready(&shared.model_name());
                if let Err(detail) = &outcome {
                    events::reload_refused(&detail.message);
                }
                if let Some(done) = done {
                    // Whoever asked may be gone.
                    let _ = done.send(outcome);
                }
            });
        }
    }

    fn model_name(&self) -> String {
        let config = self.config();
        let info = self.service.engine().model();
        info.map_or_else(
            || config.model.path.display().to_string(),
            |info| info.id.clone(),
        )
    }

    fn config(&self) -> Config {
        (self.config.lock().unwrap_or_else(PoisonError::into_inner)).clone()
    }

    /// Reads the configuration again and swaps the model. What is bad changes nothing.
    async fn reload(&self) -> Result<Reloaded, ErrorDetail> {
        let _one_at_a_time = self.reload.lock().await;
        events::reloading();
        let old = self.config();
        let new = match &self.sources {
            Some(sources) => {
                let sources = sources.clone();
                let read = tokio::task::spawn_blocking(move || load(&sources));
                let bad =
                    |reason: String| ErrorDetail::new(ErrorKind::Conflict, "bad_config", reason);
                let loaded = read.await.map_err(|e| bad(e.to_string()))?;
                loaded.map_err(|e| bad(e.to_string()))?.config
            }
            None => old.clone(),
        };
        let (done, outcome) = oneshot::channel();
        let source = (self.parts.model)(&new);
        let report = move |result| {
            // Nobody waits any more when the daemon ends.
            let _ = done.send(result);
        };
        self.service.engine().reload(source, Box::new(report));
        let loaded = outcome
            .await
            .unwrap_or(Err(glm_engine::Error::ShuttingDown));
        let loaded = loaded.map_err(|e| failure::detail(&e))?;
        self.server.set_limits(&new.http);
        if let Some(log) = &self.log {
            log.set(&new.log);
        }
        for key in fixed(&old, &new) {
            events::needs_restart(key);
        }
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = new;
        events::reloaded(&loaded.model.id, loaded.old_served);
        Ok(Reloaded {
            status: "reloaded".to_owned(),
            model: loaded.model.id.clone(),
            sha256: loaded.model.digest.clone(),
            old_served: loaded.old_served,
        })
    }

    /// Ends the engine: what was accepted is answered first if `gently`.
    async fn drain(&self, gently: bool, signals: &mut mpsc::Receiver<Signal>) {
        let seconds = self.config().shutdown.drain_s;
        let (drain, most) = match gently {
            true => {
                events::draining(seconds);
                let time = Duration::from_secs(seconds);
                (Drain::For(time), time + LAST_STEP)
            }
            false => (Drain::Now, LAST_STEP),
        };
        let (done, ended) = oneshot::channel();
        self.service.engine().shutdown(
            drain,
            Box::new(move |_| {
                let _ = done.send(());
            }),
        );
        let again = async {
            loop {
                match signals.recv().await {
                    Some(Signal::Stop) => return,
                    Some(Signal::Reload) => {}
                    // The signals are gone; the time is still bounded.
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            _ = ended => {}
            () = tokio::time::sleep(most) => events::stopping_now(),
            () = again => events::stopping_now(),
        }
    }
}

/// Where the daemon may keep things: what systemd gives us, or the usual place.
fn state_folder() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| STATE.into(), PathBuf::from)
}

/// Keys that differ and are read only at the start.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let (a, b) = (&old.http, &new.http);
    let mut keys = Vec::new();
    let mut differs = |key, differs: bool| {
        if differs {
            keys.push(key);
        }
    };
    differs("http.socket", a.socket != b.socket);
    differs("http.mode", a.mode != b.mode);
    differs("http.group", a.group != b.group);
    differs("http.tcp", a.tcp != b.tcp);
    differs(
        "http.body_bytes_total",
        a.body_bytes_total != b.body_bytes_total,
    );
    differs("mqtt", old.mqtt != new.mqtt);
    differs("memory", old.memory != new.memory);
    differs("engine", old.engine != new.engine);
    differs("queue", old.queue != new.queue);
    differs("log.to", old.log.to != new.log.to);
    keys
}

impl Parts {
    /// The parts of the daemon as it is shipped.
    ///
    /// # Errors
    /// When the environment speaks of a socket to take over, and there is none that could be served.
    pub fn shipped() -> Result<Self, Error> {
        Ok(Self {
            model: Box::new(model_source),
            control: Box::new(governor),
            socket: activation::inherited_socket()?,
        })
    }
}

/// The model directory of the configuration.
fn model_source(config: &Config) -> Box<dyn ModelSource> {
    let folder = config.model.path.clone();
    let options = options(config);
    match options {
        Ok(options) => Box::new(Loader { folder, options }),
        Err(error) => Box::new(move || Err(error.clone())),
    }
}

fn options(config: &Config) -> glm_engine::Result<Options> {
    let model = &config.model;
    let named = |reason| glm_engine::Error::Load { reason };
    Ok(Options {
        backend: model.backend().map_err(named)?,
        provider: model.accelerator().map_err(named)?,
        threads: (model.threads > 0).then_some(model.threads),
        kv: Bytes(model.kv_mib << 20),
        kv_type: match model.kv_type {
            config::KvType::F32 => KvType::F32,
            config::KvType::F16 => KvType::F16,
            config::KvType::Int8 => KvType::Int8,
        },
        verify: model.verify,
        matmul: model.matmul_options(floor(config)),
        ..Options::of_process(model.onnxruntime.clone())?
    })
}

/// Memory that the configuration leaves alone.
fn floor(config: &Config) -> Option<Bytes> {
    config.memory.floor_mib.map(|mib| Bytes(mib << 20))
}

/// The governor of this machine, unless the operator does without.
fn governor(config: &Config, engine: &EngineHandle) -> Box<dyn Control> {
    if !config.memory.govern {
        return Box::new(Unlimited);
    }
    let settings = Settings {
        floor: floor(config),
        step_tokens: glm::Tokens(config.engine.step_tokens),
        ..Settings::default()
    };
    Box::new(Governor::of_this_machine(settings, engine))
}
