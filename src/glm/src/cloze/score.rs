//! From log-probabilities of candidates to probabilities of labels.

use std::collections::BTreeMap;

use super::{Cloze, Normalize};
use crate::{Error, Result};

/// Log-probabilities that the pattern alone gives each label, averaged over content-free texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline(Vec<f64>);

/// The verdict on one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The likeliest label.
    pub label: String,
    /// Probability of each label; they sum to 1.
    pub scores: BTreeMap<String, f64>,
    /// Natural log-probability of each label's verbalizers, before calibration and before they were
    /// made to sum to 1.
    pub logprobs: BTreeMap<String, f64>,
}

impl Cloze {
    /// Averages what content-free texts got; `scores` is one list a text, as for [`verdict`](Self::verdict).
    ///
    /// # Errors
    /// As [`verdict`](Self::verdict).
    pub fn baseline(&self, scores: &[Vec<Vec<f64>>]) -> Result<Baseline> {
        let mut mean = vec![0.0; self.labels.len()];
        for text in scores {
            for (mean, p) in mean.iter_mut().zip(softmax(&self.label_scores(text)?)?) {
                *mean += p;
            }
        }
        // The softmax of the logarithms is the same for the sum as for the mean.
        Ok(Baseline(mean.into_iter().map(f64::ln).collect()))
    }

    /// The verdict on a text, from the natural log-probabilities of every token of every candidate,
    /// in the order of [`candidates`](Self::candidates).
    ///
    /// # Errors
    /// [`Error::Input`] when the scores are not those of these candidates, [`Error::NoFiniteLogit`] when
    /// no label has a probability.
    pub fn verdict(&self, scores: &[Vec<f64>], baseline: Option<&Baseline>) -> Result<Verdict> {
        let logprobs = self.label_scores(scores)?;
        let calibrated: Vec<f64> = match baseline {
            None => logprobs.clone(),
            Some(Baseline(prior)) => (logprobs.iter().zip(prior))
                .map(|(score, prior)| match prior.is_finite() {
                    true => score - prior,
                    // The pattern alone gives it nothing: there is nothing to divide by.
                    false => *score,
                })
                .collect(),
        };
        let probabilities = softmax(&calibrated)?;
        let mut best = 0;
        for (index, p) in probabilities.iter().enumerate() {
            if *p > probabilities[best] {
                best = index;
            }
        }
        let named = |values: Vec<f64>| self.labels.iter().cloned().zip(values).collect();
        Ok(Verdict {
            label: self.labels[best].clone(),
            scores: named(probabilities),
            logprobs: named(logprobs),
        })
    }

    fn label_scores(&self, scores: &[Vec<f64>]) -> Result<Vec<f64>> {
        let fits = scores.len() == self.candidates.len()
            && (scores.iter().zip(&self.candidates)).all(|(s, c)| s.len() == c.ids.len());
        if !fits {
            return Err(Error::Input {
                field: "scores",
                reason: "are not those of the candidates of this question".to_owned(),
            });
        }
        let mut of_label = vec![Vec::new(); self.labels.len()];
        for (tokens, candidate) in scores.iter().zip(&self.candidates) {
            let sum: f64 = tokens.iter().sum();
            #[allow(clippy::cast_precision_loss)] // At most `MAX_VERBALIZER_TOKENS` + 1.
            let score = match self.normalize {
                Normalize::Sum => sum,
                Normalize::Mean => sum / tokens.len() as f64,
            };
            of_label[candidate.label].push(score);
        }
        Ok(of_label.iter().map(|s| log_sum_exp(s)).collect())
    }
}

/// `ln(sum(exp(x)))`; minus infinity when nothing is finite.
fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match max.is_finite() {
        true => max + values.iter().map(|x| (x - max).exp()).sum::<f64>().ln(),
        false => f64::NEG_INFINITY,
    }
}

fn softmax(values: &[f64]) -> Result<Vec<f64>> {
    let total = log_sum_exp(values);
    match total.is_finite() {
        true => Ok(values.iter().map(|x| (x - total).exp()).collect()),
        false => Err(Error::NoFiniteLogit),
    }
}
