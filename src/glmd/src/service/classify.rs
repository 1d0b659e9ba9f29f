//! Choose among labels by cloze.

use std::sync::Arc;

use glm::cloze::Normalize;
use glm_engine::collect::Collected;
use glm_engine::ops::classify::ClassifyReader;
use glm_engine::ops::{Classify, Operations};
use glm_wire::classify::{ClassifyRequest, ClassifyResponse, Verdict};
use glm_wire::error::ErrorDetail;

use super::shape::{Facts, Shape, timing, usage};
use super::{Ask, ask, failure, json};

pub(super) fn prepare(
    body: &[u8],
    operations: &Arc<Operations>,
    client: Box<str>,
) -> Result<Ask, ErrorDetail> {
    let request: ClassifyRequest = glm_wire::parse(body)?;
    let terms = ask::terms(request.control(), client);
    let (texts, several) = match (request.text, request.texts) {
        (Some(text), None) => (vec![text], false),
        (None, Some(texts)) => (texts, true),
        (Some(_), Some(_)) => {
            return Err(failure::bad_input(
                "texts",
                "`texts`: give `text` or `texts`, not both",
            ));
        }
        (None, None) => {
            return Err(failure::bad_input(
                "text",
                "`text`: must be given, or `texts`",
            ));
        }
    };
    let question = Classify {
        texts,
        task: request.task,
        pattern: request.pattern,
        labels: request.labels,
        normalize: request.normalize.map(|how| match how {
            glm_wire::classify::Normalize::Sum => Normalize::Sum,
            glm_wire::classify::Normalize::Mean => Normalize::Mean,
        }),
        calibrate: request.calibrate,
        ..Classify::default()
    };
    let planned = operations
        .classify(&question, terms)
        .map_err(|e| failure::detail(&e))?;
    Ok(Ask {
        request: planned.request,
        shape: Box::new(Judging {
            reader: planned.reader,
            several,
        }),
        stream: false,
    })
}

struct Judging {
    reader: ClassifyReader,
    /// Whether `texts` was sent, so that every verdict is listed.
    several: bool,
}

impl Shape for Judging {
    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail> {
        let classified = self.reader.read(all).map_err(|e| failure::detail(&e))?;
        let verdicts = classified.verdicts.into_iter().zip(classified.removed);
        let results: Vec<Verdict> = verdicts
            .map(|(verdict, truncated_tokens)| Verdict {
                label: verdict.label,
                scores: verdict.scores,
                logprobs: verdict.logprobs,
                truncated_tokens,
            })
            .collect();
        json(&ClassifyResponse {
            id: facts.id.to_owned(),
            verdict: results.first().cloned().unwrap_or_default(),
            results: match self.several {
                true => results,
                false => Vec::new(),
            },
            usage: usage(&all.finished),
            timing: timing(&all.finished, facts.elapsed),
        })
    }
}
