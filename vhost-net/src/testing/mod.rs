//! A guest without a guest.

pub mod conversation;
pub mod driver;
pub mod front_end;
pub mod fuzz;
pub mod port;
pub mod steps;
