//! The commands that talk to glmd, one file each.

pub mod chat;
pub mod classify;
pub mod generate;
pub mod infill;
pub mod operate;
pub mod tokenize;
