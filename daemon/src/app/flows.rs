//! The flows that live now.

use std::net::{IpAddr, SocketAddr};

use lichen_api::{Flow, FlowProtocol, FlowState, Flows};
use lichen_netstack::command::{self, FlowRow};
use lichen_netstack::gateway::nat64;

use super::{App, Refusal};
use crate::state::{self, NetworkRow, Snapshot, snapshot};

impl App {
    /// The flows of a workload, or of all; none while the datapath does not answer.
    pub async fn flows(&self, workload: Option<String>) -> Result<Flows, Refusal> {
        let (snapshot, port) = self
            .store
            .transact(move |tx| {
                let port = match &workload {
                    Some(name) => Some(state::workload_named(tx, name)?.id),
                    None => None,
                };
                Ok::<_, Refusal>((snapshot(tx)?, port))
            })
            .await?;
        let flows = self.reconciler.flows(port).await.unwrap_or_default();
        let (left_out, rows) = (flows.left_out, flows.rows);
        let flows = rows.into_iter().filter_map(|row| shown(row, &snapshot)).collect();
        Ok(Flows { flows, left_out })
    }
}

/// A flow of a workload that has just ended has no name any more, and is left out.
fn shown(row: FlowRow, snapshot: &Snapshot) -> Option<Flow> {
    let workload = snapshot.workloads.iter().find(|it| it.id.0 == row.port)?;
    let network = snapshot.networks.iter().find(|it| it.id == workload.network)?;
    Some(Flow {
        workload: workload.name.clone(),
        network: network.name.clone(),
        protocol: match row.protocol {
            command::FlowProtocol::Tcp => FlowProtocol::Tcp,
            command::FlowProtocol::Udp => FlowProtocol::Udp,
            command::FlowProtocol::Icmp => FlowProtocol::Icmp,
        },
        guest: row.guest,
        remote: row.remote,
        nat64: over_ipv4(row.remote, network),
        state: match row.state {
            command::FlowState::Connecting => FlowState::Connecting,
            command::FlowState::Opening => FlowState::Opening,
            command::FlowState::Established => FlowState::Established,
            command::FlowState::Closing => FlowState::Closing,
            command::FlowState::Open => FlowState::Open,
        },
        idle_seconds: row.idle,
        bytes_from_guest: row.from_guest,
        bytes_to_guest: row.to_guest,
    })
}

/// Where an end is in IPv4 that a guest reaches by NAT64.
fn over_ipv4(remote: SocketAddr, network: &NetworkRow) -> Option<SocketAddr> {
    match remote.ip() {
        IpAddr::V6(ip) if network.nat64 => {
            Some(SocketAddr::from((nat64::embedded(ip)?, remote.port())))
        }
        _ => None,
    }
}
