//! The daemon from outside: raw bytes, streams, signals, and the program itself.
//!
//! One target, so that there is one program to link.

mod answers;
mod http;
mod life;
mod manager;
mod program;
mod served;
mod streams;
mod support;
mod systemd;
