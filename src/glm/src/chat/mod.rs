//! Conversations: from what was said to ids, and from what the model wrote to what it says.
//!
//! The families' formats, with `\n` a line feed and roles in angle brackets single tokens:
//!
//! | family | format |
//! |---|---|
//! | ChatGLM-6B | the question alone; with a history rounds `[Round 0]\n问：…\n答：…\n`, counted from 0 |
//! | ChatGLM2 | rounds `[Round 1]\n\n问：…\n\n答：…\n\n`, counted from 1, also the first |
//! | ChatGLM3 | for each message its role, its metadata and `\n`, its text; each encoded by itself |
//! | GLM-4, GLM-4-0414 | `<\|role\|>` metadata `\n` text, after `[gMASK]<sop>` |
//! | GLM-Edge | `<\|role\|>` `\n` text, nothing in front |
//!
//! The last three carry a `chat_template.jinja`, which wins where it is there; the rounds and
//! ChatGLM3's separate encoding cannot be written as a template's text.
//!
//! **A role token never comes out of what was said.** Layouts place roles by id and encode texts
//! plainly. In a template's text only names that the template itself wrote become tokens.

mod call;
mod layout;
mod reply;
mod style;
mod template;

use serde_json::Value;

pub use reply::{Reply, Said};

use crate::prompt::Layout;
use crate::tokenizer::Tokenizer;
use crate::{Error, Family, Result, TokenId};
use template::Template;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
    /// The result of a tool; `observation` in GLM's words.
    Tool,
}

impl Role {
    /// The role of this name: OpenAI's names and GLM's own.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            "tool" | "function" | "observation" => Some(Self::Tool),
            _ => None,
        }
    }

    /// Its name in GLM's templates.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "observation",
        }
    }
}

/// A function that the assistant wants to be called.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Its name.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: Value,
}

/// One thing that was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// By whom.
    pub role: Role,
    /// What.
    pub content: String,
    /// What the assistant asked for besides.
    pub calls: Vec<ToolCall>,
}

impl Message {
    /// A message without calls.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            calls: Vec::new(),
        }
    }
}

/// What was said so far, and what the assistant may ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Descriptions of functions, as OpenAI writes them.
    pub tools: Vec<Value>,
}

impl Conversation {
    /// Names of the functions.
    pub fn tool_names(&self) -> impl Iterator<Item = &str> {
        (self.tools.iter()).filter_map(|tool| function(tool).get("name")?.as_str())
    }

    fn check(&self) -> Result<()> {
        if self.messages.is_empty() {
            return Err(messages("is empty; say something"));
        }
        if self.tool_names().count() < self.tools.len() {
            return Err(Error::Input {
                field: "tools",
                reason: "each must be a function with a `name`".to_owned(),
            });
        }
        Ok(())
    }
}

/// The description inside OpenAI's wrapper, or the whole where there is none.
fn function(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

/// How one model is spoken to.
#[derive(Debug)]
pub struct Chat {
    family: Family,
    template: Option<Template>,
}

impl Chat {
    /// `template` is the source of the model's `chat_template.jinja`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a family without conversations, [`Error::Template`] with the line
    /// for a template that cannot be compiled.
    pub fn new(layout: &Layout, template: Option<&str>) -> Result<Self> {
        let family = layout.family();
        if !family.chats() {
            return Err(Error::Unsupported {
                what: "chatting",
                family: family.name(),
                hint: "use infill, classify or generate",
            });
        }
        let template = match family {
            // Their formats are not a template's text; what their checkpoints carry only looks like it.
            Family::ChatGlm | Family::ChatGlm2 | Family::ChatGlm3 | Family::Glm => None,
            Family::Glm4 | Family::GlmEdge | Family::Glm40414 => template
                .map(|source| Template::new(source.to_owned()))
                .transpose()?,
        };
        Ok(Self { family, template })
    }

    /// Ids of a conversation up to where the assistant begins, for
    /// [`Layout::conversation`](crate::prompt::Layout::conversation).
    ///
    /// # Errors
    /// [`Error::Input`] for messages in an order that the format cannot express, [`Error::Unsupported`]
    /// for tools where the family or its template has no place for them, [`Error::Template`] when
    /// the template fails.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        layout: &Layout,
        conversation: &Conversation,
    ) -> Result<Vec<TokenId>> {
        conversation.check()?;
        match (&self.template, self.family) {
            (Some(template), _) => {
                let mut ids = template.encode(tokenizer, conversation)?;
                let prefix = layout.prefix()?;
                // Some templates leave the prefix to the tokenizer's post-processor.
                if !ids.starts_with(&prefix) {
                    ids.splice(0..0, prefix);
                }
                Ok(ids)
            }
            (None, Family::ChatGlm | Family::Glm) => layout::rounds(tokenizer, conversation),
            (None, Family::ChatGlm2) => {
                let mut ids = layout.prefix()?;
                ids.extend(layout::numbered_rounds(tokenizer, conversation)?);
                Ok(ids)
            }
            (None, family) => layout::roles(tokenizer, layout, family, conversation),
        }
    }

    /// What reads the assistant's answer to a conversation.
    #[must_use]
    pub fn reply(&self, conversation: &Conversation) -> Reply {
        let tools = conversation.tool_names().map(str::to_owned).collect();
        Reply::new(self.family, tools)
    }
}

fn messages(reason: impl Into<String>) -> Error {
    Error::Input {
        field: "messages",
        reason: reason.into(),
    }
}

const fn no_tools(family: Family) -> Error {
    Error::Unsupported {
        what: "calling tools",
        family: family.name(),
        hint: "leave `tools` out, or load a model whose chat template has a place for them",
    }
}
