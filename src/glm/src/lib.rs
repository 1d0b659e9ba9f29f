//! GLM as pure functions.
