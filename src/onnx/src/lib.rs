//! GLM checkpoints in, ONNX model directories out.
//!
//! Stands on [`glm`], which says what a model means; this crate says how its
//! weights lie in files and how its layers become a portable ONNX graph.

pub mod checkpoint;
pub mod error;
pub mod graph;
pub mod paging;
mod parallel;
pub mod proto;
pub mod quantise;

pub use error::{Error, Result};
