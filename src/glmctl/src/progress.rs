//! Long work on files: a bar while it runs, and Ctrl-C ends it cleanly.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, Result};

/// A bar on standard error; not drawn where that is no terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    stop: AtomicBool,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::no_length();
        let style = "{msg:<10} {wide_bar} {percent:>3} % {eta:>5}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self {
            bar,
            stop: AtomicBool::new(false),
        }
    }

    /// Shows how far a part of the work is, and tells whether to go on.
    pub fn at(&self, what: &'static str, done: u64, total: u64) -> ControlFlow<()> {
        if self.bar.message() != what {
            self.bar.reset();
            self.bar.set_message(what);
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Runs `work`. At SIGINT or SIGTERM the next [`Bar::at`] tells it to stop, so
/// that it can clean up after itself.
pub fn watched<T: Send + 'static>(
    work: impl FnOnce(&Bar) -> Result<T> + Send + 'static,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("the run-time", e))?;
    runtime.block_on(async {
        let fault = |e| Failure::io("signals", e);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let bar = Arc::new(Bar::new());
        let own = Arc::clone(&bar);
        let mut work = tokio::task::spawn_blocking(move || work(&own));
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            bar.stop.store(true, Ordering::Relaxed);
        };
        bar.bar.finish_and_clear();
        match done {
            Ok(Err(Failure::Model(glm_onnx::Error::Cancelled))) => Err(Failure::Interrupted),
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Failure::Interrupted),
            },
        }
    })
}
