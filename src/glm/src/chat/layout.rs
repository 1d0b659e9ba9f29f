//! Formats that are ids rather than text.

use super::{Conversation, Message, Role, call, function, messages, no_tools, style};
use crate::prompt::Layout;
use crate::tokenizer::Tokenizer;
use crate::{Error, Family, Result, TokenId};

/// What ChatGLM3 was trained to read before a list of tools.
const TOOL_PREAMBLE: &str = "Answer the following questions as best as you can. \
                             You have access to the following tools:";

/// ChatGLM-6B: the question alone, or rounds.
pub(super) fn rounds(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<TokenId>> {
    let rounds = Rounds::of(Family::ChatGlm, conversation)?;
    if rounds.past.is_empty() {
        return tokenizer.encode_plain(&rounds.question);
    }
    let mut text = String::new();
    for (index, (question, answer)) in rounds.past.iter().enumerate() {
        text.push_str(&format!("[Round {index}]\n问：{question}\n答：{answer}\n"));
    }
    let last = rounds.past.len();
    text.push_str(&format!("[Round {last}]\n问：{}\n答：", rounds.question));
    tokenizer.encode_plain(&text)
}

/// ChatGLM2: rounds, counted from 1.
pub(super) fn numbered_rounds(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> Result<Vec<TokenId>> {
    let rounds = Rounds::of(Family::ChatGlm2, conversation)?;
    let mut text = String::new();
    for (index, (question, answer)) in (1..).zip(&rounds.past) {
        text.push_str(&format!(
            "[Round {index}]\n\n问：{question}\n\n答：{answer}\n\n"
        ));
    }
    let last = rounds.past.len() + 1;
    text.push_str(&format!(
        "[Round {last}]\n\n问：{}\n\n答：",
        rounds.question
    ));
    tokenizer.encode_plain(&text)
}

/// Questions and answers in turn, and the question that is open.
struct Rounds {
    past: Vec<(String, String)>,
    question: String,
}

impl Rounds {
    /// Families without a system role read its text before the first question.
    fn of(family: Family, conversation: &Conversation) -> Result<Self> {
        if !conversation.tools.is_empty() {
            return Err(no_tools(family));
        }
        let alternate = || {
            messages(format!(
                "must alternate between user and assistant and end with the user; {} knows only rounds",
                family.name()
            ))
        };
        let mut past = Vec::new();
        let mut system = String::new();
        let mut open: Option<String> = None;
        for message in &conversation.messages {
            match (message.role, open.take()) {
                (Role::System, None) if past.is_empty() => {
                    system.push_str(&message.content);
                    system.push('\n');
                }
                (Role::User, None) => {
                    open = Some(std::mem::take(&mut system) + &message.content);
                }
                (Role::Assistant, Some(question)) => {
                    past.push((question, message.content.clone()));
                }
                _ => return Err(alternate()),
            }
        }
        let question = open.ok_or_else(alternate)?;
        Ok(Self { past, question })
    }
}

/// ChatGLM3, and GLM-4 and its successors without a template: role, metadata and a line feed, text.
pub(super) fn roles(
    tokenizer: &Tokenizer,
    layout: &Layout,
    family: Family,
    conversation: &Conversation,
) -> Result<Vec<TokenId>> {
    let special = layout.special();
    let role_id = |role: Role| {
        let id = match role {
            Role::System => special.system,
            Role::User => special.user,
            Role::Assistant => special.assistant,
            Role::Tool => special.observation,
        };
        id.ok_or_else(|| Error::Config {
            key: format!("<|{}|>", role.name()),
            reason: "is needed to chat, and the tokenizer does not have it".to_owned(),
        })
    };
    let mut ids = layout.prefix()?;
    let mut say = |role: Role, metadata: &str, text: &str| -> Result<()> {
        ids.push(role_id(role)?);
        ids.extend(tokenizer.encode_plain(&format!("{metadata}\n"))?);
        ids.extend(tokenizer.encode_plain(text)?);
        Ok(())
    };
    let mut rest = conversation.messages.as_slice();
    if !conversation.tools.is_empty() {
        // The wording around the tools of the later families comes with their templates.
        if family != Family::ChatGlm3 {
            return Err(no_tools(family));
        }
        let preamble = match rest {
            [first, others @ ..] if first.role == Role::System => {
                rest = others;
                first.content.as_str()
            }
            _ => TOOL_PREAMBLE,
        };
        let tools: Vec<_> = conversation.tools.iter().map(function).collect();
        say(
            Role::System,
            "",
            &format!("{preamble}\n{}", style::indented(&tools, 4)?),
        )?;
    }
    for message in rest {
        let Message {
            role,
            content,
            calls,
        } = message;
        if calls.is_empty() || !content.is_empty() {
            say(*role, "", content)?;
        }
        for call in calls {
            let body = match family {
                Family::ChatGlm3 => call::to_python(&call.arguments),
                _ => style::spaced(&call.arguments)?,
            };
            say(*role, &call.name, &body)?;
        }
    }
    ids.push(role_id(Role::Assistant)?);
    Ok(ids)
}
