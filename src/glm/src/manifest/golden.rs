//! What a model must answer before it is trusted.
//!
//! A runtime, its kernels and the processor below them can all be wrong
//! without an error. A model therefore carries a few prompts with the logits
//! that a plain implementation in f32 got from the very weights of the file.

use serde::{Deserialize, Serialize};

use crate::spec::Visibility;
use crate::{ModelSpec, Position, TokenId};

/// Highest logits of a row that are kept.
const TOP: usize = 8;
/// Logits that are kept evenly over the vocabulary, so that all of the head is looked at.
const SPREAD: usize = 24;

/// Prompts and their answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Most that a logit may be off.
    ///
    /// Runtimes round activations, keys and values, so this depends on how the
    /// weights are kept and how deep the model is.
    pub tolerance: f32,
    /// At least one.
    pub prompts: Vec<GoldenPrompt>,
}

/// A prompt and logits of its last token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenPrompt {
    /// Tokens.
    pub ids: Vec<TokenId>,
    /// `[first, second]` of each token.
    pub positions: Vec<[u32; 2]>,
    /// Length of the prefix whose tokens all see each other.
    pub bidirectional: usize,
    /// Some logits of the last token.
    pub logits: Vec<GoldenLogit>,
}

/// A logit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenLogit {
    /// Its token.
    pub id: TokenId,
    /// Its value.
    pub value: f32,
}

impl GoldenPrompt {
    /// A prompt with the logits `row` of its last token: the highest ones, and
    /// a few evenly over the vocabulary.
    #[must_use]
    pub fn new(
        ids: Vec<TokenId>,
        positions: &[Position],
        bidirectional: usize,
        row: &[f32],
    ) -> Self {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        order.truncate(TOP);
        order.extend((0..SPREAD).map(|i| i * row.len() / SPREAD));
        order.sort_unstable();
        order.dedup();
        let logits = order
            .into_iter()
            .filter_map(|index| {
                Some(GoldenLogit {
                    id: TokenId(u32::try_from(index).ok()?),
                    value: *row.get(index)?,
                })
            })
            .collect();
        Self {
            ids,
            positions: positions.iter().map(|p| [p.first, p.second]).collect(),
            bidirectional,
            logits,
        }
    }

    /// Positions of the tokens.
    pub fn places(&self) -> impl Iterator<Item = Position> + '_ {
        self.positions
            .iter()
            .map(|&[first, second]| Position { first, second })
    }

    /// Most that a logit of `row` is off; infinite when one is missing or not a number.
    #[must_use]
    pub fn deviation(&self, row: &[f32]) -> f32 {
        self.logits
            .iter()
            .map(|logit| match row.get(logit.id.index()) {
                Some(value) if value.is_finite() => (value - logit.value).abs(),
                _ => f32::INFINITY,
            })
            .fold(0.0, f32::max)
    }

    fn check(&self, spec: &ModelSpec) -> Result<(), (&'static str, String)> {
        let tokens = self.ids.len();
        if tokens == 0 || tokens > spec.max_positions {
            let reason = format!(
                "has {tokens} tokens, the model takes 1 to {}",
                spec.max_positions
            );
            return Err(("ids", reason));
        }
        if self.positions.len() != tokens {
            let reason = format!("has {} entries for {tokens} tokens", self.positions.len());
            return Err(("positions", reason));
        }
        if self.bidirectional > tokens {
            let reason = format!("is {}, with {tokens} tokens", self.bidirectional);
            return Err(("bidirectional", reason));
        }
        if self.bidirectional > 0 && spec.visibility() == Visibility::Causal {
            return Err((
                "bidirectional",
                "must be 0: the family is causal".to_owned(),
            ));
        }
        if self.logits.is_empty() {
            return Err(("logits", "is empty".to_owned()));
        }
        let rows = spec.vocab_rows;
        if let Some(id) = self.ids.iter().find(|id| id.index() >= rows) {
            return Err(("ids", format!("{id} does not fit {rows} vocabulary rows")));
        }
        for logit in &self.logits {
            if logit.id.index() >= rows || !logit.value.is_finite() {
                let reason = format!(
                    "{} does not fit {rows} vocabulary rows or has no number",
                    logit.id
                );
                return Err(("logits", reason));
            }
        }
        Ok(())
    }
}

impl Golden {
    /// The first key with a value that makes no sense, and why.
    pub(super) fn check(&self, spec: &ModelSpec) -> Result<(), (String, String)> {
        if !self.tolerance.is_finite() || self.tolerance <= 0.0 {
            return Err(("tolerance".to_owned(), "must be above 0".to_owned()));
        }
        if self.prompts.is_empty() {
            return Err(("prompts".to_owned(), "is empty".to_owned()));
        }
        self.prompts.iter().enumerate().try_for_each(|(n, prompt)| {
            prompt
                .check(spec)
                .map_err(|(key, reason)| (format!("prompts[{n}].{key}"), reason))
        })
    }
}
