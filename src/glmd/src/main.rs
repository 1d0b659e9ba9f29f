//! `glmd`.

fn main() {}
