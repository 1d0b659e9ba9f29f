//! `glmctl classify`: choose among labels by cloze.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use glm_wire::classify::{ClassifyRequest, ClassifyResponse, Normalize, Verdict};

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::options::{Output, Scheduling};
use crate::{lines, print};

/// Choose among labels by how well their words fit into a blank
#[derive(Debug, Args)]
pub struct Classify {
    /// The text; `-` reads standard input
    text: Option<String>,
    /// A named task of the model: its pattern and labels
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pattern", "labels"], required_unless_present = "pattern")]
    task: Option<String>,
    /// Where the text and the blank stand, such as "{text} It was [MASK]."
    #[arg(long, requires = "labels")]
    pattern: Option<String>,
    /// A label and the words that stand for it, such as positive=great,good (repeat for each label)
    #[arg(long, value_name = "LABEL=WORD,...", requires = "pattern")]
    labels: Vec<String>,
    /// How the log-probabilities of a word of several tokens become one number
    #[arg(long, value_enum, value_name = "HOW")]
    normalize: Option<Adding>,
    /// Divide by what the pattern alone prefers
    #[arg(long)]
    calibrate: bool,
    /// One text a line, from standard input unless a text is given
    #[arg(long)]
    lines: bool,
    #[command(flatten)]
    scheduling: Scheduling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Adding {
    /// The probability of the whole word
    Sum,
    /// The mean, which does not punish long words
    Mean,
}

/// Width of the longest bar.
const BAR: usize = 24;

impl Classify {
    /// Runs the command.
    pub async fn run(&self, client: &Client, output: Output) -> Result<()> {
        let request = &self.request()?;
        let ask = |text| async move {
            let request = ClassifyRequest {
                text: Some(text),
                ..request.clone()
            };
            client
                .ask::<_, ClassifyResponse>("/v1/classify", &request)
                .await
        };
        let argument = self.text.as_deref();
        if self.lines {
            let show = |answer: &ClassifyResponse| {
                let p = answer.verdict.scores.get(&answer.verdict.label);
                format!("{}\t{:.3}", answer.verdict.label, p.copied().unwrap_or(0.0))
            };
            return lines::ask_each(argument, output, ask, show).await;
        }
        let answer = ask(lines::text(argument)?).await?;
        match output {
            Output::Json => print::json(&answer),
            Output::Text => print::text(&table(&answer.verdict)),
        }
    }

    fn request(&self) -> Result<ClassifyRequest> {
        let mut labels = BTreeMap::new();
        for label in &self.labels {
            let (name, words) = parse_label(label)?;
            if labels.insert(name.clone(), words).is_some() {
                return Err(Failure::Usage(format!("--labels names `{name}` twice")));
            }
        }
        Ok(ClassifyRequest {
            task: self.task.clone(),
            pattern: self.pattern.clone(),
            labels: (!labels.is_empty()).then_some(labels),
            normalize: self.normalize.map(|how| match how {
                Adding::Sum => Normalize::Sum,
                Adding::Mean => Normalize::Mean,
            }),
            calibrate: self.calibrate.then_some(true),
            deadline_ms: self.scheduling.deadline_ms,
            priority: self.scheduling.priority.map(Into::into),
            coalesce_key: self.scheduling.coalesce_key.clone(),
            ..ClassifyRequest::default()
        })
    }
}

/// `positive=great,good` to a label and its words.
fn parse_label(text: &str) -> Result<(String, Vec<String>)> {
    let bad = || {
        Failure::Usage(format!(
            "--labels {text}: expected LABEL=WORD or LABEL=WORD,WORD"
        ))
    };
    let (name, words) = text.split_once('=').ok_or_else(bad)?;
    let words: Vec<String> = words.split(',').map(|w| w.trim().to_owned()).collect();
    if name.trim().is_empty() || words.iter().any(String::is_empty) {
        return Err(bad());
    }
    Ok((name.trim().to_owned(), words))
}

/// Labels with their probabilities, the likeliest first.
fn table(verdict: &Verdict) -> String {
    let mut rows: Vec<(&String, f64)> = verdict.scores.iter().map(|(l, p)| (l, *p)).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let width = rows
        .iter()
        .map(|(label, _)| label.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(label, p)| {
            let row = format!("{label:<width$}  {p:.3}  {}", bar(*p));
            format!("{}\n", row.trim_end())
        })
        .collect()
}

fn bar(share: f64) -> String {
    (0..BAR)
        .take_while(|cell| (*cell as f64 + 0.5) / BAR as f64 <= share)
        .map(|_| '█')
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_or_refused() {
        let (name, words) = parse_label("good = fine, great").expect("a label");
        assert_eq!((name.as_str(), words.len()), ("good", 2));
        for bad in ["good", "=x", "a=", "a=x,,y"] {
            assert_eq!(parse_label(bad).expect_err(bad).exit_status(), 64);
        }
    }

    #[test]
    fn the_likeliest_label_stands_first() {
        let verdict = Verdict {
            label: "error".to_owned(),
            scores: [("debug", 0.02), ("error", 0.9), ("warning", 0.08)]
                .map(|(l, p)| (l.to_owned(), p))
                .into(),
            ..Verdict::default()
        };
        let expected = format!(
            "error    0.900  {}\nwarning  0.080  ██\ndebug    0.020\n",
            "█".repeat(22)
        );
        assert_eq!(table(&verdict), expected);
    }
}
