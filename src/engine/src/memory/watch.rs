//! Learning of memory pressure at once: the kernel wakes a thread, the thread wakes the engine.
//!
//! In this order: what systemd offers (`$MEMORY_PRESSURE_WATCH`, see
//! `MEMORY_PRESSURE.md` of systemd), a trigger of our own on PSI (kernel,
//! `accounting/psi.rst`), and nothing: then the governor sees pressure when it
//! looks next.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Tasks waiting 200 ms within 2 s. An unprivileged trigger must have a window of whole 2 s; systemd
/// asks for the same.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// Where pressure is announced and what has to be written there first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A PSI file, a FIFO or a Unix socket.
    pub path: PathBuf,
    /// Written once after opening.
    pub write: Vec<u8>,
}

/// What the service manager says about pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Watch here.
    Here(Source),
    /// Do not watch.
    Off,
    /// Nothing.
    None,
}

impl Offer {
    /// From the values of `MEMORY_PRESSURE_WATCH` and `MEMORY_PRESSURE_WRITE`. What is no base64 is not written.
    #[must_use]
    pub fn of(watch: Option<&str>, write: Option<&str>) -> Self {
        match watch {
            None | Some("") => Self::None,
            Some("/dev/null") => Self::Off,
            Some(path) => Self::Here(Source {
                path: path.into(),
                write: (write.and_then(|write| BASE64_STANDARD.decode(write).ok()))
                    .unwrap_or_default(),
            }),
        }
    }

    /// From the environment of this process.
    #[must_use]
    pub fn from_environment() -> Self {
        let value = |name| std::env::var(name).ok();
        let (watch, write) = (
            value("MEMORY_PRESSURE_WATCH"),
            value("MEMORY_PRESSURE_WRITE"),
        );
        Self::of(watch.as_deref(), write.as_deref())
    }
}

/// A trigger of our own on a PSI file.
#[must_use]
pub fn trigger(path: PathBuf) -> Source {
    Source {
        path,
        write: TRIGGER.to_vec(),
    }
}

/// Watches until it is dropped.
pub struct Watch {
    fired: Arc<AtomicBool>,
    name: &'static str,
    #[cfg(target_os = "linux")]
    _watcher: Option<linux::Watcher>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.name).finish()
    }
}

impl Watch {
    /// Never fires.
    #[must_use]
    pub fn polling() -> Self {
        Self {
            fired: Arc::default(),
            name: "polling",
            #[cfg(target_os = "linux")]
            _watcher: None,
        }
    }

    /// Watches the offer, else the first of `own` that works. `wake` is called from another thread.
    pub fn start(offer: Offer, own: Vec<PathBuf>, wake: impl Fn() + Send + 'static) -> Self {
        #[cfg(target_os = "linux")]
        {
            let sources = match offer {
                Offer::Here(source) => vec![("systemd", source)],
                Offer::Off => Vec::new(),
                Offer::None => own.into_iter().map(|p| ("trigger", trigger(p))).collect(),
            };
            let opened = sources
                .into_iter()
                .find_map(|(name, source)| Some((name, linux::open(&source).ok()?)));
            if let Some((name, descriptor)) = opened {
                let fired = Arc::new(AtomicBool::new(false));
                let flag = Arc::clone(&fired);
                let signal = move || {
                    flag.store(true, Ordering::Release);
                    wake();
                };
                if let Ok(watcher) = linux::Watcher::start(descriptor, signal) {
                    return Self {
                        fired,
                        name,
                        _watcher: Some(watcher),
                    };
                }
            }
        }
        #[cfg(not(target_os = "linux"))]
        drop((offer, own, wake));
        Self::polling()
    }

    /// Whether there was pressure since the last call.
    pub fn fired(&self) -> bool {
        // The cheap look first: this is asked before every step.
        self.fired.load(Ordering::Relaxed) && self.fired.swap(false, Ordering::Acquire)
    }

    /// `systemd`, `trigger` or `polling`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::OpenOptions;
    use std::io::{self, PipeWriter, Read, Write, pipe};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::Source;

    /// Pressure that does not end is announced no more often than this.
    const PAUSE: Duration = Duration::from_millis(100);

    /// An open source and how it announces.
    pub(super) struct Opened {
        descriptor: OwnedFd,
        /// PSI files announce by priority, the others by data that has to be read away.
        announces: PollFlags,
    }

    pub(super) fn open(source: &Source) -> io::Result<Opened> {
        let kind = std::fs::metadata(&source.path)?.file_type();
        if kind.is_socket() {
            let mut stream = UnixStream::connect(&source.path)?;
            stream.write_all(&source.write)?;
            stream.set_nonblocking(true)?;
            return Ok(Opened {
                descriptor: stream.into(),
                announces: PollFlags::IN,
            });
        }
        // For reading and writing: a FIFO whose last writer goes must not look like its end.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&source.path)?;
        if !source.write.is_empty() {
            // In one piece, as the kernel wants it.
            file.write_all(&source.write)?;
        }
        Ok(Opened {
            descriptor: file.into(),
            announces: match kind.is_fifo() {
                true => PollFlags::IN,
                false => PollFlags::PRI,
            },
        })
    }

    /// The thread that waits.
    pub(super) struct Watcher {
        /// Its end of the pipe is closed when this goes, which ends the thread.
        stop: Option<PipeWriter>,
        thread: Option<JoinHandle<()>>,
    }

    impl Watcher {
        pub(super) fn start(
            opened: Opened,
            signal: impl Fn() + Send + 'static,
        ) -> io::Result<Self> {
            let (stopped, stop) = pipe()?;
            let thread = std::thread::Builder::new()
                .name("glm-pressure".into())
                .spawn(move || wait(opened, &stopped, &signal))?;
            Ok(Self {
                stop: Some(stop),
                thread: Some(thread),
            })
        }
    }

    impl Drop for Watcher {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    /// Until the source breaks (its group is gone) or the watcher is dropped.
    fn wait(opened: Opened, stopped: &impl AsFd, signal: &impl Fn()) {
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let mut drain = std::fs::File::from(opened.descriptor);
        loop {
            let mut both = [
                PollFd::new(&drain, opened.announces),
                PollFd::new(stopped, PollFlags::IN),
            ];
            match poll(&mut both, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let (source, stop) = (both[0].revents(), both[1].revents());
            if !stop.is_empty() {
                return;
            }
            if source.intersects(opened.announces) {
                // Read before the signal: what comes after it is new. What it says is of no interest, and an
                // end of file is the end.
                let mut what = [0; 256];
                if opened.announces == PollFlags::IN && matches!(drain.read(&mut what), Ok(0)) {
                    return;
                }
                signal();
                std::thread::sleep(PAUSE);
            } else if source.intersects(broken) {
                return;
            }
        }
    }
}
