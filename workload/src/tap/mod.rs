//! The tap of a workload: asking for it, and the short-lived helper that enters a workload's namespaces
//! to make it.

mod device;
mod error;
mod helper;
mod open;
mod resolv_conf;
mod target;

pub use device::{MAX_QUEUES, discard_tap};
pub use error::TapError;
pub use helper::netns_helper_main;
pub use open::open_tap;
