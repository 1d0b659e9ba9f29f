//! A backend that tells how many steps it was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use glm_engine::backend::{Backend, BackendError, Capabilities, Logits, MemoryUse, SeqId, Step};
use glm_engine::loading::Loader;
use glm_engine::model::{Model, ModelSource};
use glm_engine::units::Bytes;

/// Steps that were begun, whatever became of them.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<AtomicU64>);

impl Steps {
    /// How many until now.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Loads what `loader` loads, counted.
pub struct CountedLoader {
    /// Of the model.
    pub loader: Loader,
    /// Where its steps are counted.
    pub steps: Steps,
}

impl ModelSource for CountedLoader {
    fn load(&mut self) -> glm_engine::Result<Model> {
        let Model { info, backend } = self.loader.load()?;
        let steps = self.steps.clone();
        Ok(Model {
            info,
            backend: Box::new(Counted { backend, steps }),
        })
    }

    fn size(&self) -> Option<Bytes> {
        self.loader.size()
    }
}

struct Counted {
    backend: Box<dyn Backend>,
    steps: Steps,
}

impl Backend for Counted {
    fn capabilities(&self) -> &Capabilities {
        self.backend.capabilities()
    }

    fn forward(&mut self, step: &Step) -> Result<Logits, BackendError> {
        self.steps.0.fetch_add(1, Ordering::SeqCst);
        self.backend.forward(step)
    }

    fn len(&self, seq: SeqId) -> usize {
        self.backend.len(seq)
    }

    fn fork(&mut self, parent: SeqId, child: SeqId, tokens: usize) -> Result<(), BackendError> {
        self.backend.fork(parent, child, tokens)
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        self.backend.truncate(seq, tokens);
    }

    fn release(&mut self, seq: SeqId) {
        self.backend.release(seq);
    }

    fn memory(&self) -> MemoryUse {
        self.backend.memory()
    }

    fn shrink(&mut self) -> Bytes {
        self.backend.shrink()
    }
}
