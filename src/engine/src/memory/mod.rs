//! The memory governor: what the machine says, and what the engine may use because of it.
//!
//! Data flows one way: [`telemetry`] reads a snapshot, [`headroom`] says what is
//! left, [`policy`] decides with the help of the deciders below it, and the
//! [`Governor`] hands the decision to the engine thread. All but `telemetry`,
//! `watch` and `governor` know neither clock nor file.
//!
//! | module | what it is for |
//! |---|---|
//! | [`governor`] | the governor as the engine knows it: when to look, what steps cost |
//! | [`policy`] | what the engine may use |
//! | [`ladder`], [`budget`], [`strain`], [`heat`], [`cost`] | the five levels; tokens of a step; signs of shortage; heat; what a step takes |
//! | [`headroom`] | memory left above the floor |
//! | [`telemetry`] | what the machine says: plain data |
//! | [`watch`] | learning of pressure at once |

pub mod budget;
pub mod cost;
pub mod governor;
pub mod headroom;
pub mod heat;
pub mod ladder;
pub mod policy;
pub mod strain;
pub mod telemetry;
mod trim;
pub mod watch;

pub use governor::Governor;
pub use policy::Settings;
pub(crate) use trim::trim;
