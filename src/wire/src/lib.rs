//! What programs send to glmd and what they get back.
//!
//! The same JSON bodies travel over the Unix socket and over MQTT. A request
//! is parsed whole by [`parse`] before anything acts on it; a field that is
//! not in the contract is refused, never ignored.
//!
//! | module | operation |
//! |---|---|
//! | [`infill`] | fill the blanks of a text |
//! | [`classify`] | choose among labels by cloze |
//! | [`systemone`] | typed questions about a state |
//! | [`completions`] | continue a text (OpenAI shape) |
//! | [`chat`] | answer a conversation (OpenAI shape) |
//! | [`tokenize`] | text to ids and back |
//! | [`status`] | what is loaded and how it fares |
//! | [`common`] | fields that every request shares; usage and timing |
//! | [`mod@format`] | stop strings, schemas, what a stream tells |
//! | [`error`] | the error envelope |

pub mod chat;
pub mod classify;
pub mod common;
pub mod completions;
pub mod error;
pub mod format;
pub mod infill;
mod input;
pub mod status;
pub mod systemone;
pub mod tokenize;

pub use common::{Priority, Timing, Usage};
pub use error::{ErrorBody, ErrorDetail};
pub use input::{BadInput, MAX_BODY_BYTES, MAX_DEPTH, parse};
