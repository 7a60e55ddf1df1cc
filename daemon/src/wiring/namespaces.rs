//! What control asks of a workload's process and namespaces, behind a trait with a simulated twin.

use std::io;
use std::os::fd::OwnedFd;

use lichen_api::WorkloadKind;
use lichen_workload::spec::TapRequest;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::causes::chain;
use crate::state::{Identity, Process};

/// Why a process cannot be a workload's.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It has ended, or never was.
    #[error("there is no process {0}; it may have ended")]
    Gone(i32),
    /// The number is another process's by now.
    #[error("process {0} has ended and its number belongs to another process now")]
    Recycled(i32),
    /// We may not look at it.
    #[error("process {0} belongs to somebody else; only processes of your own can be attached")]
    Foreign(i32),
    /// It is where we are.
    #[error(
        "process {0} is in the host's own network namespace; name one in a namespace of its own, \
         such as a container started with --network none"
    )]
    OnHost(i32),
    /// Anything else.
    #[error("cannot look at process {pid}: {source}")]
    Io {
        /// Which.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What control asks of the kernel about workloads.
pub trait Namespaces: Send + Sync {
    /// Opens the tap with all its queues, made if missing. An error's text says what was wrong and what to do.
    fn open_tap(&self, request: &TapRequest) -> Result<Vec<OwnedFd>, String>;

    /// Lets a tap that is of no use vanish when its queues are closed, of which this is any.
    fn discard_tap(&self, queue: &OwnedFd);

    /// Takes hold of a process: from now on its end is seen, and its number cannot deceive. It must be in
    /// a network namespace of its own, unless it runs a virtual machine.
    fn hold(
        &self,
        pid: i32,
        start_time: Option<u64>,
        kind: WorkloadKind,
    ) -> Result<(Process, OwnedFd), ProcessError>;

    /// Which network namespace a process is in.
    fn netns_of(&self, pid: i32) -> io::Result<Identity>;
}

/// The kernel's own.
#[derive(Debug)]
pub struct KernelNamespaces;

impl Namespaces for KernelNamespaces {
    fn open_tap(&self, request: &TapRequest) -> Result<Vec<OwnedFd>, String> {
        lichen_workload::open_tap(request).map_err(|error| chain(&error))
    }

    fn discard_tap(&self, queue: &OwnedFd) {
        if let Err(error) = lichen_workload::discard_tap(queue) {
            tracing::warn!(%error, "a tap that nobody reads stays in its workload");
        }
    }

    fn hold(
        &self,
        pid: i32,
        start_time: Option<u64>,
        kind: WorkloadKind,
    ) -> Result<(Process, OwnedFd), ProcessError> {
        let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH | Errno::NOENT) => ProcessError::Gone(pid),
            Some(Errno::ACCESS | Errno::PERM) => ProcessError::Foreign(pid),
            _ => ProcessError::Io { pid, source },
        };
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(ProcessError::Gone(pid))?;
        let pidfd =
            pidfd_open(number, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        // Read after the pidfd is held, so that it is the held process's, or nobody's.
        let found = lichen_workload::start_time_of(pid).map_err(failed)?;
        if start_time.is_some_and(|expected| expected != found) {
            return Err(ProcessError::Recycled(pid));
        }
        let netns = self.netns_of(pid).map_err(failed)?;
        let own = i32::try_from(std::process::id()).expect("a pid is positive and fits");
        let is_monitor = kind == WorkloadKind::Vm;
        if !is_monitor && self.netns_of(own).is_ok_and(|host| host == netns) {
            return Err(ProcessError::OnHost(pid));
        }
        if has_ended(&pidfd) {
            return Err(ProcessError::Gone(pid));
        }
        let netns = (!is_monitor).then_some(netns);
        Ok((Process { pid, start_time: found, netns }, pidfd))
    }

    fn netns_of(&self, pid: i32) -> io::Result<Identity> {
        lichen_workload::netns_of(pid).map(|(dev, ino)| Identity { dev, ino })
    }
}

/// Whether the process behind a pidfd has ended: then it is readable.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}
