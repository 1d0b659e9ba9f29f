//! `glmctl`.

fn main() {}
