//! A request that is being served: what it has so far and what it needs next.
//!
//! | module | what it is for |
//! |---|---|
//! | `branch` | one sequence of tokens on its way through the backend |
//! | `writing` | one answer: from logits to text |
//!
//! Nothing here touches the backend. The engine feeds logits in and gets told
//! which sequences go on, split or end.

pub(crate) mod branch;
pub(crate) mod writing;

use glm::TokenId;
use glm::sampling::{Banned, log_probs};
use glm::tokenizer::Tokenizer;

use crate::answer::{Event, Finished, Scores, Timing, Token, Usage};
use crate::backend::SeqId;
use crate::error::{Error, Result};
use crate::mailbox::Outbox;
use crate::request::{Next, Request, ScoreItem, Work};
use crate::scheduler::demand::Demand;
use crate::units::{Epoch, Moment, Priority, RequestId};

use branch::{Branch, Role};
use writing::Answer;

/// What a request is for.
#[derive(Debug)]
enum Task {
    Write {
        answers: Vec<Answer>,
        prompt_tokens: usize,
        /// Alternatives wanted for each token of the prompt, while they are being collected.
        prompt_logprobs: Option<(usize, Vec<Token>)>,
        /// Whether the answers have parted from their prompt.
        parted: bool,
        /// No answer grows beyond this: what was reserved for it.
        longest: usize,
    },
    Score {
        items: Vec<ScoreItem>,
        scores: Scores,
        /// The next item to read.
        next: usize,
    },
}

/// A request that has left the queue.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) id: RequestId,
    pub(crate) client: Box<str>,
    pub(crate) priority: Priority,
    pub(crate) submitted: Moment,
    pub(crate) deadline: Option<Moment>,
    pub(crate) epoch: Epoch,
    pub(crate) cost: usize,
    pub(crate) demand: Demand,
    /// Parts of the demand that are reserved now.
    pub(crate) parts: usize,
    pub(crate) outbox: Outbox,
    pub(crate) branches: Vec<Branch>,
    pub(crate) usage: Usage,
    pub(crate) started: Moment,
    pub(crate) first: Option<Moment>,
    task: Task,
}

/// What the logits of one row lead to.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// New branches that share all tokens that this one holds.
    pub(crate) split: Vec<Branch>,
    /// A sequence that the backend can forget.
    pub(crate) release: Option<SeqId>,
}

/// What is known when a request leaves the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) id: RequestId,
    pub(crate) submitted: Moment,
    pub(crate) deadline: Option<Moment>,
    pub(crate) started: Moment,
    pub(crate) demand: Demand,
    pub(crate) parts: usize,
}

impl Served {
    /// Starts a request. On failure its owner has been told.
    pub(crate) fn start(
        request: Request,
        outbox: Outbox,
        entry: Entry,
        banned: &Banned,
    ) -> Result<Self, Error> {
        let cost = request.work.cost();
        let longest = request.work.longest();
        let mut usage = Usage::default();
        let mut branches = Vec::new();
        let task = match request.work {
            Work::Generate(work) => {
                usage.prompt_tokens = work.prompt.tokens.len();
                let answers = (0..work.n)
                    .map(|choice| Answer::new(&work, choice, banned))
                    .collect::<Result<Vec<_>>>();
                let answers = match answers {
                    Ok(answers) => answers,
                    Err(error) => return Err(fail(&outbox, error)),
                };
                let mut branch = Branch::reading(Role::Answer(0), &work.prompt);
                let prompt_logprobs = work.prompt_logprobs.map(|count| {
                    branch.wants_from = 0;
                    let first = Token {
                        id: work.prompt.tokens[0].id,
                        logprob: None,
                        top: Vec::new(),
                    };
                    (count, vec![first])
                });
                branches.push(branch);
                Task::Write {
                    answers,
                    prompt_tokens: usage.prompt_tokens,
                    prompt_logprobs,
                    parted: false,
                    longest,
                }
            }
            Work::Score(items) => {
                usage.prompt_tokens = items.iter().map(|i| i.prompt.tokens.len()).sum();
                let scores = items
                    .iter()
                    .map(|item| item.candidates.iter().map(|_| Vec::new()).collect())
                    .collect();
                Task::Score {
                    items,
                    scores,
                    next: 0,
                }
            }
        };
        let mut served = Self {
            id: entry.id,
            client: request.client,
            priority: request.priority,
            submitted: entry.submitted,
            deadline: entry.deadline,
            epoch: request.epoch,
            cost,
            demand: entry.demand,
            parts: entry.parts,
            outbox,
            branches,
            usage,
            started: entry.started,
            first: None,
            task,
        };
        served.open_items();
        // A reader that is gone is noticed by the sweep.
        let _ = served.outbox.send(Event::Started {
            queued: entry.started.since(entry.submitted),
        });
        Ok(served)
    }

