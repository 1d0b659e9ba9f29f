//! Requests to steps to tokens: scheduler, memory governor and backends.
//!
//! | module | what it is for |
//! |---|---|
//! | [`backend`] | the contract between the scheduler and a model runtime |

pub mod backend;
