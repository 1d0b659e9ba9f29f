//! Where the bytes of constants lie in the file beside the graph.

use super::{Plan, Source};
use crate::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataType};

/// Start of every constant in the data file: the page of every machine that
/// memory-maps it is this or a divisor of it on the boards that matter.
pub const ALIGNMENT: u64 = 4096;
/// Constants up to this many bytes stay in the graph file.
pub const INLINE_LIMIT: u64 = 1024;

/// Gives every large constant its place in `file` and returns the length of that file.
///
/// Constants made of the same numbers share one place.
pub fn place(plan: &mut Plan, file: &str) -> u64 {
    let mut end = 0_u64;
    let Some(graph) = plan.model.graph.as_mut() else {
        return end;
    };
    let mut placed: Vec<(&Source, DataType, u64)> = Vec::new();
    for (tensor, constant) in graph.initializer.iter_mut().zip(&plan.constants) {
        let length = constant.bytes();
        if length <= INLINE_LIMIT || matches!(constant.source, Source::Bytes(_)) {
            continue;
        }
        let same = placed
            .iter()
            .find(|(source, dtype, _)| **source == constant.source && *dtype == constant.dtype);
        let offset = match same {
            Some((_, _, offset)) => *offset,
            None => {
                let offset = end.next_multiple_of(ALIGNMENT);
                end = offset + length;
                placed.push((&constant.source, constant.dtype, offset));
                offset
            }
        };
        tensor.data_location = 1;
        tensor.external_data = [
            ("location", file.to_owned()),
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ]
        .map(|(key, value)| StringStringEntryProto {
            key: key.to_owned(),
            value,
        })
        .to_vec();
    }
    end
}

/// Offset of a constant in the data file; `None` when it is in the graph file.
pub(crate) fn offset_of(tensor: &TensorProto) -> Option<u64> {
    if tensor.data_location != 1 {
        return None;
    }
    let entry = tensor.external_data.iter().find(|e| e.key == "offset")?;
    entry.value.parse().ok()
}
