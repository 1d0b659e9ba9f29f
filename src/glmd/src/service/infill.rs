//! Fill the blanks of a text.

use std::sync::Arc;

use glm_engine::collect::Collected;
use glm_engine::ops::infill::{InfillReader, InfilledChoice};
use glm_engine::ops::{Infill, Operations};
use glm_wire::error::ErrorDetail;
use glm_wire::infill::{Blank, InfillChoice, InfillChunk, InfillRequest, InfillResponse};

use super::shape::{Change, Facts, Shape, timing, usage};
use super::{Ask, ask, failure, json};

pub(super) fn prepare(
    body: &[u8],
    operations: &Arc<Operations>,
    client: Box<str>,
) -> Result<Ask, ErrorDetail> {
    let request: InfillRequest = glm_wire::parse(body)?;
    let terms = ask::terms(request.control(), client);
    let sampling = request.sampling();
    let question = Infill {
        task: request.task,
        max_tokens: request.max_tokens,
        n: request.n.unwrap_or(1),
        format: ask::grammar(request.response_format),
        sampling: ask::sampling(&sampling, request.stop, None),
        ..Infill::new(request.text)
    };
    let planned = operations
        .infill(question, terms)
        .map_err(|e| failure::detail(&e))?;
    Ok(Ask {
        request: planned.request,
        shape: Box::new(Telling(planned.reader)),
        stream: request.stream.unwrap_or(false),
    })
}

struct Telling(InfillReader);

impl Telling {
    fn response(&self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        let infilled = self.0.read(all);
        let mut choices: Vec<InfillChoice> = (infilled.choices.into_iter().enumerate())
            .map(|(index, choice)| told(index, choice))
            .collect();
        let several = choices.len() > 1;
        let first = choices.first().cloned();
        if !several {
            choices.clear();
        }
        let (text, blanks) = first.map_or_else(Default::default, |c| (c.text, c.blanks));
        json(&InfillResponse {
            id: facts.id.to_owned(),
            text,
            blanks,
            choices,
            usage: usage(&all.finished),
            timing: timing(&all.finished, facts.elapsed),
        })
    }
}

impl Shape for Telling {
    fn piece(
        &mut self,
        facts: Facts<'_>,
        change: &Change,
        _: &Collected,
    ) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        match change {
            Change::Text {
                choice,
                blank,
                text,
            } if !text.is_empty() => {
                let chunk = json(&InfillChunk {
                    id: facts.id.to_owned(),
                    index: *choice,
                    blank: *blank,
                    delta: text.clone(),
                });
                Ok(vec![chunk?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn last(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        Ok(vec![self.response(facts, all)?])
    }

    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        self.response(facts, all)
    }
}

fn told(index: usize, choice: InfilledChoice) -> InfillChoice {
    let blanks = choice.blanks.into_iter().enumerate();
    InfillChoice {
        index,
        text: choice.text,
        blanks: blanks
            .map(|(index, blank)| Blank {
                index,
                text: blank.text,
                tokens: blank.tokens,
                logprob: blank.logprob,
                finish_reason: blank.finish.name().to_owned(),
            })
            .collect(),
    }
}
