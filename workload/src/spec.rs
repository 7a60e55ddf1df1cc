//! What is asked of this crate.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A command to run on a network (`lichen run`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The workload's name, which becomes its host name.
    pub name: String,
    /// The network's zone, for the `search` line, for example `bridge.internal`.
    pub search: String,
    /// The address that will be configured, for `/etc/hosts`.
    pub address: Ipv4Addr,
    /// The same in IPv6, on a network that has it.
    pub address6: Option<Ipv6Addr>,
    /// The network's resolver, for `/etc/resolv.conf`.
    pub resolver: Ipv4Addr,
    /// Whom the caller is inside.
    pub user: UserMapping,
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
    /// Directories to cover with an empty file system: Lichen's own runtime and state directories.
    pub hide: Vec<PathBuf>,
    /// `Some` detaches: standard input is /dev/null, output is appended to this file, and the
    /// supervisor leaves the caller's session.
    pub log: Option<PathBuf>,
}

/// Whom the caller is inside the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserMapping {
    /// The caller's uid and gid become 0.
    Root,
    /// The caller keeps its uid and gid (`--user keep`).
    Keep,
}

/// Which namespace a tap is made in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsTarget {
    /// The user and network namespace of a process. The start time (field 22 of /proc/PID/stat, in clock
    /// ticks) guards against a recycled pid; `None` skips that check.
    Process {
        /// As seen by the caller.
        pid: i32,
        /// Field 22 of /proc/PID/stat.
        start_time: Option<u64>,
    },
    /// A network namespace file (`--netns PATH`), entered through the user namespace that owns it.
    Path(PathBuf),
}

/// A tap to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapRequest {
    /// Where.
    pub target: NetnsTarget,
    /// Interface name in the namespace, for example `eth0`.
    pub interface: String,
    /// The interface's Ethernet address, six octets.
    pub mac: [u8; 6],
    /// The interface's address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The default route's gateway; `None` makes no default route.
    pub gateway: Option<Ipv4Addr>,
    /// The interface's IPv6 address, of a /64 whose router is fe80::1; `None` turns IPv6 off.
    pub address6: Option<Ipv6Addr>,
    /// Interface MTU in bytes.
    pub mtu: u16,
    /// How many queues it has, 1 to [`MAX_QUEUES`](crate::MAX_QUEUES).
    pub queues: u16,
    /// Written to the target's /etc/resolv.conf when its mount namespace is not ours
    /// (`attach` without `--no-resolv-conf`); `None` never writes.
    pub resolv_conf: Option<String>,
}
