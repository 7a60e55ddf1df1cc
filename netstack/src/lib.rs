//! The datapath of Lichen: every frame between workloads, and between a workload and the world.
//!
//! A frame comes in at a [`port`](crate::command::PortSpec), is parsed once, judged by the guard, and
//! then goes either to another port through the switch or to the gateway, which answers it itself
//! (ARP, ICMP echo, names) or turns it into a flow with a host socket at its other end.
//!
//! Invariants: every port is owned by exactly one worker, with all its flows; nothing in here reads a
//! clock, draws randomness or opens anything by name unless it lies under `host::sys` or `worker`;
//! every dropped frame has a [`DropReason`](counters::DropReason) and a counter.
//!
//! Deliberately absent: an async runtime, the control API, the words of DNS (see the crate `lichen-dns`).

pub mod balance;
pub mod budget;
pub mod command;
pub mod counters;
pub mod datapath;
pub mod frame;
pub mod gateway;
pub mod host;
pub mod ids;
pub mod port;
pub mod switch;
pub mod testing;
pub mod time;
mod timer;
pub mod wire;
pub mod worker;
