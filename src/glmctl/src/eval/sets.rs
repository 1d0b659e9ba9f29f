//! Held-out sets: files of one object a line.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Result};

/// Longest file that is read; the sets of the bundled model have 0.4 MB.
const MAX_BYTES: u64 = 64 << 20;

/// A text and its label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labelled {
    pub text: String,
    pub label: String,
}

/// A text and what a task makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub text: String,
    pub answer: String,
}

/// A text with one blank, and what stood there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blanked {
    pub text: String,
    pub answer: String,
    pub words: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    text: String,
}

/// A set, by what its items hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    Labels(Vec<Labelled>),
    Tasks(Vec<Answered>),
    Blanks(Vec<Blanked>),
    Texts(Vec<String>),
}

impl Set {
    /// Items.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(items) => items.len(),
            Self::Tasks(items) => items.len(),
            Self::Blanks(items) => items.len(),
            Self::Texts(items) => items.len(),
        }
    }
}

/// Sets by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets(pub BTreeMap<String, Set>);

impl Sets {
    /// Reads `NAME.SPLIT.jsonl` in `folder`: all, or those that `only` names; `limit` items of each.
    pub fn read(folder: &Path, split: &str, only: &[String], limit: usize) -> Result<Self> {
        let place = folder.display();
        let entries = fs::read_dir(folder).map_err(|e| Failure::io(place.to_string(), e))?;
        let ending = format!(".{split}.jsonl");
        let mut sets = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|e| Failure::io(place.to_string(), e))?.path();
            let file = path.file_name().and_then(|name| name.to_str());
            let Some(name) = file.and_then(|file| file.strip_suffix(&ending)) else {
                continue;
            };
            if only.is_empty() || only.iter().any(|wanted| wanted == name) {
                sets.insert(name.to_owned(), read(&path, limit)?);
            }
        }
        let missing = only.iter().find(|name| !sets.contains_key(*name));
        match missing {
            Some(name) => Err(Failure::BadInput(format!("{place} has no {name}{ending}"))),
            None if sets.is_empty() => {
                Err(Failure::BadInput(format!("{place} has no file *{ending}")))
            }
            None => Ok(Self(sets)),
        }
    }

    /// Items of all.
    pub fn len(&self) -> usize {
        self.0.values().map(Set::len).sum()
    }
}

fn read(path: &Path, limit: usize) -> Result<Set> {
    let name = path.display().to_string();
    let length = fs::metadata(path).map_err(|e| Failure::io(&name, e))?.len();
    if length > MAX_BYTES {
        let reason = format!("{name} has {length} bytes, at most {MAX_BYTES} are read");
        return Err(Failure::BadInput(reason));
    }
    let text = fs::read_to_string(path).map_err(|e| Failure::io(&name, e))?;
    parse(&text, limit).map_err(|reason| Failure::BadInput(format!("{name}: {reason}")))
}

/// The kind of the first line is that of all.
fn parse(text: &str, limit: usize) -> Result<Set, String> {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let Some(first) = lines.first() else {
        return Err("is empty".to_owned());
    };
    let first: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(first).map_err(|e| format!("line 1: {e}"))?;
    let has = |key: &str| first.contains_key(key);
    let lines = evenly(lines, limit);
    Ok(if has("label") {
        Set::Labels(items(&lines)?)
    } else if has("words") {
        Set::Blanks(items(&lines)?)
    } else if has("answer") {
        Set::Tasks(items(&lines)?)
    } else {
        let items: Vec<Plain> = items(&lines)?;
        Set::Texts(items.into_iter().map(|item| item.text).collect())
    })
}

fn items<T: DeserializeOwned>(lines: &[(usize, &str)]) -> Result<Vec<T>, String> {
    lines
        .iter()
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))
        })
        .collect()
}

/// At most `limit` of the lines with their numbers, at even distances.
fn evenly(lines: Vec<&str>, limit: usize) -> Vec<(usize, &str)> {
    let all = lines.len();
    let taken = limit.min(all);
    (0..taken)
        .map(|index| index * all / taken)
        .map(|index| (index, lines[index]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_tells_what_is_asked() {
        let labels = "{\"text\":\"a\",\"label\":\"x\"}\n\n{\"text\":\"b\",\"label\":\"y\"}\n";
        assert!(matches!(parse(labels, 9), Ok(Set::Labels(items)) if items.len() == 2));
        let blanks = "{\"text\":\"a [MASK]\",\"answer\":\"x\",\"words\":1}";
        assert!(matches!(parse(blanks, 9), Ok(Set::Blanks(_))));
        assert!(matches!(parse("{\"text\":\"a\"}", 9), Ok(Set::Texts(_))));
        let mixed = "{\"text\":\"a\"}\n{\"text\":\"b\",\"label\":\"y\"}";
        assert!(parse(mixed, 9).unwrap_err().starts_with("line 2"));
        assert!(parse("\n", 9).is_err() && parse("[]", 9).is_err());
    }

    #[test]
    fn fewer_items_come_from_the_whole_file() {
        let lines: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let taken: Vec<usize> = evenly(lines.clone(), 3).iter().map(|(n, _)| *n).collect();
        assert_eq!(taken, [0, 3, 6]);
        assert_eq!(evenly(lines, 99).len(), 10);
    }
}