    /// Tokens that the request may still cost.
    pub(crate) fn remaining(&self) -> usize {
        self.cost.saturating_sub(self.usage.computed_tokens)
    }

    /// Length of the part of a branch that other requests may have too.
    pub(crate) fn common(&self, branch: usize) -> usize {
        match (&self.task, self.branches[branch].role) {
            (Task::Write { prompt_tokens, .. }, _) => *prompt_tokens,
            (Task::Score { items, .. }, Role::Prompt(item)) => items[item].prompt.tokens.len(),
            (Task::Score { .. }, _) => 0,
        }
    }

    /// Takes the logits of token `index` of a branch.
    pub(crate) fn take(
        &mut self,
        branch: usize,
        index: usize,
        logits: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<Change> {
        self.branches[branch].wants_from = index + 1;
        match self.branches[branch].role {
            Role::Answer(_) if index + 1 < self.branches[branch].tokens.len() => {
                self.take_prompt(branch, index, logits)
            }
            Role::Answer(choice) => self.take_answer(branch, choice, logits, tokenizer),
            Role::Prompt(item) => self.take_first(branch, item, logits),
            Role::Candidate(item, candidate) => {
                self.take_next(branch, item, candidate, index, logits)
            }
        }
    }

    /// Opens items until as many are under way as were reserved for.
    pub(crate) fn open_items(&mut self) {
        let room = self.parts.saturating_sub(self.open());
        let Task::Score { items, next, .. } = &mut self.task else {
            return;
        };
        for _ in 0..room {
            let Some(item) = items.get(*next) else { break };
            self.branches
                .push(Branch::reading(Role::Prompt(*next), &item.prompt));
            *next += 1;
        }
    }

    /// Parts that are under way.
    pub(crate) fn open(&self) -> usize {
        let item_of = |branch: &Branch| match branch.role {
            Role::Prompt(item) | Role::Candidate(item, _) => item,
            Role::Answer(_) => 0,
        };
        let mut open: Vec<usize> = self.branches.iter().map(item_of).collect();
        open.sort_unstable();
        open.dedup();
        open.len()
    }

    /// Whether all is done.
    pub(crate) fn is_complete(&self) -> bool {
        let all_open = match &self.task {
            Task::Write { .. } => true,
            Task::Score { items, next, .. } => *next >= items.len(),
        };
        all_open && self.branches.is_empty()
    }

    /// Tells the owner that all is there.
    pub(crate) fn finish(&mut self, now: Moment) {
        let scores = match &mut self.task {
            Task::Write { .. } => Scores::new(),
            Task::Score { scores, .. } => std::mem::take(scores),
        };
        let first = self.first.unwrap_or(now);
        let finished = Finished {
            usage: self.usage,
            timing: Timing {
                queued: self.started.since(self.submitted),
                prefill: first.since(self.started),
                decode: now.since(first),
            },
            scores,
        };
        let _ = self.outbox.send(Event::Finished(Box::new(finished)));
    }

    /// Tells the owner that nothing more will come.
    pub(crate) fn fail(&self, error: Error) {
        fail(&self.outbox, error);
    }

    fn take_prompt(&mut self, branch: usize, index: usize, logits: &[f32]) -> Result<Change> {
        let tokens = &self.branches[branch].tokens;
        if let Task::Write {
            prompt_logprobs: Some((count, scored)),
            ..
        } = &mut self.task
            && scored.len() == index + 1
        {
            let id = tokens[index + 1].id;
            scored.push(Token {
                id,
                logprob: log_probs::of(logits, &[id])?.first().copied(),
                top: log_probs::top(logits, *count)?,
            });
        }
        Ok(Change::default())
    }

    fn take_answer(
        &mut self,
        branch: usize,
        choice: usize,
        logits: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<Change> {
        let Task::Write {
            answers,
            prompt_logprobs,
            parted,
            longest,
            ..
        } = &mut self.task
        else {
            return Err(Error::Internal {
                reason: "an answer in a request for scores",
            });
        };
        if let Some((_, scored)) = prompt_logprobs.take() {
            self.outbox.send(Event::Prompt(scored))?;
        }
        let mut change = Change::default();
        if !std::mem::replace(parted, true) {
            // All answers begin with the same logits; those after the first get their own branch.
            for other in (0..answers.len()).filter(|other| *other != choice) {
                let next = write(
                    &mut answers[other],
                    other,
                    logits,
                    tokenizer,
                    &self.outbox,
                    &mut self.usage,
                )?;
                let role = Role::Answer(other);
                match next {
                    Next::Feed(more) => {
                        let mut split = self.branches[branch].split(role, &more);
                        split.feed(&[]);
                        change.split.push(split);
                    }
                    Next::Restart(context) => {
                        within(context.tokens.len(), *longest)?;
                        change.split.push(Branch::reading(role, &context));
                    }
                    Next::Done => {}
                }
            }
        }
        let next = write(
            &mut answers[choice],
            choice,
            logits,
            tokenizer,
            &self.outbox,
            &mut self.usage,
        )?;
        let branch = &mut self.branches[branch];
        match next {
            Next::Feed(more) => {
                within(branch.tokens.len() + more.len(), *longest)?;
                branch.feed(&more);
            }
            Next::Restart(context) => {
                within(context.tokens.len(), *longest)?;
                change.release = branch.evict();
                *branch = Branch {
                    last_step: branch.last_step,
                    ..Branch::reading(branch.role, &context)
                };
            }
            Next::Done => branch.retired = true,
        }
        Ok(change)
    }

    fn take_first(&mut self, branch: usize, item: usize, logits: &[f32]) -> Result<Change> {
        let Task::Score { items, scores, .. } = &mut self.task else {
            return Err(Error::Internal {
                reason: "a score item in a request for answers",
            });
        };
        let candidates = &items[item].candidates;
        let firsts: Vec<TokenId> = candidates
            .iter()
            .filter_map(|c| c.first().map(|token| token.id))
            .collect();
        let mut firsts = log_probs::of(logits, &firsts)?.into_iter();
        let mut change = Change::default();
        for (index, candidate) in candidates.iter().enumerate() {
            let Some((_, fed)) = candidate.split_last() else {
                continue;
            };
            scores[item][index].extend(firsts.next());
            if !fed.is_empty() {
                let role = Role::Candidate(item, index);
                change.split.push(self.branches[branch].split(role, fed));
            }
        }
        self.branches[branch].retired = true;
        Ok(change)
    }

    fn take_next(
        &mut self,
        branch: usize,
        item: usize,
        candidate: usize,
        index: usize,
        logits: &[f32],
    ) -> Result<Change> {
        let Task::Score { items, scores, .. } = &mut self.task else {
            return Err(Error::Internal {
                reason: "a candidate in a request for answers",
            });
        };
        // The row after the prompt's last one predicts the candidate's second token.
        let at = index + 1 - items[item].prompt.tokens.len();
        let id = items[item].candidates[candidate][at].id;
        scores[item][candidate].extend(log_probs::of(logits, &[id])?);
        let branch = &mut self.branches[branch];
        branch.retired = index + 1 == branch.tokens.len();
        Ok(Change::default())
    }
}

/// Writes one token and sends it.
fn write(
    answer: &mut Answer,
    choice: usize,
    logits: &[f32],
    tokenizer: &Tokenizer,
    outbox: &Outbox,
    usage: &mut Usage,
) -> Result<Next> {
    let written = answer.write(logits, tokenizer)?;
    usage.completion_tokens += 1;
    outbox.send(Event::Part(written.part))?;
    if let Some(reason) = answer.ended {
        outbox.send(Event::ChoiceEnded { choice, reason })?;
    }
    Ok(written.next)
}

/// A writer that wants to read more than was reserved is broken.
fn within(length: usize, longest: usize) -> Result<()> {
    match length <= longest {
        true => Ok(()),
        false => Err(Error::Internal {
            reason: "an answer outgrew its reservation",
        }),
    }
}

fn fail(outbox: &Outbox, error: Error) -> Error {
    let _ = outbox.send(Event::Failed(error.clone()));
    error
}
