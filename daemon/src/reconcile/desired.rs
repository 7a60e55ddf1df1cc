//! What the datapath should hold, derived from the state.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lichen_api::{Source, Transport as ApiTransport, VmAttachment};
use lichen_netstack::command::{
    Attachment, ForwardSpec, HostOpening, NetworkSpec, PortSpec, SourceRule, Transport,
};
use lichen_netstack::ids::MacAddr;

use super::observed::Seen;
use crate::state::{NetworkRow, PortRow, Snapshot, WorkloadRow};

/// What should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Desired {
    /// Networks.
    pub(super) networks: Vec<NetworkSpec>,
    /// Ports of workloads that have a place on their network.
    pub(super) ports: Vec<PortSpec>,
    /// Published ports whose workload is there.
    pub(super) forwards: Vec<ForwardSpec>,
    /// The host's resolvers.
    pub(super) resolvers: Vec<SocketAddr>,
}

/// Derives what should be. Workloads still starting have no port yet, and ports published for a workload
/// that is not there are not forwarded.
pub(super) fn desired(snapshot: &Snapshot, resolvers: &[SocketAddr], seen: &Seen) -> Desired {
    let reachable: BTreeMap<&str, &WorkloadRow> = snapshot
        .workloads
        .iter()
        .filter(|row| seen.is_reachable(row))
        .map(|row| (row.name.as_str(), row))
        .collect();
    Desired {
        networks: snapshot.networks.iter().map(network).collect(),
        ports: snapshot
            .workloads
            .iter()
            .filter(|row| row.is_placed())
            .map(|row| port(row, &snapshot.networks))
            .collect(),
        forwards: snapshot
            .ports
            .iter()
            .filter_map(|row| Some(forward(row, reachable.get(row.target.as_str())?)))
            .collect(),
        resolvers: resolvers.to_vec(),
    }
}

fn network(row: &NetworkRow) -> NetworkSpec {
    NetworkSpec {
        id: row.id,
        name: row.name.clone(),
        subnet: row.subnet,
        gateway: row.gateway,
        prefix6: row.prefix6,
        gateway_mac: MacAddr::for_ipv4(row.gateway),
        mtu: row.mtu,
        internal: row.internal,
        nat64: row.nat64,
    }
}

fn port(row: &WorkloadRow, networks: &[NetworkRow]) -> PortSpec {
    let network = networks.iter().find(|network| network.id == row.network);
    PortSpec {
        id: row.id,
        network: row.network,
        name: row.name.clone(),
        aliases: Vec::new(),
        mac: row.mac,
        address: row.address,
        address6: network.and_then(|network| network.address6_of(row.address)),
        default_route: true,
        allow_host: row
            .allow_host
            .iter()
            .map(|allowed| HostOpening {
                port: allowed.port,
                protocol: transport(allowed.protocol),
            })
            .collect(),
        attachment: match row.attachment {
            None => Attachment::Tap { queues: row.queues },
            Some(VmAttachment::VhostUser) => Attachment::VhostUser,
            Some(VmAttachment::Stream) => Attachment::UnixStream,
            Some(VmAttachment::Dgram) => Attachment::UnixDatagram,
        },
    }
}

fn forward(row: &PortRow, workload: &WorkloadRow) -> ForwardSpec {
    ForwardSpec {
        id: row.id,
        port: workload.id,
        target_port: row.target_port,
        protocol: transport(row.protocol),
        bound: row.host,
        source: match row.source {
            Source::Client => SourceRule::Client,
            Source::Gateway => SourceRule::Gateway,
        },
    }
}

fn transport(protocol: ApiTransport) -> Transport {
    match protocol {
        ApiTransport::Tcp => Transport::Tcp,
        ApiTransport::Udp => Transport::Udp,
    }
}
