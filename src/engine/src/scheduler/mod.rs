//! Which request runs when: pure deciders that take a snapshot and return a decision.
//!
//! | module | what it decides |
//! |---|---|
//! | [`queue`] | who waits, who is refused, who replaces whom, who is next |
//! | [`demand`] | how many blocks a request may need at most |
//! | [`step`] | which tokens run in the next step |
//! | [`cost`] | how long steps and requests take |

pub mod cost;
pub mod demand;
pub mod queue;
pub mod step;
