//! One answer that is being written: from logits to text.

use std::mem;

use glm::sampling::{Banned, Sampler, StopMatcher, log_probs};
use glm::tokenizer::{Detokenizer, Tokenizer};
use glm::{TokenId, sampling::Sampled};

use crate::answer::{Part, Reason, Token};
use crate::error::Result;
use crate::request::{Constraint, Generate, Next, Writer};

/// State of one of the `n` answers. Everything it decides depends on its own tokens and seed alone.
#[derive(Debug)]
pub(crate) struct Answer {
    choice: usize,
    writer: Box<dyn Writer>,
    /// As it is at the beginning of a blank, and for the present one.
    constraint: Option<Box<dyn Constraint>>,
    present: Option<Box<dyn Constraint>>,
    sampler: Sampler,
    logprobs: Option<usize>,
    stops: Vec<String>,
    stop: StopMatcher,
    detokenizer: Detokenizer,
    /// Whether the present blank has text.
    begun: bool,
    /// Prompt and answer, for the repetition penalty.
    seen: Vec<TokenId>,
    pub(crate) sampled: usize,
    max_tokens: usize,
    pub(crate) ended: Option<Reason>,
}

/// What one sampled token leads to.
#[derive(Debug)]
pub(crate) struct Written {
    /// What the reader gets.
    pub(crate) part: Part,
    /// What the model reads next; [`Next::Done`] when the answer ended.
    pub(crate) next: Next,
}

impl Answer {
    /// Answer number `choice` of a request.
    pub(crate) fn new(work: &Generate, choice: usize, banned: &Banned) -> Result<Self> {
        let mut params = work.sampling.clone();
        params.seed = params.seed.wrapping_add(choice as u64);
        let stops = params.stop.clone();
        let logprobs = params.logprobs;
        Ok(Self {
            choice,
            writer: work.writer.fork(),
            constraint: work.constraint.as_ref().map(|c| c.fork()),
            present: work.constraint.as_ref().map(|c| c.fork()),
            sampler: Sampler::new(params, banned.clone())?,
            logprobs,
            stop: StopMatcher::new(&stops),
            stops,
            detokenizer: Detokenizer::default(),
            begun: false,
            seen: work.prompt.tokens.iter().map(|token| token.id).collect(),
            sampled: 0,
            max_tokens: work.max_tokens,
            ended: None,
        })
    }

    /// Chooses the next token from `logits`.
    pub(crate) fn write(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Written> {
        let sampled = self.choose(logits)?;
        let id = sampled.id;
        self.sampled += 1;
        self.seen.push(id);
        let blank = self.writer.blank();
        let is_text = self.writer.is_text(id);
        let mut text = match is_text {
            true => self.detokenizer.push(tokenizer, id),
            false => String::new(),
        };
        if !self.begun && self.writer.trims() {
            text = text.trim_start_matches(' ').to_owned();
        }
        self.begun |= !text.is_empty();
        let stopped = self.stop.push(&text);
        let mut part = Part {
            choice: self.choice,
            blank,
            text: stopped.text,
            tokens: vec![Token {
                id,
                logprob: sampled.logprob,
                top: sampled.top,
            }],
        };
        let mut next = match stopped.stop {
            None => self.writer.push(id)?,
            Some(_) => self.writer.cut(id)?,
        };
        self.ended = match (stopped.stop, &next) {
            (Some(index), Next::Done) => Some(Reason::Stop(index)),
            // The last piece was cut short by its own limit.
            (None, Next::Done) if is_text => Some(Reason::Length),
            (None, Next::Done) => Some(Reason::Complete),
            _ if self.sampled >= self.max_tokens => Some(Reason::Length),
            _ => None,
        };
        if self.ended.is_some() {
            next = Next::Done;
        }
        if self.ended.is_some() || self.writer.blank() != blank {
            part.text
                .push_str(&self.end_of_text(stopped.stop.is_some()));
        }
        Ok(Written { part, next })
    }

    fn choose(&mut self, logits: &[f32]) -> Result<Sampled> {
        let Some(constraint) = &mut self.present else {
            return Ok(self.sampler.sample(logits, &self.seen)?);
        };
        let mut allowed = logits.to_vec();
        constraint.restrict(&mut allowed)?;
        let mut sampled = self.sampler.sample(&allowed, &self.seen)?;
        constraint.accept(sampled.id)?;
        // What is reported is the model's own distribution, as without a constraint.
        if let Some(count) = self.logprobs {
            sampled.logprob = log_probs::of(logits, &[sampled.id])?.first().copied();
            sampled.top = log_probs::top(logits, count)?;
        }
        Ok(sampled)
    }

    /// Ends the text of a blank and gets ready for the next.
    fn end_of_text(&mut self, stopped: bool) -> String {
        self.begun = false;
        self.present = self.constraint.as_ref().map(|c| c.fork());
        let rest = mem::take(&mut self.detokenizer).finish();
        let mut stop = mem::replace(&mut self.stop, StopMatcher::new(&self.stops));
        if stopped {
            return String::new();
        }
        stop.push(&rest).text + &stop.finish()
    }
}
