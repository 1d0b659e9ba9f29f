//! Prompts from the command line or standard input: one, or one a line.
//!
//! With `--lines` eight prompts are in flight at a time, so that the daemon can
//! batch them, and answers are printed in the order of the input.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use glm_wire::MAX_BODY_BYTES;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;

/// Prompts in flight: what the daemon batches well on a small board.
const IN_FLIGHT: usize = 8;
/// Lines that are read ahead.
const READ_AHEAD: usize = 16;
/// Tries of one line while the daemon says that it is overloaded.
const TRIES: usize = 20;
/// Longest wait between two tries, whatever the daemon proposes.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The text of a command: the argument, or standard input for `-`.
pub fn text(argument: Option<&str>) -> Result<String> {
    match argument {
        Some("-") => stdin(),
        Some(text) => Ok(text.to_owned()),
        None => Err(Failure::Usage(
            "no text: give it as an argument, `-` to read standard input, or --lines to read one prompt a line".to_owned(),
        )),
    }
}

/// All of standard input, without the last line break.
pub fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_BODY_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::io("standard input", e))?;
    if bytes.len() > MAX_BODY_BYTES {
        return Err(Failure::BadInput(format!(
            "standard input has more than {MAX_BODY_BYTES} bytes; use --lines for many prompts"
        )));
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|_| Failure::BadInput("standard input is not UTF-8".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Asks for every line and shows the answers in order; empty lines are skipped.
///
/// `show` turns an answer into the line that text output prints for it.
/// A line that fails is reported and leaves an empty line, so that input and
/// output stay side by side; an unreachable daemon ends everything.
///
/// # Errors
/// [`Failure::Lines`] when some failed.
pub async fn ask_each<T, F, Fut>(
    argument: Option<&str>,
    output: Output,
    ask: F,
    show: impl Fn(&T) -> String,
) -> Result<()>
where
    T: Serialize,
    F: Fn(String) -> Fut + Copy,
    Fut: Future<Output = Result<T>>,
{
    let mut lines = read(argument.filter(|text| *text != "-").map(str::to_owned));
    let mut answers = stream::poll_fn(|context| lines.poll_recv(context))
        .map(|line| async move {
            match line {
                Ok(line) => patiently(|| ask(line.clone())).await,
                Err(failure) => Err(failure),
            }
        })
        .buffered(IN_FLIGHT);
    let (mut all, mut failed, mut status) = (0, 0, 0);
    while let Some(answer) = answers.next().await {
        all += 1;
        match answer {
            Ok(answer) => match output {
                Output::Text => print::line(&show(&answer))?,
                Output::Json => print::json_line(&answer)?,
            },
            Err(failure @ (Failure::Unreachable { .. } | Failure::Io { .. })) => {
                return Err(failure);
            }
            Err(failure) => {
                failed += 1;
                if failed == 1 {
                    status = failure.exit_status();
                }
                eprintln!("glmctl: line {all}: {failure}");
                match output {
                    Output::Text => print::line("")?,
                    Output::Json => print::json_line(&failure.envelope())?,
                }
            }
        }
    }
    if failed > 0 {
        return Err(Failure::Lines {
            failed,
            all,
            status,
        });
    }
    Ok(())
}

/// Asks again while the daemon is overloaded, when it says so.
async fn patiently<T, F, Fut>(ask: F) -> Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut tries = 1;
    loop {
        match ask().await {
            Err(failure) if tries < TRIES => match failure.retry_after() {
                Some(wait) => tokio::time::sleep(wait.min(MAX_WAIT)).await,
                None => return Err(failure),
            },
            done => return done,
        }
        tries += 1;
    }
}

/// Lines of `text`, or of standard input, read on a thread of its own since
/// a terminal may never send one.
fn read(text: Option<String>) -> mpsc::Receiver<Result<String>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || match text {
        Some(text) => pump(text.as_bytes(), &sender),
        None => pump(io::stdin().lock(), &sender),
    });
    receiver
}

fn pump(mut input: impl BufRead, sender: &mpsc::Sender<Result<String>>) {
    loop {
        let line = match next_line(&mut input) {
            Ok(Some(line)) if line.trim().is_empty() => continue,
            Ok(Some(line)) => Ok(line),
            Ok(None) => return,
            Err(failure) => Err(failure),
        };
        let over = matches!(line, Err(Failure::Io { .. }));
        if sender.blocking_send(line).is_err() || over {
            return;
        }
    }
}

fn next_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    let read = input
        .by_ref()
        .take(MAX_BODY_BYTES as u64 + 1)
        .read_until(b'\n', &mut line)
        .map_err(|e| Failure::io("standard input", e))?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if read > MAX_BODY_BYTES {
        skip_line(input)?;
        return Err(Failure::BadInput(format!(
            "the line has more than {MAX_BODY_BYTES} bytes"
        )));
    }
    String::from_utf8(line)
        .map(Some)
        .map_err(|_| Failure::BadInput("the line is not UTF-8".to_owned()))
}

/// Drops the rest of a line without keeping it.
fn skip_line(input: &mut impl BufRead) -> Result<()> {
    loop {
        let (used, ended) = {
            let buffer = input
                .fill_buf()
                .map_err(|e| Failure::io("standard input", e))?;
            match buffer.iter().position(|b| *b == b'\n') {
                Some(end) => (end + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            }
        };
        input.consume(used);
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<Result<String>> {
        let (sender, mut receiver) = mpsc::channel(64);
        pump(bytes, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    #[test]
    fn lines_of_every_kind_of_file() {
        let lines: Vec<String> = all(b"a\r\n\n  \nb")
            .into_iter()
            .map(|l| l.expect("text"))
            .collect();
        assert_eq!(lines, ["a", "b"]);
    }

    #[test]
    fn a_bad_line_does_not_hide_the_next() {
        let mut input = vec![b'x'; MAX_BODY_BYTES + 100];
        input.extend_from_slice(b"\n\xff\nok\n");
        let lines = all(&input);
        assert!(matches!(&lines[0], Err(Failure::BadInput(m)) if m.contains("more than")));
        assert!(matches!(&lines[1], Err(Failure::BadInput(m)) if m.contains("UTF-8")));
        assert!(matches!(&lines[2], Ok(line) if line == "ok"));
        assert_eq!(lines.len(), 3);
    }
}
