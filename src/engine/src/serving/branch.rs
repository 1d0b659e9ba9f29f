//! One sequence of tokens on its way through the backend.

use crate::backend::{Capabilities, Row, SeqId};
use crate::request::{Context, Placed};
use crate::scheduler::step::Lane;

/// What the logits of a branch are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Writes answer number ...
    Answer(usize),
    /// Reads the prompt of score item number ...
    Prompt(usize),
    /// Scores candidate `.1` of item `.0`.
    Candidate(usize, usize),
}

/// A sequence: all its tokens, and how many of them the backend holds.
///
/// Nothing but the tokens is needed to compute it again, so it can give up its
/// memory at any time and continue later with the same result.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) role: Role,
    pub(crate) tokens: Vec<Placed>,
    pub(crate) bidirectional: usize,
    /// Name in the backend; `None` while it holds nothing.
    pub(crate) seq: Option<SeqId>,
    /// Tokens that the backend holds.
    pub(crate) done: usize,
    /// From this token on logits are wanted.
    pub(crate) wants_from: usize,
    pub(crate) shared_tail: bool,
    pub(crate) last_step: u64,
    /// Its logits are all taken.
    pub(crate) retired: bool,
}

impl Branch {
    /// A branch that wants the logits of the last token of `context`.
    pub(crate) fn reading(role: Role, context: &Context) -> Self {
        Self {
            role,
            tokens: context.tokens.clone(),
            bidirectional: context.bidirectional,
            seq: None,
            done: 0,
            wants_from: context.tokens.len().saturating_sub(1),
            shared_tail: false,
            last_step: 0,
            retired: false,
        }
    }

    /// A branch that goes on from this one with `more` tokens and wants their logits.
    pub(crate) fn split(&self, role: Role, more: &[Placed]) -> Self {
        let mut tokens = Vec::with_capacity(self.tokens.len() + more.len());
        tokens.extend_from_slice(&self.tokens);
        tokens.extend_from_slice(more);
        Self {
            role,
            tokens,
            bidirectional: self.bidirectional,
            seq: None,
            done: 0,
            wants_from: self.tokens.len(),
            shared_tail: false,
            last_step: self.last_step,
            retired: false,
        }
    }

    /// Continues with `more` tokens and wants the logits of the last.
    pub(crate) fn feed(&mut self, more: &[Placed]) {
        self.tokens.extend_from_slice(more);
        self.wants_from = self.tokens.len().saturating_sub(1);
    }

    /// Forgets that the backend holds anything.
    pub(crate) fn evict(&mut self) -> Option<SeqId> {
        self.done = 0;
        self.shared_tail = false;
        self.seq.take()
    }

    /// The branch as the planner sees it; `None` when it has nothing to run.
    pub(crate) fn lane(&self, capabilities: &Capabilities) -> Option<Lane> {
        let pending = self.tokens.len() - self.done;
        let indivisible = match capabilities.chunked_prefill || self.done > 0 {
            true => self.bidirectional.saturating_sub(self.done),
            false => pending,
        };
        (pending > 0 && !self.retired).then_some(Lane {
            done: self.done,
            pending,
            indivisible,
            quiet: self.wants_from.saturating_sub(self.done),
            shared_tail: self.shared_tail,
            last_step: self.last_step,
        })
    }

    /// The next `count` tokens as rows of a step.
    pub(crate) fn rows(&self, seq: SeqId, count: usize) -> impl Iterator<Item = Row> + '_ {
        let range = self.done..self.done + count;
        range
            .clone()
            .zip(&self.tokens[range])
            .map(move |(index, token)| {
                let sees = match index < self.bidirectional {
                    true => self.bidirectional,
                    false => index + 1,
                };
                Row {
                    seq,
                    id: token.id,
                    position: token.position,
                    // No sequence is longer than the positions of a model, which are u32.
                    visible: u32::try_from(sees).unwrap_or(u32::MAX),
                    logits: index >= self.wants_from,
                }
            })
    }
}
