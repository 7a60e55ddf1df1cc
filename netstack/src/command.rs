//! What control says to the datapath, and what the datapath answers.
//!
//! These are the words only; how they travel (a stream socket, u32 length + JSON, descriptors with the
//! first byte) is the business of whoever owns the socket. Every command is idempotent: applying it
//! twice is applying it once, so a control that is unsure may always say it again. ([`Command::Plug`] is answered
//! by [`Answer::Busy`] then.)
//!
//! A command or answer that brings a descriptor says so in its documentation. Control keeps its own copy of
//! listeners (a datapath that dies is given them again); taps it opens anew.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::{ForwardId, Ipv4Prefix, Ipv6Prefix, MacAddr, NetworkId, PortId};

/// Version of these words. Both sides refuse a peer that speaks another.
pub const PROTOCOL: u32 = 9;

/// From control to the datapath.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// First on every connection, answered by [`Answer::Hello`].
    Hello {
        /// The speaker's [`PROTOCOL`].
        protocol: u32,
        /// The speaker's program version, for the message when the protocols differ.
        version: String,
    },
    /// What is there? Answered by [`Answer::Inventory`]; control computes the difference itself.
    Inventory,
    /// Creates a network or replaces its definition.
    SetNetwork(NetworkSpec),
    /// Removes a network and every port on it.
    RemoveNetwork {
        /// The network; unknown ones are fine.
        network: NetworkId,
    },
    /// Creates a port or replaces its definition. Brings descriptors, as [`Attachment`] says, when
    /// the port is new or was opened again; none when only the definition changed.
    SetPort(PortSpec),
    /// Removes a port; its flows are reset, its forwards removed.
    RemovePort {
        /// The port; unknown ones are fine.
        port: PortId,
    },
    /// Publishes a port. Brings one descriptor: a listening TCP socket or a bound UDP socket.
    SetForward(ForwardSpec),
    /// Closes the socket. Connections that a listener brought live on; clients of a UDP port do not.
    RemoveForward {
        /// The forward; unknown ones are fine.
        forward: ForwardId,
    },
    /// Answered by [`Answer::Done`] with a copy of a forward's socket: a control that adopts a datapath
    /// takes its sockets back, so that the next datapath can be given them.
    TakeListener {
        /// The forward.
        forward: ForwardId,
    },
    /// Answered by [`Answer::Done`] with a copy of the socket of a port that [has one](Attachment::is_socket),
    /// for the same reason.
    TakeSocket {
        /// The port.
        port: PortId,
    },
    /// Serves a guest whose monitor holds the other end of the connected unix socket that comes with this command, as
    /// one that had come to the port's own socket: of a stream for [`Attachment::UnixStream`], of datagrams for
    /// [`Attachment::UnixDatagram`]. Answered by [`Answer::Busy`] while the port has a guest. Nobody keeps a copy: what
    /// ends with its monitor or with the datapath is over.
    Plug {
        /// The port.
        port: PortId,
    },
    /// Where names that are not ours are asked, in order of preference; at most eight are kept, and the
    /// name service may use fewer.
    SetResolvers {
        /// The host's resolvers, port included.
        resolvers: Vec<SocketAddr>,
    },
    /// Answered by [`Answer::Statistics`].
    Statistics,
    /// Answered by [`Answer::Flows`].
    Flows {
        /// Of which port; left out, of all.
        port: Option<PortId>,
    },
    /// Writes frames, from now on, to the pipe that comes with it, as pcapng. Ends when nobody reads the pipe any
    /// more.
    Capture(CaptureSpec),
    /// Reset every flow, close every port, and end the process.
    Stop,
}

/// One virtual network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its number.
    pub id: NetworkId,
    /// Its name, which is also a label of its DNS zone.
    pub name: String,
    /// Its addresses.
    pub subnet: Ipv4Prefix,
    /// Ours: router, resolver and the workloads' only way to the host.
    pub gateway: Ipv4Addr,
    /// Its IPv6 addresses, a /64, if it has any; ours is the first of them.
    pub prefix6: Option<Ipv6Prefix>,
    /// The gateway's Ethernet address.
    pub gateway_mac: MacAddr,
    /// Largest IP packet on this network, in bytes.
    pub mtu: u16,
    /// No way out: only members reach each other, and foreign names are refused.
    pub internal: bool,
    /// An IPv6 address under 64:ff9b::/96 means the IPv4 address in it (RFC 6052), and a name that has only those of
    /// IPv4 is answered with such (RFC 6147).
    pub nat64: bool,
}

impl NetworkSpec {
    /// Our IPv6 address, where the network has IPv6.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.prefix6.map(|prefix| prefix.with_interface_id(1))
    }

    /// Whether an address means everybody on this network.
    pub fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        address.is_broadcast() || address == self.subnet.broadcast()
    }
}

