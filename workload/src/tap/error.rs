//! Why a tap could not be had, and what to do about it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::MAX_QUEUES;
use crate::os_error::OsError;

/// Why [`open_tap`](crate::open_tap) failed. Made in the helper and carried over its channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TapError {
    /// Our own process could not be started or spoken to.
    #[error("cannot run the netns helper: {0}")]
    Helper(OsError),
    /// It was killed, or crashed.
    #[error("the netns helper ended without an answer")]
    HelperGone,
    /// The caller's fault, or the process has just ended.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// Which.
        pid: i32,
    },
    /// The pid now belongs to a later process.
    #[error(
        "process {pid} is not the one that was meant: it started at tick {found}, not {expected}; \
         the workload has ended and its pid was used again"
    )]
    Recycled {
        /// Which.
        pid: i32,
        /// Start time that was asked for.
        expected: u64,
        /// Start time that was found.
        found: u64,
    },
    /// The process is another user's.
    #[error(
        "process {pid} belongs to uid {owner}, and only one's own can be attached; \
         run Lichen as that user"
    )]
    ForeignOwner {
        /// Which.
        pid: i32,
        /// Whose.
        owner: u32,
    },
    /// The process has no network namespace of its own.
    #[error(
        "process {pid} is in the host's own network namespace; start it in a new one, \
         for example: podman run --network none, or unshare --user --map-root-user --net"
    )]
    HostNamespace {
        /// Which.
        pid: i32,
    },
    /// The namespace belongs to a user namespace of somebody else, for example root's.
    #[error(
        "the network namespace is not owned by a user namespace of yours: {0}; \
         create it as the user that runs Lichen, for example: unshare --user --map-root-user --net"
    )]
    ForeignNamespace(OsError),
    /// `--netns` names something else.
    #[error("{} is not a network namespace; give a file like /proc/PID/ns/net", path.display())]
    NotANamespace {
        /// Which.
        path: PathBuf,
    },
    /// `--netns` names nothing that can be opened.
    #[error("cannot open the network namespace {}: {os}", path.display())]
    NamespaceFile {
        /// Which.
        path: PathBuf,
        /// Why.
        os: OsError,
    },
    /// The machine has no tun driver.
    #[error(
        "there is no /dev/net/tun; root can load the driver: modprobe tun \
         (in a container: start it with --device /dev/net/tun)"
    )]
    NoTunDevice,
    /// The usual mode is 0666.
    #[error("no permission to open /dev/net/tun; root can allow it: chmod 0666 /dev/net/tun")]
    TunPermission,
    /// An interface of that name exists and is no tap that we made.
    #[error(
        "an interface {name} exists in the namespace and is not Lichen's; remove it there first: \
         ip link delete {name}"
    )]
    InterfaceForeign {
        /// Which.
        name: String,
    },
    /// Somebody holds the tap open.
    #[error(
        "the tap {name} is held open by another process, for example another network program; end it first"
    )]
    InterfaceBusy {
        /// Which.
        name: String,
    },
    /// None, or more than [`MAX_QUEUES`].
    #[error("a tap has 1 to {MAX_QUEUES} queues, not {asked}")]
    QueueCount {
        /// How many were asked for.
        asked: u16,
    },
    /// Descriptors were lost on their way here.
    #[error(
        "of {asked} queues of the tap {opened} could be handed over; this process has too many files open: \
         raise the limit where it was started, for example: ulimit -n 4096"
    )]
    QueuesLost {
        /// How many came.
        opened: usize,
        /// How many were asked for.
        asked: usize,
    },
    /// Empty, longer than 15 bytes, or with a slash, space or percent sign.
    #[error(
        "{name:?} is no interface name: 1 to 15 bytes without slash, colon, space or percent sign"
    )]
    InterfaceName {
        /// Which.
        name: String,
    },
    /// The container's own.
    #[error(
        "cannot write the target's /etc/resolv.conf: {os}; to leave it alone, attach with --no-resolv-conf"
    )]
    ResolvConf {
        /// Why.
        os: OsError,
    },
    /// Some other step failed.
    #[error("cannot {what}: {os}")]
    Step {
        /// What was tried.
        what: String,
        /// Why it failed.
        os: OsError,
    },
}

impl TapError {
    pub(super) fn helper(error: impl Into<OsError>) -> Self {
        Self::Helper(error.into())
    }
}

/// Names the step that failed.
pub(super) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, TapError>;
}

impl<T, E: Into<OsError>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Result<T, TapError> {
        self.map_err(|error| TapError::Step { what: what.to_owned(), os: error.into() })
    }
}
