//! Answers that must have a form: JSON that a schema accepts, text that a regular expression
//! matches, one of some choices.
//!
//! A [`Grammar`] is compiled against a model's vocabulary ([`Vocabulary`], made once for each
//! loaded model) into a [`Constraint`] that masks, before each token, every token that would leave
//! the language (`llguidance`: a derivative-based lexer under an Earley parser). The model ends
//! its answer only where the language may end.
//!
//! A schema that asks for something that is not supported is refused by the name of the keyword,
//! never loosened. Compiling is bounded in size and in steps; it still takes milliseconds and
//! belongs on no asynchronous thread.

mod quote;
mod vocabulary;

use std::fmt;

use glm::TokenId;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

pub use vocabulary::Vocabulary;

use crate::error::{Error, Result};
use crate::request::Constraint;

/// Largest schema, expression or list of choices in bytes. Hand-written schemas have a few thousand.
const MAX_SOURCE: usize = 64 << 10;
/// Most choices.
const MAX_CHOICES: usize = 1024;
/// White space between two tokens of JSON: enough for indented lines, and an end for models that
/// would go on with it.
const JSON_SPACE: &str = r"[ \n\r\t]{1,32}";

/// The language of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that this schema accepts.
    JsonSchema(Value),
    /// Some JSON object.
    JsonObject,
    /// Text that this expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// What may stand before the answer proper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// A space: words carry it in many vocabularies.
    Space,
    /// A line feed and a space: chat models begin their answers so.
    Line,
}

impl Lead {
    const fn regex(self) -> &'static str {
        match self {
            Self::Space => "( )?",
            Self::Line => "(\\n)?( )?",
        }
    }

    const fn lark(self) -> &'static str {
        match self {
            Self::Space => "start: LEAD? json\nLEAD: / /\n",
            Self::Line => "start: LEAD? json\nLEAD: /\\n ?| /\n",
        }
    }
}

/// Limits on compiling and on masks.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        // About 20 ms of building expressions on a desktop, 200 ms on a small board.
        initial_lexer_fuel: 1_000_000,
        // A state has 1 to 2 kB.
        max_lexer_states: 20_000,
        // A megabyte of grammar.
        max_grammar_size: 100_000,
        // Runs every long expression over the whole vocabulary: seconds on a small board.
        precompute_large_lexemes: false,
        // Messages for clients: without the state of the parser, which holds what was written.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

impl Grammar {
    /// The grammar of an answer to `text`: strings that a schema marks with `"x-quoted": true` are runs of whole words of it.
    ///
    /// A text of more than 64 words or 512 bytes leaves them free.
    #[must_use]
    pub fn quoting(self, text: &str) -> Self {
        match self {
            Self::JsonSchema(schema) => Self::JsonSchema(quote::expand(&schema, text)),
            other => other,
        }
    }

    /// Compiles the grammar against a vocabulary.
    ///
    /// # Errors
    /// [`Error::Invalid`] with code `unsupported_schema` that names the keyword, or `bad_schema` for a
    /// schema or an expression that is malformed, too large or accepts nothing.
    pub fn compile(&self, vocabulary: &Vocabulary, lead: Lead) -> Result<Box<dyn Constraint>> {
        let grammar = self.top_level(vocabulary, lead)?;
        let factory: &ParserFactory = vocabulary.factory();
        let parser = factory.create_parser(grammar).map_err(|e| refused(&e))?;
        let mut language = Language {
            matcher: Matcher::new(Ok(parser)),
            ends: vocabulary.ends().into(),
        };
        // A language without a first token is found now rather than when the model is to write.
        let first = language.matcher.compute_mask_or_eos();
        let first = first.map_err(|e| refused(&e))?;
        match first.is_zero() {
            true => Err(bad("accepts no answer that this vocabulary can write")),
            false => Ok(Box::new(language)),
        }
    }

