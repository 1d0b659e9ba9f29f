//! The engine beside a hog, under a hard limit: does anybody die, is anything lost, how fast is it back?
//!
//! A program of its own rather than a set of test functions, since it plays
//! three parts in three processes: the supervisor, the engine under the limit,
//! and the hog that takes memory in steps to within 64 MiB of the limit, holds
//! it and lets go. `cargo test` runs one short round and asks only for what does
//! not depend on the speed of the machine; `--runs 10` prints the whole table.
//!
//! The limit is a memory control group, version 1 or 2, where one may be made.
//! Where not, the governor is told of a floor that leaves as much, and nobody
//! can be killed: then the table says so.

#[cfg(target_os = "linux")]
mod engine;
#[cfg(target_os = "linux")]
mod group;
#[cfg(target_os = "linux")]
mod hog;
#[cfg(target_os = "linux")]
mod supervise;
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod touching;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|a| a == name)?;
        arguments.get(at + 1).cloned()
    };
    // A process that was only started to try a library out.
    if let Some(code) = glm_engine::backend::library::answer_probe() {
        return code;
    }
    match arguments.first().map(String::as_str) {
        Some("engine") => engine::run(&arguments[1..]),
        Some("hog") => hog::run(&arguments[1..]),
        // Asked by test runners for the names of tests.
        Some("--list") => println!("faults: test"),
        _ => {
            let runs = value("--runs").and_then(|runs| runs.parse().ok());
            let failed = supervise::all(runs, value("--model"));
            if failed > 0 {
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("memory faults are tested on Linux only");
}
