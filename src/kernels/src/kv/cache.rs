//! Sequences, their block tables, and steps that happen whole or not at all.

use std::collections::HashMap;
use std::ops::Range;

use super::blocks::Blocks;
use super::layout::{BLOCK_TOKENS, Geometry, KvLayout};
use crate::error::KernelError;

/// One token of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Sequence the token belongs to; numbers are the caller's.
    pub seq: u64,
    /// Position numbers for the rotation; the second only matters where two rotate.
    pub position: [u32; 2],
    /// Keys of its sequence that the token sees, counted from the first: its
    /// own index + 1 for causal tokens, more inside a bidirectional prefix.
    pub visible: u32,
}

/// Memory of a cache, in bytes where not said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvMemory {
    /// One block over all layers.
    pub block: usize,
    /// Blocks that exist, a count.
    pub blocks: usize,
    /// Blocks that nobody holds, a count.
    pub free_blocks: usize,
    /// Blocks that sequences or an open step hold.
    pub used: usize,
    /// Blocks that have pages, used or not: an upper bound of what is resident.
    pub resident: usize,
}

/// Keys and values of many sequences.
///
/// A step is opened with [`begin`](Self::begin), which reserves everything it
/// needs; [`Kernels::attention`](crate::Kernels::attention) writes its keys and
/// values layer by layer; [`commit`](Self::commit) makes the sequences longer.
/// Until then they are as before: [`rollback`](Self::rollback) frees what the
/// step held, and so do the next step, any change of a sequence, and dropping
/// the cache. A panic between the two calls therefore leaks nothing.
#[derive(Debug)]
pub struct KvCache {
    blocks: Blocks,
    sequences: HashMap<u64, Sequence>,
    step: Option<OpenStep>,
}

#[derive(Debug, Default)]
struct Sequence {
    blocks: Vec<u32>,
    len: usize,
}

/// A step between `begin` and `commit`.
#[derive(Debug)]
pub(crate) struct OpenStep {
    pub(crate) rows: Vec<StepRow>,
    pub(crate) runs: Vec<Run>,
    /// Block tables of the runs, as they are during the step.
    pub(crate) tables: Vec<u32>,
}

/// The rows of one sequence in a step.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    seq: u64,
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Tokens that the sequence holds already.
    pub(crate) start: usize,
    /// Its block table in [`OpenStep::tables`].
    pub(crate) table: Range<usize>,
    /// Blocks at the start of the table that it has already; the others are new.
    kept: usize,
}

impl KvCache {
    /// Reserves address space for `layout.blocks` blocks; memory is used as blocks are written.
    ///
    /// # Errors
    /// When the layout is not supported, or the system refuses the reservation.
    pub fn new(layout: &KvLayout) -> Result<Self, KernelError> {
        Ok(Self {
            blocks: Blocks::new(Geometry::new(layout)?)?,
            sequences: HashMap::new(),
            step: None,
        })
    }

    /// Its shape.
    #[must_use]
    pub const fn layout(&self) -> &KvLayout {
        &self.blocks.geometry().layout
    }

    /// Tokens that `seq` holds, without those of an open step; 0 when it is unknown.
    #[must_use]
    pub fn len(&self, seq: u64) -> usize {
        self.sequences.get(&seq).map_or(0, |sequence| sequence.len)
    }

    /// Whether it holds no sequence.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Memory held now.
    #[must_use]
    pub fn memory(&self) -> KvMemory {
        let block = self.blocks.geometry().block;
        KvMemory {
            block,
            blocks: self.layout().blocks,
            free_blocks: self.blocks.free(),
            used: self.blocks.used() * block,
            resident: self.blocks.resident() * block,
        }
    }

    /// Opens a step of `rows` and reserves its blocks; an open one is rolled back.
    ///
    /// Rows of a sequence stand together and continue where it ended; an
    /// unknown sequence starts empty. A row sees itself and may see later rows
    /// of its sequence in the same step.
    ///
    /// # Errors
    /// [`KernelError::BadStep`] and [`KernelError::OutOfBlocks`]; nothing has then changed.
    pub fn begin(&mut self, rows: &[StepRow]) -> Result<(), KernelError> {
        self.rollback();
        let mut runs = self.runs(rows)?;
        let needed: usize = runs.iter().map(|run| run.table.len() - run.kept).sum();
        let free = self.blocks.free();
        if needed > free {
            return Err(KernelError::OutOfBlocks { needed, free });
        }
        let mut tables = Vec::with_capacity(runs.iter().map(|run| run.table.len()).sum());
        for run in &mut runs {
            let at = tables.len();
            let old = self.sequences.get(&run.seq);
            tables.extend_from_slice(old.map_or(&[], |old| &old.blocks[..run.kept]));
            let shared_tail = old.and_then(|old| old.blocks.get(run.kept)).copied();
            for _ in run.kept..run.table.len() {
                // Counted above.
                tables.extend(self.blocks.take());
            }
            if let (Some(from), Some(to)) = (shared_tail, tables.get(at + run.kept)) {
                self.blocks.copy(from, *to);
            }
            run.table = at..tables.len();
        }
        self.step = Some(OpenStep {
            rows: rows.to_vec(),
            runs,
            tables,
        });
        Ok(())
    }

