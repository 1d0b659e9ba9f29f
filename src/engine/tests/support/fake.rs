//! A backend without weights: see the parent module.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm::TokenId;
use glm_engine::backend::{
    Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, Row, SeqId, Step,
};
use glm_engine::units::{Clock, Moment};

/// Ids 0.. of the vocabulary; the last one ends an answer.
pub const VOCABULARY: usize = 64;
/// Ends an answer.
pub const END: TokenId = TokenId(63);

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        Moment(Duration::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// What the fake is told to do and what it saw; shared with the test.
#[derive(Debug, Default)]
pub struct Script {
    /// The next so many steps fail.
    pub fail_steps: usize,
    /// Every step with this token fails.
    pub poison: Option<TokenId>,
    /// Every step with this token panics.
    pub panic_on: Option<TokenId>,
    /// Time that a step takes, whatever is in it.
    pub step_time: Duration,
    /// Time that each row adds.
    pub row_time: Duration,
    /// Rows of each step that ran.
    pub steps: Vec<Vec<Row>>,
    /// Whether to record the steps.
    pub record: bool,
    /// Free blocks and sequences after the last call.
    pub free_blocks: usize,
    pub sequences: usize,
    /// Times that the model was loaded.
    pub loads: usize,
    /// Calls that broke the contract.
    pub violations: Vec<String>,
}

pub type Shared = Arc<Mutex<Script>>;

#[derive(Clone, Debug, Default)]
struct Sequence {
    /// `states[i]` covers the first `i` tokens.
    states: Vec<u64>,
    blocks: Vec<usize>,
}

/// The model without weights.
pub struct FakeBackend {
    capabilities: Capabilities,
    sequences: HashMap<SeqId, Sequence>,
    owners: Vec<usize>,
    free: Vec<usize>,
    script: Shared,
    clock: Arc<TestClock>,
}

pub const fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0xD1B5_4A32_D192_ED03);
    let x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

impl FakeBackend {
    pub fn new(capabilities: Capabilities, script: Shared, clock: Arc<TestClock>) -> Self {
        let blocks = capabilities.blocks;
        let fake = Self {
            capabilities,
            sequences: HashMap::new(),
            owners: vec![0; blocks],
            free: (0..blocks).rev().collect(),
            script,
            clock,
        };
        fake.report();
        fake
    }

    fn report(&self) {
        let mut script = self.script.lock().unwrap();
        script.free_blocks = self.free.len();
        script.sequences = self.sequences.len();
    }

    fn drop_block(&mut self, block: usize) {
        self.owners[block] -= 1;
        if self.owners[block] == 0 {
            self.free.push(block);
        }
    }

    fn take_block(&mut self) -> usize {
        let block = self.free.pop().expect("counted before");
        self.owners[block] = 1;
        block
    }

    /// Blocks that the rows of one sequence need.
    fn needed(&self, seq: SeqId, rows: usize) -> usize {
        let size = self.capabilities.block_tokens;
        let Some(sequence) = self.sequences.get(&seq) else {
            return rows.div_ceil(size);
        };
        let len = sequence.states.len() - 1;
        let copy = len % size > 0 && self.owners[sequence.blocks[len / size]] > 1;
        (len + rows).div_ceil(size) - len.div_ceil(size) + usize::from(copy)
    }

    fn grow(&mut self, seq: SeqId, rows: &[Row]) -> Result<Vec<u64>, String> {
        let size = self.capabilities.block_tokens;
        let mut sequence = self.sequences.remove(&seq).unwrap_or_default();
        if sequence.states.is_empty() {
            sequence.states.push(1);
        }
        let start = sequence.states.len() - 1;
        if !start.is_multiple_of(size) && self.owners[sequence.blocks[start / size]] > 1 {
            let old = sequence.blocks[start / size];
            self.drop_block(old);
            sequence.blocks[start / size] = self.take_block();
        }
        for row in rows {
            let at = row.position;
            let token =
                (u64::from(row.id.0) << 32) ^ mix(u64::from(at.first), u64::from(at.second));
            let state = mix(sequence.states[sequence.states.len() - 1], token);
            sequence.states.push(state);
        }
        let length = sequence.states.len() - 1;
        while sequence.blocks.len() * size < length {
            let block = self.take_block();
            sequence.blocks.push(block);
        }
        let mut wanted = Vec::new();
        let mut wrong = None;
        for (index, row) in (start..).zip(rows) {
            let visible = row.visible as usize;
            if visible <= index || visible > length {
                wrong = Some(format!("{seq}: token {index} of {length} sees {visible}"));
                continue;
            }
            if row.logits {
                wanted.push(mix(sequence.states[visible], index as u64));
            }
        }
        if length > self.capabilities.max_tokens {
            wrong = Some(format!("{seq} has {length} tokens"));
        }
        self.sequences.insert(seq, sequence);
        wrong.map_or(Ok(wanted), Err)
    }

