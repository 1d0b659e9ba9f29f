//! Paged attention, INT8/INT4 matrix products and the KV pool of glmd.
//!
//! Stands below the model runtimes and knows neither ONNX nor any model: it
//! sees slices, shapes and block tables. A runtime holds one [`KvCache`], opens
//! a step on it, calls [`Kernels::attention`] once a layer and
//! [`Kernels::matmul`] once a product, and commits the step.
//!
//! # What a caller may rely on
//! * **Batch invariance.** Every row of a product and every row of attention is
//!   computed by operations whose order depends on that row alone. Alone, among
//!   eight others or beside a prompt, the bits are the same.
//! * **Products are the same on every instruction set.** The integer part is
//!   exact and the float part is one fused multiply-add a group of weights, in
//!   order, so the scalar code and every SIMD code give the same bits (but on
//!   32-bit ARM, which has no fused multiply-add that is fast enough).
//! * **Weights are read where they lie.** Nothing is copied or repacked.
//! * A step is a transaction, and nothing leaks on an error or a panic.

mod attention;
mod error;
mod isa;
mod kv;
mod matmul;
mod parallel;
mod rows;
mod shared;
mod simd;
mod team;

pub use attention::{AttentionParams, Qkv, Rotary, RotaryStyle};
pub use error::KernelError;
pub use isa::{ISA_VARIABLE, Isa, Kernels};
pub use kv::{BLOCK_TOKENS, KvCache, KvLayout, KvMemory, KvType, StepRow};
pub use matmul::{Dense, DenseLayout, Matrix, Quantised, Scratch};
pub use parallel::{Parallel, Serial};
pub use rows::Table;
pub use shared::Floats;
pub use team::Team;
