//! Workloads: what is attached to a network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::published_port::{PortRange, PublishedPort, Source};

/// Most queues of a workload's interface, and most pairs of rings of a virtual machine.
pub const MAX_QUEUES: u16 = 4;

/// One attached workload (`GET /v1/workloads`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name, which is also its host name on the network.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// How it came.
    pub kind: WorkloadKind,
    /// Name of its network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// Its IPv6 address, of a /64, on a network that has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Its Ethernet address.
    pub mac: String,
    /// How it is.
    pub state: WorkloadState,
    /// Its first process, as the host sees it, once attached.
    pub pid: Option<i32>,
    /// Where a virtual machine connects (kind `vm` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// What is spoken there (kind `vm` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<VmAttachment>,
    /// Queues of its interface (kinds `run` and `attach` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// RFC 3339, UTC.
    pub created: String,
    /// Its published ports, `port add` included.
    pub ports: Vec<PublishedPort>,
    /// What of the host's loopback it may reach.
    pub allow_host: Vec<AllowedPort>,
}

/// How a workload came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// `lichen run`: the namespaces are ours.
    Run,
    /// `lichen attach`: the namespaces are somebody else's.
    Attach,
    /// `lichen vm`: a virtual machine that connects to a socket.
    Vm,
}

/// What a virtual machine's monitor speaks at its socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmAttachment {
    /// The guest's rings in shared memory.
    #[default]
    VhostUser,
    /// A stream, with four bytes of length before each frame.
    Stream,
    /// A datagram for each frame.
    Dgram,
}

impl VmAttachment {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Stream => "stream",
            Self::Dgram => "dgram",
        }
    }
}

/// How a workload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum WorkloadState {
    /// Name and address are reserved; its namespaces are being made.
    Starting,
    /// It has a place on its network, and no virtual machine has connected.
    Waiting,
    /// On its network.
    Running,
    /// Alive, but not on its network.
    Error {
        /// What is wrong and what to do.
        reason: String,
    },
}

impl std::fmt::Display for WorkloadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Waiting => f.write_str("waiting"),
            Self::Running => f.write_str("running"),
            Self::Error { reason } => write!(f, "error({reason})"),
        }
    }
}

/// One opening from a workload to the host's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedPort {
    /// The same number on the gateway address and on 127.0.0.1.
    pub port: u16,
    /// The transport.
    pub protocol: Transport,
}

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports to publish together with a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Left out, 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Ports on the host; 0 alone is one that is free, for each that it leads to.
    pub host: PortRange,
    /// As many ports in the workload.
    pub target_ports: PortRange,
    /// The transport.
    #[serde(default)]
    pub protocol: Transport,
}

/// `POST /v1/workloads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkload {
    /// The id that it is to have, 64 hexadecimal digits by chance. The same request said again, because the answer
    /// was lost, is answered by what was made. Left out, one is made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Left out, one is made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Left out, the default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// How it comes; `attach` needs `process` in the same request.
    pub kind: WorkloadKind,
    /// Its address; left out, the lowest free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Its Ethernet address; left out, it is derived from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports to publish; all of them or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Publish>,
    /// What of the host's loopback it may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_host: Vec<AllowedPort>,
    /// Which source address it sees on its published ports.
    #[serde(default)]
    pub source: Source,
    /// Whose namespaces (kind `attach`), or the monitor that the workload ends with (kind `vm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<AttachWorkload>,
    /// Whether the target's own resolv.conf is written (kind `attach` only).
    #[serde(default)]
    pub resolv_conf: bool,
    /// What the monitor speaks (kind `vm` only); left out, vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<VmAttachment>,
    /// Queues of its interface, 1 to [`MAX_QUEUES`] (kinds `run` and `attach` only); left out, one. How many pairs of
    /// rings a virtual machine has is its monitor's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
}

/// `POST /v1/workloads/NAME/attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachWorkload {
    /// A process in the namespaces, as the host sees it.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, which guards against a recycled pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
}

/// Answer of `POST /v1/workloads`: what was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The workload's name.
    pub name: String,
    /// Name of its network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// Its IPv6 address, of a /64, on a network that has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// The network's router and resolver.
    pub gateway: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// The network's zone, for the `search` line.
    pub search: String,
    /// Directories that the workload must not see.
    pub hide: Vec<String>,
    /// Its published ports.
    pub ports: Vec<PublishedPort>,
}
