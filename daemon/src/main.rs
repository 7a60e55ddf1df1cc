//! `lichen`: one program in a few roles.

pub mod wiring;

fn main() {}
