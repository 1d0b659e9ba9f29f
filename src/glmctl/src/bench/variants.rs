//! Some figures with other integers, runtimes, instruction sets and threads.
//!
//! Each is measured by a process of its own: an instruction set and a library
//! are chosen once a process, and no one inherits the memory of another. The
//! first repeats the setting of the other tables, since the machine may have
//! another day by now.

use std::env;
use std::process::{Command, Stdio};

use clap::ValueEnum as _;
use glm_kernels::{ISA_VARIABLE, Isa, Kernels};
use serde_json::Value;

use super::report::Variant;
use super::{Bar, Bench};
use crate::failure::{Failure, Result};

/// Figures of a variant: one text, several, a prompt.
const FIGURES: [&str; 3] = ["1", "8", "p128"];

/// What a variant changes.
struct Change {
    name: &'static str,
    arguments: &'static [&'static str],
    isa: Option<Isa>,
}

/// Measures the variants that this machine has.
pub fn measure(bench: &Bench, bar: &Bar) -> Result<Vec<Variant>> {
    let plain = |name, arguments| Change {
        name,
        arguments,
        isa: None,
    };
    let mut changes = vec![
        plain("as above", &[] as &[_]),
        plain("int4", &["--quant", "int4"]),
    ];
    if cfg!(feature = "tract") {
        changes.push(plain("tract", &["--backend", "tract-paged"]));
    }
    // Where it is what is used anyway, there is nothing to compare.
    let used = Kernels::from_env().map_err(|error| Failure::Usage(error.to_string()))?;
    if used.isa() == Isa::Avx512Vnni {
        changes.push(Change {
            name: "avx2",
            arguments: &[],
            isa: Some(Isa::Avx2),
        });
    }
    changes.push(plain("one thread", &["--threads", "1"]));
    changes
        .iter()
        .map(|change| {
            bar.says(change.name);
            run(bench, change)
        })
        .collect()
}

fn run(bench: &Bench, change: &Change) -> Result<Variant> {
    let program = env::current_exe().map_err(|error| Failure::io("glmctl".to_owned(), error))?;
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--only", &FIGURES.join(",")]);
    command.args(["--shape", bench.shape.name()]);
    command.args(["--block", &bench.block.to_string()]);
    // What a variant says itself must not be said twice.
    let says = |option: &str| change.arguments.contains(&option);
    if !says("--quant")
        && let Some(value) = bench.quant.to_possible_value()
    {
        command.args(["--quant", value.get_name()]);
    }
    if !says("--backend")
        && let Some(kind) = bench.backend
    {
        command.args(["--backend", &kind.to_string()]);
    }
    if !says("--threads")
        && let Some(threads) = bench.threads
    {
        command.args(["--threads", &threads.to_string()]);
    }
    for (option, path) in [
        ("--onnxruntime", &bench.onnxruntime),
        ("--models", &bench.models),
    ] {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    command.args(change.arguments);
    if let Some(isa) = change.isa {
        command.env(ISA_VARIABLE, isa.name());
    }
    let failed = |reason: String| Failure::Measurement(format!("{}: {reason}", change.name));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("glmctl ended with {}", output.status)));
    }
    let report: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    let rate = |figure: &'static str| {
        let row = match figure.strip_prefix('p') {
            Some(length) => &report["prefill"][length],
            None => &report["decode"][figure],
        };
        Some((figure, row["tok_s"].as_f64()?))
    };
    Ok(Variant {
        name: change.name,
        bandwidth_gb_s: report["bandwidth_gb_s"].as_f64().unwrap_or_default(),
        tok_s: FIGURES.into_iter().filter_map(rate).collect(),
    })
}
