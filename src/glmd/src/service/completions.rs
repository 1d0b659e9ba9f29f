//! Continue a text, in OpenAI's shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use glm_engine::collect::Collected;
use glm_engine::ops::complete::CompleteReader;
use glm_engine::ops::{Complete, Operations, TextToken};
use glm_wire::Usage;
use glm_wire::completions::{
    CompletionChoice, CompletionRequest, CompletionResponse, TokenLogprobs,
};
use glm_wire::error::ErrorDetail;

use super::shape::{Change, Facts, Shape, timing, usage};
use super::{Ask, ask, failure, json};

pub(super) fn prepare(
    body: &[u8],
    operations: &Arc<Operations>,
    client: Box<str>,
) -> Result<Ask, ErrorDetail> {
    let request: CompletionRequest = glm_wire::parse(body)?;
    let model = &operations.model().id;
    ask::check_model(request.model.as_deref(), model)?;
    let terms = ask::terms(request.control(), client);
    let sampling = request.sampling();
    let n = request.n.unwrap_or(1);
    let shape = |reader| Writing {
        echoes: match request.echo {
            Some(true) => vec![false; n],
            _ => Vec::new(),
        },
        reader,
        model: model.clone(),
        created: ask::now(),
        logprobs: request.logprobs.is_some(),
        told: Vec::new(),
        include_usage: request.stream_options.is_some_and(|o| o.include_usage),
    };
    let question = Complete {
        max_tokens: request.max_tokens,
        n,
        format: ask::grammar(request.response_format),
        sampling: ask::sampling(&sampling, request.stop, request.logprobs),
        echo: request.echo.unwrap_or(false),
        ..Complete::new(request.prompt)
    };
    let planned = operations
        .complete(question, terms)
        .map_err(|e| failure::detail(&e))?;
    Ok(Ask {
        request: planned.request,
        shape: Box::new(shape(planned.reader)),
        stream: request.stream.unwrap_or(false),
    })
}

struct Writing {
    reader: CompleteReader,
    model: String,
    created: u64,
    logprobs: bool,
    include_usage: bool,
    /// For each answer of a stream whether the prompt was repeated; empty where it is not wanted.
    echoes: Vec<bool>,
    /// Tokens of each answer whose log-probabilities a stream has told.
    told: Vec<usize>,
}

impl Writing {
    fn response(&self, facts: Facts<'_>, choices: Vec<CompletionChoice>) -> CompletionResponse {
        CompletionResponse {
            id: facts.id.to_owned(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            timing: None,
        }
    }

    /// The prompt, the first time that an answer is told.
    fn echo(&mut self, index: usize) -> Option<&str> {
        let echoed = self.echoes.get_mut(index)?;
        if std::mem::replace(echoed, true) {
            return None;
        }
        self.reader.echo()
    }

    /// Log-probabilities that a stream has not told yet.
    fn news(&mut self, index: usize, so_far: &Collected) -> Option<TokenLogprobs> {
        if !self.logprobs {
            return None;
        }
        if self.told.len() <= index {
            self.told.resize(index + 1, 0);
        }
        let completed = self.reader.read(so_far);
        let tokens = &completed.choices.get(index)?.tokens;
        let shift = self.reader.echo().map_or(0, str::len);
        let mut logprobs = TokenLogprobs::default();
        let seen = self.told.get_mut(index)?;
        if *seen == 0 && shift > 0 {
            list(&mut logprobs, &completed.prompt, 0);
        }
        list(&mut logprobs, tokens.get(*seen..)?, shift);
        *seen = tokens.len();
        Some(logprobs)
    }
}

impl Shape for Writing {
    fn piece(
        &mut self,
        facts: Facts<'_>,
        change: &Change,
        so_far: &Collected,
    ) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        let (index, delta, finish_reason) = match change {
            Change::Text { choice, text, .. } => (*choice, text.as_str(), None),
            Change::Ended { choice, reason } => (*choice, "", Some(reason.name().to_owned())),
            Change::Other => return Ok(Vec::new()),
        };
        let text = match self.echo(index) {
            Some(prompt) => format!("{prompt}{delta}"),
            None => delta.to_owned(),
        };
        let logprobs = self.news(index, so_far);
        let silent = text.is_empty() && logprobs.as_ref().is_none_or(|l| l.tokens.is_empty());
        if silent && finish_reason.is_none() {
            return Ok(Vec::new());
        }
        let choice = CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
        };
        Ok(vec![json(&self.response(facts, vec![choice]))?])
    }

    fn last(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        if !self.include_usage {
            return Ok(Vec::new());
        }
        // As OpenAI does it: a chunk of its own without a choice.
        let mut response = self.response(facts, Vec::new());
        response.usage = Some(usage(&all.finished));
        response.timing = Some(timing(&all.finished, facts.elapsed));
        Ok(vec![json(&response)?])
    }

    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        let completed = self.reader.read(all);
        let shift = self.reader.echo().map_or(0, str::len);
        let choices = completed.choices.into_iter().enumerate();
        let choices = choices
            .map(|(index, choice)| CompletionChoice {
                index,
                logprobs: self.logprobs.then(|| {
                    let mut logprobs = TokenLogprobs::default();
                    if shift > 0 {
                        list(&mut logprobs, &completed.prompt, 0);
                    }
                    list(&mut logprobs, &choice.tokens, shift);
                    logprobs
                }),
                text: choice.text,
                finish_reason: Some(choice.finish.name().to_owned()),
            })
            .collect();
        let cost: Usage = usage(&all.finished);
        json(&CompletionResponse {
            usage: Some(cost),
            timing: Some(timing(&all.finished, facts.elapsed)),
            ..self.response(facts, choices)
        })
    }
}

/// Adds tokens; `shift` is where their text begins in the text that is told.
fn list(logprobs: &mut TokenLogprobs, tokens: &[TextToken], shift: usize) {
    for token in tokens {
        logprobs.tokens.push(token.text.clone());
        logprobs.token_logprobs.push(token.logprob);
        logprobs.text_offset.push(token.offset + shift);
        // The first token of a prompt was not predicted.
        let top = token.logprob.map(|_| {
            let mut best = BTreeMap::new();
            for (_, text, logprob) in &token.top {
                // Tokens with the same text: the better one, which comes first.
                best.entry(text.clone()).or_insert(*logprob);
            }
            best
        });
        logprobs.top_logprobs.push(top);
    }
}
