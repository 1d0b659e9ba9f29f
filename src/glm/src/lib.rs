//! GLM, the General Language Model, as pure functions.
//!
//! GLM is trained by **autoregressive blank infilling**: spans of a text are
//! replaced by mask tokens (Part A, read in both directions), and the model
//! writes the missing pieces one after the other, left to right (Part B). Two
//! numbers place every token: where the blank is, and where the token stands
//! inside its piece. One objective gives four abilities: filling blanks,
//! classifying by cloze, generating and chatting.
//!
//! This crate knows the language and nothing else: no file, no clock, no
//! thread. Everything that runs a model stands above it.
//!
//! | module | what it decides |
//! |---|---|
//! | [`spec`] | which family a checkpoint is and what its layers look like |
//! | [`tokenizer`] | text to ids and back; text never becomes a special token |
//! | [`prompt`] | ids, positions, visibility and blanks of what a model reads |
//! | [`cloze`] | classification: patterns, verbalizers, scores |
//! | [`chat`] | conversations: templates and token layouts, replies |
//! | [`sampling`] | from logits to the next token, stop strings |
//! | [`manifest`] | what a model directory says of itself: `glm.json` |
//! | [`ids`] | newtypes for token ids, counts and positions |
//! | [`error`] | the crate's error type |

pub mod chat;
pub mod cloze;
pub mod error;
pub mod ids;
pub mod manifest;
pub mod prompt;
pub mod sampling;
pub mod spec;
pub mod tokenizer;

pub use error::{Error, Result};
pub use ids::{Position, TokenId, Tokens};
pub use prompt::{Placed, Prompt};
pub use spec::{Family, ModelSpec};
