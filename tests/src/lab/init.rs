//! PID 1 of a machine: reaps, and holds the namespaces until it is killed.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// The line that says that the namespaces are there.
pub(super) const READY: &str = "ready";

pub(crate) fn init() -> ExitCode {
    println!("{READY}");
    loop {
        // ECHILD while nobody has been orphaned.
        if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}
