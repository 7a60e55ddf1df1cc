//! A simulated lab: a whole network with guests, a host and a clock, in one thread of a test.
//!
//! [`Lab`] drives a real [`Worker`](crate::worker::Worker) over simulated ports ([`wire`]) and a simulated
//! host ([`host`]). Nothing in it is random but by its seed, and an hour of waiting takes no time.

pub mod chance;
pub mod dhcp;
pub mod frames;
pub mod guest;
pub mod host;
pub mod impair;
pub mod lab;
pub mod names;
pub mod ndp;
pub mod shaper;
pub mod specs;
pub mod steps;
pub mod wire;

pub use lab::Lab;
