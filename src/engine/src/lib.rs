//! Requests to steps to tokens: scheduler, memory governor and backends.
//!
//! The engine is one thread. Transports hold an [`EngineHandle`]: they
//! [`submit`](EngineHandle::submit) a [`Request`] and read [`Event`]s from the
//! [`Ticket`] that they get. The thread takes requests from the queue, packs
//! tokens of many of them into a step, runs it and hands out what was sampled.
//!
//! | module | what it is for |
//! |---|---|
//! | [`request`] | what can be asked |
//! | [`ops`] | text and parameters to requests, events to typed results |
//! | [`constraint`] | answers that must have a form |
//! | [`answer`], [`collect`] | what is answered, piece by piece or at once |
//! | [`handle`] | how transports reach the engine |
//! | [`engine`] | the thread: one turn after the other |
//! | [`scheduler`] | who waits and who runs: pure deciders |
//! | [`control`] | what the memory governor tells the engine |
//! | [`memory`] | the memory governor: what the machine says, and what follows from it |
//! | [`model`] | a loaded model and where it comes from |
//! | [`loading`] | from a model directory to a model that runs |
//! | [`backend`] | the contract between the scheduler and a model runtime |
//! | [`status`] | what the engine says about itself |
//! | [`units`], [`error`] | newtypes; the crate's error type |

pub mod answer;
pub mod backend;
pub mod collect;
pub mod constraint;
pub mod control;
pub mod engine;
pub mod error;
mod events;
pub mod handle;
mod inbox;
mod leave;
pub mod loading;
mod mailbox;
pub mod memory;
pub mod model;
pub mod ops;
mod prefix;
pub mod request;
pub mod scheduler;
mod serving;
pub mod status;
pub mod units;

pub use answer::Event;
pub use engine::{Config, Engine};
pub use error::{Error, Result};
pub use handle::EngineHandle;
pub use inbox::{Done, Drain};
pub use leave::leave;
pub use mailbox::Ticket;
pub use request::Request;
