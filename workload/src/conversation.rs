//! What the launcher (the CLI) and the supervisor say to each other.
//!
//! ```text
//! launcher                      supervisor
//!   Start, descriptors 0 to 2 ->
//!                             <- Born (its first stage, in the caller's PID namespace)
//!                             <- Ready (PID 1), or Refused by either
//!   Release                   ->
//!                             <- Started | NotStarted
//!                             <- Stopped            when a stop signal took COMMAND
//!   Continue                  ->                    when the launcher goes on
//! ```
//! Born and Ready come from two processes and may come in either order. The end of the launcher is the
//! end of the conversation: before Release the namespaces vanish, later COMMAND gets a SIGHUP, as it
//! would from a terminal that hangs up; detached, nothing happens.

use serde::{Deserialize, Serialize};

use crate::launch_error::Refusal;
use crate::spec::LaunchSpec;
use crate::terminal::TerminalUse;

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    Start(LaunchSpec),
    Release { terminal: TerminalUse },
    Continue { terminal: TerminalUse },
}

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// PID 1 exists; this is its number in the caller's PID namespace.
    Born {
        pid: i32,
    },
    /// Namespaces and mounts are made; COMMAND waits for Release.
    Ready {
        warnings: Vec<String>,
    },
    Refused(Refusal),
    /// COMMAND runs.
    Started,
    /// COMMAND could not be executed.
    NotStarted {
        code: u8,
        reason: String,
    },
    /// COMMAND was stopped, for example by Ctrl-Z.
    Stopped,
}
