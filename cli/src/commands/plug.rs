//! `lichen vm plug`: the monitor of a virtual machine comes by a descriptor that this process has inherited.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::process::ExitCode;

use lichen_api::{UnfitDescriptor, attachment_of};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::args::{Command, Output, PlugVm, VmCommand};
use crate::{Outcome, daemon, output};

/// A descriptor with the place that it is for.
#[derive(Debug)]
pub(crate) struct Passed<'a> {
    name: &'a str,
    descriptor: OwnedFd,
}

/// Why a descriptor cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPassed {
    /// Not inherited, most likely: closed on exec.
    #[error(
        "descriptor {0} is not open here; whoever starts `lichen vm plug` has to let it inherit the descriptor \
         (without FD_CLOEXEC)"
    )]
    NotOpen(i32),
    /// It cannot carry frames.
    #[error("descriptor {number} {why}")]
    Unfit {
        /// Which one.
        number: i32,
        /// Why.
        why: UnfitDescriptor,
    },
    /// The kernel would not hand it to us.
    #[error("descriptor {number} cannot be taken")]
    Kernel {
        /// Which one.
        number: i32,
        /// Why.
        source: Errno,
    },
}

/// What the command passes, where it is one that does. To be taken before anything of ours is opened, which could have
/// the number.
pub(crate) fn passed(command: &Command) -> Result<Option<Passed<'_>>, NotPassed> {
    let Command::Vm(VmCommand::Plug(PlugVm { name, fd: number })) = command else {
        return Ok(None);
    };
    let descriptor = inherited(*number)?;
    attachment_of(&descriptor).map_err(|why| NotPassed::Unfit { number: *number, why })?;
    Ok(Some(Passed { name, descriptor }))
}

/// A copy of one of this process' descriptors, close-on-exec. Asked for as if of another process, which is the way to a
/// number that may or may not be open.
fn inherited(number: i32) -> Result<OwnedFd, NotPassed> {
    let kernel = |source| NotPassed::Kernel { number, source };
    let this = pidfd_open(getpid(), PidfdFlags::empty()).map_err(kernel)?;
    if this.as_raw_fd() == number {
        return Err(NotPassed::NotOpen(number));
    }
    pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).map_err(|error| match error {
        Errno::BADF => NotPassed::NotOpen(number),
        other => kernel(other),
    })
}

/// Hands the descriptor to the daemon. It lives on in the datapath.
pub(crate) async fn plug(passed: Passed<'_>, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    let plugged = client.plug(passed.name, passed.descriptor.as_fd()).await?;
    match format {
        Output::Json => output::json(&plugged)?,
        Output::Table => output::line(&plugged.plugged)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn command(fd: i32) -> Command {
        Command::Vm(VmCommand::Plug(PlugVm { name: "db".to_owned(), fd }))
    }

    #[test]
    fn an_open_end_of_a_pair_is_taken_and_anything_else_named() {
        let (end, _other) = UnixStream::pair().unwrap();
        let command = command(end.as_raw_fd());
        let taken = passed(&command).unwrap().unwrap();
        assert_eq!(taken.name, "db");
        assert_ne!(taken.descriptor.as_raw_fd(), end.as_raw_fd(), "it is a copy");

        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = passed(&self::command(null.as_raw_fd())).unwrap_err().to_string();
        let number = null.as_raw_fd();
        assert!(refused.starts_with(&format!("descriptor {number} is not a socket")), "{refused}");
        // Above what a process may have open.
        let refused = passed(&self::command(i32::MAX)).unwrap_err().to_string();
        assert!(refused.contains("is not open here"), "{refused}");
    }

    #[test]
    fn other_commands_pass_nothing() {
        assert!(passed(&Command::Ps).unwrap().is_none());
    }
}
