//! A guest without a guest.

pub mod driver;
pub mod fuzz;
