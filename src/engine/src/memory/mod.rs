//! The memory governor: what the machine says, and what the engine may use because of it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`telemetry`] | what the machine says: plain data |
//! | [`headroom`] | how much memory is left above the floor: pure |

pub mod headroom;
pub mod telemetry;
mod trim;

pub(crate) use trim::trim;
