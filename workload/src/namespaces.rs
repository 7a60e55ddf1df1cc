//! The two steps into a workload's namespaces.
//!
//! **The outer user and mount namespace** only exists to own the mounts that hide and cover. **The
//! inner one**, nested in it, gets copies of those mounts that are locked (mount_namespaces(7)): root
//! in there cannot take them away. One step is not enough, since the workload's root would own the
//! mounts and simply unmount them.
#![expect(unsafe_code, reason = "unshare(2) and clone(2)")]

use std::{fs, io};

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::launch_error::{Refusal, Step};
use crate::spec::UserMapping;

/// Whom we are in the user namespaces; both of them say the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
}

impl Identity {
    /// To be asked before the first namespace is entered.
    pub(crate) fn wanted(mapping: UserMapping) -> Self {
        match mapping {
            UserMapping::Root => Self { uid: 0, gid: 0 },
            UserMapping::Keep => Self::current(),
        }
    }

    fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The only group that exists inside.
    pub(crate) fn gid(self) -> u32 {
        self.gid
    }
}

/// Enters a new user namespace and a new mount namespace, which is cut off from the host's mount events.
pub(crate) fn enter_outer(identity: Identity) -> Result<(), Refusal> {
    enter(identity, UnshareFlags::NEWNS)?;
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)
        .map_err(|error| Refusal::new(Step::Mount, "make / private", error))
}

/// Enters the namespaces that COMMAND lives in, except the PID namespace: the next child is its PID 1.
pub(crate) fn enter_inner(identity: Identity) -> Result<(), Refusal> {
    let rest = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWPID;
    enter(identity, rest)
}

fn enter(identity: Identity, rest: UnshareFlags) -> Result<(), Refusal> {
    let outside = Identity::current();
    // SAFETY: CLONE_FILES, the flag that could pull descriptors from under other owners, is not among
    // the flags; and a role has one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | rest) }
        .map_err(|error| Refusal::new(Step::Namespaces, "unshare", error))?;
    map(identity, outside).map_err(|error| Refusal::new(Step::Identity, "map uid and gid", error))
}

/// An unprivileged process may map exactly itself, and its gid only once setgroups is out of reach
/// (user_namespaces(7)).
fn map(inside: Identity, outside: Identity) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{} {} 1", inside.uid, outside.uid))?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", inside.gid, outside.gid))
}

/// Which side of [`fork_sibling`] we are on.
pub(crate) enum Forked {
    /// In the process that called; the other one's pid as seen from here.
    Caller(Pid),
    /// In the new process.
    Sibling,
}

/// Forks a process that becomes a child of our parent: the launcher waits for PID 1 itself, and no
/// process stays in between to relay signals and the exit code.
pub(crate) fn fork_sibling() -> io::Result<Forked> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with no stack this is fork(2) apart from the parent. A role has one
    // thread, so no lock is held by a thread that the copy lacks, and the C library's notion of our
    // thread id, stale in the copy, is only used by functions for threads, of which there are none.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid).ok().map(Pid::from_raw) {
        Some(Some(pid)) if pid.as_raw_pid() > 0 => Ok(Forked::Caller(pid)),
        Some(None) => Ok(Forked::Sibling),
        _ => Err(io::Error::last_os_error()),
    }
}
