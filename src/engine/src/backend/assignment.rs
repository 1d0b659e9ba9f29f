//! Which execution provider a session gave its nodes to, asked of ONNX Runtime itself.
//!
//! `ort` has no safe call for it, so the C functions of API 24 are called here.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer;
use ort::session::Session;
use ort::sys;

/// Session option that makes ONNX Runtime keep what [`assignment`] reads.
pub const RECORD: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// A node of the optimised graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedNode {
    /// Execution provider that runs it, such as `CPUExecutionProvider`.
    pub provider: String,
    /// Type of the operator, such as `MatMul`.
    pub operator: String,
}

/// Where the nodes of `session` run; it must have been made with [`RECORD`].
///
/// # Errors
/// With ONNX Runtime's message; older libraries than 1.24 do not tell.
pub fn assignment(session: &Session) -> ort::Result<Vec<AssignedNode>> {
    let api = ort::api();
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: the session is alive, and both out-pointers are to locals of the right types.
    unsafe {
        let status = (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count);
        ort::Error::result_from_status(status)?;
    }
    let mut assigned = Vec::new();
    // SAFETY: the array and all that hangs on it belong to the session, which outlives this function.
    for part in unsafe { slice(parts, count) } {
        let provider = text(|out| {
            // SAFETY: `part` is an element of the session's array, `out` is a valid place.
            unsafe { (api.EpAssignedSubgraph_GetEpName)(*part, out) }
        })?;
        let (mut nodes, mut count) = (ptr::null(), 0);
        // SAFETY: as for the session above.
        unsafe {
            let status = (api.EpAssignedSubgraph_GetNodes)(*part, &mut nodes, &mut count);
            ort::Error::result_from_status(status)?;
        }
        // SAFETY: as for the parts above.
        for node in unsafe { slice(nodes, count) } {
            let operator = text(|out| {
                // SAFETY: `node` is an element of the session's array, `out` is a valid place.
                unsafe { (api.EpAssignedNode_GetOperatorType)(*node, out) }
            })?;
            let provider = provider.clone();
            assigned.push(AssignedNode { provider, operator });
        }
    }
    Ok(assigned)
}

/// A slice of what a C function returned; empty where it returned nothing.
///
/// # Safety
/// `first` must be null, or point to `count` elements that live as long as `'a`.
unsafe fn slice<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// The string that `ask` puts into its place, which its owner keeps.
fn text(ask: impl FnOnce(*mut *const c_char) -> sys::OrtStatusPtr) -> ort::Result<String> {
    let mut out = ptr::null();
    let status = ask(&mut out);
    // SAFETY: the status comes from the C function that was just called, and is looked at once.
    unsafe { ort::Error::result_from_status(status)? };
    if out.is_null() {
        return Ok(String::new());
    }
    // SAFETY: a successful call puts a string with a final zero there, which lives as long as the session.
    Ok(unsafe { CStr::from_ptr(out) }
        .to_string_lossy()
        .into_owned())
}
