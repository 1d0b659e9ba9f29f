//! The paged graph in ONNX Runtime, with our operators and its threads.
//!
//! ONNX Runtime runs the norms and activations between; the operators of the
//! domain `glmd` are registered as custom ones and share the weights and the
//! caches with the backend. They run on a [`Team`], not through `ParallelFor`:
//! nodes run one after the other, so the two sets of threads never work at the
//! same time, and those of the runtime must be woken for every node. Where ONNX
//! Runtime computes the products, too, members of the team sleep between two of
//! our nodes rather than look for the next one on its processors.
//!
//! Panics never cross into C: each operator catches them, also those of tasks
//! on other threads, and the step fails with their message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use glm_kernels::Team;
use glm_onnx::paging::{self, Matmul, Paged, PositionInput, Quantised};
use glm_onnx::proto::ModelProto;
use ort::environment::Environment;
use ort::ep::CPU;
use ort::logging::{LogLevel, LoggerFunction};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueRef};
use prost::Message;
use tracing::debug;

use super::Bytes;
use super::paged::{Inputs, Operation, Operators, Runtime, message_of};
use super::provider;

/// Name of this backend.
pub const NAME: &str = "ort-paged";

/// A session over the paged graph.
#[derive(Debug)]
pub(crate) struct OrtRuntime {
    session: Session,
    input_ids: String,
    positions: PositionInput,
    logits: String,
    /// What the session packed of the weights that stayed in the graph.
    packed: Bytes,
}

impl OrtRuntime {
    /// Makes a session of `paged`, whose constants left in the graph lie in `folder`.
    ///
    /// # Errors
    /// With the message of ONNX Runtime.
    pub(crate) fn new(
        env: &Environment,
        folder: &Path,
        paged: &Paged,
        operators: &Arc<Operators>,
        threads: usize,
    ) -> Result<Self, String> {
        let matmul = match paged.kept.is_empty() {
            true => Matmul::Glmd,
            false => Matmul::OnnxRuntime,
        };
        let team = Arc::new(team(threads, matmul)?);
        let session =
            session(env, folder, &paged.model, operators, &team, threads).map_err(told)?;
        let description = &paged.description;
        Ok(Self {
            session,
            packed: packed(&paged.kept),
            input_ids: description.input_ids.clone(),
            positions: description.positions.clone(),
            logits: description.logits.clone(),
        })
    }

    fn logits(&mut self, inputs: &Inputs) -> ort::Result<Vec<f32>> {
        let tokens = inputs.ids.len();
        let mut values: Vec<(&str, SessionInputValue<'_>)> = vec![
            (
                &self.input_ids,
                Tensor::from_array(([1, tokens], inputs.ids.clone()))?.into(),
            ),
            (
                paging::WANTED_ROWS,
                Tensor::from_array(([inputs.wanted.len()], inputs.wanted.clone()))?.into(),
            ),
        ];
        match &self.positions {
            PositionInput::None => {}
            PositionInput::One(name) => {
                let positions = inputs.positions.clone();
                values.push((name, Tensor::from_array(([1, tokens], positions))?.into()));
            }
            PositionInput::Two(name) => {
                let positions = inputs.positions.clone();
                values.push((
                    name,
                    Tensor::from_array(([1, 2, tokens], positions))?.into(),
                ));
            }
        }
        let outputs = self.session.run(values)?;
        let logits = outputs
            .get(self.logits.as_str())
            .ok_or_else(|| ort::Error::new("the graph gives no logits"))?;
        Ok(logits.try_extract_tensor::<f32>()?.1.to_vec())
    }
}

impl Runtime for OrtRuntime {
    const NAME: &'static str = NAME;

    fn packed(&self) -> Bytes {
        self.packed
    }

    fn run(&mut self, inputs: &Inputs) -> Result<Vec<f32>, String> {
        self.logits(inputs).map_err(told)
    }
}

/// What ONNX Runtime says.
pub(crate) fn told(error: ort::Error) -> String {
    one_line(&error.to_string())
}

/// Messages of ONNX Runtime may have several lines; logs and errors have one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Memory that ONNX Runtime packs `weights` into: the integers as many times as they are, and beside the scales
/// as many sums, by which it takes zero points out of a product.
pub(crate) fn packed<'a>(weights: impl IntoIterator<Item = &'a Quantised>) -> Bytes {
    let of = |weights: &Quantised| weights.bytes() + weights.scales.bytes();
    Bytes(weights.into_iter().map(of).sum())
}

/// Threads for our operators beside products of `matmul`.
///
/// # Errors
/// When the system gives none.
pub(crate) fn team(threads: usize, matmul: Matmul) -> Result<Team, String> {
    match matmul {
        Matmul::Glmd => Team::new(threads),
        Matmul::OnnxRuntime => Team::with_patience(threads, Duration::ZERO),
    }
    .map_err(|error| format!("no threads: {error}"))
}

/// Held while a session is made: ONNX Runtime looks whether it knows our domain and then adds it, in two steps, and
/// refuses whoever adds it second.
static MAKING: Mutex<()> = Mutex::new(());