    /// Checks the rows and sizes the block table of each sequence.
    fn runs(&self, rows: &[StepRow]) -> Result<Vec<Run>, KernelError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut first = 0;
        for chunk in rows.chunk_by(|a, b| a.seq == b.seq) {
            let seq = chunk[0].seq;
            let old = self.sequences.get(&seq);
            let start = old.map_or(0, |old| old.len);
            let end = start + chunk.len();
            for (index, row) in (start..).zip(chunk) {
                let visible = row.visible as usize;
                if visible <= index || visible > end {
                    return Err(KernelError::BadStep(format!(
                        "token {index} of sequence {seq} sees {visible} tokens, not {}..={end}",
                        index + 1
                    )));
                }
            }
            // A block that others hold is copied before it is written.
            let tail = old.and_then(|old| old.blocks.get(start / BLOCK_TOKENS));
            let kept = match tail {
                Some(tail) if !self.blocks.is_shared(*tail) => start / BLOCK_TOKENS + 1,
                _ => start / BLOCK_TOKENS,
            };
            runs.push(Run {
                seq,
                rows: first..first + chunk.len(),
                start,
                table: 0..end.div_ceil(BLOCK_TOKENS),
                kept,
            });
            first += chunk.len();
        }
        let mut seen: Vec<u64> = runs.iter().map(|run| run.seq).collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(KernelError::BadStep(format!(
                "the rows of sequence {} do not stand together",
                twice[0]
            )));
        }
        Ok(runs)
    }

    /// Whether a step is open.
    #[must_use]
    pub const fn in_step(&self) -> bool {
        self.step.is_some()
    }

    /// Makes the tokens of the open step part of their sequences; nothing happens without one.
    pub fn commit(&mut self) {
        let Some(step) = self.step.take() else {
            return;
        };
        for run in step.runs {
            let sequence = self.sequences.entry(run.seq).or_default();
            for block in sequence.blocks.drain(run.kept..) {
                self.blocks.release(block);
            }
            let new = &step.tables[run.table][run.kept..];
            sequence.blocks.extend_from_slice(new);
            sequence.len = run.start + run.rows.len();
        }
    }

    /// Forgets the open step; nothing happens without one.
    pub fn rollback(&mut self) {
        let Some(step) = self.step.take() else {
            return;
        };
        for run in step.runs {
            for block in &step.tables[run.table][run.kept..] {
                self.blocks.release(*block);
            }
        }
    }

    /// Makes `child` a copy of the first `tokens` tokens of `parent`. Both hold
    /// the same blocks; who writes into a shared one copies it first. An open
    /// step is rolled back.
    ///
    /// # Errors
    /// [`KernelError::BadFork`] when `child` exists or `parent` has fewer tokens.
    pub fn fork(&mut self, parent: u64, child: u64, tokens: usize) -> Result<(), KernelError> {
        self.rollback();
        let refuse = |reason: String| Err(KernelError::BadFork(reason));
        if self.sequences.contains_key(&child) {
            return refuse(format!("sequence {child} exists"));
        }
        let Some(from) = self.sequences.get(&parent) else {
            return refuse(format!("sequence {parent} is unknown"));
        };
        if from.len < tokens {
            return refuse(format!(
                "sequence {parent} has {} tokens, not {tokens}",
                from.len
            ));
        }
        let blocks = from.blocks[..tokens.div_ceil(BLOCK_TOKENS)].to_vec();
        for block in &blocks {
            self.blocks.share(*block);
        }
        let len = tokens;
        self.sequences.insert(child, Sequence { blocks, len });
        Ok(())
    }

    /// Forgets what `seq` holds from `tokens` on; nothing happens when it is
    /// shorter or unknown. An open step is rolled back.
    pub fn truncate(&mut self, seq: u64, tokens: usize) {
        self.rollback();
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return;
        };
        if sequence.len <= tokens {
            return;
        }
        sequence.len = tokens;
        for block in sequence.blocks.drain(tokens.div_ceil(BLOCK_TOKENS)..) {
            self.blocks.release(block);
        }
    }

    /// Forgets `seq`; nothing happens when it is unknown. An open step is rolled back.
    pub fn release(&mut self, seq: u64) {
        self.rollback();
        if let Some(sequence) = self.sequences.remove(&seq) {
            for block in sequence.blocks {
                self.blocks.release(block);
            }
        }
    }

    /// Gives the memory of free blocks back to the system; returns how many
    /// bytes of blocks that were.
    pub fn shrink(&mut self) -> usize {
        self.blocks.shrink()
    }

    pub(crate) const fn open_step(&self) -> Option<&OpenStep> {
        self.step.as_ref()
    }

    pub(crate) const fn geometry(&self) -> &Geometry {
        self.blocks.geometry()
    }

    /// Start of the memory that [`Geometry::segment`] counts from.
    pub(crate) fn start(&mut self) -> *mut u8 {
        self.blocks.start()
    }
}
