//! Answer a conversation, in OpenAI's shape.

use std::sync::Arc;

use glm::chat::{Conversation, Message, Reply, Role, ToolCall};
use glm_engine::collect::Collected;
use glm_engine::ops::chat::ConverseReader;
use glm_engine::ops::{Converse, Finish, Operations, TextToken};
use glm_wire::chat::{
    Answer, ChatChoice, ChatLogprobs, ChatRequest, ChatResponse, LikelyToken, ScoredToken,
};
use glm_wire::error::ErrorDetail;
use serde_json::{Value, json};

use super::shape::{Change, Facts, Shape, timing, usage};
use super::{Ask, ask, failure};

pub(super) fn prepare(
    body: &[u8],
    operations: &Arc<Operations>,
    client: Box<str>,
) -> Result<Ask, ErrorDetail> {
    let request: ChatRequest = glm_wire::parse(body)?;
    let model = &operations.model().id;
    ask::check_model(request.model.as_deref(), model)?;
    let terms = ask::terms(request.control(), client);
    let sampling = request.sampling();
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None) => None,
        (false, Some(_)) => {
            return Err(failure::bad_input(
                "top_logprobs",
                "`top_logprobs`: needs `logprobs: true`",
            ));
        }
    };
    let include_usage = request.stream_options.is_some_and(|o| o.include_usage);
    let stream = request.stream.unwrap_or(false);
    let conversation = Conversation {
        messages: request
            .messages
            .into_iter()
            .map(message)
            .collect::<Result<_, _>>()?,
        tools: tools(request.tools, request.tool_choice.as_ref())?,
    };
    let question = Converse {
        max_tokens: request.max_tokens,
        n: request.n.unwrap_or(1),
        sampling: ask::sampling(&sampling, request.stop, logprobs),
        format: ask::grammar(request.response_format),
        ..Converse::new(conversation)
    };
    let planned = operations
        .chat(question, terms)
        .map_err(|e| failure::detail(&e))?;
    Ok(Ask {
        request: planned.request,
        shape: Box::new(Talking {
            reader: planned.reader,
            model: model.clone(),
            created: ask::now(),
            logprobs: logprobs.is_some(),
            include_usage,
            answers: Vec::new(),
        }),
        stream,
    })
}

/// What was said, in the language layer's terms.
fn message(said: glm_wire::chat::Message) -> Result<Message, ErrorDetail> {
    let role = Role::of(&said.role).ok_or_else(|| {
        failure::bad_input(
            "messages",
            "`messages`: a role is system, user, assistant or tool",
        )
    })?;
    let calls = said.tool_calls.unwrap_or_default();
    Ok(Message {
        role,
        content: said.content.unwrap_or_default(),
        calls: calls.iter().map(call).collect::<Result<_, _>>()?,
    })
}

/// A call that the assistant made earlier; its arguments are JSON in a string, as OpenAI has them.
fn call(call: &Value) -> Result<ToolCall, ErrorDetail> {
    let bad =
        |what: &str| failure::bad_input("messages", format!("`messages`: a tool call {what}"));
    let function = call
        .get("function")
        .ok_or_else(|| bad("needs a `function`"))?;
    let name = function.get("name").and_then(Value::as_str);
    let arguments = match function.get("arguments") {
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|_| bad("has `arguments` that are not JSON"))?
        }
        Some(object @ Value::Object(_)) => object.clone(),
        _ => return Err(bad("needs `arguments`")),
    };
    Ok(ToolCall {
        name: name.ok_or_else(|| bad("needs a `name`"))?.to_owned(),
        arguments,
    })
}

/// The functions that may be called. The model decides; what it must or must not call cannot be said to it.
fn tools(tools: Option<Vec<Value>>, choice: Option<&Value>) -> Result<Vec<Value>, ErrorDetail> {
    match choice.map(Value::as_str) {
        None | Some(Some("auto")) => Ok(tools.unwrap_or_default()),
        Some(Some("none")) => Ok(Vec::new()),
        Some(_) => Err(failure::bad_input(
            "tool_choice",
            "`tool_choice`: only `auto` and `none` can be had",
        )),
    }
}

/// One answer of a stream.
struct Told {
    reply: Reply,
    /// Whether its role was told.
    begun: bool,
    /// Tokens whose log-probabilities were told.
    tokens: usize,
}

struct Talking {
    reader: ConverseReader,
    model: String,
    created: u64,
    logprobs: bool,
    include_usage: bool,
    answers: Vec<Told>,
}

impl Talking {
    fn response(&self, facts: Facts<'_>, object: &str, choices: Vec<ChatChoice>) -> ChatResponse {
        ChatResponse {
            id: facts.id.to_owned(),
            object: object.to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            timing: None,
        }
    }

