//! The paged graph in tract: the same file, the same operators, no shared library.
//!
//! The fallback where libonnxruntime is missing or does not fit the machine.
//! tract runs the norms and activations between on one thread; our operators,
//! where nearly all time goes, run on a [`Team`].

use std::path::Path;
use std::sync::Arc;

use glm_kernels::Team;
use glm_onnx::paging::{self, PositionInput};
use glm_onnx::proto::ModelProto;
use prost::Message;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb;
use tract_onnx::tract_hir::internal::*;

use super::paged::{Inputs, Operation, Operators, Runtime};

/// Name of this backend.
pub const NAME: &str = "tract-paged";

/// An optimised plan over the paged graph.
#[derive(Debug)]
pub(crate) struct TractRuntime {
    plan: Arc<TypedRunnableModel>,
    /// Inputs of the plan in its order.
    order: Vec<Input>,
}

#[derive(Clone, Copy, Debug)]
enum Input {
    Ids,
    Positions { numbers: usize },
    Wanted,
}

impl TractRuntime {
    /// Makes a plan of `model`, whose constants left in the graph lie in `folder`.
    ///
    /// # Errors
    /// With the message of tract.
    pub(crate) fn new(
        folder: &Path,
        model: &ModelProto,
        description: &paging::Description,
        operators: &Arc<Operators>,
        threads: usize,
    ) -> Result<Self, String> {
        let team = Team::new(threads).map_err(|error| format!("no threads: {error}"))?;
        let own = Shared {
            operators: Arc::clone(operators),
            team: Arc::new(team),
        };
        plan(folder, model, description, &own)
            .map(|(plan, order)| Self { plan, order })
            .map_err(|error| chain(&error))
    }

    fn logits(&self, inputs: &Inputs) -> TractResult<Vec<f32>> {
        let tokens = inputs.ids.len();
        let values = self
            .order
            .iter()
            .map(|input| {
                Ok(match input {
                    Input::Ids => Tensor::from_shape(&[1, tokens], &inputs.ids)?,
                    Input::Positions { numbers: 1 } => {
                        Tensor::from_shape(&[1, tokens], &inputs.positions)?
                    }
                    Input::Positions { numbers } => {
                        Tensor::from_shape(&[1, *numbers, tokens], &inputs.positions)?
                    }
                    Input::Wanted => Tensor::from_shape(&[inputs.wanted.len()], &inputs.wanted)?,
                }
                .into_tvalue())
            })
            .collect::<TractResult<TVec<_>>>()?;
        let outputs = self.plan.run(values)?;
        let logits = outputs.first().context("the graph gives no logits")?;
        Ok(logits.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }
}

impl Runtime for TractRuntime {
    const NAME: &'static str = NAME;

    fn run(&mut self, inputs: &Inputs) -> Result<Vec<f32>, String> {
        self.logits(inputs).map_err(|error| chain(&error))
    }
}

/// An error of tract with its causes, on one line.
fn chain(error: &TractError) -> String {
    format!("{error:#}")
}

fn plan(
    folder: &Path,
    model: &ModelProto,
    description: &paging::Description,
    shared: &Shared,
) -> TractResult<(Arc<TypedRunnableModel>, Vec<Input>)> {
    let folder = folder.to_str().context("the folder is no UTF-8")?;
    let mut onnx = tract_onnx::onnx();
    let proto = onnx.proto_model_for_read(&mut model.encode_to_vec().as_slice())?;
    for operation in Operation::ALL {
        let builder: Builder = match operation {
            Operation::Attention => attention,
            Operation::Product => product,
            Operation::Rows => rows,
        };
        onnx.op_register.insert(operation.name(), builder);
    }
    let parsed = onnx
        .with_ignore_output_shapes(true)
        .parse(&proto, Some(folder))?;
    let mut model = parsed.model;
    for node in model.nodes_mut() {
        if let Some(op) = node.op_as_mut::<Box<dyn Expansion>>()
            && let Some(op) = op.as_any_mut().downcast_mut::<Own>()
        {
            op.shared = Some(shared.clone());
        }
    }
    let tokens = model.symbols.sym("tokens").to_dim();
    let wanted = model.symbols.sym("wanted").to_dim();
    let mut order = Vec::new();
    for place in 0..model.inputs.len() {
        let name = model.node(model.inputs[place].node).name.clone();
        let (input, shape) = match &description.positions {
            _ if name == description.input_ids => (Input::Ids, tvec![1.to_dim(), tokens.clone()]),
            _ if name == paging::WANTED_ROWS => (Input::Wanted, tvec![wanted.clone()]),
            PositionInput::One(positions) if *positions == name => (
                Input::Positions { numbers: 1 },
                tvec![1.to_dim(), tokens.clone()],
            ),
            PositionInput::Two(positions) if *positions == name => (
                Input::Positions { numbers: 2 },
                tvec![1.to_dim(), 2.to_dim(), tokens.clone()],
            ),
            _ => bail!("input `{name}` is not known"),
        };
        model.set_input_fact(place, InferenceFact::dt_shape(i64::datum_type(), shape))?;
        order.push(input);
    }
    Ok((model.into_optimized()?.into_runnable()?, order))
}

/// What all nodes of a plan share.
#[derive(Clone, Debug)]
struct Shared {
    operators: Arc<Operators>,
    team: Arc<Team>,
}

/// One of our operators, before and after tract has found out the shapes.
#[derive(Clone, Debug)]
struct Own {
    operation: Operation,
    index: usize,
    /// Filled in when the graph is parsed: builders of operators are plain functions.
    shared: Option<Shared>,
}

impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        (self.operation, self.index) == (other.operation, other.index)
    }
}

