//! The paged backends: what ONNX Runtime and tract have in common.
//!
//! A [`PagedBackend`] keeps the books, its [`Runtime`] runs the rewritten
//! graph. A step opens a transaction on the key/value cache, runs the graph,
//! whose attention nodes write into the open step, and commits; an error or a
//! panic on the way rolls it back, and the sequences are as before.

mod operators;
mod weights;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use glm_kernels::{BLOCK_TOKENS, KernelError, StepRow};
use glm_onnx::paging::PositionInput;

pub(crate) use operators::{Limits, Operation, Operators};

use super::{Backend, BackendError, Bytes, Capabilities, Logits, MemoryUse, Row, SeqId, Step};

/// Inputs of the paged graph for one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// Tokens `[1, N]`.
    pub(crate) ids: Vec<i64>,
    /// Nothing, `[1, N]` or `[1, 2, N]`, as the graph wants them.
    pub(crate) positions: Vec<i64>,
    /// Rows whose logits are wanted; at least one, since runtimes shy at empty tensors.
    pub(crate) wanted: Vec<i64>,
}

/// Runs the paged graph.
pub(crate) trait Runtime: Send {
    /// Name of the backend that runs on it.
    const NAME: &'static str;

    /// Weights that it keeps in memory of its own.
    fn packed(&self) -> Bytes {
        Bytes(0)
    }

    /// Logits `[wanted, vocabulary]` of one step.
    ///
    /// # Errors
    /// With the message of the runtime or of an operator.
    fn run(&mut self, inputs: &Inputs) -> Result<Vec<f32>, String>;
}

/// A model on paged caches.
#[derive(Debug)]
pub(crate) struct PagedBackend<R> {
    capabilities: Capabilities,
    operators: Arc<Operators>,
    runtime: R,
}

impl<R: Runtime> PagedBackend<R> {
    pub(crate) fn new(operators: Arc<Operators>, runtime: R) -> Self {
        Self {
            capabilities: Capabilities {
                name: R::NAME,
                vocabulary: operators.vocabulary(),
                max_tokens: operators.max_tokens(),
                block_tokens: BLOCK_TOKENS,
                block_bytes: Bytes(operators.block_bytes() as u64),
                blocks: operators.layout().blocks,
                max_sequences: usize::MAX,
                max_step_tokens: usize::MAX,
                // A bidirectional prefix must be whole, which the scheduler knows from the prompt.
                chunked_prefill: true,
                fork: true,
            },
            operators,
            runtime,
        }
    }

    /// Refuses what the caches do not check themselves: texts longer than the model can tell positions apart.
    fn check(&self, rows: &[Row]) -> Result<(), BackendError> {
        let limit = self.capabilities.max_tokens;
        let cache = self.operators.cache();
        for part in rows.chunk_by(|a, b| a.seq == b.seq) {
            let seq = part[0].seq;
            let total = cache.len(seq.0) + part.len();
            if total > limit {
                return Err(BackendError::BadStep(format!(
                    "{seq} would hold {total} of {limit} tokens"
                )));
            }
        }
        Ok(())
    }

    /// Runs the graph; a panic is an error.
    fn run(&mut self, inputs: &Inputs) -> Result<Vec<f32>, BackendError> {
        let failed = |reason| BackendError::Runtime {
            backend: R::NAME,
            reason,
        };
        let values = catch_unwind(AssertUnwindSafe(|| self.runtime.run(inputs)))
            .unwrap_or_else(|panic| Err(format!("panicked: {}", message_of(panic.as_ref()))))
            .map_err(failed)?;
        let expected = inputs.wanted.len() * self.capabilities.vocabulary;
        if values.len() == expected {
            Ok(values)
        } else {
            Err(failed(format!(
                "gave {} logits, not {expected}",
                values.len()
            )))
        }
    }
}

/// Rows of a step as the cache counts them.
fn step_rows(rows: &[Row]) -> Vec<StepRow> {
    rows.iter()
        .map(|row| StepRow {
            seq: row.seq.0,
            position: [row.position.first, row.position.second],
            visible: row.visible,
        })
        .collect()
}

/// Inputs of the graph for `rows`.
fn inputs(rows: &[Row], positions: &PositionInput) -> Inputs {
    let first = rows.iter().map(|row| i64::from(row.position.first));
    let second = rows.iter().map(|row| i64::from(row.position.second));
    let wanted: Vec<i64> = (0..)
        .zip(rows)
        .filter(|(_, row)| row.logits)
        .map(|(index, _)| index)
        .collect();
    Inputs {
        ids: rows.iter().map(|row| row.id.into()).collect(),
        positions: match positions {
            PositionInput::None => Vec::new(),
            PositionInput::One(_) => first.collect(),
            PositionInput::Two(_) => first.chain(second).collect(),
        },
        wanted: if wanted.is_empty() { vec![0] } else { wanted },
    }
}

impl<R: Runtime> Backend for PagedBackend<R> {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let vocabulary = self.capabilities.vocabulary;
        let rows = step.rows.as_slice();
        if rows.is_empty() {
            return Ok(Logits {
                values: Vec::new(),
                vocabulary,
            });
        }
        self.check(rows)?;
        let begun = self.operators.cache().begin(&step_rows(rows));
        begun.map_err(|error| refused::<R>(&error))?;
        let inputs = inputs(rows, self.operators.positions());
        let ran = self.run(&inputs);
        let mut cache = self.operators.cache();
        match ran {
            Ok(values) => {
                cache.commit();
                let wanted = rows.iter().any(|row| row.logits);
                Ok(Logits {
                    values: if wanted { values } else { Vec::new() },
                    vocabulary,
                })
            }
            Err(error) => {
                cache.rollback();
                Err(error)
            }
        }
    }

    fn len(&self, seq: SeqId) -> usize {
        self.operators.cache().len(seq.0)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        self.operators
            .cache()
            .fork(parent.0, child.0, tokens)
            .map_err(|error| refused::<R>(&error))
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        self.operators.cache().truncate(seq.0, tokens);
    }

    fn release(&mut self, seq: SeqId) {
        self.operators.cache().release(seq.0);
    }

    fn memory(&self) -> MemoryUse {
        let memory = self.operators.cache().memory();
        MemoryUse {
            weights: self.operators.weights().bytes().plus(self.runtime.packed()),
            mapped: self.operators.weights().mapped(),
            kv_used: Bytes(memory.used as u64),
            kv_resident: Bytes(memory.resident as u64),
            free_blocks: memory.free_blocks,
        }
    }

    fn shrink(&mut self) -> Bytes {
        Bytes(self.operators.cache().shrink() as u64)
    }
}

/// An error of the cache in the words of the contract.
fn refused<R: Runtime>(error: &KernelError) -> BackendError {
    match error {
        KernelError::OutOfBlocks { needed, free } => BackendError::OutOfBlocks {
            needed: *needed,
            free: *free,
        },
        KernelError::BadStep(_) | KernelError::BadFork(_) => {
            BackendError::BadStep(error.to_string())
        }
        other => BackendError::Runtime {
            backend: R::NAME,
            reason: other.to_string(),
        },
    }
}

/// What a panic said.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
