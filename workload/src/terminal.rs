//! Who has the terminal.
//!
//! A command that has the terminal to itself becomes a process group of its own and the terminal's
//! foreground, as a job of a shell: Ctrl-C and Ctrl-Z reach it and not us. In a pipeline, where others
//! share the foreground, it stays in the caller's process group: taking the foreground would stop the
//! pipeline's other programs as soon as they touch the terminal.

use serde::{Deserialize, Serialize};

/// What COMMAND may do with the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TerminalUse {
    /// There is none, or it is shared with a pipeline.
    Shared,
    /// COMMAND is a job of its own in the background (`lichen run … &`).
    Background,
    /// COMMAND is a job of its own and has the terminal.
    Foreground,
}

impl TerminalUse {
    /// What the caller can give away now.
    pub(crate) fn of_caller() -> Self {
        let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        if !rustix::termios::isatty(output) {
            return Self::Shared;
        }
        // Fails unless standard input is the controlling terminal.
        match rustix::termios::tcgetpgrp(input) {
            Ok(group) if group == rustix::process::getpgrp() => Self::Foreground,
            Ok(_) => Self::Background,
            Err(_) => Self::Shared,
        }
    }

    /// Whether COMMAND is a process group of its own.
    pub(crate) fn is_own_job(self) -> bool {
        self != Self::Shared
    }
}

/// Makes our process group the foreground again. SIGTTOU must be ignored.
pub(crate) fn take_back() {
    // Fails when the terminal is gone, and then there is nothing to take.
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
}
