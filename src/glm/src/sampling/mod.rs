//! From logits to the next token, and from tokens to the end of an answer.
//!
//! | item | what it decides |
//! |---|---|
//! | [`SamplingParams`] | what a request may ask for, checked |
//! | [`Banned`] | ids that are never sampled |
//! | [`Sampler`] | one seeded choice after the other |
//! | [`log_probs`] | natural log-probabilities of the unmodified distribution |
//! | [`StopMatcher`] | stop strings across token borders |

pub mod log_probs;
mod params;
mod sampler;
mod stop;

pub use params::{Banned, SamplingParams};
pub use sampler::{Sampled, Sampler};
pub use stop::{StopMatcher, Stopped};
