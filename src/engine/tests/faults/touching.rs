//! The fake backend with real memory: weights, blocks and what a step takes are written to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm_engine::backend::{Backend, BackendError, Capabilities, Logits, MemoryUse, SeqId, Step};
use glm_engine::model::Model;
use glm_engine::units::Bytes;
use glm_engine::{Error, Result};

use crate::support::{FakeBackend, Shared, TestClock, capabilities, info};

const WEIGHTS: Bytes = Bytes::mib(64);
const BLOCK: Bytes = Bytes(256 << 10);
const BLOCKS: usize = 768;
/// What a step takes for each token.
const TOKEN: usize = 96 << 10;

struct Touching {
    inner: FakeBackend,
    _weights: Vec<u8>,
    /// Memory of every block that was ever used since the last shrink.
    blocks: Vec<Vec<u8>>,
}

/// A model of memory alone.
pub fn source() -> impl FnMut() -> Result<Model> + Send {
    let capabilities = Capabilities {
        block_bytes: BLOCK,
        blocks: BLOCKS,
        ..capabilities()
    };
    move || {
        let script = Shared::default();
        let clock = Arc::new(TestClock::default());
        let inner = FakeBackend::new(capabilities.clone(), script, clock);
        let weights = usize::try_from(WEIGHTS.0).map_err(|_| Error::Internal {
            reason: "no such machine",
        })?;
        Ok(Model {
            info: info(capabilities.clone()),
            backend: Box::new(Touching {
                inner,
                _weights: vec![1; weights],
                blocks: Vec::new(),
            }),
        })
    }
}

impl Touching {
    fn used(&self) -> usize {
        BLOCKS - self.inner.memory().free_blocks
    }
}

/// So that nothing is optimised away.
static SINK: Mutex<u8> = Mutex::new(0);

impl Backend for Touching {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        let activations = vec![2_u8; TOKEN * step.rows.len()];
        let logits = self.inner.forward(step)?;
        let size = usize::try_from(BLOCK.0).unwrap_or(0);
        while self.blocks.len() < self.used() {
            self.blocks.push(vec![3; size]);
        }
        let rows = u32::try_from(step.rows.len()).unwrap_or(u32::MAX);
        std::thread::sleep(Duration::from_millis(3) + Duration::from_micros(50) * rows);
        *SINK.lock().unwrap() ^= activations[activations.len() / 2];
        Ok(logits)
    }

    fn len(&self, seq: SeqId) -> usize {
        self.inner.len(seq)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        self.inner.fork(parent, child, tokens)
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        self.inner.truncate(seq, tokens);
    }

    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights: WEIGHTS,
            kv_resident: Bytes(BLOCK.0 * self.blocks.len() as u64),
            ..self.inner.memory()
        }
    }

    fn shrink(&mut self) -> Bytes {
        let keep = self.used();
        let given = self.blocks.len().saturating_sub(keep);
        self.blocks.truncate(keep);
        Bytes(BLOCK.0 * given as u64)
    }
}
