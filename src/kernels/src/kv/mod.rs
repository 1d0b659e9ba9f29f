//! Keys and values of many sequences in one reserved piece of address space.
//!
//! `layout` says where a token lies, `blocks` owns the memory and knows which
//! block is whose, `cache` keeps the sequences and their steps.

mod blocks;
mod cache;
mod layout;

pub(crate) use cache::OpenStep;
pub use cache::{KvCache, KvMemory, StepRow};
pub use layout::{BLOCK_TOKENS, KvLayout, KvType};
pub(crate) use layout::{Geometry, Segment};
