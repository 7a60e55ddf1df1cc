//! Flows: who speaks with whom now.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `GET /v1/flows` and `GET /v1/workloads/NAME/flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// At most 4096.
    pub flows: Vec<Flow>,
    /// How many more there are.
    pub left_out: u64,
}

/// One flow of a workload with the world or with a client of a published port. Frames between workloads are
/// no flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Whose.
    pub workload: String,
    /// Name of its network.
    pub network: String,
    /// What it speaks.
    pub protocol: FlowProtocol,
    /// The workload's end; of a ping its identifier is the port.
    pub guest: SocketAddr,
    /// The other end as the workload sees it.
    pub remote: SocketAddr,
    /// Where that is in IPv4, for what goes by NAT64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat64: Option<SocketAddr>,
    /// Where it stands.
    pub state: FlowState,
    /// Since something of it last came: of TCP from the workload, of others from either side.
    pub idle_seconds: u64,
    /// Bytes of payload that the workload has sent.
    pub bytes_from_guest: u64,
    /// Bytes of payload that came for it.
    pub bytes_to_guest: u64,
}

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowProtocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// Echo, RFC 792.
    Icmp,
}

impl FlowProtocol {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// The host connects, and the workload waits.
    Connecting,
    /// The workload's side is not established yet.
    Opening,
    /// Both sides are there.
    Established,
    /// One side has finished, or both.
    Closing,
    /// Of datagrams, which have no other state.
    Open,
}

impl FlowState {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Open => "open",
        }
    }
}
