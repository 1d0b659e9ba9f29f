//! The constants of a planned graph, found in the graph of a model directory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::graph::{Constant, Plan, Source, offset_of};
use crate::model_dir::DATA;
use crate::proto::{TensorProto, tensor_proto::DataType};
use crate::{Error, Result};

/// Puts the initializers of the graph file `path` in the place of those of the
/// plan, when each is what the plan says and lies in the first `length` bytes
/// of the data file or in the graph itself.
pub(super) fn bind(
    path: &Path,
    plan: &mut Plan,
    initializers: Vec<TensorProto>,
    length: u64,
) -> Result<()> {
    let mut found = BTreeMap::new();
    for tensor in initializers {
        if let Some(twice) = found.insert(tensor.name.clone(), tensor) {
            return Err(Error::tensor(path, twice.name, "is there twice"));
        }
    }
    let planned = plan.model.graph.iter_mut();
    let planned = planned.flat_map(|graph| &mut graph.initializer);
    for (place, constant) in planned.zip(&plan.constants) {
        let Some(tensor) = found.remove(&constant.name) else {
            return Err(Error::MissingTensor {
                path: path.to_owned(),
                tensor: constant.name.clone(),
            });
        };
        // Numbers of the graph itself are those of the plan.
        if matches!(constant.source, Source::Bytes(_)) {
            continue;
        }
        check(&tensor, constant, length)
            .map_err(|reason| Error::tensor(path, &constant.name, reason))?;
        *place = tensor;
    }
    match found.into_keys().next() {
        None => Ok(()),
        Some(name) => {
            let reason = "the manifest and config.json describe a model without it";
            Err(Error::tensor(path, name, reason))
        }
    }
}

/// Why a tensor is not the planned constant.
fn check(tensor: &TensorProto, constant: &Constant, length: u64) -> Result<(), String> {
    if tensor.data_type != constant.dtype as i32 {
        let (found, wanted) = (DataType::try_from(tensor.data_type), constant.dtype);
        let found = found.map_or_else(|_| "of no known type".to_owned(), |t| format!("{t:?}"));
        return Err(format!("is {found}, the manifest asks for {wanted:?}"));
    }
    let dims = (tensor.dims.iter()).map(|dim| usize::try_from(*dim).ok());
    if !dims.eq(constant.dims.iter().map(|dim| Some(*dim))) {
        return Err(format!(
            "has the shape {:?}, the configuration asks for {:?}",
            tensor.dims, constant.dims
        ));
    }
    let bytes = bytes_of(constant).ok_or("is larger than any file")?;
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key == key);
        found.map(|entry| entry.value.as_str())
    };
    match tensor.data_location {
        0 if tensor.raw_data.len() as u64 == bytes => Ok(()),
        0 => Err(format!(
            "has {} bytes in the graph, its shape asks for {bytes}",
            tensor.raw_data.len()
        )),
        1 if entry("location") != Some(DATA) => Err(format!(
            "lies in `{}`, not in {DATA}",
            entry("location").unwrap_or_default()
        )),
        1 => {
            let start = offset_of(tensor).ok_or("has no place in the file of weights")?;
            if entry("length").is_some_and(|length| length.parse() != Ok(bytes)) {
                let found = entry("length").unwrap_or_default();
                return Err(format!("has {found} bytes, its shape asks for {bytes}"));
            }
            match start.checked_add(bytes) {
                Some(end) if end <= length => Ok(()),
                _ => Err(format!(
                    "ends {bytes} bytes behind byte {start} of {DATA}, which has {length}; \
                     the file is cut off"
                )),
            }
        }
        other => Err(format!("lies in place {other}, which is not known")),
    }
}

/// Bytes of a constant, unless there are more than can be counted.
fn bytes_of(constant: &Constant) -> Option<u64> {
    let count = (constant.dims.iter()).try_fold(1_u64, |n, dim| n.checked_mul(*dim as u64))?;
    // No type has more bytes; the sum itself does not overflow then.
    count.checked_mul(8).map(|_| constant.bytes())
}
