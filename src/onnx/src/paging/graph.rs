//! A graph under the knife: look-ups by tensor name, edits, and the sweep of what nobody reads.

use std::collections::{HashMap, HashSet};

use super::constants::{Constant, ConstantId};
use super::{DOMAIN, INDEX, PositionInput, Unknown, WANTED_ROWS};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_proto, tensor_proto, tensor_shape_proto, type_proto,
};

/// The model being rewritten.
pub(super) struct Graph {
    model: ModelProto,
    pub(super) graph: GraphProto,
    pub(super) constants: Vec<Constant>,
    initializers: HashMap<String, usize>,
    tables: HashMap<String, ConstantId>,
}

impl Graph {
    pub(super) fn new(model: &ModelProto) -> Result<Self, Unknown> {
        let mut model = model.clone();
        if let Some(function) = model.functions.first() {
            return Err(Unknown {
                node: function.name.clone(),
                op_type: String::new(),
                reason: "the model brings functions of its own".into(),
            });
        }
        let graph = model.graph.take().ok_or_else(|| Unknown {
            node: "graph".into(),
            op_type: String::new(),
            reason: "the model has no graph".into(),
        })?;
        let initializers = graph
            .initializer
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        Ok(Self {
            model,
            graph,
            constants: Vec::new(),
            initializers,
            tables: HashMap::new(),
        })
    }

