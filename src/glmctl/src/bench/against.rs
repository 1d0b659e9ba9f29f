//! Ours beside ONNX Runtime: the same graph, batched, with its caches written in place.
//!
//! This is how ONNX Runtime GenAI runs a decoder: past and present of a layer
//! are one tensor `[batch, heads, longest, width]`, and the mask says how much
//! of each row is filled. Attention does not care what the caches hold, so
//! texts are held without encoding them first.

use std::fs;
use std::path::Path;

use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::subject::Subject;
use glm::ModelSpec;
use glm_onnx::proto::ModelProto;
use glm_onnx::synthetic;
use prost::Message as _;

/// Places behind the longest text, so that no step grows the caches.
const ROOM: usize = 64;

/// Which products the graph has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Those of the file.
    AsStored,
    /// Dynamically quantised ones, with a scale for each output.
    Dynamic,
}

/// A session and the texts that its caches hold.
pub struct Unmodified<'a> {
    session: Session,
    spec: &'a ModelSpec,
    binding: Option<IoBinding>,
    lengths: Vec<usize>,
    longest: usize,
}

impl<'a> Unmodified<'a> {
    /// Loads `graph` with ONNX Runtime's own kernels and defaults.
    pub fn open(
        env: &Environment,
        graph: &Path,
        spec: &'a ModelSpec,
        threads: usize,
        products: Products,
    ) -> Result<Self, String> {
        let dynamic = match products {
            Products::AsStored => None,
            Products::Dynamic => Some(dynamic(graph)?),
        };
        let open = || -> ort::Result<Session> {
            let mut builder = Session::builder(env)?.with_intra_threads(threads)?;
            match &dynamic {
                None => builder.commit_from_file(graph),
                Some(model) => {
                    let folder = graph.parent().unwrap_or_else(|| Path::new("."));
                    let key = "session.model_external_initializers_file_folder_path";
                    builder
                        .with_config_entry(key, folder.to_string_lossy())?
                        .commit_from_memory(model)
                }
            }
        };
        Ok(Self {
            session: open().map_err(text)?,
            spec,
            binding: None,
            lengths: Vec::new(),
            longest: 0,
        })
    }

    /// Caches of `rows` texts of up to `longest` tokens.
    fn bind(&mut self, rows: usize, longest: usize) -> ort::Result<()> {
        let mut binding = self.session.create_binding()?;
        let shape = [rows, self.spec.kv_heads, longest, self.spec.head_dim];
        for layer in 0..self.spec.layers {
            for part in ["key", "value"] {
                let mut cache = Tensor::<f32>::new(self.session.allocator(), shape)?;
                cache.try_extract_tensor_mut::<f32>()?.1.fill(0.0);
                binding.bind_input(format!("past_key_values.{layer}.{part}"), &cache)?;
                binding.bind_output(format!("present.{layer}.{part}"), cache)?;
            }
        }
        let host = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        binding.bind_output_to_device("logits", &host)?;
        self.binding = Some(binding);
        self.longest = longest;
        Ok(())
    }

    /// Runs `new` tokens of every text, which then have `lengths`.
    fn run(&mut self, new: usize) -> ort::Result<()> {
        let rows = self.lengths.len();
        let vocabulary = i64::try_from(self.spec.vocab_rows).unwrap_or(i64::MAX);
        let ids: Vec<i64> = (0..)
            .step_by(104_729)
            .take(rows * new)
            .map(|id: i64| id % vocabulary)
            .collect();
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let mask: Vec<i64> = self
            .lengths
            .iter()
            .flat_map(|length| (0..longest).map(move |place| i64::from(place < *length)))
            .collect();
        let Some(binding) = self.binding.as_mut() else {
            return Err(ort::Error::new("nothing is held"));
        };
        binding.bind_input("input_ids", &Tensor::from_array(([rows, new], ids))?)?;
        let mask = Tensor::from_array(([rows, longest], mask))?;
        binding.bind_input("attention_mask", &mask)?;
        self.session.run_binding(binding)?;
        Ok(())
    }
}

impl Subject for Unmodified<'_> {
    fn prompt(&mut self, length: usize) -> Result<(), String> {
        self.lengths = vec![length];
        self.bind(1, length + ROOM).map_err(text)?;
        self.run(length).map_err(text)
    }

    fn hold(&mut self, lengths: &[usize]) -> Result<(), String> {
        self.lengths = lengths.to_vec();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        self.bind(lengths.len(), longest + ROOM).map_err(text)
    }

    fn step(&mut self) -> Result<(), String> {
        for length in &mut self.lengths {
            *length = (*length + 1).min(self.longest);
        }
        self.run(1).map_err(text)
    }
}

/// The graph with dynamically quantised products.
fn dynamic(graph: &Path) -> Result<Vec<u8>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", graph.display());
    let bytes = fs::read(graph).map_err(|error| named(&error))?;
    let mut model = ModelProto::decode(bytes.as_slice()).map_err(|error| named(&error))?;
    match synthetic::dynamic_integers(&mut model) {
        0 => Err(named(&"no product has weights of eight bits")),
        _ => Ok(model.encode_to_vec()),
    }
}

fn text(error: ort::Error) -> String {
    error.to_string()
}
