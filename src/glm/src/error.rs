//! The one error type of this crate.

use crate::ids::TokenId;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a model description, a tokenizer or a prompt.
///
/// Every variant has a stable [`code`](Error::code) that transports pass on unchanged.
#[expect(
    clippy::error_impl_error,
    reason = "one error enum a crate, named as `std::io::Error` is"
)]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key of `config.json` is missing, of the wrong type or out of range.
    #[error("config.json: `{key}`: {reason}")]
    Config {
        /// Name of the offending key.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The configuration describes a model that is not one of the supported GLM families.
    #[error("unsupported model: config.json has `{key}` = {value}; {hint}")]
    UnsupportedModel {
        /// Key that rules the model out.
        key: String,
        /// Its value as JSON.
        value: String,
        /// What is supported instead.
        hint: String,
    },
    /// A tokenizer file cannot be used.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// File name inside the model directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer yields ids that the embedding table does not have.
    #[error(
        "tokenizer: token `{token}` has id {id}, but the model has only {rows} vocabulary rows"
    )]
    VocabularyTooSmall {
        /// Text of the token.
        token: String,
        /// Its id.
        id: TokenId,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// A key of `glm.json` or `tasks.json` is unknown, missing or out of range.
    #[error("{file}: `{key}`: {reason}")]
    Manifest {
        /// Name of the file.
        file: String,
        /// Way to the key, with dots.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The chat template cannot be compiled or rendered.
    #[error("chat template: {reason}")]
    Template {
        /// Message of the template engine, with the line.
        reason: String,
    },
    /// The model's family cannot do what was asked.
    #[error("{what} is not something a {family} model can do; {hint}")]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// Name of the family.
        family: &'static str,
        /// What to use instead.
        hint: &'static str,
    },
    /// A field of a request is missing, of the wrong form or out of range.
    #[error("`{field}`: {reason}")]
    Input {
        /// Name of the request field.
        field: &'static str,
        /// What is wrong and what is accepted.
        reason: String,
    },
    /// The prompt does not fit the model even after truncation.
    #[error("prompt needs {needed} positions, the model has {limit}; {hint}")]
    TooLong {
        /// Positions needed.
        needed: usize,
        /// Positions that the model has.
        limit: usize,
        /// What to shorten.
        hint: &'static str,
    },
    /// Logits that no sampler can use.
    #[error("the model produced no finite logit to sample from")]
    NoFiniteLogit,
}

impl Error {
    /// Stable name of the kind of error, the same in HTTP, MQTT and on the command line.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "bad_config",
            Self::UnsupportedModel { .. } => "unsupported_model",
            Self::Tokenizer { .. } => "bad_tokenizer",
            Self::VocabularyTooSmall { .. } => "vocabulary_too_small",
            Self::Manifest { .. } => "bad_manifest",
            Self::Template { .. } => "bad_template",
            Self::Unsupported { .. } => "unsupported_operation",
            Self::Input { .. } => "bad_input",
            Self::TooLong { .. } => "prompt_too_long",
            Self::NoFiniteLogit => "no_finite_logit",
        }
    }
}
