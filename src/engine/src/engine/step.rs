//! One step: plan, run, commit. A step that fails changes nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::{BackendError, Logits, SeqId, Step};
use crate::error::Error;
use crate::events;
use crate::scheduler::step::{Lane, Plan, Room, Run, plan};
use crate::serving::Change;
use crate::serving::branch::{Branch, Role};
use crate::units::Moment;

use super::{Engine, Loaded};

/// A branch of a served request.
#[derive(Clone, Copy, Debug)]
struct Place {
    request: usize,
    branch: usize,
}

impl Engine {
    /// Runs one step; `false` when there is nothing to run.
    pub(super) fn step(&mut self, now: Moment) -> bool {
        if self.loaded.is_none() || self.running.is_empty() {
            (self.batch, self.step_tokens) = (0, 0);
            return false;
        }
        self.find_prefixes();
        let (places, lanes) = self.lanes();
        let plan = self.plan(&lanes);
        if plan.runs.is_empty() {
            return !lanes.is_empty() && self.make_room();
        }
        let step = self.build(&plan, &places);
        let started = self.inbox.clock.now();
        let outcome = self.forward(&step);
        let time = self.inbox.clock.now().since(started);
        match outcome {
            Ok(logits) => {
                self.step += 1;
                self.counters.steps += 1;
                self.batch = plan.runs.len();
                self.step_tokens = plan.reading + plan.writing;
                self.reading_went_first = plan.reading_first;
                self.cost.observe(plan.reading, plan.writing, time);
                let rest = time.saturating_mul(self.allowance.rest) / 100;
                self.rests_until = started.after(time).after(rest);
                self.suspects.pop_front();
                self.commit(&plan, &places, &logits, now);
            }
            Err(failure) => self.recover(failure, &plan, &places),
        }
        true
    }

    /// Lets new branches begin with what is in the prefix cache.
    fn find_prefixes(&mut self) {
        let Some(loaded) = &mut self.loaded else {
            return;
        };
        let block_tokens = loaded.info.capabilities.block_tokens;
        for served in &mut self.running {
            for branch in &mut served.branches {
                if branch.seq.is_some() || branch.done > 0 {
                    continue;
                }
                let found =
                    (loaded.cache).find(&branch.tokens, branch.bidirectional, branch.wants_from);
                let Some(hit) = found else { continue };
                let seq = SeqId(self.next_seq);
                self.next_seq += 1;
                if loaded.backend.fork(hit.seq, seq, hit.tokens).is_ok() {
                    branch.seq = Some(seq);
                    branch.done = hit.tokens;
                    branch.shared_tail = !hit.tokens.is_multiple_of(block_tokens);
                    if served.usage.preemptions == 0 {
                        served.usage.cached_tokens += hit.tokens;
                    }
                    self.counters.cached_tokens += hit.tokens as u64;
                }
            }
        }
    }

    /// What could run: of all requests, or of the one that is being tried alone.
    fn lanes(&self) -> (Vec<Place>, Vec<Lane>) {
        let Some(loaded) = &self.loaded else {
            return Default::default();
        };
        let alone = self.suspects.front();
        let mut places = Vec::new();
        let mut lanes = Vec::new();
        for (request, served) in self.running.iter().enumerate() {
            if alone.is_some_and(|id| *id != served.id) {
                continue;
            }
            for (branch, b) in served.branches.iter().enumerate() {
                if let Some(lane) = b.lane(&loaded.info.capabilities) {
                    places.push(Place { request, branch });
                    lanes.push(lane);
                }
            }
        }
        (places, lanes)
    }

    /// Plans a step; the prefix cache makes room for it.
    fn plan(&mut self, lanes: &[Lane]) -> Plan {
        let (budget, sequences) = (self.budget(), self.sequences());
        let usable = self.usable_blocks();
        let Some(loaded) = &mut self.loaded else {
            return Plan::default();
        };
        loop {
            let free = loaded.backend.memory().free_blocks;
            let used = loaded.info.capabilities.blocks.saturating_sub(free);
            let room = Room {
                budget,
                sequences,
                reading: self.cost.piece(),
                logits: self.config.logits_rows.max(sequences),
                blocks: free.min(usable.saturating_sub(used)),
                block_tokens: loaded.info.capabilities.block_tokens,
                reading_went_first: self.reading_went_first,
            };
            let plan = plan(lanes, &room);
            if !plan.short_of_blocks {
                return plan;
            }
            match loaded.cache.drop_oldest() {
                Some(seq) => loaded.backend.release(seq),
                None => return plan,
            }
        }
    }

    /// Nothing fits: the newest request gives way. `true` when that may help.
    fn make_room(&mut self) -> bool {
        match self.running.len() {
            0 => false,
            1 => {
                self.fail(
                    0,
                    Error::Internal {
                        reason: "a request does not fit into the memory reserved for it",
                    },
                );
                true
            }
            newest => {
                self.preempt(newest - 1);
                true
            }
        }
    }

