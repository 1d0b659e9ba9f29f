//! Tests that cross crate borders live in `tests/`; this library is what they share.
