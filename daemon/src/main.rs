//! `lichen`.
fn main() {}
