//! What a program inherits that is started and outlives its starter.
//!
//! Our own descriptors are close-on-exec; this is for those that a caller left open, such as a lock that
//! would be held for as long as a daemon lives.
#![expect(unsafe_code, reason = "close_range(2), also between fork(2) and exec(2)")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has a command inherit descriptors 0 to 2 and no other.
pub fn only_standard_descriptors(command: &mut Command) -> &mut Command {
    // SAFETY: the hook makes one system call, which is async-signal-safe, and touches no memory of other
    // threads.
    unsafe { command.pre_exec(|| close_on_exec_from(3)) }
}

/// The same for all that this process will execute.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing in this process.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
