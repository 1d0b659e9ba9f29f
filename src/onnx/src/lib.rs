//! GLM checkpoints in, ONNX model directories out.
//!
//! Stands on [`glm`], which says what a model means; this crate says how its
//! weights lie in files and how its layers become a portable ONNX graph.
//!
//! | module | what it does |
//! |---|---|
//! | [`checkpoint`] | reads weights a few rows at a time, whatever a family calls them |
//! | [`exported`] | reads the weights of a model directory back |
//! | [`weights`] | the same weights by what they mean |
//! | [`quantise`] | from f32 to small integers with scales |
//! | [`graph`] | from a model description to a graph whose constants are still to be written |
//! | [`reference`](mod@reference) | the forward pass in plain f32 |
//! | [`export`](mod@export) | from a checkpoint folder to a model directory |
//! | [`calibration`] | ranges of activations, for graphs of integers |
//! | [`source`], [`model_dir`] | what the two folders say of themselves |
//! | [`synthetic`] | models of any shape with random weights |
//! | [`paging`] | from a portable graph to one that runs on paged caches |
//! | [`proto`] | the messages of an ONNX file |
//! | [`error`] | the crate's error type |

pub mod calibration;
pub mod checkpoint;
pub mod error;
pub mod export;
pub mod exported;
pub mod graph;
pub mod model_dir;
pub mod paging;
mod parallel;
pub mod proto;
pub mod quantise;
pub mod reference;
pub mod source;
mod stored;
pub mod synthetic;
pub mod weights;

pub use error::{Error, Result};
