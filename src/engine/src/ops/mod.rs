//! What can be asked of a model, in words: text and parameters become a [`Request`], what the
//! engine answers becomes a typed result.
//!
//! Every transport, the client's evaluation and the tests ask the same way:
//!
//! 1. [`Operations::new`] prepares a loaded model, once; [`Prepared`] keeps it while the model stays.
//! 2. An operation ([`Infill`], [`Classify`], [`Decide`], [`Complete`], [`Converse`]) is planned: [`Planned::request`] goes to
//!    [`EngineHandle::submit`](crate::EngineHandle::submit).
//! 3. [`Planned::reader`] makes the typed result of what was [`Collected`](crate::collect::Collected).
//!
//! | operation | it asks | result |
//! |---|---|---|
//! | [`infill`] | fill the blanks of a text | the text, and each blank |
//! | [`classify`] | which label's words fit into a blank | label, probabilities |
//! | [`decide`] | several questions about one text | a verdict each |
//! | [`complete`] | go on from a text | the answers |
//! | [`chat`] | answer a conversation | the answers, calls of tools |
//! | [`tokenize`] | nothing: no request | ids, positions, pieces |
//!
//! Nothing here waits, reads or writes: these are pure functions of the model's description.

mod budget;
pub mod chat;
pub mod classify;
pub mod complete;
pub mod decide;
pub mod infill;
mod sampling;
pub mod tokenize;
mod tokens;
mod writer;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use glm::chat::Chat;
use glm::manifest::Task;
use glm::prompt::{Layout, Prompt};

pub use chat::{Converse, Conversed};
pub use classify::{Classified, Classify};
pub use complete::{Complete, Completed};
pub use decide::{Choose, Decide, Decided};
pub use infill::{Infill, Infilled};
pub use sampling::Sampling;
pub use tokens::TextToken;

use crate::constraint::{Grammar, Lead, Vocabulary};
use crate::error::{Error, Result};
use crate::model::ModelInfo;
use crate::request::{Constraint, Context, Request, Work};
use crate::units::{Epoch, Priority};

/// A loaded model, ready to be asked.
#[derive(Debug)]
pub struct Operations {
    model: Arc<ModelInfo>,
    layout: Layout,
    /// How it is spoken to, or why it is not.
    chat: Result<Chat, Error>,
    /// Its tokens, indexed when the first answer must have a form.
    vocabulary: OnceLock<Result<Vocabulary, Error>>,
}

/// When and in which order a request runs, and who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How urgent it is.
    pub priority: Priority,
    /// Time from submission in which the whole answer must be there.
    pub deadline: Option<Duration>,
    /// A later request of the same client with the same key replaces this one while it waits.
    pub coalesce_key: Option<Box<str>>,
    /// Who asks, as `status` shows it.
    pub client: Box<str>,
}

/// A request, and what reads its answer.
#[derive(Debug)]
pub struct Planned<R> {
    /// For the engine.
    pub request: Request,
    /// For its answer.
    pub reader: R,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached its most tokens.
    Length,
    /// The model asks for tools to be called.
    ToolCalls,
}

impl Finish {
    /// OpenAI's `finish_reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl Operations {
    /// Prepares a loaded model.
    ///
    /// # Errors
    /// When the model lacks a special token that its family cannot do without.
    pub fn new(model: Arc<ModelInfo>) -> Result<Self> {
        let layout = Layout::new(&model.spec, model.special.clone())?;
        let chat = Chat::new(&layout, model.chat_template.as_deref());
        Ok(Self {
            chat: chat.map_err(Error::from),
            vocabulary: OnceLock::new(),
            model,
            layout,
        })
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Arc<ModelInfo> {
        &self.model
    }

    /// How its prompts are arranged.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Compiles what an answer must look like.
    fn constraint(
        &self,
        format: Option<&Grammar>,
        lead: Lead,
    ) -> Result<Option<Box<dyn Constraint>>> {
        let Some(grammar) = format else {
            return Ok(None);
        };
        let vocabulary = self.vocabulary.get_or_init(|| {
            let family = self.layout.family().name();
            Vocabulary::new(&self.model.tokenizer, self.layout.special(), family)
        });
        let vocabulary = vocabulary.as_ref().map_err(Clone::clone)?;
        grammar.compile(vocabulary, lead).map(Some)
    }

    /// A task of the model by its name.
    fn task(&self, name: &str) -> Result<&Task> {
        let tasks = &self.model.tasks;
        tasks.get(name).ok_or_else(|| {
            let names: Vec<&str> = tasks.keys().map(String::as_str).collect();
            let known = match names.is_empty() {
                true => "no named tasks".to_owned(),
                false => names.join(", "),
            };
            glm::Error::Input {
                field: "task",
                reason: format!("`{name}` is unknown; this model has {known}"),
            }
            .into()
        })
    }

    fn request(&self, work: Work, terms: Terms) -> Request {
        Request {
            work,
            epoch: self.model.epoch,
            priority: terms.priority,
            deadline: terms.deadline,
            coalesce_key: terms.coalesce_key,
            client: terms.client,
        }
    }
}

/// Keeps the prepared model until another one is loaded.
#[derive(Debug, Default)]
pub struct Prepared(Mutex<Option<(Epoch, Arc<Operations>)>>);

impl Prepared {
    /// The model, prepared now if it was not before.
    ///
    /// # Errors
    /// As [`Operations::new`].
    pub fn get(&self, model: &Arc<ModelInfo>) -> Result<Arc<Operations>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((epoch, operations)) if *epoch == model.epoch => Ok(Arc::clone(operations)),
            _ => {
                let operations = Arc::new(Operations::new(Arc::clone(model))?);
                *kept = Some((model.epoch, Arc::clone(&operations)));
                Ok(operations)
            }
        }
    }
}

/// What the engine reads of a prompt.
fn context(prompt: &Prompt) -> Arc<Context> {
    Arc::new(Context {
        tokens: prompt.tokens.clone(),
        bidirectional: prompt.bidirectional,
    })
}