impl Eq for Own {}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;
type Builder = fn(&ParsingContext<'_>, &pb::NodeProto) -> Built;

fn attention(_: &ParsingContext<'_>, node: &pb::NodeProto) -> Built {
    own(Operation::Attention, node)
}

fn product(_: &ParsingContext<'_>, node: &pb::NodeProto) -> Built {
    own(Operation::Product, node)
}

fn rows(_: &ParsingContext<'_>, node: &pb::NodeProto) -> Built {
    own(Operation::Rows, node)
}

fn own(operation: Operation, node: &pb::NodeProto) -> Built {
    let own = Own {
        operation,
        index: node.get_attr(paging::INDEX)?,
        shared: None,
    };
    Ok((expand(own), Vec::new()))
}

impl Own {
    fn shared(&self) -> TractResult<&Shared> {
        self.shared
            .as_ref()
            .with_context(|| format!("{} {} has no weights", self.operation.name(), self.index))
    }

    /// Shape of the result; sizes may be symbols.
    fn shape<D: DimLike>(&self, input: &[D]) -> TractResult<TVec<D>> {
        self.shared()?
            .operators
            .shape(self.operation, self.index, input)
            .map(TVec::from_vec)
            .map_err(TractError::msg)
    }
}

impl Expansion for Own {
    fn name(&self) -> StaticName {
        self.operation.name().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.given(&inputs[0].shape, move |s, shape| {
            s.equals(&outputs[0].shape, self.shape(&shape)?)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }
}

impl Op for Own {
    fn name(&self) -> StaticName {
        self.operation.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Own {
    // Attention writes to a cache, and the others read gigabytes that must not become constants.
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let Shared { operators, team } = self.shared()?;
        let first = inputs.first().context("no input")?;
        let mut out = Tensor::zero::<f32>(&self.shape(first.shape())?)?;
        let mut plain = out.try_as_plain_ram_mut()?;
        let result = plain.as_slice_mut::<f32>()?;
        match self.operation {
            Operation::Rows => {
                let ids = first.try_as_plain_ram()?;
                operators.look_up(self.index, ids.as_slice::<i64>()?, result)
            }
            Operation::Product => {
                let x = first.try_as_plain_ram()?;
                operators.multiply(self.index, x.as_slice::<f32>()?, result, &**team)
            }
            Operation::Attention => {
                let views = inputs
                    .iter()
                    .map(|input| input.try_as_plain_ram())
                    .collect::<TractResult<Vec<_>>>()?;
                let data = views
                    .iter()
                    .map(|view| view.as_slice::<f32>())
                    .collect::<TractResult<Vec<_>>>()?;
                operators.attend(self.index, &data, result, &**team)
            }
        }
        .map_err(TractError::msg)?;
        Ok(tvec![out.into_tvalue()])
    }
}

impl TypedOp for Own {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = self.shape(&inputs.first().context("no input")?.shape)?;
        Ok(tvec![f32::fact(shape)])
    }

    as_op!();
}
