//! `glmctl top`: the daemon live, on a full screen.
//!
//! | module | what it is for |
//! |---|---|
//! | `history` | what was seen so far, as plain data |
//! | `screen` | from there to the screen, pure |
//! | `picture` | the same screen as an SVG |

mod history;
mod picture;
mod screen;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use glm_wire::status::Status;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::interrupt;

use history::History;

/// Watch the daemon: memory, batch, queue, speed and the running requests
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = interval)]
    every: f64,
    /// Look sixty times, then write the screen to this file instead of drawing it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Looks that a picture shows: enough for a plot with a shape.
const PICTURE_LOOKS: usize = 60;

fn interval(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds between 0.1 and 60".to_owned()),
    }
}

/// Longest wait for a key before the screen looks whether it should go.
const KEY_WAIT: Duration = Duration::from_millis(200);

impl Top {
    /// Runs until `q`, Esc or Ctrl-C.
    ///
    /// # Errors
    /// When the daemon cannot be reached at the start, or the terminal fails.
    pub async fn run(&self, client: &Client) -> Result<()> {
        if let Some(path) = &self.svg {
            return interrupt::or_done(self.paint(client, path)).await;
        }
        if !stdout().is_terminal() {
            return Err(Failure::Usage(
                "`glmctl top` draws on a terminal; use `glmctl status --output json` in scripts"
                    .to_owned(),
            ));
        }
        // Asked before the screen is taken, so that a missing daemon is told in plain words.
        let first: Status = client.get("/v1/status").await?;
        let mut history = History::default();
        history.push(first);
        let mut terminal = ratatui::try_init().map_err(|e| Failure::io("the terminal", e))?;
        let outcome = self.watch(client, &mut terminal, &mut history).await;
        ratatui::restore();
        outcome
    }

    async fn paint(&self, client: &Client, path: &Path) -> Result<()> {
        let mut history = History::default();
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(self.every));
        for _ in 0..PICTURE_LOOKS {
            ticks.tick().await;
            history.push(client.get("/v1/status").await?);
        }
        let failed = |e| Failure::io(path.display().to_string(), e);
        std::fs::write(path, picture::svg(&history).map_err(failed)?).map_err(failed)
    }

    async fn watch(
        &self,
        client: &Client,
        terminal: &mut ratatui::DefaultTerminal,
        history: &mut History,
    ) -> Result<()> {
        let failed = |e| Failure::io("the terminal", e);
        let mut keys = keys();
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(self.every));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            terminal
                .draw(|frame| screen::draw(frame, history))
                .map_err(failed)?;
            tokio::select! {
                key = keys.recv() => match key {
                    Some(Ok(Wish::Redraw)) => {}
                    Some(Ok(Wish::Leave)) | None => return Ok(()),
                    Some(Err(e)) => return Err(failed(e)),
                },
                _ = ticks.tick() => match client.get("/v1/status").await {
                    Ok(status) => history.push(status),
                    // The daemon may be restarting: the screen says so and goes on looking.
                    Err(failure) => history.lost(failure.to_string()),
                },
            }
        }
    }
}

/// What a key asks for.
enum Wish {
    Redraw,
    Leave,
}

/// Keys, read on a thread of its own because the terminal blocks.
fn keys() -> mpsc::Receiver<std::io::Result<Wish>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let wish = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read().map(|event| wish(&event)),
                Err(e) => Err(e),
            };
            match wish {
                Ok(None) => {}
                Ok(Some(wish)) => {
                    if sender.blocking_send(Ok(wish)).is_err() {
                        return;
                    }
                }
                Err(e) => {
                    // Nobody is left to tell if this fails.
                    let _ = sender.blocking_send(Err(e));
                    return;
                }
            }
        }
    });
    receiver
}

fn wish(event: &Event) -> Option<Wish> {
    match event {
        Event::Resize(..) => Some(Wish::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Leave),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                Some(Wish::Leave)
            }
            _ => None,
        },
        _ => None,
    }
}
