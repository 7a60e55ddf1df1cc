//! Everything that enters a workload's namespaces, and nothing else.
//!
//! [`launch`] makes the namespaces of `lichen run` and leaves a supervisor in them as PID 1; [`open_tap`]
//! starts the short-lived netns helper, which enters a workload's user and network namespace, creates
//! the tap, gives it its address, and hands its descriptor back. Both work as a plain user with no
//! capability: what they need they have only inside the workload's user namespaces.
//!
//! Both start this very program again by `/proc/self/exe` under a role name, with a socket as standard
//! input: entering a user namespace takes a process with one thread. The program's `main` therefore
//! calls [`supervise_main`] and [`netns_helper_main`] before anything else starts a thread.
//!
//! Deliberately absent: the daemon, its API and its state. This crate knows no sibling.

pub mod spec;

mod channel;
mod command;
mod conversation;
mod covers;
mod inheritance;
mod inside;
mod launch;
mod launch_error;
mod namespaces;
mod netlink;
mod os_error;
mod process_identity;
mod role;
mod signals;
mod supervisor;
mod tap;
mod terminal;

pub use inheritance::only_standard_descriptors;
pub use launch::{Launched, launch};
pub use launch_error::LaunchError;
pub use os_error::OsError;
pub use process_identity::{netns_of, start_time_of};
pub use spec::{LaunchSpec, NetnsTarget, TapRequest, UserMapping};
pub use supervisor::supervise_main;
pub use tap::{MAX_QUEUES, TapError, discard_tap, netns_helper_main, open_tap};
