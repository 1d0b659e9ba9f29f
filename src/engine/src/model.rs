//! A loaded model as the engine holds it, and where it comes from.

use std::fmt;
use std::sync::Arc;

use glm::ModelSpec;
use glm::manifest::Tasks;
use glm::spec::SpecialIds;
use glm::tokenizer::Tokenizer;

use crate::backend::{Backend, Capabilities};
use crate::error::Result;
use crate::loading::Report;
use crate::units::{Bytes, Epoch};

/// What transports need to know about the loaded model to make prompts for it.
#[derive(Clone)]
pub struct ModelInfo {
    /// Name, as `GET /v1/models` shows it.
    pub id: String,
    /// SHA-256 of the model's files, hexadecimal. A reload with the same digest is the same model.
    pub digest: String,
    /// Which loading this is; goes into every [`Request`](crate::request::Request).
    pub epoch: Epoch,
    /// Family and shape.
    pub spec: ModelSpec,
    /// Special tokens.
    pub special: SpecialIds,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Jinja source of the chat template, when the model chats.
    pub chat_template: Option<String>,
    /// What the model was trained to be asked, by name.
    pub tasks: Tasks,
    /// How it came to run: backend, library, threads, and why no better backend.
    pub report: Report,
    /// What the backend can do.
    pub capabilities: Capabilities,
}

impl fmt::Debug for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelInfo")
            .field("id", &self.id)
            .field("digest", &self.digest)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// A loaded model.
pub struct Model {
    /// Its description; the engine fills in the epoch and the capabilities.
    pub info: ModelInfo,
    /// What runs it.
    pub backend: Box<dyn Backend>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Loads a model, again and again: after an unload under memory pressure the engine comes back by itself.
///
/// Called on the engine thread, or on a thread of its own while another model serves.
pub trait ModelSource: Send {
    /// Loads it.
    ///
    /// # Errors
    /// [`Error::Load`](crate::Error::Load) with what is missing or broken.
    fn load(&mut self) -> Result<Model>;

    /// Memory that the loaded model will take before its first request, as far as can be told without
    /// loading it.
    fn size(&self) -> Option<Bytes> {
        None
    }

    /// Looks for whatever can be wrong with the model and be found without the memory to load it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What a reload came to.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The new model.
    pub model: Arc<ModelInfo>,
    /// Whether the old one served until the new one had passed its test; if not, the new one was
    /// checked as far as can be, and then the old one made room for it.
    pub old_served: bool,
}

impl<F: FnMut() -> Result<Model> + Send> ModelSource for F {
    fn load(&mut self) -> Result<Model> {
        self()
    }
}
