//! Starting COMMAND.
#![expect(unsafe_code, reason = "a hook between fork(2) and exec(2)")]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::Pid;

use crate::inheritance::close_on_exec_from;
use crate::signals;
use crate::terminal::TerminalUse;

/// Why COMMAND could not be executed, in Docker's terms.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", program.to_string_lossy())]
pub(crate) struct NotExecuted {
    program: OsString,
    source: io::Error,
}

impl NotExecuted {
    /// 127 when there is no such program, else 126.
    pub(crate) fn code(&self) -> u8 {
        match self.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => 127,
            _ => 126,
        }
    }
}

/// Starts COMMAND with descriptors 0 to 2 and no other.
pub(crate) fn start(command: &[OsString], terminal: TerminalUse) -> Result<Pid, NotExecuted> {
    let (program, arguments) =
        command.split_first().expect("the launcher refuses an empty command");
    let not_executed = |source| NotExecuted { program: program.clone(), source };

    close_on_exec_from(3).map_err(not_executed)?;
    let mut command = Command::new(program);
    command.args(arguments);
    if terminal.is_own_job() {
        command.process_group(0);
    }
    if terminal == TerminalUse::Foreground {
        // SAFETY: the hook makes two system calls that are async-signal-safe (tcsetpgrp, signal) and
        // touches no memory of other threads, of which there are none.
        unsafe { command.pre_exec(take_terminal) };
    }
    let child = command.spawn().map_err(not_executed)?;
    // The supervisor reaps every process by itself; dropping `child` neither waits nor kills.
    Ok(Pid::from_child(&child))
}

/// In the child, before exec: it must not run a single instruction of its own in the background, or its
/// first read would stop it.
fn take_terminal() -> io::Result<()> {
    let taken = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
    signals::restore_ttou();
    // A terminal that hung up meanwhile is no reason not to run.
    match taken {
        Ok(()) | Err(rustix::io::Errno::IO | rustix::io::Errno::NOTTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
