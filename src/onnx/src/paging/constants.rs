//! Weights that leave the graph: what they are and where their bytes lie.

use super::graph::{self, Graph, attr_count, attr_int, input, unknown};
use super::{MATMUL, MATMUL_NBITS, Matmul, ROWS, Unknown};
use crate::proto::{NodeProto, TensorProto, tensor_proto::DataType};

/// Makes ONNX Runtime compute in INT8, as our kernels do.
pub(super) const ACCURACY_LEVEL: (&str, i64) = ("accuracy_level", 4);

/// Place in [`Paged::constants`](super::Paged::constants).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConstantId(pub usize);

/// Constant operand of a node.
#[derive(Clone, Debug)]
pub enum Constant {
    /// Weights in blocks along the input, `y = x W^T + bias`.
    Quantised(Box<Quantised>),
    /// Plain weights.
    Dense(Dense),
    /// Rows to look up.
    Table(Table),
    /// Rows to look up, kept as integers: `outputs` rows of `inputs` elements.
    QuantisedTable(Box<Quantised>),
}

impl Constant {
    /// Outputs of a product; `None` for a table.
    #[must_use]
    pub const fn outputs(&self) -> Option<usize> {
        match self {
            Self::Quantised(weights) => Some(weights.outputs),
            Self::Dense(weights) => Some(weights.outputs),
            Self::Table(_) | Self::QuantisedTable(_) => None,
        }
    }
}

/// Weights of a `MatMulNBits` or `GatherBlockQuantized` node: `w = (q - zero) scale`.
///
/// Four-bit values lie two in a byte, the first in the low half.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// Rows of `W`.
    pub outputs: usize,
    /// Columns of `W`.
    pub inputs: usize,
    /// 8 or 4.
    pub bits: usize,
    /// Columns that share a scale.
    pub block: usize,
    /// u8 `[outputs, blocks, block bits / 8]`.
    pub values: Blob,
    /// f32 `[outputs, blocks]`.
    pub scales: Blob,
    /// u8 `[outputs, blocks bits / 8 rounded up]`; without it the zero is `2^(bits - 1)`.
    pub zero_points: Option<Blob>,
    /// f32 `[outputs]`.
    pub bias: Option<Blob>,
}

impl Quantised {
    /// What the tensors take in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let optional = [&self.zero_points, &self.bias];
        let optional = optional.into_iter().flatten().map(Blob::bytes);
        self.values.bytes() + self.scales.bytes() + optional.sum::<u64>()
    }

    /// The weights of the first `count` outputs, or of all where there are fewer: every tensor begins with them.
    #[must_use]
    pub fn first_outputs(&self, count: usize) -> Self {
        let count = count.clamp(1, self.outputs.max(1));
        let part = |blob: &Blob| blob.first(count as u64, self.outputs.max(1) as u64);
        Self {
            outputs: count,
            values: part(&self.values),
            scales: part(&self.scales),
            zero_points: self.zero_points.as_ref().map(part),
            bias: self.bias.as_ref().map(part),
            ..*self
        }
    }
}

/// Weights of a plain product.
#[derive(Clone, Debug)]
pub struct Dense {
    /// Elements of a result row.
    pub outputs: usize,
    /// Elements of an operand row.
    pub inputs: usize,
    /// Whether the data lies `[outputs, inputs]` rather than `[inputs, outputs]`.
    pub by_output: bool,
    /// f32 or f16.
    pub data: Blob,
}

/// A table `[rows, width]`.
#[derive(Clone, Debug)]
pub struct Table {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// f32 or f16.
    pub data: Blob,
}

/// The bytes of a tensor, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Name of the tensor in the file.
    pub name: String,
    /// Element type.
    pub dtype: ElementType,
    /// Where they lie.
    pub data: BlobData,
}

/// Where the bytes of a tensor lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobData {
    /// In the graph file.
    Inline(Vec<u8>),
    /// In a file beside it.
    External {
        /// Path from the folder of the graph file; the reader must not let it leave that folder.
        file: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// Element types of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Unsigned byte.
    U8,
}

impl ElementType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// Moves the weights of products out of the graph; returns those that stay for the kernel of `matmul`.
pub(super) fn replace_products(
    graph: &mut Graph,
    matmul: Matmul,
) -> Result<Vec<Quantised>, Unknown> {
    let mut kept = Vec::new();
    for place in 0..graph.graph.node.len() {
        let node = graph.graph.node[place].clone();
        let constant = match (node.domain.as_str(), node.op_type.as_str()) {
            MATMUL_NBITS => {
                let weights = quantised(graph, &node)?;
                if matmul == Matmul::OnnxRuntime {
                    kept.push(weights);
                    let attributes = &mut graph.graph.node[place].attribute;
                    attributes.retain(|attribute| attribute.name != ACCURACY_LEVEL.0);
                    attributes.push(graph::integer(ACCURACY_LEVEL.0, ACCURACY_LEVEL.1));
                    continue;
                }
                Some(Constant::Quantised(Box::new(weights)))
            }
            ("" | "ai.onnx", "MatMul") => dense(graph, &node).map(Constant::Dense),
            _ => None,
        };
        if let Some(constant) = constant {
            let id = graph.add_constant(constant);
            let operand = node.input[..1].to_vec();
            graph.graph.node[place] = graph::own(&node, MATMUL, id.0, operand);
        }
    }
    Ok(kept)
}

