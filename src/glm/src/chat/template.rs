//! Chat templates: Jinja as Hugging Face runs it, with role tokens from the template alone.
//!
//! A template's output is text in which special tokens stand by name. Text
//! that was said is rendered with a **guard**, a character that Unicode
//! reserves for internal use and that occurs nowhere in the conversation,
//! inside every special token's name. What the template wrote is then the only
//! place where such names are whole; the guards are removed before encoding.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::{Value as Json, json};

use super::{Conversation, Message, Role, function, no_tools, style};
use crate::tokenizer::{Split, Tokenizer};
use crate::{Error, Family, Result, TokenId};

/// Steps of the template engine for a conversation, and for each byte of it: a template reads each
/// message a few times, and one that needs more than this does not end.
const FUEL: (u64, u64) = (1_000_000, 64);
/// Longest template; the released ones have a few thousand bytes.
const MAX_BYTES: usize = 256 << 10;
/// Characters that never are text (Unicode, "Noncharacters").
const GUARDS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
/// What a template says before its own refusals.
const REFUSAL: &str = "refused: ";

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    source: String,
    tools: Tools,
}

/// Where a template looks for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tools {
    /// Nowhere.
    Nowhere,
    /// In the variable `tools`.
    Variable,
    /// In the messages, as the first GLM-4 templates do.
    Message,
}

impl Template {
    pub(super) fn new(source: String) -> Result<Self> {
        if source.len() > MAX_BYTES {
            return Err(Error::Template {
                reason: format!("has {} bytes, at most {MAX_BYTES} are read", source.len()),
            });
        }
        let environment = environment();
        let template = environment.template_from_str(&source).map_err(broken)?;
        let tools = if template.undeclared_variables(false).contains("tools") {
            Tools::Variable
        } else if source.contains("tools") {
            Tools::Message
        } else {
            Tools::Nowhere
        };
        Ok(Self { source, tools })
    }

    /// Ids of a conversation up to where the assistant begins.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Vec<TokenId>> {
        let guard = Guard::new(tokenizer, conversation)?;
        let text = self.render(&guard, conversation)?;
        let mut ids = Vec::new();
        for token in tokenizer.split_specials(&text) {
            match token {
                Split::Text(text) => ids.extend(tokenizer.encode_plain(&guard.remove(text))?),
                Split::Special(id, _) => ids.push(id),
            }
        }
        Ok(ids)
    }

    fn render(&self, guard: &Guard, conversation: &Conversation) -> Result<String> {
        let Conversation { messages, tools } = conversation;
        if !tools.is_empty() && self.tools == Tools::Nowhere {
            return Err(no_tools(Family::Glm4));
        }
        let tools: Vec<Json> = tools.iter().map(|tool| guard.json(tool)).collect();
        let mut said = Vec::new();
        for message in messages {
            self.say(&mut said, guard, message);
        }
        if !tools.is_empty() && self.tools == Tools::Message {
            let functions: Vec<&Json> = tools.iter().map(function).collect();
            match said.first_mut() {
                Some(first) if first["role"] == Role::System.name() => {
                    first["tools"] = json!(functions);
                }
                _ => said.insert(
                    0,
                    json!({"role": Role::System.name(), "content": "", "tools": functions}),
                ),
            }
        }
        let mut environment = environment();
        let bytes: usize = messages.iter().map(|m| m.content.len()).sum();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        environment.set_fuel(Some(FUEL.0.saturating_add(FUEL.1.saturating_mul(bytes))));
        let template = environment
            .template_from_str(&self.source)
            .map_err(broken)?;
        let tools = match tools.is_empty() {
            true => Value::from(()),
            false => Value::from(Serde(&tools)),
        };
        template
            .render(context! {
                messages => Value::from(Serde(&said)),
                tools => tools,
                add_generation_prompt => true,
            })
            .map_err(failed)
    }

    /// A message as templates see it. Those that know no `tool_calls` find a call's name in the
    /// message's metadata and its arguments in the text.
    fn say(&self, said: &mut Vec<Json>, guard: &Guard, message: &Message) {
        let role = message.role.name();
        let content = guard.text(&message.content);
        let calls = &message.calls;
        if calls.is_empty() {
            said.push(json!({"role": role, "metadata": "", "content": content}));
        } else if self.source.contains("tool_calls") {
            let calls: Vec<Json> = (calls.iter())
                .map(|call| {
                    json!({"type": "function", "function": {
                        "name": guard.text(&call.name),
                        "arguments": guard.json(&call.arguments),
                    }})
                })
                .collect();
            said.push(
                json!({"role": role, "metadata": "", "content": content, "tool_calls": calls}),
            );
        } else {
            if !message.content.is_empty() {
                said.push(json!({"role": role, "metadata": "", "content": content}));
            }
            for call in calls {
                let arguments = style::spaced(&call.arguments).unwrap_or_default();
                said.push(json!({
                    "role": role,
                    "metadata": guard.text(&call.name),
                    "content": guard.text(&arguments),
                }));
            }
        }
    }
}

