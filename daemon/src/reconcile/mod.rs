//! Making the datapath what the state says it should be.
//!
//! `desired` says what should be, `diff` compares it with what is, both pure; `apply` does one step at
//! a time; `worker` is the thread that owns the link, starts the datapath, and does all this again
//! whenever either side changed. **Everything goes this way**: an API call writes state and asks for a
//! sync, it never speaks to the datapath itself.

mod apply;
mod desired;
mod diff;
mod observed;
mod worker;

pub use observed::{Observed, Seen};
pub use worker::{NotPlugged, Reconciler, Worker};