/// Moves the tables of look-ups out of the graph.
pub(super) fn replace_tables(graph: &mut Graph) -> Result<(), Unknown> {
    for place in 0..graph.graph.node.len() {
        let node = graph.graph.node[place].clone();
        if node.op_type == "GatherBlockQuantized" {
            let table = quantised_table(graph, &node)?;
            let values = table.values.name.clone();
            let indices = input(&node, 1).unwrap_or_default().to_owned();
            let id = graph.add_table(&values, Constant::QuantisedTable(Box::new(table)));
            graph.graph.node[place] = graph::own(&node, ROWS, id.0, vec![indices]);
            continue;
        }
        let standard = matches!(node.domain.as_str(), "" | "ai.onnx");
        if !standard || node.op_type != "Gather" || attr_int(&node, "axis").unwrap_or(0) != 0 {
            continue;
        }
        let (Some(name), Some(indices)) = (input(&node, 0), input(&node, 1)) else {
            continue;
        };
        let Some(table) = table_of(graph, name) else {
            continue;
        };
        // Our node gives f32, so a half table must be widened by whoever reads it.
        let widened = table.data.dtype == ElementType::F32
            || node.output.first().is_some_and(|output| {
                graph.consumers(output).all(|reader| {
                    reader.op_type == "Cast"
                        && attr_int(reader, "to") == Some(DataType::Float as i64)
                })
            });
        if graph.is_constant(indices) || !widened {
            continue;
        }
        let (name, indices) = (name.to_owned(), indices.to_owned());
        let id = graph.add_table(&name, Constant::Table(table));
        graph.graph.node[place] = graph::own(&node, ROWS, id.0, vec![indices]);
    }
    Ok(())
}

/// The constant `name` as a table, if it is one of floats.
pub(super) fn table_of(graph: &Graph, name: &str) -> Option<Table> {
    let tensor = graph.initializer(name)?;
    let [rows, width] = sizes(tensor)?[..] else {
        return None;
    };
    let data = blob(tensor)?;
    (data.dtype != ElementType::U8).then_some(Table { rows, width, data })
}

fn quantised(graph: &Graph, node: &NodeProto) -> Result<Quantised, Unknown> {
    let attribute = |name: &str| {
        attr_count(node, name)
            .ok_or_else(|| unknown(node, &format!("attribute `{name}` is missing")))
    };
    let (inputs, outputs) = (attribute("K")?, attribute("N")?);
    let bits = attr_count(node, "bits").unwrap_or(4);
    let block = attribute("block_size")?;
    if bits != 4 && bits != 8 {
        return Err(unknown(
            node,
            &format!("weights of {bits} bits are not known"),
        ));
    }
    if input(node, 4).is_some() {
        return Err(unknown(node, "reordered groups are not known"));
    }
    let weights = [input(node, 1), input(node, 2), input(node, 3)];
    let mut found = packed(graph, node, [outputs, inputs], (bits, block), weights)?;
    found.bias = input(node, 5)
        .map(|name| sized(graph, node, name, "bias", ElementType::F32, Some(outputs)))
        .transpose()?;
    Ok(found)
}

/// The table of a `GatherBlockQuantized` node that looks up whole rows.
fn quantised_table(graph: &Graph, node: &NodeProto) -> Result<Quantised, Unknown> {
    let dims = input(node, 0)
        .and_then(|name| graph.initializer(name))
        .and_then(sizes);
    let Some([rows, packed_width]) = dims.as_deref() else {
        return Err(unknown(node, "the table is no constant with two axes"));
    };
    let last = matches!(attr_int(node, "quantize_axis"), Some(1 | -1));
    if attr_int(node, "gather_axis").unwrap_or(0) != 0 || !last {
        return Err(unknown(node, "only whole rows of a table can be looked up"));
    }
    let bits = attr_count(node, "bits").unwrap_or(4);
    if bits != 4 && bits != 8 {
        return Err(unknown(node, &format!("{bits} bits are not known")));
    }
    let block = attr_count(node, "block_size").unwrap_or(128);
    let width = packed_width * 8 / bits;
    if !width.is_multiple_of(block) {
        return Err(unknown(node, "the rows are not whole blocks"));
    }
    let weights = [input(node, 0), input(node, 2), input(node, 3)];
    packed(graph, node, [*rows, width], (bits, block), weights)
}