    /// The initializer `name`.
    pub(super) fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.graph.initializer.get(*self.initializers.get(name)?)
    }

    /// The node that makes `tensor`.
    pub(super) fn producer(&self, tensor: &str) -> Option<&NodeProto> {
        if tensor.is_empty() {
            return None;
        }
        self.graph
            .node
            .iter()
            .find(|node| node.output.iter().any(|output| output == tensor))
    }

    /// The nodes that read `tensor`.
    pub(super) fn consumers<'a>(
        &'a self,
        tensor: &'a str,
    ) -> impl Iterator<Item = &'a NodeProto> + 'a {
        self.graph
            .node
            .iter()
            .filter(move |node| node.input.iter().any(|input| input == tensor))
    }

    /// The graph input `name`, unless it is only the declaration of an initializer.
    pub(super) fn input(&self, name: &str) -> Option<&ValueInfoProto> {
        if self.initializers.contains_key(name) {
            return None;
        }
        self.graph.input.iter().find(|input| input.name == name)
    }

    /// Graph inputs that `tensor` depends on.
    pub(super) fn ancestors(&self, tensor: &str) -> HashSet<String> {
        let makers: HashMap<&str, &NodeProto> = self
            .graph
            .node
            .iter()
            .flat_map(|node| {
                node.output
                    .iter()
                    .map(move |output| (output.as_str(), node))
            })
            .collect();
        let mut found = HashSet::new();
        let mut seen = HashSet::new();
        let mut open = vec![tensor];
        while let Some(name) = open.pop() {
            if !seen.insert(name) {
                continue;
            }
            if self.input(name).is_some() {
                found.insert(name.to_owned());
            }
            if let Some(node) = makers.get(name) {
                open.extend(node.input.iter().map(String::as_str));
            }
        }
        found
    }

    /// Whether `tensor` depends on no input of the graph.
    pub(super) fn is_constant(&self, tensor: &str) -> bool {
        self.ancestors(tensor).is_empty() && self.producer_chain_is_pure(tensor)
    }

    /// A paged node is never constant, whatever it reads.
    fn producer_chain_is_pure(&self, tensor: &str) -> bool {
        self.producer(tensor).is_none_or(|node| {
            node.domain != DOMAIN
                && node
                    .input
                    .iter()
                    .all(|input| self.producer_chain_is_pure(input))
        })
    }

    /// The values of a constant integer tensor: an initializer or a `Constant` node.
    pub(super) fn integers(&self, name: &str) -> Option<Vec<i64>> {
        if let Some(tensor) = self.initializer(name) {
            return integers(tensor);
        }
        let node = self.producer(name)?;
        if node.op_type != "Constant" {
            return None;
        }
        node.attribute
            .iter()
            .find_map(|attribute| match attribute.name.as_str() {
                "value" => integers(attribute.t.as_ref()?),
                "value_int" => Some(vec![attribute.i]),
                "value_ints" => Some(attribute.ints.clone()),
                _ => None,
            })
    }

    /// Keeps a constant outside the graph.
    pub(super) fn add_constant(&mut self, constant: Constant) -> ConstantId {
        let id = ConstantId(self.constants.len());
        self.constants.push(constant);
        id
    }

    /// Keeps the table `name` outside the graph, once.
    pub(super) fn add_table(&mut self, name: &str, table: Constant) -> ConstantId {
        if let Some(id) = self.tables.get(name) {
            return *id;
        }
        let id = self.add_constant(table);
        self.tables.insert(name.to_owned(), id);
        id
    }

    /// Forgets the graph outputs in `names`.
    pub(super) fn drop_outputs(&mut self, names: &HashSet<String>) {
        self.graph
            .output
            .retain(|output| !names.contains(&output.name));
    }

    /// The output that is left once the present keys and values are gone.
    pub(super) fn only_output(&self) -> Result<String, Unknown> {
        match self.graph.output.as_slice() {
            [logits] => Ok(logits.name.clone()),
            [] => Err(self.outside(
                "logits",
                "the graph has no output beside present keys and values",
            )),
            [_, other, ..] => Err(self.outside(
                &other.name,
                "a second output that is no present key or value of a known attention node",
            )),
        }
    }

    /// Removes nodes, initializers and inputs that no output depends on.
    pub(super) fn sweep(&mut self) {
        let mut live: HashSet<String> = self
            .graph
            .output
            .iter()
            .map(|output| output.name.clone())
            .collect();
        let mut keep = vec![false; self.graph.node.len()];
        loop {
            let mut grown = false;
            for (node, kept) in self.graph.node.iter().zip(&mut keep).rev() {
                if !*kept && node.output.iter().any(|output| live.contains(output)) {
                    *kept = true;
                    grown = true;
                    live.extend(node.input.iter().cloned());
                }
            }
            if !grown {
                break;
            }
        }
        let mut kept = keep.into_iter();
        self.graph.node.retain(|_| kept.next().unwrap_or(true));
        self.graph.input.retain(|input| live.contains(&input.name));
        self.graph
            .initializer
            .retain(|tensor| live.contains(&tensor.name));
        self.initializers = self
            .graph
            .initializer
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        // Shapes between the nodes speak of the graph as it was.
        self.graph.value_info.clear();
    }

    /// The token input.
    pub(super) fn token_input(&self) -> Result<String, Unknown> {
        self.input("input_ids")
            .map(|input| input.name.clone())
            .ok_or_else(|| {
                self.outside("input_ids", "the graph does not read an input of this name")
            })
    }

    /// The position input, and proof that nothing but tokens and positions is read.
    pub(super) fn position_input(&self, input_ids: &str) -> Result<PositionInput, Unknown> {
        let mut positions = PositionInput::None;
        for input in &self.graph.input {
            let name = &input.name;
            if name == input_ids || self.initializers.contains_key(name) {
                continue;
            }
            positions = match (name.as_str(), dims(input).map(|dims| dims.len())) {
                ("position_ids", Some(2)) => PositionInput::One(name.clone()),
                ("position_ids", Some(3)) => PositionInput::Two(name.clone()),
                _ => {
                    let reader = self.consumers(name).next();
                    return Err(reader.map_or_else(
                        || self.outside(name, "an input that is neither tokens nor positions"),
                        |node| {
                            unknown(
                                node,
                                &format!("reads the input `{name}` outside a known attention node"),
                            )
                        },
                    ));
                }
            };
        }
        Ok(positions)
    }

    /// Puts a gather of the wanted rows before the head; returns the length of a row of logits.
    pub(super) fn gather_wanted(&mut self, logits: &str) -> Result<usize, Unknown> {
        const BY_ELEMENT: [&str; 6] = ["Cast", "Identity", "Mul", "Div", "Add", "Tanh"];
        let mut at = logits.to_owned();
        let head = loop {
            let Some(node) = self.producer(&at) else {
                return Err(
                    self.outside(logits, "no product with constant weights makes the logits")
                );
            };
            if node.op_type == super::MATMUL || is_kept_product(node) {
                break node.clone();
            }
            let next = node
                .input
                .iter()
                .find(|input| !input.is_empty() && !self.is_constant(input));
            match next {
                Some(next) if BY_ELEMENT.contains(&node.op_type.as_str()) => at = next.clone(),
                _ => return Err(unknown(node, "stands between the head and the logits")),
            }
        };
        let rows = if is_kept_product(&head) {
            attr_count(&head, "N")
        } else {
            attr_int(&head, INDEX)
                .and_then(|index| usize::try_from(index).ok())
                .and_then(|index| self.constants.get(index))
                .and_then(Constant::outputs)
        };
        let rows = rows.ok_or_else(|| unknown(&head, "the head has no weights"))?;
        let gathered = format!("{}/wanted", head.input[0]);
        let gather = NodeProto {
            name: gathered.clone(),
            op_type: "Gather".into(),
            input: vec![head.input[0].clone(), WANTED_ROWS.into()],
            output: vec![gathered.clone()],
            attribute: vec![integer("axis", 1)],
            ..NodeProto::default()
        };
        let place = self
            .graph
            .node
            .iter()
            .position(|node| node.output == head.output)
            .unwrap_or(0);
        self.graph.node[place].input[0] = gathered;
        self.graph.node.insert(place, gather);
        self.graph.input.push(value(
            WANTED_ROWS,
            tensor_proto::DataType::Int64,
            &["wanted"],
        ));
        Ok(rows)
    }

    /// The finished model.
    pub(super) fn finish(mut self, logits: &str) -> (ModelProto, Vec<Constant>) {
        // The declared shape may name the tokens; runtimes infer the new one.
        self.graph.output = vec![ValueInfoProto {
            name: logits.to_owned(),
            ..value(
                logits,
                tensor_proto::DataType::Float,
                &["one", "wanted", "vocabulary"],
            )
        }];
        self.model.graph = Some(self.graph);
        if !self
            .model
            .opset_import
            .iter()
            .any(|import| import.domain == DOMAIN)
        {
            self.model.opset_import.push(OperatorSetIdProto {
                domain: DOMAIN.into(),
                version: 1,
            });
        }
        (self.model, self.constants)
    }

    /// A complaint about an input or output.
    #[allow(clippy::unused_self, reason = "reads as its siblings at the call")]
    pub(super) fn outside(&self, name: &str, reason: &str) -> Unknown {
        Unknown {
            node: name.to_owned(),
            op_type: String::new(),
            reason: reason.to_owned(),
        }
    }
}

