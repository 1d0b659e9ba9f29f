//! `glmctl`: the command line of glmd.
//!
//! Commands return an error, `main` turns it into a message and an exit
//! status after `sysexits.h`: 64 usage, 65 bad input, 74 input/output.

mod inspect;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Exit status of a command line that cannot be parsed (`EX_USAGE`).
const USAGE: u8 = 64;

/// Work with GLM models.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell which GLM a checkpoint folder holds, from its config.json.
    Inspect {
        /// Folder with config.json, as downloaded.
        checkpoint: PathBuf,
        /// How to print the answer.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            let status = if message.use_stderr() { USAGE } else { 0 };
            // Nothing is left to tell it to when the terminal itself is gone.
            let _ = message.print();
            return ExitCode::from(status);
        }
    };
    let Command::Inspect { checkpoint, output } = cli.command;
    match inspect::read(&checkpoint) {
        Ok(spec) => {
            match output {
                Output::Text => println!("{}", inspect::text(&spec)),
                Output::Json => println!("{:#}", serde_json::json!(spec)),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("glmctl: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
