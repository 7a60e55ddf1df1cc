//! Everything that enters a workload's namespaces, and nothing else.
//!
//! `launch` makes the namespaces of `lichen run` and leaves a supervisor in them as PID 1; `open_tap`
//! starts the short-lived netns helper, which enters a workload's user and network namespace, creates
//! the tap, gives it its address, and hands its descriptor back. Both work as a plain user with no
//! capability: what they need they have only inside the workload's user namespaces.
//!
//! Deliberately absent: the daemon, its API and its state. This crate knows no sibling.

pub mod spec;
