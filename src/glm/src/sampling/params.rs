//! What a request may say about sampling.

use crate::spec::SpecialIds;
use crate::{Error, Result, TokenId};

/// Most stop strings of a request; each is compared at every character.
const MAX_STOPS: usize = 16;
/// Longest stop string in bytes: this much text may be held back.
const MAX_STOP_BYTES: usize = 1024;
/// Most alternatives reported for a token.
const MAX_LOGPROBS: usize = 20;
/// Highest temperature and repetition penalty: beyond, every token is equally likely.
const MAX_FACTOR: f32 = 100.0;

/// How to choose tokens. The default is the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 always takes the best token.
    pub temperature: f32,
    /// Only the `top_k` best tokens; 0 = all.
    pub top_k: usize,
    /// Only the smallest set of best tokens with at least this mass; 1 = all.
    pub top_p: f32,
    /// Only tokens with at least this share of the best token's probability; 0 = all.
    pub min_p: f32,
    /// Above 1 makes tokens that were seen less likely; 1 = off.
    pub repetition_penalty: f32,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// Ids that this request forbids, besides the model's own [`Banned`].
    pub banned: Vec<TokenId>,
    /// Report the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Same seed, same logits: same answer.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            banned: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field and its range.
    pub fn validate(&self) -> Result<()> {
        // Written so that NaN, which is in no range, is refused.
        let within = |field, value: f32, ok: bool, range: &str| match ok {
            true => Ok(()),
            false => Err(Error::Input {
                field,
                reason: format!("{value} is not {range}"),
            }),
        };
        let (t, p, m) = (self.temperature, self.top_p, self.min_p);
        let r = self.repetition_penalty;
        within(
            "temperature",
            t,
            (0.0..=MAX_FACTOR).contains(&t),
            "from 0 to 100",
        )?;
        within("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        within("min_p", m, (0.0..=1.0).contains(&m), "from 0 to 1")?;
        within(
            "repetition_penalty",
            r,
            r > 0.0 && r <= MAX_FACTOR,
            "above 0 and at most 100",
        )?;
        let input = |field, reason: String| Err(Error::Input { field, reason });
        if self.stop.len() > MAX_STOPS {
            return input("stop", format!("at most {MAX_STOPS} strings"));
        }
        if self
            .stop
            .iter()
            .any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES)
        {
            return input(
                "stop",
                format!("each string has 1 to {MAX_STOP_BYTES} bytes"),
            );
        }
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return input("logprobs", format!("at most {MAX_LOGPROBS}"));
        }
        Ok(())
    }
}

/// Ids that a model must not write: rows that only pad the vocabulary, and special tokens that end nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Banned {
    ids: Vec<TokenId>,
    from: Option<usize>,
}

impl Banned {
    /// Masks, starts, roles and padding; what ends an answer stays allowed.
    #[must_use]
    pub fn of(special: &SpecialIds) -> Self {
        let mut banned = Self {
            ids: special
                .all()
                .filter(|id| !special.ends_answer(*id))
                .collect(),
            from: special.tokenizer_size,
        };
        // Ids that are banned by name stay so even if they share a list with the ends.
        banned.ids.extend_from_slice(&special.banned);
        banned.tidy();
        banned
    }

    /// Adds a request's own ids.
    #[must_use]
    pub fn with(mut self, ids: &[TokenId]) -> Self {
        self.ids.extend_from_slice(ids);
        self.tidy();
        self
    }

    /// Whether an id may not be sampled.
    #[must_use]
    pub fn contains(&self, id: TokenId) -> bool {
        self.from.is_some_and(|from| id.index() >= from) || self.ids.binary_search(&id).is_ok()
    }

    fn tidy(&mut self) {
        self.ids.sort_unstable();
        self.ids.dedup();
    }
}