/// Jinja as Hugging Face sets it up. Without files, without a clock.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    let blocks = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    if let Ok(blocks) = blocks {
        environment.set_syntax(blocks);
    }
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: Cow<'_, str>| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("{REFUSAL}{message}"),
            ))
        },
    );
    environment
}

/// `tojson` as Hugging Face defines it: Python's spacing, nothing escaped for HTML.
fn to_json(value: &Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Always so here.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let text = match indent {
        Some(width) => style::indented(value, width.min(16)),
        None => style::spaced(value),
    };
    text.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

fn broken(error: minijinja::Error) -> Error {
    Error::Template {
        reason: error.to_string(),
    }
}

/// What a template refuses is the conversation's fault, all else its own.
fn failed(error: minijinja::Error) -> Error {
    match error.detail().and_then(|d| d.strip_prefix(REFUSAL)) {
        Some(reason) => super::messages(reason),
        None => broken(error),
    }
}

/// Breaks the names of special tokens in what was said.
struct Guard {
    mark: char,
    names: Vec<String>,
}

impl Guard {
    fn new(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Self> {
        let mut used = [false; 32];
        let mut note = |text: &str| {
            for c in text.chars().filter(|c| GUARDS.contains(c)) {
                used[c as usize - *GUARDS.start() as usize] = true;
            }
        };
        for message in &conversation.messages {
            note(&message.content);
            for call in &message.calls {
                note(&call.name);
                note(&call.arguments.to_string());
            }
        }
        conversation.tools.iter().for_each(|t| note(&t.to_string()));
        let free = GUARDS.zip(used).find(|(_, used)| !used);
        let Some((mark, _)) = free else {
            return Err(super::messages(
                "has every character that Unicode forbids in text",
            ));
        };
        let names = tokenizer.special_names().filter(|name| !name.is_empty());
        let names = names.map(str::to_owned).collect();
        Ok(Self { mark, names })
    }

    /// Text in which no special token's name is whole, nor becomes whole by what stands beside it:
    /// beside all of it, or beside one of its words, for templates trim and split what was said.
    fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        let mut word = 0;
        let mut before = None;
        for (at, c) in text.char_indices() {
            let begins = before.is_none_or(char::is_whitespace);
            if begins {
                word = at;
            }
            if begins && !c.is_whitespace() && self.ends_a_name(&text[at..]) {
                out.push(self.mark);
            }
            out.push(c);
            let rest = &text[at + c.len_utf8()..];
            let ends = rest.chars().next().is_none_or(char::is_whitespace);
            if self.names.iter().any(|name| text[at..].starts_with(name))
                || ends
                    && !c.is_whitespace()
                    && self.begins_a_name(&text[..text.len() - rest.len()], word)
            {
                out.push(self.mark);
            }
            before = Some(c);
        }
        out
    }

    /// Whether `text` completes a name of which the template may have written the beginning.
    fn ends_a_name(&self, text: &str) -> bool {
        let mut names = self.names.iter();
        names.any(|name| borders(name).any(|at| text.starts_with(&name[at..])))
    }

    /// Whether a template can complete the end of `text`, whose last word begins at `word`, to a
    /// name: by writing what follows, or what stands on both sides of the word.
    fn begins_a_name(&self, text: &str, word: usize) -> bool {
        let mut names = self.names.iter();
        names.any(|name| {
            name.contains(&text[word..]) || borders(name).any(|at| text.ends_with(&name[..at]))
        })
    }

    fn json(&self, value: &Json) -> Json {
        match value {
            Json::String(text) => Json::String(self.text(text)),
            Json::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            Json::Object(entries) => entries
                .iter()
                .map(|(key, value)| (self.key(key), self.json(value)))
                .collect(),
            other => other.clone(),
        }
    }

    /// Templates look keys up: one without a name in it stays as it is.
    fn key(&self, key: &str) -> String {
        match self.names.iter().any(|name| key.contains(name)) {
            true => self.text(key),
            false => key.to_owned(),
        }
    }

    fn remove<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match text.contains(self.mark) {
            true => Cow::Owned(text.replace(self.mark, "")),
            false => Cow::Borrowed(text),
        }
    }
}

/// Places inside a name.
fn borders(name: &str) -> impl Iterator<Item = usize> + '_ {
    name.char_indices().map(|(at, _)| at).skip(1)
}
