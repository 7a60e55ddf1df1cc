//! Finding and entering the namespaces that a tap is made in.
#![expect(unsafe_code, reason = "ioctl_ns(2)")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{Doing as _, TapError};
use crate::process_identity::start_time_in;
use crate::spec::NetnsTarget;

/// Namespaces, held open before they are entered.
pub(super) struct Target {
    network: OwnedFd,
    /// The user namespace that owns it, unless that is ours already.
    owner: Option<OwnedFd>,
    /// The root directory of a process whose mount namespace is not ours.
    root: Option<OwnedFd>,
}

impl Target {
    pub(super) fn find(target: &NetnsTarget) -> Result<Self, TapError> {
        match target {
            NetnsTarget::Process { pid, start_time } => Self::of_process(*pid, *start_time),
            NetnsTarget::Path(path) => Self::at(path),
        }
    }

    fn of_process(pid: i32, start_time: Option<u64>) -> Result<Self, TapError> {
        let gone = TapError::NoSuchProcess { pid };
        // This descriptor means the process and no later one with its pid; the rest goes through it.
        let process = openat(CWD, format!("/proc/{pid}"), DIRECTORY, Mode::empty())
            .map_err(|_| gone.clone())?;
        let found = start_time_below(&process).map_err(|_| gone.clone())?;
        if let Some(expected) = start_time.filter(|expected| *expected != found) {
            return Err(TapError::Recycled { pid, expected, found });
        }
        let owner = fstat(&process).map_err(|_| gone.clone())?.st_uid;
        let open = |name: &str, flags| {
            openat(&process, name, flags, Mode::empty()).map_err(|error| match error {
                Errno::ACCESS | Errno::PERM => TapError::ForeignOwner { pid, owner },
                _ => gone.clone(),
            })
        };
        let network = open("ns/net", FILE)?;
        if same(&network, &open_own("net")?)? {
            return Err(TapError::HostNamespace { pid });
        }
        let mounts = open("ns/mnt", FILE)?;
        let root = if same(&mounts, &open_own("mnt")?)? { None } else { Some(open("root", ROOT)?) };
        Ok(Self { owner: owner_of(network.as_fd())?, network, root })
    }

    fn at(path: &Path) -> Result<Self, TapError> {
        let network = openat(CWD, path, FILE, Mode::empty())
            .map_err(|error| TapError::NamespaceFile { path: path.to_owned(), os: error.into() })?;
        if !is_network_namespace(network.as_fd()) {
            return Err(TapError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { owner: owner_of(network.as_fd())?, network, root: None })
    }

    /// Enters the owner first: only there have we the capability to enter the other.
    pub(super) fn enter(&self) -> Result<(), TapError> {
        let foreign = |error: Errno| TapError::ForeignNamespace(error.into());
        if let Some(owner) = &self.owner {
            move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))
                .map_err(foreign)?;
        }
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(foreign)
    }

    /// The root directory of the target, when its files are not the host's.
    pub(super) fn foreign_root(&self) -> Option<BorrowedFd<'_>> {
        self.root.as_ref().map(|root| root.as_fd())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const ROOT: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

fn start_time_below(process: &OwnedFd) -> io::Result<u64> {
    let mut stat = String::new();
    File::from(openat(process, "stat", FILE, Mode::empty())?).read_to_string(&mut stat)?;
    start_time_in(&stat)
}

fn open_own(namespace: &str) -> Result<OwnedFd, TapError> {
    openat(CWD, format!("/proc/self/ns/{namespace}"), FILE, Mode::empty())
        .doing("open our own namespaces")
}

fn same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, TapError> {
    let identity = |namespace| {
        fstat(namespace).map(|stat| (stat.st_dev, stat.st_ino)).doing("identify a namespace")
    };
    Ok(identity(one)? == identity(other)?)
}

/// The user namespace that owns a network namespace; `None` when it is the one that we are in.
fn owner_of(network: BorrowedFd<'_>) -> Result<Option<OwnedFd>, TapError> {
    let owner = ask_owner(network).map_err(|error| TapError::ForeignNamespace(error.into()))?;
    let ours = open_own("user")?;
    Ok(if same(&owner, &ours)? { None } else { Some(owner) })
}

/// `_IO(0xb7, 1)` and `_IO(0xb7, 3)` of linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

fn ask_owner(network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes no argument.
    let answer = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the answer is a new descriptor (close-on-exec) that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

fn is_network_namespace(file: BorrowedFd<'_>) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument; other files answer ENOTTY.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