/// Whether a node is a product that ONNX Runtime computes.
fn is_kept_product(node: &NodeProto) -> bool {
    (node.domain.as_str(), node.op_type.as_str()) == super::MATMUL_NBITS
}

/// A complaint about a node.
pub(super) fn unknown(node: &NodeProto, reason: &str) -> Unknown {
    Unknown {
        node: if node.name.is_empty() {
            node.output.first().cloned().unwrap_or_default()
        } else {
            node.name.clone()
        },
        op_type: node.op_type.clone(),
        reason: reason.to_owned(),
    }
}

/// The `index`-th input, or `None` where it is left out.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    node.input
        .get(index)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

/// An integer attribute.
pub(super) fn attr_int(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

/// A float attribute.
pub(super) fn attr_float(node: &NodeProto, name: &str) -> Option<f32> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.f)
}

/// An integer attribute that counts something.
pub(super) fn attr_count(node: &NodeProto, name: &str) -> Option<usize> {
    attr_int(node, name)
        .and_then(|value| usize::try_from(value).ok())
        .filter(|count| *count > 0)
}

/// Makes an integer attribute.
pub(super) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: attribute_proto::AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

/// A node of our own domain.
pub(super) fn own(from: &NodeProto, op: &str, index: usize, inputs: Vec<String>) -> NodeProto {
    NodeProto {
        name: from.name.clone(),
        op_type: op.to_owned(),
        domain: DOMAIN.to_owned(),
        input: inputs,
        output: from.output.iter().take(1).cloned().collect(),
        attribute: vec![integer(INDEX, i64::try_from(index).unwrap_or(i64::MAX))],
        ..NodeProto::default()
    }
}

/// Declared sizes; `None` for a size that only has a name.
pub(super) fn dims(info: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    Some(
        tensor
            .shape
            .as_ref()?
            .dim
            .iter()
            .map(|dim| match dim.value {
                Some(tensor_shape_proto::dimension::Value::DimValue(size)) => {
                    usize::try_from(size).ok()
                }
                _ => None,
            })
            .collect(),
    )
}

fn value(name: &str, dtype: tensor_proto::DataType, names: &[&str]) -> ValueInfoProto {
    ValueInfoProto::tensor(
        name,
        dtype,
        names
            .iter()
            .map(|name| tensor_shape_proto::Dimension::named(name)),
    )
}

fn integers(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor.data_type != tensor_proto::DataType::Int64 as i32 {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return Some(tensor.int64_data.clone());
    }
    Some(
        tensor
            .raw_data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes))
            .collect(),
    )
}