/// Values, scales and zero points, if type and length agree.
fn packed(
    graph: &Graph,
    node: &NodeProto,
    [outputs, inputs]: [usize; 2],
    (bits, block): (usize, usize),
    [values, scales, zero_points]: [Option<&str>; 3],
) -> Result<Quantised, Unknown> {
    let blocks = inputs.div_ceil(block);
    let cells = outputs.checked_mul(blocks);
    let of_cells = |each: usize| cells.and_then(|cells| cells.checked_mul(each));
    let operand = |name: Option<&str>, what: &str, dtype: ElementType, count: Option<usize>| {
        let name = name.ok_or_else(|| unknown(node, &format!("the {what} are missing")))?;
        sized(graph, node, name, what, dtype, count)
    };
    Ok(Quantised {
        outputs,
        inputs,
        bits,
        block,
        values: operand(
            values,
            "weights",
            ElementType::U8,
            of_cells((block * bits).div_ceil(8)),
        )?,
        scales: operand(scales, "scales", ElementType::F32, cells)?,
        zero_points: zero_points
            .map(|name| {
                let row = (blocks * bits).div_ceil(8);
                let count = outputs.checked_mul(row);
                sized(graph, node, name, "zero points", ElementType::U8, count)
            })
            .transpose()?,
        bias: None,
    })
}

/// The constant `name` of `count` elements.
fn sized(
    graph: &Graph,
    node: &NodeProto,
    name: &str,
    what: &str,
    dtype: ElementType,
    count: Option<usize>,
) -> Result<Blob, Unknown> {
    let found = graph
        .initializer(name)
        .and_then(blob)
        .filter(|blob| blob.dtype == dtype)
        .ok_or_else(|| {
            let reason = format!("the {what} `{name}` are no constant of type {dtype:?}");
            unknown(node, &reason)
        })?;
    let bytes = count.and_then(|count| count.checked_mul(dtype.size()));
    if bytes.is_none_or(|bytes| found.bytes() != bytes as u64) {
        let reason = format!("the {what} `{name}` have the wrong size");
        return Err(unknown(node, &reason));
    }
    Ok(found)
}

/// `x W` with a constant `W`, or `x W^T` where the constant is turned first.
fn dense(graph: &Graph, node: &NodeProto) -> Option<Dense> {
    let name = input(node, 1)?;
    let (tensor, by_output) = match graph.initializer(name) {
        Some(tensor) => (tensor, false),
        None => {
            let transpose = graph
                .producer(name)
                .filter(|node| node.op_type == "Transpose")?;
            (graph.initializer(input(transpose, 0)?)?, true)
        }
    };
    let [first, second] = sizes(tensor)?[..] else {
        return None;
    };
    let data = blob(tensor).filter(|blob| blob.dtype == ElementType::F32)?;
    let (inputs, outputs) = if by_output {
        (second, first)
    } else {
        (first, second)
    };
    Some(Dense {
        outputs,
        inputs,
        by_output,
        data,
    })
}

impl Blob {
    /// The first `count` of `all` parts of the same size.
    fn first(&self, count: u64, all: u64) -> Self {
        let bytes = self.bytes() / all * count;
        Self {
            data: match &self.data {
                BlobData::Inline(data) => {
                    let end = usize::try_from(bytes).unwrap_or(usize::MAX).min(data.len());
                    BlobData::Inline(data[..end].to_vec())
                }
                BlobData::External { file, offset, .. } => BlobData::External {
                    file: file.clone(),
                    offset: *offset,
                    length: bytes,
                },
            },
            ..self.clone()
        }
    }

    /// Number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        match &self.data {
            BlobData::Inline(bytes) => bytes.len() as u64,
            BlobData::External { length, .. } => *length,
        }
    }
}

fn sizes(tensor: &TensorProto) -> Option<Vec<usize>> {
    tensor
        .dims
        .iter()
        .map(|dim| usize::try_from(*dim).ok())
        .collect()
}

/// The bytes of `tensor`, if type, shape and length agree.
fn blob(tensor: &TensorProto) -> Option<Blob> {
    let dtype = match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float => ElementType::F32,
        DataType::Float16 => ElementType::F16,
        DataType::Uint8 => ElementType::U8,
        _ => return None,
    };
    let count = sizes(tensor)?
        .into_iter()
        .try_fold(1_usize, usize::checked_mul)?;
    let expected = u64::try_from(count.checked_mul(dtype.size())?).ok()?;
    let data = if tensor.data_location == 1 {
        let field = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.value)
        };
        let number = |key: &str| field(key).map(|value| value.parse::<u64>().ok());
        BlobData::External {
            file: field("location")?.clone(),
            offset: number("offset").unwrap_or(Some(0))?,
            length: number("length").unwrap_or(Some(expected))?,
        }
    } else if !tensor.raw_data.is_empty() {
        BlobData::Inline(tensor.raw_data.clone())
    } else {
        BlobData::Inline(match dtype {
            ElementType::F32 => tensor
                .float_data
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect(),
            ElementType::F16 => tensor
                .int32_data
                .iter()
                .filter_map(|bits| u16::try_from(*bits).ok())
                .flat_map(u16::to_le_bytes)
                .collect(),
            ElementType::U8 => tensor
                .int32_data
                .iter()
                .filter_map(|x| u8::try_from(*x).ok())
                .collect(),
        })
    };
    let blob = Blob {
        name: tensor.name.clone(),
        dtype,
        data,
    };
    (blob.bytes() == expected).then_some(blob)
}
