//! Which request runs when: pure deciders that take a snapshot and return a decision.
//!
//! | module | what it decides |
//! |---|---|
//! | [`queue`] | who waits, who is refused, who replaces whom, who is next |

pub mod queue;