    fn check(&self, step: &Step) -> Result<(), BackendError> {
        let mut script = self.script.lock().unwrap();
        let has = |id: Option<TokenId>| id.is_some_and(|id| step.rows.iter().any(|r| r.id == id));
        let panics = has(script.panic_on);
        let fails = has(script.poison) || script.fail_steps > 0;
        script.fail_steps = script.fail_steps.saturating_sub(1);
        let rows = u32::try_from(step.rows.len()).unwrap_or(u32::MAX);
        (self.clock).advance(script.step_time + script.row_time * rows);
        drop(script);
        if panics {
            // As a panic does, without a report of it in the output of the test.
            std::panic::resume_unwind(Box::new("told to panic"));
        }
        match fails {
            true => Err(BackendError::Runtime {
                backend: "fake",
                reason: "told to fail".into(),
            }),
            false => Ok(()),
        }
    }
}

impl Drop for FakeBackend {
    /// What it held is free: a model that took its place has nothing yet.
    fn drop(&mut self) {
        if let Ok(mut script) = self.script.lock() {
            script.sequences = 0;
            script.free_blocks = self.capabilities.blocks;
        }
    }
}

impl Backend for FakeBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        self.check(step)?;
        let runs: Vec<&[Row]> = step.rows.chunk_by(|a, b| a.seq == b.seq).collect();
        let needed: usize = runs
            .iter()
            .map(|run| self.needed(run[0].seq, run.len()))
            .sum();
        if needed > self.free.len() {
            // The contract allows it; the engine promises to count as we do.
            let free = self.free.len();
            (self.script.lock().unwrap().violations)
                .push(format!("{needed} blocks needed, {free} free"));
            return Err(BackendError::OutOfBlocks {
                needed,
                free: self.free.len(),
            });
        }
        let mut violations = Vec::new();
        if runs.len() > self.capabilities.max_sequences
            || step.rows.len() > self.capabilities.max_step_tokens
        {
            violations.push(format!(
                "{} rows of {} sequences",
                step.rows.len(),
                runs.len()
            ));
        }
        let mut values = Vec::new();
        for run in runs {
            match self.grow(run[0].seq, run) {
                Ok(wanted) => {
                    for state in wanted {
                        values.extend((0..VOCABULARY as u64).map(|token| {
                            #[allow(clippy::cast_precision_loss)] // 20 bits are exact.
                            let x = (mix(state, token) >> 44) as f32;
                            x / 262_144.0
                        }));
                    }
                }
                Err(wrong) => violations.push(wrong),
            }
        }
        let mut script = self.script.lock().unwrap();
        script.violations.extend(violations);
        if script.record {
            script.steps.push(step.rows.clone());
        }
        drop(script);
        self.report();
        Ok(Logits {
            values,
            vocabulary: VOCABULARY,
        })
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.get(&seq).map_or(0, |s| s.states.len() - 1)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        let bad = |reason: &str| Err(BackendError::BadStep(reason.into()));
        if !self.capabilities.fork || self.sequences.contains_key(&child) {
            return bad("cannot fork");
        }
        let Some(from) = self.sequences.get(&parent) else {
            return bad("no parent");
        };
        if from.states.len() <= tokens {
            return bad("the parent is shorter");
        }
        let blocks = tokens.div_ceil(self.capabilities.block_tokens);
        let copy = Sequence {
            states: from.states[..=tokens].to_vec(),
            blocks: from.blocks[..blocks].to_vec(),
        };
        for block in &copy.blocks {
            self.owners[*block] += 1;
        }
        self.sequences.insert(child, copy);
        self.report();
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        let Some(mut sequence) = self.sequences.remove(&seq) else {
            return;
        };
        sequence.states.truncate(tokens + 1);
        let keep = tokens.div_ceil(self.capabilities.block_tokens);
        for block in sequence
            .blocks
            .drain(keep.min(sequence.blocks.len())..)
            .collect::<Vec<_>>()
        {
            self.drop_block(block);
        }
        self.sequences.insert(seq, sequence);
        self.report();
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.remove(&seq) {
            for block in sequence.blocks {
                self.drop_block(block);
            }
        }
        self.report();
    }

    fn memory(&self) -> MemoryUse {
        let used = self.capabilities.blocks - self.free.len();
        let bytes = Bytes(used as u64 * self.capabilities.block_bytes.0);
        MemoryUse {
            weights: Bytes(0),
            mapped: Bytes(0),
            kv_used: bytes,
            kv_resident: bytes,
            free_blocks: self.free.len(),
        }
    }

    fn shrink(&mut self) -> Bytes {
        Bytes(0)
    }
}
