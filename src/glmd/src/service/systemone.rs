//! Typed questions about a state, answered by cloze.

use std::collections::BTreeMap;
use std::sync::Arc;

use glm_engine::collect::Collected;
use glm_engine::ops::decide::DecideReader;
use glm_engine::ops::{Choose, Decide, Operations};
use glm_wire::error::ErrorDetail;
use glm_wire::systemone::{
    Answer, MAX_QUESTIONS, Question, SystemOneRequest, SystemOneResponse, SystemOneUsage,
};
use serde_json::Value;

use super::shape::{Facts, Shape};
use super::{Ask, ask, failure, json};

const YES: &str = "yes";
const NO: &str = "no";

pub(super) fn prepare(
    body: &[u8],
    operations: &Arc<Operations>,
    client: Box<str>,
) -> Result<Ask, ErrorDetail> {
    let request: SystemOneRequest = glm_wire::parse(body)?;
    let terms = ask::terms(request.control(), client);
    if request.questions.len() > MAX_QUESTIONS {
        return Err(failure::bad_input(
            "questions",
            format!("`questions`: has more than {MAX_QUESTIONS}"),
        ));
    }
    let questions = request.questions.iter();
    let decide = Decide {
        state: words(&request.state),
        questions: questions
            .map(|(name, question)| (name.clone(), choose(question)))
            .collect(),
    };
    let planned = operations
        .decide(&decide, terms)
        .map_err(|e| failure::detail(&e))?;
    Ok(Ask {
        request: planned.request,
        shape: Box::new(Deciding {
            reader: planned.reader,
            questions: request.questions,
            model: operations.model().id.clone(),
        }),
        stream: false,
    })
}

/// What is asked of the model: what the options mean, then the question.
fn choose(question: &Question) -> Choose {
    let mut lines = Vec::new();
    let mut options = BTreeMap::new();
    let mut option = |name: String, said: String, meaning: Option<&Value>| {
        match meaning {
            None | Some(Value::Null) => {}
            Some(meaning) => lines.push(format!("{said}: {}", words(meaning))),
        }
        options.insert(name, said);
    };
    let instructions = match question {
        Question::Noul {
            instructions,
            criteria,
        } => {
            let yes = criteria.as_ref().and_then(|c| c.yes.as_ref());
            let no = criteria.as_ref().and_then(|c| c.no.as_ref());
            option(YES.to_owned(), YES.to_owned(), yes);
            option(NO.to_owned(), NO.to_owned(), no);
            instructions
        }
        Question::Choice {
            instructions,
            criteria,
        } => {
            for (name, meaning) in criteria {
                option(name.clone(), name.clone(), Some(meaning));
            }
            instructions
        }
        Question::Score {
            instructions,
            criteria,
        } => {
            for (level, said) in criteria.iter().enumerate() {
                option(level.to_string(), words(said), None);
            }
            instructions
        }
    };
    lines.extend(instructions.as_ref().map(words));
    Choose {
        instructions: lines.join("\n"),
        options,
    }
}

/// Text as it is, anything else as JSON.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

struct Deciding {
    reader: DecideReader,
    questions: BTreeMap<String, Question>,
    model: String,
}

impl Shape for Deciding {
    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        let decided = self.reader.read(all).map_err(|e| failure::detail(&e))?;
        let verdicts = decided.verdicts.into_iter();
        let answers = verdicts.filter_map(|(name, verdict)| {
            let question = self.questions.get(&name)?;
            Some((name, answer(question, verdict.label, verdict.scores)))
        });
        json(&SystemOneResponse {
            id: facts.id.to_owned(),
            model: self.model.clone(),
            answers: answers.collect(),
            usage: SystemOneUsage {
                input_tokens: decided.usage.prompt_tokens,
                output_tokens: 0,
            },
        })
    }
}

fn answer(question: &Question, best: String, probabilities: BTreeMap<String, f64>) -> Answer {
    let confidence = confidence(probabilities.values().copied());
    match question {
        Question::Noul { .. } => Answer::Noul {
            noul: probabilities.get(YES).copied().unwrap_or_default(),
        },
        Question::Choice { .. } => Answer::Choice {
            choice: best,
            probabilities,
            confidence,
        },
        Question::Score { criteria, .. } => {
            let levels = (0u32..).zip(criteria);
            let expected = |(level, _): (u32, &Value)| {
                let p = probabilities.get(&level.to_string());
                f64::from(level) * p.copied().unwrap_or_default()
            };
            Answer::Score {
                score: levels.clone().map(expected).sum(),
                legend: levels
                    .map(|(n, said)| (n.to_string(), words(said)))
                    .collect(),
                probabilities,
                confidence,
            }
        }
    }
}

/// `(n peak - 1) / (n - 1)`, as the shape's inventors define it.
fn confidence(probabilities: impl Iterator<Item = f64>) -> f64 {
    let (n, peak) = probabilities.fold((0.0, 0.0_f64), |(n, peak), p| (n + 1.0, peak.max(p)));
    match n > 1.0 {
        true => ((n * peak - 1.0) / (n - 1.0)).clamp(0.0, 1.0),
        false => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(value: Value) -> Question {
        serde_json::from_value(value).expect("a question")
    }

    #[test]
    fn questions_become_text_with_options() {
        let noul = question(
            json!({"type": "noul", "instructions": "Urgent?", "criteria": {"true": "today"}}),
        );
        let asked = choose(&noul);
        assert_eq!(asked.instructions, "yes: today\nUrgent?");
        assert_eq!(asked.options.keys().collect::<Vec<_>>(), ["no", "yes"]);
        let choice = question(
            json!({"type": "choice", "instructions": {"ask": 1}, "criteria": {"a": null, "b": "second"}}),
        );
        let asked = choose(&choice);
        assert_eq!(asked.instructions, "b: second\n{\"ask\":1}");
        assert_eq!(asked.options["a"], "a");
        let score = question(json!({"type": "score", "criteria": ["calm", "angry"]}));
        let asked = choose(&score);
        assert_eq!(asked.instructions, "");
        assert_eq!(asked.options["1"], "angry");
    }

    #[test]
    fn answers_follow_from_the_probabilities() {
        let of = |pairs: &[(&str, f64)]| -> BTreeMap<String, f64> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
        };
        let score = question(json!({"type": "score", "criteria": ["calm", "tense", "angry"]}));
        let told = answer(
            &score,
            "2".to_owned(),
            of(&[("0", 0.25), ("1", 0.25), ("2", 0.5)]),
        );
        let told = serde_json::to_value(told).expect("plain data");
        assert_eq!(told["score"], 1.25);
        assert_eq!(told["confidence"], 0.25);
        assert_eq!(told["legend"]["2"], "angry");
        let noul = question(json!({"type": "noul"}));
        let told = answer(&noul, NO.to_owned(), of(&[(YES, 0.1), (NO, 0.9)]));
        assert_eq!(
            serde_json::to_value(told).expect("plain data"),
            json!({"type": "noul", "noul": 0.1})
        );
        assert!(confidence([0.5, 0.5].into_iter()).abs() < 1e-12);
    }

    #[test]
    fn what_the_shape_does_not_know_is_refused() {
        for bad in [
            json!({"type": "box"}),
            json!({"type": "noul", "extra": 1}),
            json!({"type": "choice"}),
            json!({"type": "noul", "criteria": {"maybe": "x"}}),
        ] {
            assert!(
                serde_json::from_value::<Question>(bad.clone()).is_err(),
                "{bad}"
            );
        }
    }
}
