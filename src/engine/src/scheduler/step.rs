//! What one step runs: decode rows first, then as much reading as the budget allows.
//!
//! A step carries one row for each answer under way, because somebody watches
//! those, and fills up with pieces of prompts. Three things bend the rule:
//! - a quarter of the budget is kept for reading, so that prompts move on
//!   however many answers are under way;
//! - while answers are under way, the pieces are kept so small that the step
//!   takes at most a given multiple of its usual time ([`Room::reading`]);
//! - what cannot be divided (Part A, whose tokens all see each other) goes
//!   first when it does not fit beside the answers, at most every other step.
//!   If it exceeds even the whole budget it runs alone.

/// A sequence that has something to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Tokens that the backend holds of it.
    pub done: usize,
    /// Tokens that it has to run; at least 1.
    pub pending: usize,
    /// Of these, how many at the front must run in one step; 0 or 1 when all can be divided.
    pub indivisible: usize,
    /// Of these, how many at the front yield no logits.
    pub quiet: usize,
    /// Whether its last block is shared and partly filled: the next token needs a copy of it.
    pub shared_tail: bool,
    /// Step in which it last ran; 0 for never.
    pub last_step: u64,
}

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens.
    pub budget: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of prompts while answers are under way.
    pub reading: usize,
    /// Rows of logits; a row is as long as the vocabulary.
    pub logits: usize,
    /// Blocks that are free.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Whether the step before put an indivisible piece first.
    pub reading_went_first: bool,
}

/// Tokens of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the lane.
    pub lane: usize,
    /// Its next so many tokens.
    pub tokens: usize,
}

/// What a step runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The runs, each lane at most once.
    pub runs: Vec<Run>,
    /// Whether something had to stay out because blocks are short.
    pub short_of_blocks: bool,
    /// Whether an indivisible piece went first.
    pub reading_first: bool,
    /// Tokens of the plan that read prompts.
    pub reading: usize,
    /// Tokens of the plan that continue answers.
    pub writing: usize,
}

/// Longest continuation that still counts as writing: a token and what a new piece starts with.
const WRITING: usize = 4;

impl Lane {
    const fn writes(&self) -> bool {
        self.done > 0 && self.pending <= WRITING && self.indivisible <= 1
    }

    /// Blocks that running `tokens` more takes.
    const fn blocks(&self, tokens: usize, block_tokens: usize) -> usize {
        let copy = self.shared_tail && !self.done.is_multiple_of(block_tokens);
        let total = self.done.saturating_add(tokens);
        total.div_ceil(block_tokens) - self.done.div_ceil(block_tokens) + copy as usize
    }

    /// Most tokens, up to `tokens`, that fit into `blocks`.
    fn fitting(&self, tokens: usize, blocks: usize, block_tokens: usize) -> usize {
        if self.blocks(tokens, block_tokens) <= blocks {
            return tokens;
        }
        let copy = self.blocks(0, block_tokens);
        let Some(fresh) = blocks.checked_sub(copy) else {
            return 0;
        };
        let end = (self.done.div_ceil(block_tokens) + fresh).saturating_mul(block_tokens);
        tokens.min(end - self.done)
    }

    /// Most tokens, up to `tokens`, that yield at most `logits` rows. What cannot be divided yields what it must.
    fn yielding(&self, tokens: usize, logits: usize) -> usize {
        let most = self.quiet.saturating_add(logits).max(self.indivisible);
        tokens.min(most)
    }
}

/// What is left of a [`Room`] while it fills.
struct Filling<'a> {
    lanes: &'a [Lane],
    room: Room,
    plan: Plan,
}

impl Filling<'_> {
    fn take(&mut self, lane: usize, tokens: usize) {
        let chosen = &self.lanes[lane];
        self.room.budget = self.room.budget.saturating_sub(tokens);
        self.room.sequences -= 1;
        self.room.blocks -= chosen.blocks(tokens, self.room.block_tokens);
        self.room.logits = (self.room.logits).saturating_sub(tokens.saturating_sub(chosen.quiet));
        match chosen.writes() {
            true => self.plan.writing += tokens,
            false => self.plan.reading += tokens,
        }
        self.plan.runs.push(Run { lane, tokens });
    }

    /// Most tokens of a lane that blocks and logits allow; notes when blocks are short.
    fn possible(&mut self, lane: usize, tokens: usize) -> usize {
        let chosen = &self.lanes[lane];
        let fitting = chosen.fitting(tokens, self.room.blocks, self.room.block_tokens);
        self.plan.short_of_blocks |= fitting < tokens;
        chosen.yielding(fitting, self.room.logits)
    }

    fn write(&mut self, keep: usize) {
        let mut writers: Vec<usize> = (0..self.lanes.len())
            .filter(|lane| self.lanes[*lane].writes())
            .collect();
        // Who waited longest first: with a small budget the answers take turns.
        writers.sort_by_key(|lane| (self.lanes[*lane].last_step, *lane));
        for lane in writers {
            let room = self.room.budget.saturating_sub(keep);
            let wanted = self.lanes[lane].pending.min(room);
            if self.room.sequences == 0 || wanted == 0 {
                break;
            }
            let tokens = self.possible(lane, wanted);
            if tokens > 0 {
                self.take(lane, tokens);
            }
        }
    }

    fn read(&mut self, lane: usize) {
        let chosen = self.lanes[lane];
        let room = match self.plan.writing {
            0 => self.room.budget,
            _ => (self.room.budget).min(self.room.reading.saturating_sub(self.plan.reading)),
        };
        // What cannot be divided may exceed the share of reading, not the budget.
        let wanted = match chosen.indivisible {
            0 | 1 => chosen.pending.min(room),
            whole if whole <= self.room.budget => chosen.pending.min(room.max(whole)),
            _ => return,
        };
        if self.room.sequences == 0 || wanted == 0 {
            return;
        }
        let tokens = self.possible(lane, wanted);
        if tokens > 0 && tokens >= chosen.indivisible {
            self.take(lane, tokens);
        }
    }
}

/// Fills a step from `lanes`, which stand in the order of service.
///
/// The runs fit into the budget, except when the plan is one indivisible piece
/// that is longer than the budget. The plan is empty only if there are no
/// lanes or blocks are short.
#[must_use]
pub fn plan(lanes: &[Lane], room: &Room) -> Plan {
    let mut filling = Filling {
        lanes,
        room: *room,
        plan: Plan::default(),
    };
    let writing: usize = lanes
        .iter()
        .filter(|lane| lane.writes())
        .map(|lane| lane.pending)
        .sum();
    let readers: Vec<usize> = (0..lanes.len())
        .filter(|lane| !lanes[*lane].writes())
        .collect();
    if let Some(&first) = readers.first() {
        let whole = lanes[first].indivisible;
        let crowded = whole > 1 && whole.saturating_add(writing) > room.budget;
        if crowded && (writing == 0 || !room.reading_went_first) {
            let tokens = filling.possible(first, whole);
            if tokens == whole && room.sequences > 0 {
                filling.take(first, whole);
                filling.plan.reading_first = true;
            }
        }
    }
    let keep = match readers.is_empty() || filling.plan.reading_first {
        true => 0,
        false => room.budget / 4,
    };
    filling.write(keep);
    if !filling.plan.reading_first {
        for lane in readers {
            filling.read(lane);
        }
    }
    filling.plan
}
