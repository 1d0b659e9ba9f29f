//! Answer a conversation.

use std::sync::Arc;

use glm::Family;
use glm::chat::{Chat, Conversation, Reply, ToolCall};
use glm::prompt::{Filling, Order, Truncation};
use glm::sampling::SamplingParams;
use glm::spec::SpecialIds;
use glm::tokenizer::{Tokenizer, polish_chatglm};

use crate::answer::{Timing, Usage};
use crate::collect::{Choice, Collected};
use crate::constraint::{Grammar, Lead};
use crate::error::Result;
use crate::request::{Generate, Work};

use super::budget::Budget;
use super::complete::finish;
use super::tokens::{TextToken, with_text};
use super::writer::Blanks;
use super::{Finish, Operations, Planned, Sampling, Terms, context};

/// Most tokens of an answer where nobody says how long: a page.
const USUAL_LENGTH: usize = 512;

/// A conversation to be continued by the assistant.
#[derive(Clone, Debug, PartialEq)]
pub struct Converse {
    /// What was said, and what may be called.
    pub conversation: Conversation,
    /// Most tokens to write.
    pub max_tokens: Option<usize>,
    /// Number of answers.
    pub n: usize,
    /// How tokens are chosen; the default is the family's own.
    pub sampling: Sampling,
    /// What the answer must look like.
    pub format: Option<Grammar>,
}

impl Converse {
    /// One answer, all else as usual.
    #[must_use]
    pub fn new(conversation: Conversation) -> Self {
        Self {
            conversation,
            max_tokens: None,
            n: 1,
            sampling: Sampling::default(),
            format: None,
        }
    }
}

/// The answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversed {
    /// The answers.
    pub choices: Vec<ConversedChoice>,
    /// What it has cost.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversedChoice {
    /// What the assistant says; empty where it only calls tools.
    pub content: String,
    /// What it wants to be called.
    pub calls: Vec<ToolCall>,
    /// All tokens as the model wrote them, without the one that ended them.
    pub tokens: Vec<TextToken>,
    /// Why it ended.
    pub finish: Finish,
}

/// Makes a [`Conversed`].
#[derive(Debug)]
pub struct ConverseReader {
    tokenizer: Arc<Tokenizer>,
    special: SpecialIds,
    family: Family,
    reply: Reply,
}

/// What the families' own programs choose tokens by.
fn family_default(family: Family) -> SamplingParams {
    let (temperature, top_p, repetition_penalty) = match family {
        Family::ChatGlm => (0.95, 0.7, 1.0),
        Family::GlmEdge => (0.6, 0.8, 1.2),
        Family::Glm | Family::ChatGlm2 | Family::ChatGlm3 | Family::Glm4 | Family::Glm40414 => {
            (0.8, 0.8, 1.0)
        }
    };
    SamplingParams {
        temperature,
        top_p,
        repetition_penalty,
        ..SamplingParams::default()
    }
}

impl Operations {
    /// How the model is spoken to.
    ///
    /// # Errors
    /// When its family does not chat, or its template is broken.
    pub fn speech(&self) -> Result<&Chat> {
        self.chat.as_ref().map_err(Clone::clone)
    }

    /// Plans the assistant's answer.
    ///
    /// # Errors
    /// When the model does not chat, the messages come in an order that its format cannot express, it has
    /// no place for tools, or the conversation does not fit.
    pub fn chat(&self, ask: Converse, terms: Terms) -> Result<Planned<ConverseReader>> {
        let chat = self.speech()?;
        let tokenizer = &self.model.tokenizer;
        let family = self.layout.family();
        let room = self.model.capabilities.max_tokens;
        let budget = Budget::new(room, ask.max_tokens, vec![USUAL_LENGTH])?;
        let ids = chat.encode(tokenizer, &self.layout, &ask.conversation)?;
        let limit = budget.fit(Truncation::Refuse).limit;
        let prompt = self.layout.conversation(ids, limit)?;
        let limits = budget.limits(prompt.tokens.len());
        let filling = Filling::new(&self.layout, &prompt, &limits, Order::Pieces);
        let work = Generate {
            prompt: context(&prompt),
            writer: Box::new(Blanks::new(filling, false)),
            sampling: ask.sampling.over(family_default(family)),
            n: ask.n,
            max_tokens: limits.iter().sum(),
            constraint: self.constraint(ask.format.as_ref(), Lead::Line)?,
            prompt_logprobs: None,
        };
        Ok(Planned {
            request: self.request(Work::Generate(Box::new(work)), terms),
            reader: ConverseReader {
                tokenizer: Arc::clone(tokenizer),
                special: self.layout.special().clone(),
                family,
                reply: chat.reply(&ask.conversation),
            },
        })
    }
}

impl ConverseReader {
    /// Reads one of the answers piece by piece, for streams: what the model writes goes in, what it
    /// says comes out.
    #[must_use]
    pub fn stream(&self) -> Reply {
        self.reply.clone()
    }

    /// The typed result.
    #[must_use]
    pub fn read(&self, collected: &Collected) -> Conversed {
        Conversed {
            choices: collected.choices.iter().map(|c| self.choice(c)).collect(),
            usage: collected.finished.usage,
            timing: collected.finished.timing,
        }
    }

    fn choice(&self, choice: &Choice) -> ConversedChoice {
        let mut reply = self.stream();
        let mut content = reply.push(&choice.text());
        let said = reply.finish();
        content.push_str(&said.rest);
        if self.family == Family::ChatGlm {
            content = polish_chatglm(&content);
        }
        let tokens: Vec<_> = choice.tokens().cloned().collect();
        ConversedChoice {
            content,
            finish: match said.calls.is_empty() {
                true => finish(choice.reason),
                false => Finish::ToolCalls,
            },
            calls: said.calls,
            tokens: with_text(&self.tokenizer, &tokens, |id| self.special.ends_answer(id)),
        }
    }
}