    fn told(&mut self, index: usize) -> &mut Told {
        while self.answers.len() <= index {
            self.answers.push(Told {
                reply: self.reader.stream(),
                begun: false,
                tokens: 0,
            });
        }
        &mut self.answers[index]
    }

    /// Log-probabilities that a stream has not told yet.
    fn news(&mut self, index: usize, so_far: &Collected) -> Option<ChatLogprobs> {
        if !self.logprobs {
            return None;
        }
        let seen = self.told(index).tokens;
        let conversed = self.reader.read(so_far);
        let tokens = &conversed.choices.get(index)?.tokens;
        let news = scored(tokens.get(seen..)?);
        self.told(index).tokens = tokens.len();
        Some(news)
    }
}

impl Shape for Talking {
    fn piece(
        &mut self,
        facts: Facts<'_>,
        change: &Change,
        so_far: &Collected,
    ) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        let index = match change {
            Change::Text { choice, .. } | Change::Ended { choice, .. } => *choice,
            Change::Other => return Ok(Vec::new()),
        };
        let logprobs = self.news(index, so_far);
        let told = self.told(index);
        let (content, calls, finish_reason) = match change {
            Change::Text { text, .. } => (told.reply.push(text), Vec::new(), None),
            Change::Ended { reason, .. } => {
                let said = told.reply.clone().finish();
                let finish = match said.calls.is_empty() {
                    true => reason.name(),
                    false => Finish::ToolCalls.name(),
                };
                (said.rest, said.calls, Some(finish.to_owned()))
            }
            Change::Other => return Ok(Vec::new()),
        };
        let begins = !std::mem::replace(&mut told.begun, true);
        let silent = content.is_empty() && calls.is_empty();
        let scored = logprobs.as_ref().is_some_and(|l| !l.content.is_empty());
        if silent && !begins && !scored && finish_reason.is_none() {
            return Ok(Vec::new());
        }
        let choice = ChatChoice {
            index,
            message: None,
            delta: Some(Answer {
                role: begins.then(|| "assistant".to_owned()),
                content: (!content.is_empty() || begins).then_some(content),
                tool_calls: told_calls(facts.id, index, &calls, true),
            }),
            logprobs,
            finish_reason,
        };
        let chunk = self.response(facts, "chat.completion.chunk", vec![choice]);
        Ok(vec![super::json(&chunk)?])
    }

    fn last(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        if !self.include_usage {
            return Ok(Vec::new());
        }
        let mut response = self.response(facts, "chat.completion.chunk", Vec::new());
        response.usage = Some(usage(&all.finished));
        response.timing = Some(timing(&all.finished, facts.elapsed));
        Ok(vec![super::json(&response)?])
    }

    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        let conversed = self.reader.read(all);
        let choices = conversed.choices.into_iter().enumerate();
        let choices = choices
            .map(|(index, choice)| ChatChoice {
                index,
                message: Some(Answer {
                    role: Some("assistant".to_owned()),
                    tool_calls: told_calls(facts.id, index, &choice.calls, false),
                    content: (!choice.content.is_empty() || choice.calls.is_empty())
                        .then_some(choice.content),
                }),
                delta: None,
                logprobs: self.logprobs.then(|| scored(&choice.tokens)),
                finish_reason: Some(choice.finish.name().to_owned()),
            })
            .collect();
        super::json(&ChatResponse {
            usage: Some(usage(&all.finished)),
            timing: Some(timing(&all.finished, facts.elapsed)),
            ..self.response(facts, "chat.completion", choices)
        })
    }
}

/// Calls as OpenAI writes them; those of a stream are numbered.
fn told_calls(id: &str, choice: usize, calls: &[ToolCall], numbered: bool) -> Option<Vec<Value>> {
    if calls.is_empty() {
        return None;
    }
    let told = calls.iter().enumerate().map(|(index, call)| {
        let mut told = json!({
            "id": format!("call-{id}-{choice}-{index}"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments.to_string()},
        });
        if numbered {
            told["index"] = index.into();
        }
        told
    });
    Some(told.collect())
}

fn scored(tokens: &[TextToken]) -> ChatLogprobs {
    let content = tokens.iter().map(|token| ScoredToken {
        token: token.text.clone(),
        logprob: token.logprob.unwrap_or(0.0),
        bytes: token.text.clone().into_bytes(),
        top_logprobs: (token.top.iter())
            .map(|(_, text, logprob)| LikelyToken {
                token: text.clone(),
                logprob: *logprob,
                bytes: text.clone().into_bytes(),
            })
            .collect(),
    });
    ChatLogprobs {
        content: content.collect(),
    }
}
