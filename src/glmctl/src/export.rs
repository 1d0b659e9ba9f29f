//! `glmctl export`: a checkpoint folder, or a model directory, becomes a model directory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use glm::Family;
use glm_onnx::export::{self, Options, Profile, Report, Stage};
use glm_onnx::graph::{Block, Precision, Quantisation, Scheme, Table};

use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;
use crate::progress::{Bar, watched};

/// Turn a downloaded checkpoint into a model directory that glmd serves
///
/// A directory that was exported before is taken too: its weights, as it had
/// rounded them, in another form. Norms, biases and position tables stay in
/// f32. The head and the embedding table do too unless asked otherwise: they
/// are small beside the layers of large models, and the larger part of small
/// ones.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// Folder with config.json, weights and tokenizer, as downloaded, or a model directory
    checkpoint: PathBuf,
    /// New folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What it is for: processors, or NPUs, which want steps of fixed sizes
    #[arg(long, value_enum, default_value_t = ProfileName::Cpu, value_name = "KIND")]
    profile: ProfileName,
    /// NPU: longest text that is read in one step, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    prompt: usize,
    /// NPU: longest text with its answer, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    context: usize,
    /// NPU: text, a sentence a line, for INT8 weights and 16-bit activations in the place of floats;
    /// 1024 tokens, evenly from the first MiB, are run
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Numbers of the linear layers [default: int8, and none for NPUs]
    #[arg(long, value_enum, value_name = "KIND")]
    quant: Option<Number>,
    /// Weights of a row that share a scale: 16, 32, 64, 128 ... or row
    #[arg(long, default_value = "32", value_name = "LENGTH", value_parser = block)]
    block: Block,
    /// Numbers of the output head
    #[arg(long, value_enum, default_value_t = Number::None, value_name = "KIND")]
    head: Number,
    /// Numbers of the embedding table; one that a full head shares stays full
    #[arg(long, value_enum, default_value_t = TableNumber::None, value_name = "KIND")]
    embedding: TableNumber,
    /// Name of the model [default: the name of the new folder]
    #[arg(long)]
    name: Option<String>,
    /// SPDX expression of the licence of the weights, such as Apache-2.0
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Family of a checkpoint whose files do not tell it: chatglm2 or chatglm3
    #[arg(long, value_parser = family)]
    family: Option<Family>,
    /// Replace a model directory that is there
    #[arg(long)]
    force: bool,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
}

/// Bytes of a text for calibration that are read: far more than is used of it.
const MOST_TEXT: u64 = 1 << 20;

/// What a model is exported for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileName {
    /// Processors
    Cpu,
    /// NPUs, through an execution provider of ONNX Runtime
    Npu,
}

/// Kinds of numbers of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Number {
    /// 8-bit integers, symmetric
    Int8,
    /// 4-bit integers, symmetric
    Int4,
    /// 4-bit integers with zero points
    Int4Zp,
    /// 32-bit floats
    None,
}

/// Kinds of numbers of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TableNumber {
    /// 8-bit integers, symmetric; a tied head of the same kind shares them
    Int8,
    /// 4-bit integers, symmetric
    Int4,
    /// 4-bit integers with zero points
    Int4Zp,
    /// 16-bit floats
    Half,
    /// 32-bit floats
    None,
}

impl Number {
    fn precision(self, block: Block) -> Precision {
        let scheme = match self {
            Self::Int8 => Scheme::Int8,
            Self::Int4 => Scheme::Int4,
            Self::Int4Zp => Scheme::Int4ZeroPoint,
            Self::None => return Precision::Full,
        };
        Precision::Quantised(Quantisation { scheme, block })
    }
}

impl TableNumber {
    fn table(self, block: Block) -> Table {
        let number = match self {
            Self::Int8 => Number::Int8,
            Self::Int4 => Number::Int4,
            Self::Int4Zp => Number::Int4Zp,
            Self::Half => return Table::Half,
            Self::None => return Table::Full,
        };
        match number.precision(block) {
            Precision::Quantised(how) => Table::Quantised(how),
            Precision::Full => Table::Full,
        }
    }
}

/// The beginning of a text file.
fn calibration_text(path: &Path) -> Result<String> {
    let failed = |error| Failure::io(path.display().to_string(), error);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    (file.take(MOST_TEXT).read_to_end(&mut bytes)).map_err(failed)?;
    // The cut may go through a character.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn block(text: &str) -> Result<Block, String> {
    let expected = "expected row, or a power of two of at least 16";
    match text.parse::<usize>() {
        Ok(length) if length >= 16 && length.is_power_of_two() => Ok(Block::Of(length)),
        Err(_) if text == "row" => Ok(Block::Row),
        _ => Err(expected.to_owned()),
    }
}

fn family(text: &str) -> Result<Family, String> {
    serde_json::from_value(serde_json::json!(text)).map_err(|error| error.to_string())
}

impl Export {
    /// Runs the command.
    pub fn run(self, output: Output) -> Result<()> {
        let out = self.out.clone();
        let text = self
            .calibrate
            .as_deref()
            .map(calibration_text)
            .transpose()?;
        let report = watched(move |bar| Ok(self.export(text, bar)?))?;
        for warning in &report.warnings {
            eprintln!("glmctl: note: {warning}");
        }
        match output {
            Output::Json => print::json(&report.manifest),
            Output::Text => print::line(&summary(&report, &out.display().to_string())),
        }
    }

    fn export(self, calibration: Option<String>, bar: &Bar) -> glm_onnx::Result<Report> {
        let (profile, quant) = match self.profile {
            ProfileName::Cpu => (Profile::Cpu, Number::Int8),
            ProfileName::Npu => {
                let (prompt, context) = (self.prompt, self.context);
                (Profile::Npu { prompt, context }, Number::None)
            }
        };
        let mut options = Options {
            profile,
            layers: self.quant.unwrap_or(quant).precision(self.block),
            head: self.head.precision(self.block),
            embedding: self.embedding.table(self.block),
            name: self.name,
            license: self.license,
            family: self.family,
            calibration,
            force: self.force,
            ..Options::default()
        };
        if let Some(threads) = self.threads {
            options.threads = usize::from(threads);
        }
        export::export(&self.checkpoint, &self.out, &options, &|progress| {
            let what = match progress.stage {
                Stage::Check => "check",
                Stage::Calibration => "calibration",
                Stage::Weights => "weights",
                Stage::Golden => "self-test",
                Stage::Hashes => "hashes",
            };
            bar.at(what, progress.done, progress.total)
        })
    }
}

fn summary(report: &Report, out: &str) -> String {
    let manifest = &report.manifest;
    let bytes: u64 = manifest.files.values().map(|record| record.size).sum();
    format!(
        "{out}: {} ({}), {} files, {} MiB",
        manifest.name,
        manifest.spec.family.name(),
        manifest.files.len() + 1,
        bytes.div_ceil(1 << 20)
    )
}