/// A session of a graph with our operators, which run on `team`; the others have `threads`.
///
/// # Errors
/// Those of ONNX Runtime.
pub(crate) fn session(
    env: &Environment,
    folder: &Path,
    model: &ModelProto,
    operators: &Arc<Operators>,
    team: &Arc<Team>,
    threads: usize,
) -> ort::Result<Session> {
    // A loader and a warm-up that came too late may be here at the same time.
    let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut domain = OperatorDomain::new(paging::DOMAIN)?;
    for operation in Operation::ALL {
        domain = domain.add(Own {
            operation,
            operators: Arc::clone(operators),
            team: Arc::clone(team),
        })?;
    }
    let builder = Session::builder(env)?
        .with_operators(domain)?
        .with_logger(quiet())?
        .with_intra_threads(threads)?
        // Spinning threads take the cores that the rest of a small box needs.
        .with_intra_op_spinning(false)?
        // Both keep memory for the largest step ever seen, and steps differ.
        .with_memory_pattern(false)?
        .with_execution_providers([CPU::default().with_arena_allocator(false).build()])?
        .with_config_entry(
            "session.model_external_initializers_file_folder_path",
            folder.to_string_lossy(),
        )?;
    provider::on_cpu(env, builder)?.commit_from_memory(&model.encode_to_vec())
}

/// Sends what ONNX Runtime would write on standard error to our log; its errors come back as values anyway.
pub(super) fn quiet() -> LoggerFunction {
    Arc::new(|level: LogLevel, _, _, _, message: &str| {
        debug!(?level, message = one_line(message), "onnxruntime");
    })
}

/// One of our operators as ONNX Runtime sees it.
struct Own {
    operation: Operation,
    operators: Arc<Operators>,
    team: Arc<Team>,
}

impl Operator for Own {
    type Kernel<'attr> = Node;

    fn name(&self) -> &str {
        self.operation.name()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [match self.operation {
            // One packed tensor, or queries, keys and values.
            Operation::Attention => {
                OperatorInput::variadic(1).homogenous(TensorElementType::Float32)
            }
            Operation::Product => OperatorInput::required(TensorElementType::Float32),
            Operation::Rows => OperatorInput::required(TensorElementType::Int64),
        }]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Node> {
        let index = context
            .get::<i64>(paging::INDEX)
            .and_then(|index| usize::try_from(index).ok())
            .ok_or_else(|| ort::Error::new(format!("{} without an index", self.name())))?;
        Ok(Node {
            operation: self.operation,
            index,
            operators: Arc::clone(&self.operators),
            team: Arc::clone(&self.team),
        })
    }
}

/// A node of the graph.
struct Node {
    operation: Operation,
    index: usize,
    operators: Arc<Operators>,
    team: Arc<Team>,
}

impl Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        catch_unwind(AssertUnwindSafe(|| self.run(context)))
            .unwrap_or_else(|panic| Err(format!("panicked: {}", message_of(panic.as_ref()))))
            .map_err(|reason| {
                let name = self.operation.name();
                ort::Error::new(format!("{name} {}: {reason}", self.index))
            })
    }
}

impl Node {
    fn run(&self, context: &ComputeContext) -> Result<(), String> {
        let Self {
            operation,
            index,
            operators,
            team,
        } = self;
        let count = context.num_inputs().map_err(text)?;
        let values = (0..count)
            .map(|place| input(context, place))
            .collect::<Result<Vec<_>, _>>()?;
        let first = values.first().ok_or("no input")?;
        let shape = operators.shape(*operation, *index, &sizes(first)?)?;
        let mut out = context
            .output(0, shape)
            .map_err(text)?
            .ok_or("the output is missing")?;
        let (_, out) = out.try_extract_tensor_mut::<f32>().map_err(text)?;
        match operation {
            Operation::Rows => {
                let (_, ids) = first.try_extract_tensor::<i64>().map_err(text)?;
                operators.look_up(*index, ids, out)
            }
            Operation::Product => operators.multiply(*index, floats(first)?, out, &**team),
            Operation::Attention => {
                let data = values.iter().map(floats).collect::<Result<Vec<_>, _>>()?;
                operators.attend(*index, &data, out, &**team)
            }
        }
    }
}

fn text(error: ort::Error) -> String {
    error.to_string()
}

fn input(context: &ComputeContext, place: usize) -> Result<ValueRef<'_>, String> {
    context
        .input(place)
        .map_err(text)?
        .ok_or_else(|| format!("input {place} is missing"))
}

fn floats<'a>(value: &'a ValueRef<'_>) -> Result<&'a [f32], String> {
    value
        .try_extract_tensor::<f32>()
        .map(|(_, data)| data)
        .map_err(text)
}

fn sizes(value: &ValueRef<'_>) -> Result<Vec<usize>, String> {
    value
        .shape()
        .iter()
        .map(|size| usize::try_from(*size).map_err(|_| format!("an axis of length {size}")))
        .collect()
}
