//! `glmctl`: the command line of glmd.
//!
//! | module | what it is for |
//! |---|---|
//! | `cli` | what can be typed |
//! | `commands` | commands that ask the daemon |
//! | `top` | the daemon on a full screen |
//! | `export`, `model`, `inspect` | commands that work on files, without a daemon |
//! | `progress` | a bar for long ones of these |
//! | `doctor` | how glmd runs on this machine, and what to type against what holds it back |
//! | `eval` | how good a model is, on its held-out sets |
//! | `bench` | how fast this machine runs a model of a given shape |
//! | `client` | HTTP and server-sent events over the Unix socket |
//! | `lines`, `print`, `options`, `interrupt` | input, output, shared options, Ctrl-C |
//! | `failure` | why a command failed, and its exit status |
//!
//! Commands return a [`Failure`]; `main` alone turns it into a message and an
//! exit status after `sysexits.h`.

mod bench;
mod cli;
mod client;
mod commands;
mod doctor;
mod eval;
mod export;
mod failure;
mod inspect;
mod interrupt;
mod lines;
mod model;
mod options;
mod print;
mod progress;
mod top;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use glm_engine::backend::library::answer_probe;
use serde::de::IgnoredAny;

use cli::{Ask, Cli, Command};
use client::Client;
use failure::{Failure, Result, USAGE};
use options::Output;

fn main() -> ExitCode {
    // `bench`, `doctor` and `eval` try out libonnxruntime in a child of its own.
    if let Some(code) = answer_probe() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            let status = if message.use_stderr() { USAGE } else { 0 };
            // Nothing is left to tell it to when the terminal itself is gone.
            let _ = message.print();
            return ExitCode::from(status);
        }
    };
    let output = cli.output;
    let status = match run(cli) {
        Ok(()) => 0,
        Err(failure) => {
            report(&failure, output);
            failure.exit_status()
        }
    };
    // `doctor` may have left a warm-up behind that was too slow, in a thread that nobody waits for.
    glm_engine::leave(status)
}

fn report(failure: &Failure, output: Output) {
    match failure {
        // The reader of a pipe has what it wanted.
        Failure::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => {}
        Failure::Interrupted => {}
        Failure::Lines { .. } => eprintln!("glmctl: {failure}"),
        _ if output == Output::Json => eprintln!("{}", serde_json::json!(failure.envelope())),
        _ => eprintln!("glmctl: {failure}"),
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Export(export) => export.run(cli.output),
        Command::Model(model) => model.run(cli.output),
        Command::Bench(bench) => bench.run(cli.output),
        Command::Doctor(doctor) => doctor.run(&options::socket(cli.socket), cli.output),
        Command::Eval(eval) => eval.run(cli.output),
        Command::Inspect { checkpoint } => inspect::run(&checkpoint, cli.output),
        Command::Completions { shell } => cli::completions(shell),
        Command::Man { out } => cli::man_pages(&out),
        Command::Ask(ask) => {
            let client = Client::new(options::socket(cli.socket));
            options::runtime()?.block_on(talk(*ask, &client, cli.output))
        }
    }
}

async fn talk(ask: Ask, client: &Client, output: Output) -> Result<()> {
    let work = async {
        match &ask {
            Ask::Infill(command) => command.run(client, output).await,
            Ask::Classify(command) => command.run(client, output).await,
            Ask::Generate(command) => command.run(client, output).await,
            Ask::Tokenize(command) => command.run(client, output).await,
            Ask::Status => commands::operate::status(client, output).await,
            Ask::Cancel { id } => commands::operate::cancel(client, id).await,
            Ask::Reload => commands::operate::reload(client, output).await,
            Ask::Unload => client.order("/admin/unload").await.map(|_: IgnoredAny| ()),
            // These two read the keyboard and know Ctrl-C themselves.
            Ask::Chat(command) => return command.run(client, output).await,
            Ask::Top(command) => return command.run(client).await,
        }
    };
    if matches!(ask, Ask::Chat(_) | Ask::Top(_)) {
        return work.await;
    }
    interrupt::or_done(work).await
}