    /// The rows of a plan. Branches that begin get their name in the backend.
    fn build(&mut self, plan: &Plan, places: &[Place]) -> Step {
        let mut rows = Vec::with_capacity(plan.reading + plan.writing);
        for run in &plan.runs {
            let place = places[run.lane];
            let fresh = self.fresh_seq();
            let branch = &mut self.running[place.request].branches[place.branch];
            let seq = *branch.seq.get_or_insert(fresh);
            rows.extend(branch.rows(seq, run.tokens));
        }
        Step { rows }
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, Failure> {
        let Some(loaded) = &mut self.loaded else {
            return Err(Failure::Panic("no model".into()));
        };
        // The engine's own state is not touched inside; the backend is dropped after a panic.
        let outcome = catch_unwind(AssertUnwindSafe(|| loaded.backend.forward(step)));
        let logits = outcome
            .map_err(|panic| Failure::Panic(super::lifecycle::message(&*panic)))?
            .map_err(Failure::Error)?;
        let wanted = step.rows.iter().filter(|row| row.logits).count();
        match logits.row(wanted.saturating_sub(1)) {
            None if wanted > 0 => Err(Failure::Error(BackendError::BadStep(format!(
                "{wanted} rows of logits wanted, the backend returned fewer"
            )))),
            _ => Ok(logits),
        }
    }

    /// Takes what a step produced.
    fn commit(&mut self, plan: &Plan, places: &[Place], logits: &Logits, now: Moment) {
        let mut row = 0;
        let mut broken: Vec<(usize, Error)> = Vec::new();
        for run in &plan.runs {
            let place = places[run.lane];
            let wanted = self.advance(place, run);
            let rows = row..row + wanted.len();
            row = rows.end;
            if broken.iter().any(|(request, _)| *request == place.request) {
                continue;
            }
            self.keep_prefix(place, run.tokens);
            for (index, row) in wanted.zip(rows) {
                let taken = match logits.row(row) {
                    Some(values) => self.take(place, index, values, now),
                    None => Err(Error::Internal {
                        reason: "a row of logits is missing",
                    }),
                };
                if let Err(error) = taken {
                    broken.push((place.request, error));
                    break;
                }
            }
        }
        // From the back, so that the indices stay good.
        broken.sort_by_key(|(request, _)| std::cmp::Reverse(*request));
        for (request, error) in broken {
            self.fail(request, error);
        }
        self.retire(now);
    }

    /// Notes that a run is done; returns the tokens whose logits are wanted.
    fn advance(&mut self, place: Place, run: &Run) -> std::ops::Range<usize> {
        let served = &mut self.running[place.request];
        let branch = &mut served.branches[place.branch];
        let end = branch.done + run.tokens;
        let wanted = branch.wants_from.clamp(branch.done, end)..end;
        branch.done = end;
        branch.shared_tail = false;
        branch.last_step = self.step;
        served.usage.computed_tokens += run.tokens;
        self.counters.computed_tokens += run.tokens as u64;
        wanted
    }

    /// Takes one row of logits and does what follows from it.
    fn take(
        &mut self,
        place: Place,
        index: usize,
        logits: &[f32],
        now: Moment,
    ) -> Result<(), Error> {
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        let served = &mut self.running[place.request];
        let before = served.usage.completion_tokens;
        let change = served.take(place.branch, index, logits, &loaded.info.tokenizer)?;
        served.first.get_or_insert(now);
        self.counters.sampled_tokens += (served.usage.completion_tokens - before) as u64;
        let Change { split, release } = change;
        for child in split {
            let child = share(
                loaded,
                &mut self.next_seq,
                &mut served.branches[place.branch],
                child,
                index + 1,
            );
            served.branches.push(child);
        }
        if let Some(seq) = release {
            loaded.backend.release(seq);
        }
        Ok(())
    }

    /// Puts a prompt that was just read into the prefix cache.
    fn keep_prefix(&mut self, place: Place, tokens: usize) {
        let Some(loaded) = &mut self.loaded else {
            return;
        };
        let served = &mut self.running[place.request];
        let common = served.common(place.branch);
        let branch = &mut served.branches[place.branch];
        let keeps = loaded.info.capabilities.fork && self.allowance.keep_prefixes;
        if !keeps || common > branch.tokens.len() {
            return;
        }
        let keep = loaded.cache.keepable(common, branch.bidirectional);
        let before = branch.done - tokens;
        let reached = keep > 0 && before < keep && keep <= branch.done;
        let Some(parent) = branch.seq.filter(|_| reached) else {
            return;
        };
        let kept = &branch.tokens[..keep];
        if loaded.cache.holds(kept, branch.bidirectional) {
            return;
        }
        let seq = SeqId(self.next_seq);
        self.next_seq += 1;
        if loaded.backend.fork(parent, seq, keep).is_ok() {
            let size = loaded.info.capabilities.block_tokens;
            branch.shared_tail |= keep % size > 0 && keep / size == branch.done / size;
            let gone = loaded.cache.keep(seq, kept.to_vec(), branch.bidirectional);
            gone.into_iter().for_each(|seq| loaded.backend.release(seq));
        }
    }

    /// Lets go of branches and requests that are complete.
    fn retire(&mut self, now: Moment) {
        let Some(loaded) = &mut self.loaded else {
            return;
        };
        let keeps = loaded.info.capabilities.fork && self.allowance.keep_prefixes;
        let mut index = 0;
        while let Some(served) = self.running.get_mut(index) {
            for branch in served.branches.extract_if(.., |b| b.retired) {
                let Some(seq) = branch.seq else { continue };
                if !keeps || !keep_answer(loaded, seq, &branch) {
                    loaded.backend.release(seq);
                }
            }
            served.open_items();
            if !served.is_complete() {
                index += 1;
                continue;
            }
            let mut served = self.running.remove(index);
            served.finish(now);
            self.counters.finished += 1;
            if served.usage.completion_tokens > 0 {
                self.cost.answered(served.usage.completion_tokens);
            }
            events::finished(served.id, &served.usage);
            self.inbox.forget(served.id);
        }
    }

    /// After a failed step: nothing has happened, so it can be tried again, each request alone.
    /// One that fails alone is at fault.
    fn recover(&mut self, failure: Failure, plan: &Plan, places: &[Place]) {
        self.counters.failed_steps += 1;
        let mut ids: Vec<_> = plan
            .runs
            .iter()
            .map(|run| self.running[places[run.lane].request].id)
            .collect();
        ids.dedup();
        let was_alone = !self.suspects.is_empty();
        let error = match failure {
            Failure::Error(BackendError::OutOfBlocks { .. }) if self.free_some() => return,
            Failure::Error(error) => {
                events::step_failed(&error.to_string(), ids.len());
                Error::from(error)
            }
            Failure::Panic(reason) => {
                events::step_failed(&reason, ids.len());
                self.replace_backend();
                Error::BackendPanicked { reason }
            }
        };
        if !was_alone {
            self.suspects = ids.into();
            return;
        }
        self.suspects.pop_front();
        for id in ids {
            if let Some(index) = self.running.iter().position(|s| s.id == id) {
                self.fail(index, error.clone());
            }
        }
    }

    /// Frees blocks that the backend did not count as we do; `false` when there is nothing to free.
    fn free_some(&mut self) -> bool {
        let Some(loaded) = &mut self.loaded else {
            return false;
        };
        let cached = loaded.cache.clear();
        if !cached.is_empty() {
            cached
                .into_iter()
                .for_each(|seq| loaded.backend.release(seq));
            return true;
        }
        self.running.len() > 1 && self.make_room()
    }
}

/// Why a step did not run.
enum Failure {
    Error(BackendError),
    Panic(String),
}

/// Gives a new branch the tokens that its parent holds; without sharing it reads them itself.
fn share(
    loaded: &mut Loaded,
    next_seq: &mut u64,
    parent: &mut Branch,
    mut child: Branch,
    tokens: usize,
) -> Branch {
    let Some(from) = parent.seq.filter(|_| tokens <= parent.done) else {
        return child;
    };
    if child.tokens.len() <= tokens || !loaded.info.capabilities.fork {
        return child;
    }
    let seq = SeqId(*next_seq);
    *next_seq += 1;
    if loaded.backend.fork(from, seq, tokens).is_ok() {
        child.seq = Some(seq);
        child.done = tokens;
        child.shared_tail = ends_inside_block(loaded, tokens);
        parent.shared_tail |= child.shared_tail;
    }
    child
}

fn ends_inside_block(loaded: &Loaded, tokens: usize) -> bool {
    !tokens.is_multiple_of(loaded.info.capabilities.block_tokens)
}

/// Hands a complete answer to the prefix cache: the next turn of a conversation begins with it.
fn keep_answer(loaded: &mut Loaded, seq: SeqId, branch: &Branch) -> bool {
    let keep = loaded.cache.keepable(branch.done, branch.bidirectional);
    let wanted = branch.role == Role::Answer(0)
        && branch.bidirectional == 0
        && keep > 0
        && !loaded.cache.holds(&branch.tokens[..keep], 0);
    if wanted {
        loaded.backend.truncate(seq, keep);
        let gone = loaded.cache.keep(seq, branch.tokens[..keep].to_vec(), 0);
        gone.into_iter().for_each(|seq| loaded.backend.release(seq));
    }
    wanted
}