/// One attachment of a workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its number.
    pub id: PortId,
    /// The network it is on.
    pub network: NetworkId,
    /// The workload's name, which is a name of its address.
    pub name: String,
    /// Further names of its address (single labels).
    pub aliases: Vec<String>,
    /// The only source MAC its frames may carry.
    pub mac: MacAddr,
    /// The only source address its frames may carry.
    pub address: Ipv4Addr,
    /// The same in IPv6, of a network that has it. A guest may give itself further ones of that /64: the one that
    /// follows from its MAC, and a few of its own choice that nobody has.
    pub address6: Option<Ipv6Addr>,
    /// Whether this network is the workload's way to everywhere else. Only then does a published port
    /// keep the client's address.
    pub default_route: bool,
    /// What of the host's loopback the workload may reach at the gateway address.
    pub allow_host: Vec<HostOpening>,
    /// How its frames come.
    pub attachment: Attachment,
}

impl PortSpec {
    /// The address that a guest makes for itself of the network's prefix and its MAC (RFC 4862 5.5.3).
    pub fn slaac_address(&self) -> Option<Ipv6Addr> {
        let prefix = Ipv6Prefix::containing(self.address6?, 64)?;
        Some(prefix.with_interface_id(self.mac.interface_id()))
    }
}

/// How a workload's frames come to its port; decides what the descriptors of [`Command::SetPort`] are: one, where nothing
/// else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// A tap with virtio-net headers of twelve bytes.
    Tap {
        /// How many it has, each with a descriptor; at most [`MAX_QUEUES`](crate::port::tap::MAX_QUEUES).
        queues: u16,
    },
    /// A listening unix socket, on which a virtual machine monitor speaks vhost-user.
    VhostUser,
    /// A listening unix stream socket, to which a monitor sends frames with four bytes of length before each.
    UnixStream,
    /// A bound unix datagram socket, to which a monitor sends frames as datagrams.
    UnixDatagram,
}

impl Attachment {
    /// A tap as most are.
    pub const TAP: Self = Self::Tap { queues: 1 };

    /// Whether a kernel that we have configured is the guest.
    pub fn is_tap(self) -> bool {
        matches!(self, Self::Tap { .. })
    }

    /// Whether the guest comes and goes at a socket while the port stays.
    pub fn is_socket(self) -> bool {
        match self {
            Self::Tap { .. } => false,
            Self::VhostUser | Self::UnixStream | Self::UnixDatagram => true,
        }
    }

    /// Whether a monitor hands over whole frames at that socket.
    pub fn takes_frames(self) -> bool {
        match self {
            Self::Tap { .. } | Self::VhostUser => false,
            Self::UnixStream | Self::UnixDatagram => true,
        }
    }
}

/// One opening from a workload to the host's loopback (`--allow-host 5432` or `53/udp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostOpening {
    /// Same number on the gateway address and on 127.0.0.1; of TCP on ::1 where that refuses.
    pub port: u16,
    /// Which transport.
    pub protocol: Transport,
}

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// Its number.
    pub id: ForwardId,
    /// The port (attachment) that its connections go to.
    pub port: PortId,
    /// The port number in the workload.
    pub target_port: u16,
    /// Which transport.
    pub protocol: Transport,
    /// Where the socket that comes with this command is bound; for display.
    pub bound: SocketAddr,
    /// Which source address the workload sees.
    pub source: SourceRule,
}

/// Which source address a workload sees on a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceRule {
    /// The client's where the workload can answer it, else the gateway's.
    Client,
    /// Always the gateway's (`--snat`).
    Gateway,
}

/// From the datapath to control, one for each command, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To [`Command::Hello`].
    Hello {
        /// The speaker's [`PROTOCOL`].
        protocol: u32,
        /// The speaker's program version.
        version: String,
        /// Process id of the datapath.
        pid: u32,
        /// How many workers carry its frames.
        workers: u16,
        /// For how many microseconds each looks for more before it sleeps.
        busy_poll_us: u16,
    },
    /// The command is in force.
    Done,
    /// To [`Command::Inventory`].
    Inventory(Inventory),
    /// To [`Command::Statistics`].
    Statistics(Statistics),
    /// To [`Command::Flows`].
    Flows(Flows),
    /// To [`Command::Plug`]: the port has a guest already, which stays.
    Busy,
    /// The command was refused; nothing changed.
    Refused {
        /// What was wrong and what to do.
        reason: String,
    },
}

/// Everything the datapath holds on control's behalf.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Networks.
    pub networks: Vec<NetworkSpec>,
    /// Ports with a live tap.
    pub ports: Vec<PortSpec>,
    /// Forwards with a live socket.
    pub forwards: Vec<ForwardSpec>,
    /// Resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// How the links of ports with a [socket](Attachment::is_socket) are.
    pub links: Vec<PortLink>,
}

/// How the link of one port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortLink {
    /// Which port.
    pub port: PortId,
    /// How it is.
    pub state: LinkState,
}

