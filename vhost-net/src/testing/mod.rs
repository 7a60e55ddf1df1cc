//! A guest without a guest.

pub mod driver;
