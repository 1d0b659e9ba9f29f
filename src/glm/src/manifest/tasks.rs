//! What a model was trained to be asked, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{TASKS_FILE, bad, document, typed};
use crate::tokenizer::MaskKind;
use crate::{ModelSpec, Result};

/// Where a pattern takes the text.
const TEXT: &str = "{text}";
/// Longest name of a task; it goes into URLs, topics and log lines.
const LONGEST_NAME: usize = 64;

/// Tasks by name.
pub type Tasks = BTreeMap<String, Task>;

/// A named question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Task {
    /// Choose among labels by cloze.
    Classify {
        /// What it tells, for people.
        description: String,
        /// Text with one blank; `{text}` is what is asked about.
        pattern: String,
        /// Words for each label that could stand in the blank.
        labels: BTreeMap<String, Vec<String>>,
        /// How the log-probabilities of a word of several tokens become one number.
        #[serde(default)]
        normalize: Normalize,
        /// Divide by what the pattern alone prefers.
        #[serde(default)]
        calibrate: bool,
    },
    /// Fill the blanks of a pattern.
    Infill {
        /// What it gives, for people.
        description: String,
        /// Text with blanks; `{text}` is what is asked about.
        pattern: String,
        /// Longest answer, in tokens.
        max_tokens: usize,
        /// Form that the answer must have; strings with `"x-quoted": true` are words of the text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        json_schema: Option<Value>,
    },
}

/// How the log-probabilities of the tokens of a word become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
}

/// Reads and checks the tasks of a checkpoint.
///
/// # Errors
/// [`Error::Manifest`](crate::Error::Manifest) naming the key.
pub fn tasks_from_json(bytes: &[u8], spec: &ModelSpec) -> Result<Tasks> {
    let tasks: Tasks = typed(TASKS_FILE, document(TASKS_FILE, bytes)?)?;
    check(TASKS_FILE, "", &tasks, spec)?;
    Ok(tasks)
}

/// `prefix` stands before the names of tasks in messages.
pub(super) fn check(file: &str, prefix: &str, tasks: &Tasks, spec: &ModelSpec) -> Result<()> {
    for (name, task) in tasks {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            let reason =
                format!("is not a name: 1 to {LONGEST_NAME} ASCII letters, digits, `-` or `_`");
            return Err(bad(file, &format!("{prefix}{name}"), reason));
        }
        task.check(spec)
            .map_err(|(key, reason)| bad(file, &format!("{prefix}{name}.{key}"), reason))?;
    }
    Ok(())
}

impl Task {
    /// Text with blanks and `{text}`.
    #[must_use]
    pub fn pattern(&self) -> &str {
        match self {
            Self::Classify { pattern, .. } | Self::Infill { pattern, .. } => pattern,
        }
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> &str {
        match self {
            Self::Classify { description, .. } | Self::Infill { description, .. } => description,
        }
    }

    /// The first key with a value that makes no sense, and why.
    fn check(&self, spec: &ModelSpec) -> Result<(), (String, String)> {
        let blanks =
            check_pattern(self.pattern(), spec).map_err(|reason| ("pattern".to_owned(), reason))?;
        match self {
            Self::Classify { labels, .. } => {
                if blanks != 1 {
                    let reason = format!("has {blanks} blanks; a label stands in exactly one");
                    return Err(("pattern".to_owned(), reason));
                }
                if labels.len() < 2 {
                    return Err(("labels".to_owned(), "needs at least two".to_owned()));
                }
                for (label, words) in labels {
                    if words.is_empty() || words.iter().any(|word| word.trim().is_empty()) {
                        let reason = "needs at least one word, and none may be empty";
                        return Err((format!("labels.{label}"), reason.to_owned()));
                    }
                }
            }
            Self::Infill {
                max_tokens,
                json_schema,
                ..
            } => {
                let most = spec.max_positions;
                if *max_tokens == 0 || *max_tokens > most {
                    let reason = format!("is {max_tokens}; the model takes 1 to {most}");
                    return Err(("max_tokens".to_owned(), reason));
                }
                if json_schema
                    .as_ref()
                    .is_some_and(|schema| !schema.is_object())
                {
                    return Err(("json_schema".to_owned(), "must be an object".to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// Number of blanks of a pattern that the model can fill.
fn check_pattern(pattern: &str, spec: &ModelSpec) -> Result<usize, String> {
    if pattern.matches(TEXT).count() != 1 {
        return Err(format!("must have {TEXT} exactly once"));
    }
    let special = &spec.special;
    let mut blanks = 0;
    for kind in MaskKind::ALL {
        let (name, id) = match kind {
            MaskKind::Span => (kind.marker(), special.mask),
            MaskKind::Sentence => (kind.marker(), special.smask),
            MaskKind::Document => (kind.marker(), special.gmask),
        };
        let count = pattern.matches(name).count();
        if count > 0 && id.is_none() {
            return Err(format!("has {name}, which this model does not know"));
        }
        blanks += count;
    }
    if blanks == 0 {
        return Err("has no blank such as [MASK]".to_owned());
    }
    Ok(blanks)
}
