//! How tokens are chosen: what a client says, over what suits the operation.

use glm::sampling::SamplingParams;

/// What a client may say about sampling; what is absent takes the operation's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the best token.
    pub temperature: Option<f32>,
    /// Only the smallest set of best tokens with at least this mass.
    pub top_p: Option<f32>,
    /// Only this many best tokens; 0 = all.
    pub top_k: Option<usize>,
    /// Only tokens with at least this share of the best token's probability.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that were seen less likely.
    pub repetition_penalty: Option<f32>,
    /// Same seed, same prompt, same model: same answer. Absent is 0.
    pub seed: Option<u64>,
    /// A text ends before any of these.
    pub stop: Vec<String>,
    /// Report the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
}

impl Sampling {
    /// The whole choice: what was said, and `default` for the rest.
    pub(super) fn over(self, default: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(default.repetition_penalty),
            seed: self.seed.unwrap_or(default.seed),
            stop: self.stop,
            banned: default.banned,
            logprobs: self.logprobs.or(default.logprobs),
        }
    }
}