/// How the link of a port is whose guest comes and goes while the port stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "link", rename_all = "snake_case", deny_unknown_fields)]
pub enum LinkState {
    /// No virtual machine has connected, or the last one has gone.
    Waiting,
    /// A virtual machine uses the port.
    Connected,
    /// A virtual machine tried, and something is wrong.
    Trouble {
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Counters and gauges of the whole datapath.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// By port.
    pub ports: Vec<PortStatistics>,
}

/// Counters (since the port exists) and gauges (now) of one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortStatistics {
    /// Which port.
    pub port: u32,
    /// Counter: frames read from the guest.
    pub frames_from_guest: u64,
    /// Counter: bytes of those frames, Ethernet header included.
    pub bytes_from_guest: u64,
    /// Counter: frames written to the guest.
    pub frames_to_guest: u64,
    /// Counter: bytes of those frames.
    pub bytes_to_guest: u64,
    /// Counter: dropped frames by reason, zero ones left out.
    pub drops: BTreeMap<String, u64>,
    /// Gauge and cap, by budget: `tcp_flows`, `half_open`, `udp_flows`, `icmp_flows`, `fragments`,
    /// `buffered_bytes`, `dns_queries`, `dns_connections`.
    pub budgets: BTreeMap<String, Budget>,
}

/// A budget's use and its cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// In use now.
    pub used: u64,
    /// Never exceeded.
    pub cap: u64,
}

/// Most rows of a [`Flows`]: as many as one port may have of TCP, and less than a message holds.
pub const MAX_FLOW_ROWS: usize = 4096;

/// Flows that live now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flows {
    /// At most [`MAX_FLOW_ROWS`].
    pub rows: Vec<FlowRow>,
    /// How many more there are.
    pub left_out: u64,
}

impl Flows {
    /// What several workers have told, as one answer.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.left_out += part.left_out;
            all.rows.extend(part.rows);
        }
        all.left_out += all.rows.len().saturating_sub(MAX_FLOW_ROWS) as u64;
        all.rows.truncate(MAX_FLOW_ROWS);
        all
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowRow {
    /// Whose.
    pub port: u32,
    /// Which protocol.
    pub protocol: FlowProtocol,
    /// The guest's end; of a ping its identifier is the port.
    pub guest: SocketAddr,
    /// The other end as the guest sees it.
    pub remote: SocketAddr,
    /// Where it stands.
    pub state: FlowState,
    /// Seconds since something of it last came: of TCP from the guest, of others from either side.
    pub idle: u64,
    /// Bytes of payload handed to the host.
    pub from_guest: u64,
    /// Bytes of payload taken from the host.
    pub to_guest: u64,
}

/// Which frames are written down, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureSpec {
    /// Of which ports.
    pub scope: CaptureScope,
    /// Most bytes kept of each frame.
    pub snaplen: u32,
    /// Only of this flow.
    pub flow: Option<CapturedFlow>,
    /// How those are shown that stand for several.
    pub large: LargeFrames,
}

/// Whose frames. Ports that come later belong to it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureScope {
    /// Everybody's.
    All,
    /// Those of a network's ports.
    Network(NetworkId),
    /// Those of one port.
    Port(PortId),
}

impl CaptureScope {
    /// Whether a port belongs to it.
    pub fn has(&self, port: &PortSpec) -> bool {
        match self {
            Self::All => true,
            Self::Network(network) => *network == port.network,
            Self::Port(id) => *id == port.id,
        }
    }
}

/// A flow as it is shown: what it speaks, and its two ends. The direction does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapturedFlow {
    /// What it speaks.
    pub protocol: FlowProtocol,
    /// The guest's end; of a ping its identifier is the port.
    pub guest: SocketAddr,
    /// The other end; of a ping its port is zero.
    pub remote: SocketAddr,
}

/// How frames are shown that stand for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LargeFrames {
    /// As they pass; checksums too.
    Whole,
    /// In pieces, as they would be on a wire, with whole checksums.
    Cut,
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

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// The host connects, and the guest waits.
    Connecting,
    /// The guest's side is not established yet.
    Opening,
    /// Both sides are there.
    Established,
    /// One side has finished, or both.
    Closing,
    /// Of datagrams, which have no other state.
    Open,
}

/// From the datapath to control, whenever it happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A port can no longer be used and was removed, with its forwards.
    PortLost {
        /// Which.
        port: PortId,
        /// Why, for the log.
        reason: String,
    },
    /// The link of a port has changed.
    Link(PortLink),
    /// The workload's DHCP client says that somebody else has its address: control gives it another.
    AddressDeclined {
        /// Whose.
        port: PortId,
        /// Which address; when the port has another by now, nothing is to be done.
        address: Ipv4Addr,
    },
    /// A refusal that a person would want to see (rate-limited; `suppressed` says how many were not told).
    Refusal {
        /// Whose.
        port: PortId,
        /// What was asked, for example `tcp 127.0.0.1:22`.
        asked: String,
        /// Which rule refused it.
        rule: String,
        /// Refusals of this port that were not reported since the last one.
        suppressed: u64,
    },
}
