//! `glmctl eval`: how good a model is, on the held-out sets in its directory.
//!
//! | module | what it does |
//! |---|---|
//! | [`sets`] | reads the sets |
//! | [`ask`] | lets the model answer them, through the engine that glmd has too |
//! | [`measures`] | figures of answers: pure functions |
//!
//! What is measured follows from what the items of a set hold, so that sets of
//! one's own are measured as those of the bundled model are.

mod ask;
mod measures;
mod sets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use glm::manifest::Task;
use glm_engine::loading::Options;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;
use crate::progress::{Bar, watched};

use ask::{Asker, Form};
use measures::Figures;
use sets::{Answered, Set, Sets};

/// Longest answer to a blank of unknown length, in tokens: the longest of three words has nine.
const BLANK_TOKENS: usize = 12;

/// Figures by set.
type Table = BTreeMap<String, Figures>;

/// Measure a model on the held-out sets in its directory
///
/// DIR/eval/NAME.test.jsonl holds one object a line. {text, label} is classified by the task NAME; {text, answer} is
/// answered by the infill task NAME, or what stands before its first `-`, with and without the form that the task
/// asks for; {text, answer, words} is a text with one [MASK]; of {text} the second half is predicted from the first.
#[derive(Clone, Debug, Args)]
pub struct Eval {
    /// Model directory
    dir: PathBuf,
    /// Which sets
    #[arg(long, value_enum, default_value_t = Split::Test)]
    split: Split,
    /// At most so many items of each set, evenly taken from all of it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only this set (may be repeated)
    #[arg(long, value_name = "NAME")]
    set: Vec<String>,
    /// Print {task: {metric: value}}; the same as --output json
    #[arg(long)]
    json: bool,
    /// libonnxruntime to use
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// What runs the model; the best that works by default
    #[arg(long, value_name = "NAME")]
    backend: Option<glm_engine::loading::BackendKind>,
}

/// Which part of the held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// What published figures are of.
    Test,
    /// What may be looked at while a model is made.
    Dev,
}

impl Split {
    const fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Dev => "dev",
        }
    }
}

impl Eval {
    /// Runs the command.
    pub fn run(self, output: Output) -> Result<()> {
        let machine = self.json || output == Output::Json;
        let limit = self
            .limit
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let sets = Sets::read(&self.dir.join("eval"), self.split.name(), &self.set, limit)?;
        let mut options = Options::of_process(self.onnxruntime.clone())?;
        options.backend = self.backend;
        let started = Instant::now();
        let (table, runs_on) = watched(move |bar| -> Result<_> {
            let asker = Asker::start(self.dir.clone(), options)?;
            let table = measure(&sets, &asker, bar)?;
            let runs_on = asker.runs_on();
            asker.stop();
            Ok((table, runs_on))
        })?;
        if machine {
            return print::json(&json!(table));
        }
        print::text(&text(&table))?;
        print::line(&format!(
            "{runs_on}, {:.0} s",
            started.elapsed().as_secs_f64()
        ))
    }
}

/// All sets, one after the other.
fn measure(sets: &Sets, asker: &Asker, bar: &Bar) -> Result<Table> {
    let mut table = Table::new();
    let (mut done, all) = (0, sets.len() as u64);
    let mut blanks = (Vec::new(), Vec::new());
    let mut groups = 0;
    for (name, set) in &sets.0 {
        let base = done;
        let tell = |count: usize| match bar.at("questions", base + count as u64, all).is_continue()
        {
            true => Ok(()),
            false => Err(Failure::Interrupted),
        };
        let figures = match set {
            Set::Labels(items) => {
                let texts = items.iter().map(|item| item.text.as_str());
                let found = asker.labels(name, texts, &tell)?;
                let truth: Vec<&str> = items.iter().map(|item| item.label.as_str()).collect();
                measures::labels(&truth, &found)
            }
            Set::Tasks(items) => answers(asker, name, items, &tell)?,
            Set::Blanks(items) => {
                let texts = items.iter().map(|item| item.text.clone()).collect();
                let found = asker.infill(texts, BLANK_TOKENS, &tell)?;
                let right: Vec<bool> = (items.iter().zip(&found))
                    .map(|(item, found)| item.answer == found.trim())
                    .collect();
                let words: Vec<usize> = items.iter().map(|item| item.words).collect();
                let figures = measures::blanks(&words, &right);
                blanks.0.extend(words);
                blanks.1.extend(right);
                groups += 1;
                figures
            }
            Set::Texts(items) => {
                let halves: Vec<_> = items.iter().map(|text| measures::halves(text)).collect();
                let loss = asker.losses(&halves, &tell)?;
                let bytes = halves.iter().map(|(_, tail)| tail.len()).sum();
                measures::bits(&loss, bytes)
            }
        };
        done += set.len() as u64;
        table.insert(name.clone(), figures);
    }
    if groups > 1 {
        table.insert("infill".to_owned(), measures::blanks(&blanks.0, &blanks.1));
    }
    Ok(table)
}

/// An infill task, as the model writes by itself and, where the task asks for a form, held to it.
fn answers(
    asker: &Asker,
    set: &str,
    items: &[Answered],
    tell: &dyn Fn(usize) -> Result<()>,
) -> Result<Figures> {
    let name = asker.task_of(set)?;
    let wanted: Vec<&str> = items.iter().map(|item| item.answer.as_str()).collect();
    let texts = || items.iter().map(|item| item.text.clone()).collect();
    let free = asker.task(&name, texts(), Form::Free, &|_| tell(0))?;
    let mut figures = measures::objects(&wanted, &free);
    let Some(Task::Infill { json_schema, .. }) = asker.task_named(&name) else {
        return Ok(figures);
    };
    if json_schema.is_some() {
        let held = asker.task(&name, texts(), Form::Held, tell)?;
        for (metric, value) in measures::objects(&wanted, &held) {
            if metric != measures::ITEMS {
                figures.insert(format!("{metric}_schema"), value);
            }
        }
    }
    Ok(figures)
}

/// One line for each set.
fn text(table: &Table) -> String {
    let mut text = String::new();
    for (name, figures) in table {
        text.push_str(&format!("{name:<14}"));
        for (metric, value) in figures {
            match metric == measures::ITEMS {
                true => text.push_str(&format!("  {metric} {value}")),
                false => text.push_str(&format!("  {metric} {value:.3}")),
            }
        }
        text.push('\n');
    }
    text
}
