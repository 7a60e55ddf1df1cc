//! Control and the wiring of everything else: the composition root, the only crate that knows all others.
//!
//! A request goes `http` → `app` → `state`, and from there through `reconcile` to the datapath over
//! `wiring`. **Only `state` writes what must survive, only `reconcile` tells the datapath anything.**
//!
//! Deliberately absent: frames. The datapath is another process, and carries them while control is down.
#![forbid(unsafe_code)]

pub mod app;
mod causes;
pub mod control;
pub mod http;
pub mod instance;
pub mod ipam;
pub mod log;
pub mod names;
pub mod reconcile;
#[cfg(test)]
mod scratch;
pub mod state;
pub mod wiring;
