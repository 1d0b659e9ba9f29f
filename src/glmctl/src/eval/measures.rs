//! Figures of answers. The measures of `models/README.md`, which `models/train/evaluate.py` computes too.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Metrics by name.
pub type Figures = BTreeMap<String, Value>;

/// Name of the number of items.
pub const ITEMS: &str = "items";

/// Accuracy, and the mean over all true labels of F1.
pub fn labels(truth: &[&str], found: &[String]) -> Figures {
    let pairs = || truth.iter().copied().zip(found.iter().map(String::as_str));
    let right = pairs().filter(|(truth, found)| truth == found).count();
    let kinds: BTreeSet<&str> = truth.iter().copied().collect();
    let f1 = kinds.iter().map(|label| {
        let hit = pairs().filter(|pair| *pair == (*label, *label)).count();
        let wrong = pairs()
            .filter(|(truth, found)| (truth == label) != (found == label))
            .count();
        ratio(2 * hit, 2 * hit + wrong)
    });
    let sum: f64 = f1.sum();
    figures([
        ("accuracy", json!(ratio(right, truth.len()))),
        ("macro_f1", json!(sum / float(kinds.len().max(1)))),
        (ITEMS, json!(truth.len())),
    ])
}

/// JSON objects with an `intent`: equality of the whole text, of the intent, and F1 of the other keys with their values.
pub fn objects(wanted: &[&str], found: &[String]) -> Figures {
    let (mut exact, mut intent) = (0, 0);
    let (mut hit, mut slots) = (0, 0);
    for (wanted, found) in wanted.iter().zip(found) {
        exact += usize::from(wanted == found);
        let (wanted, found) = (object(wanted), object(found));
        intent += usize::from(name(wanted.as_ref()) == name(found.as_ref()));
        let (wanted, found) = (pairs(wanted.as_ref()), pairs(found.as_ref()));
        hit += wanted.intersection(&found).count();
        slots += wanted.len() + found.len();
    }
    let all = wanted.len();
    figures([
        ("exact", json!(ratio(exact, all))),
        ("intent_accuracy", json!(ratio(intent, all))),
        ("slot_f1", json!(ratio(2 * hit, slots))),
        (ITEMS, json!(all)),
    ])
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

fn name(object: Option<&Map<String, Value>>) -> Option<&Value> {
    object.and_then(|object| object.get("intent"))
}

fn pairs(object: Option<&Map<String, Value>>) -> BTreeSet<(String, String)> {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    object
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "intent")
        .map(|(key, value)| (key.clone(), plain(value)))
        .collect()
}

/// Share of blanks that were filled exactly, for each number of words.
pub fn blanks(words: &[usize], right: &[bool]) -> Figures {
    let kinds: BTreeSet<usize> = words.iter().copied().collect();
    let shares = kinds.iter().map(|kind| {
        let mine = || words.iter().zip(right).filter(|(words, _)| *words == kind);
        let hits = mine().filter(|(_, right)| **right).count();
        (format!("exact_{kind}"), json!(ratio(hits, mine().count())))
    });
    let items = (ITEMS.to_owned(), json!(words.len()));
    shares.chain([items]).collect()
}

/// Bits per byte from losses in nats.
pub fn bits(losses: &[f64], bytes: usize) -> Figures {
    let nats: f64 = losses.iter().sum();
    let bits = nats / std::f64::consts::LN_2 / float(bytes.max(1));
    figures([("bits_per_byte", json!(bits)), (ITEMS, json!(losses.len()))])
}

/// A text cut at the last space of its first half, counted in characters; the space belongs to the second part.
pub fn halves(text: &str) -> (&str, &str) {
    let half = text.chars().count() / 2;
    let cut = text
        .char_indices()
        .take(half + 1)
        .filter(|(_, c)| *c == ' ')
        .map(|(at, _)| at)
        .last();
    match cut {
        Some(at) if at > 0 => text.split_at(at),
        _ => ("", text),
    }
}

fn figures<const N: usize>(figures: [(&str, Value); N]) -> Figures {
    figures.map(|(name, value)| (name.to_owned(), value)).into()
}

fn ratio(part: usize, all: usize) -> f64 {
    float(part) / float(all.max(1))
}

#[allow(clippy::cast_precision_loss, reason = "counts of items are below 2^52")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn value(figures: &Figures, name: &str) -> f64 {
        figures[name].as_f64().expect("a number")
    }

    #[test]
    fn macro_f1_counts_every_label_alike() {
        // By scikit-learn: f1_score([a,a,a,b], [a,a,b,c], labels=[a,b], average="macro").
        let figures = labels(&["a", "a", "a", "b"], &owned(&["a", "a", "b", "c"]));
        assert!((value(&figures, "accuracy") - 0.5).abs() < 1e-12);
        assert!((value(&figures, "macro_f1") - 0.4).abs() < 1e-12);
        assert_eq!(figures[ITEMS], 4);
    }

    #[test]
    fn slots_are_pairs_without_the_intent() {
        let wanted = [
            r#"{"intent":"On","area":"hall","n":3}"#,
            r#"{"intent":"Off"}"#,
        ];
        let found = owned(&[
            r#"{"intent":"On","area":"hall","n":"3","x":1}"#,
            "{not json",
        ]);
        let figures = objects(&wanted, &found);
        assert!((value(&figures, "exact")).abs() < 1e-12);
        assert!((value(&figures, "intent_accuracy") - 0.5).abs() < 1e-12);
        // Two of two wanted and of three found.
        assert!((value(&figures, "slot_f1") - 0.8).abs() < 1e-12);
    }

    #[test]
    fn blanks_are_counted_by_their_words() {
        let figures = blanks(&[1, 1, 3], &[true, false, false]);
        assert!((value(&figures, "exact_1") - 0.5).abs() < 1e-12);
        assert!(value(&figures, "exact_3").abs() < 1e-12);
        assert!(!figures.contains_key("exact_2"));
    }

    #[test]
    fn bits_are_nats_over_bytes() {
        let figures = bits(&[std::f64::consts::LN_2; 8], 4);
        assert!((value(&figures, "bits_per_byte") - 2.0).abs() < 1e-12);
    }

    #[test]
    fn texts_are_cut_at_a_space() {
        assert_eq!(halves("one two three four"), ("one two", " three four"));
        assert_eq!(halves("nospace"), ("", "nospace"));
        assert_eq!(halves(" ab"), ("", " ab"));
        assert_eq!(halves("日本 語日本語日本"), ("日本", " 語日本語日本"));
        assert_eq!(halves(""), ("", ""));
    }
}
