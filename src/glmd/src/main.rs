//! `glmd`: see the library of the same name.

use std::process::ExitCode;

use clap::Parser;
use glmd::cli::Cli;

/// Exit status of a command line that cannot be parsed (`EX_USAGE`).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // A child of this program that only tries out a libonnxruntime.
    if let Some(verdict) = glm_engine::backend::library::answer_probe() {
        return verdict;
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
    let status = match glmd::Parts::shipped().and_then(|parts| cli.run(parts)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("glmd: {error}");
            error.exit_status()
        }
    };
    // A model may still be on its way, in a thread that nobody waits for.
    glm_engine::leave(status)
}