    fn top_level(&self, vocabulary: &Vocabulary, lead: Lead) -> Result<TopLevelGrammar> {
        let too_large = |size: usize| match size > MAX_SOURCE {
            true => Err(bad(&format!(
                "has {size} bytes, at most {MAX_SOURCE} are accepted"
            ))),
            false => Ok(()),
        };
        match self {
            Self::JsonObject => json(vocabulary, &serde_json::json!({"type": "object"}), lead),
            Self::JsonSchema(schema) => {
                too_large(schema.to_string().len())?;
                json(vocabulary, schema, lead)
            }
            Self::Regex(regex) => {
                too_large(regex.len())?;
                let regex = regex.strip_prefix('^').unwrap_or(regex);
                let regex = match regex.strip_suffix('$') {
                    Some(rest) if !rest.ends_with('\\') => rest,
                    _ => regex,
                };
                Ok(TopLevelGrammar::from_regex(&format!(
                    "{}({regex})",
                    lead.regex()
                )))
            }
            Self::Choice(choices) => {
                too_large(choices.iter().map(String::len).sum())?;
                if choices.is_empty() || choices.len() > MAX_CHOICES {
                    return Err(bad(&format!("must have 1 to {MAX_CHOICES} choices")));
                }
                if choices.iter().any(String::is_empty) {
                    return Err(bad("has an empty choice"));
                }
                let choices: Vec<String> = choices.iter().map(|c| escape(c)).collect();
                Ok(TopLevelGrammar::from_regex(&format!(
                    "{}({})",
                    lead.regex(),
                    choices.join("|")
                )))
            }
        }
    }
}

fn json(vocabulary: &Vocabulary, schema: &Value, lead: Lead) -> Result<TopLevelGrammar> {
    if !vocabulary.is_exact() {
        return Err(glm::Error::Unsupported {
            what: "writing JSON",
            family: vocabulary.family(),
            hint: "its vocabulary does not keep spaces; use a choice or a regular expression",
        }
        .into());
    }
    let Value::Object(schema) = schema else {
        return Err(bad("must be an object"));
    };
    let mut schema = schema.clone();
    schema.insert(
        "x-guidance".to_owned(),
        serde_json::json!({"whitespace_pattern": JSON_SPACE}),
    );
    let schema = Value::Object(schema);
    Ok(TopLevelGrammar::from_lark(format!(
        "{}json: %json {schema}\n",
        lead.lark()
    )))
}

/// Characters that mean something in an expression. Others must not be escaped: `\\<` is a border of a word.
const META: &str = r"\.+*?()|[]{}^$#&-~";

/// A text as an expression that matches nothing else.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if META.contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A language, and where in it an answer is.
#[derive(Clone)]
struct Language {
    matcher: Matcher,
    ends: std::sync::Arc<[TokenId]>,
}

impl fmt::Debug for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Language").finish_non_exhaustive()
    }
}

impl Constraint for Language {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e))?;
        let may_end = self.may_end()?;
        let size = mask.len();
        let mut any = false;
        for (index, logit) in logits.iter_mut().enumerate() {
            let id = u32::try_from(index).unwrap_or(u32::MAX);
            let allowed = match self.ends.contains(&TokenId(id)) {
                true => may_end,
                false => index < size && mask.is_allowed(id),
            };
            any |= allowed && logit.is_finite();
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        match any {
            true => Ok(()),
            false => Err(Error::Constraint {
                reason: "no token of the vocabulary may come next".to_owned(),
            }),
        }
    }

    fn accept(&mut self, id: TokenId) -> Result<()> {
        if self.ends.contains(&id) {
            return match self.may_end()? {
                true => Ok(()),
                false => Err(Error::Constraint {
                    reason: "the answer ended too early".to_owned(),
                }),
            };
        }
        self.matcher.consume_token(id.0).map_err(|e| failed(&e))
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            matcher: self.matcher.deep_clone(),
            ends: self.ends.clone(),
        })
    }
}

impl Language {
    fn may_end(&mut self) -> Result<bool> {
        if self.matcher.is_stopped() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(|e| failed(&e))
    }
}

/// What a message says before the keywords that a schema may not use.
const UNSUPPORTED: &str = "Unimplemented keys: ";

/// Why a grammar was not compiled.
fn refused(error: &impl fmt::Display) -> Error {
    let message = error.to_string();
    match message.split_once(UNSUPPORTED) {
        Some((_, keys)) => {
            let keys = keys.split(']').next().unwrap_or(keys);
            let keys: Vec<&str> = (keys.split('"'))
                .enumerate()
                .filter_map(|(index, key)| (index % 2 == 1).then_some(key))
                .collect();
            Error::Invalid {
                code: "unsupported_schema",
                message: format!(
                    "`response_format`: the schema uses {}, which is not supported",
                    keys.join(", ")
                ),
            }
        }
        None => bad(message.lines().next().unwrap_or("cannot be compiled")),
    }
}

fn bad(reason: &str) -> Error {
    Error::Invalid {
        code: "bad_schema",
        message: format!("`response_format`: {reason}"),
    }
}

fn failed(error: &impl fmt::Display) -> Error {
    Error::Constraint {
        reason: error.to_string(),
    }
}
