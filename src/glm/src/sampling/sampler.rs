//! One choice after the other, reproducible by seed.
//!
//! Order of operations, as in Hugging Face's generation loop:
//! 1. repetition penalty: a seen token's logit is divided by it when positive, multiplied when negative;
//! 2. bans: padding rows, special tokens, the request's own list;
//! 3. temperature (0: take the best, ties by the lower id, and stop here);
//! 4. top-k;
//! 5. top-p over what top-k left, renormalised: the smallest set of best tokens with at least that mass;
//! 6. min-p: at least that share of the best token's probability;
//! 7. a draw from what is left, renormalised.
//!
//! Log-probabilities that are reported are those of the model, before step 1.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::log_probs::{self, best_first, select_best};
use super::{Banned, SamplingParams};
use crate::{Error, Result, TokenId};

/// First guess of how many tokens hold the mass that top-p asks for.
const FIRST_CUT: usize = 256;

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: TokenId,
    /// Natural log of its probability in the unmodified distribution, when asked for.
    pub logprob: Option<f64>,
    /// The most probable tokens of the unmodified distribution, best first, when asked for.
    pub top: Vec<(TokenId, f64)>,
}

/// Draws tokens for one answer.
///
/// A clone continues with the same random numbers: keep one to repeat a step that failed.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    banned: Banned,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// [`Error::Input`] naming the parameter that is out of range.
    pub fn new(params: SamplingParams, model: Banned) -> Result<Self> {
        params.validate()?;
        Ok(Self {
            banned: model.with(&params.banned),
            rng: ChaCha8Rng::seed_from_u64(params.seed),
            params,
        })
    }

    /// Chooses from one row of logits; `seen` are the tokens that the repetition penalty counts
    /// (prompt and answer).
    ///
    /// # Errors
    /// [`Error::NoFiniteLogit`] when every allowed logit is NaN or infinite.
    pub fn sample(&mut self, logits: &[f32], seen: &[TokenId]) -> Result<Sampled> {
        let id = self.choose(logits, seen)?;
        let (logprob, top) = match self.params.logprobs {
            None => (None, Vec::new()),
            Some(count) => (
                log_probs::of(logits, &[id])?.first().copied(),
                log_probs::top(logits, count)?,
            ),
        };
        Ok(Sampled { id, logprob, top })
    }

    fn choose(&mut self, logits: &[f32], seen: &[TokenId]) -> Result<TokenId> {
        let mut scores = self.scores(logits, seen);
        let best = scores
            .iter()
            .copied()
            .min_by(best_first)
            .ok_or(Error::NoFiniteLogit)?;
        if self.params.temperature == 0.0 {
            return Ok(TokenId(best.0));
        }
        // Weights relative to the best token, which has weight 1: nothing overflows.
        let temperature = f64::from(self.params.temperature);
        for (_, score) in &mut scores {
            *score = ((*score - best.1) / temperature).exp();
        }
        self.truncate(&mut scores);
        let total: f64 = scores.iter().map(|(_, w)| w).sum();
        let mut left = self.uniform() * total;
        for (id, weight) in &scores {
            left -= weight;
            if left < 0.0 {
                return Ok(TokenId(*id));
            }
        }
        // Rounding may leave a rest after the last token; the best one is always a valid answer.
        Ok(TokenId(best.0))
    }

    /// Allowed ids with their penalised logits, in id order.
    fn scores(&self, logits: &[f32], seen: &[TokenId]) -> Vec<(u32, f64)> {
        let mut scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let penalty = f64::from(self.params.repetition_penalty);
        if penalty != 1.0 {
            let mut seen: Vec<usize> = seen.iter().map(|id| id.index()).collect();
            seen.sort_unstable();
            seen.dedup();
            for index in seen {
                if let Some(score) = scores.get_mut(index) {
                    *score = if *score < 0.0 {
                        *score * penalty
                    } else {
                        *score / penalty
                    };
                }
            }
        }
        (0u32..)
            .zip(scores)
            .filter(|(id, score)| score.is_finite() && !self.banned.contains(TokenId(*id)))
            .collect()
    }

    /// Top-k, top-p and min-p. The order of what is left depends on the parameters alone.
    fn truncate(&self, weights: &mut Vec<(u32, f64)>) {
        let top_k = self.params.top_k;
        if top_k > 0 && top_k < weights.len() {
            log_probs::keep_best(weights, top_k);
        }
        let top_p = f64::from(self.params.top_p);
        if top_p < 1.0 {
            keep_mass(weights, top_p);
        }
        let min_p = f64::from(self.params.min_p);
        if min_p > 0.0 {
            weights.retain(|(_, weight)| *weight >= min_p);
        }
    }

    /// Uniform in [0, 1) with 53 random bits.
    #[allow(clippy::cast_precision_loss)] // 53 bits are exact in f64.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Keeps the smallest set of best tokens that holds at least `share` of the mass, best first.
///
/// A vocabulary has 150,000 tokens and the set has a few dozen, so ever longer
/// beginnings are sorted instead of everything.
fn keep_mass(weights: &mut Vec<(u32, f64)>, share: f64) {
    let wanted = share * weights.iter().map(|(_, w)| w).sum::<f64>();
    let mut cut = FIRST_CUT.min(weights.len());
    loop {
        select_best(weights, cut);
        let head = &mut weights[..cut];
        head.sort_unstable_by(best_first);
        let mut mass = 0.0;
        let enough = head.iter().position(|(_, w)| {
            mass += w;
            mass >= wanted
        });
        if let Some(last) = enough {
            weights.truncate(last + 1);
            return;
        }
        if cut == weights.len() {
            return;
        }
        cut = (cut * 4).min(weights.len());
    }
}
