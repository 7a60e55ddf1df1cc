//! Published ports: a port of the host that leads to a workload.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::workload::Transport;

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Its number.
    pub id: u32,
    /// The address it is bound to.
    pub host_ip: IpAddr,
    /// The port on the host.
    pub host_port: u16,
    /// The workload's name; there need not be one yet.
    pub target: String,
    /// The port in the workload.
    pub target_port: u16,
    /// The transport.
    pub protocol: Transport,
    /// How it is.
    pub status: State,
    /// Which source address the workload sees.
    pub source: Source,
    /// Published by `run -p` or `attach -p`, and gone with that workload.
    pub ends_with_workload: bool,
}

/// How a published port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Connections, or datagrams, are accepted.
    Active,
    /// The port is ours, but there is no such workload yet.
    Pending,
    /// It does not work.
    Error {
        /// What is wrong and what to do.
        reason: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Pending => f.write_str("pending"),
            Self::Error { reason } => write!(f, "error({reason})"),
        }
    }
}

/// Which source address a workload sees on a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The client's own where the workload can answer it, else the gateway's.
    #[default]
    Client,
    /// Always the gateway's (`--snat`).
    Gateway,
}

/// One or more consecutive ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub start: u16,
    /// The last.
    pub end: u16,
}

impl PortRange {
    /// Just one port.
    pub fn one(port: u16) -> Self {
        Self { start: port, end: port }
    }

    /// How many ports; 0 when the ends are the wrong way round.
    pub fn count(self) -> usize {
        if self.end < self.start { 0 } else { usize::from(self.end - self.start) + 1 }
    }
}

/// `POST /v1/ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddPort {
    /// Left out, 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Ports on the host; 0 alone is one that is free, for each that it leads to.
    pub host: PortRange,
    /// Name of the workload.
    pub target: String,
    /// As many ports in the workload.
    pub target_ports: PortRange,
    /// The transport.
    #[serde(default)]
    pub protocol: Transport,
    /// Which source address the workload sees.
    #[serde(default)]
    pub source: Source,
}

/// `POST /v1/ports/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovePort {
    /// Left out, every address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Ports on the host.
    pub host: PortRange,
    /// The transport.
    #[serde(default)]
    pub protocol: Transport,
}
