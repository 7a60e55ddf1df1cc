//! From rows and what was seen to what the API answers of workloads and ports. Pure.

use lichen_api::{
    DatapathState, Lease, PublishedPort, RuntimeDirectory, State, Workload, WorkloadKind,
    WorkloadState,
};
use lichen_netstack::command::LinkState;

use crate::reconcile::Seen;
use crate::state::{NetworkRow, PortRow, Snapshot, WorkloadRow};

/// A workload with its ports.
pub(super) fn workload(
    row: &WorkloadRow,
    snapshot: &Snapshot,
    seen: &Seen,
    runtime: &RuntimeDirectory,
) -> Workload {
    let network = network_of(row, snapshot);
    Workload {
        name: row.name.clone(),
        id: row.uid.clone(),
        kind: row.kind,
        network: network.name.clone(),
        address: row.address,
        prefix_len: network.subnet.len(),
        address6: network.address6_of(row.address),
        mac: row.mac.to_string(),
        state: state(row, seen),
        pid: row.process.map(|process| process.pid),
        socket: match row.kind {
            WorkloadKind::Run | WorkloadKind::Attach => None,
            // Checked when the workload was made.
            WorkloadKind::Vm => {
                runtime.vm_socket(&row.name).ok().map(|path| path.display().to_string())
            }
        },
        attachment: row.attachment,
        queues: (row.kind != WorkloadKind::Vm).then_some(row.queues),
        mtu: network.mtu,
        created: row.created.clone(),
        ports: ports_of(row, snapshot, seen),
        allow_host: row.allow_host.clone(),
    }
}

fn state(row: &WorkloadRow, seen: &Seen) -> WorkloadState {
    if !row.is_placed() {
        return WorkloadState::Starting;
    }
    match (seen.ports.get(&row.id), seen.links.get(&row.id)) {
        (None, _) => WorkloadState::Error { reason: datapath_reason(seen) },
        (Some(Err(reason)), _) | (Some(Ok(())), Some(LinkState::Trouble { reason })) => {
            WorkloadState::Error { reason: reason.clone() }
        }
        (Some(Ok(())), Some(LinkState::Waiting)) => WorkloadState::Waiting,
        (Some(Ok(())), None) if row.kind == WorkloadKind::Vm => WorkloadState::Waiting,
        (Some(Ok(())), Some(LinkState::Connected) | None) => WorkloadState::Running,
    }
}

/// What a workload is given when it is made.
pub(super) fn lease(
    row: &WorkloadRow,
    snapshot: &Snapshot,
    seen: &Seen,
    hide: Vec<String>,
) -> Lease {
    let network = network_of(row, snapshot);
    Lease {
        name: row.name.clone(),
        network: network.name.clone(),
        address: row.address,
        prefix_len: network.subnet.len(),
        address6: network.address6_of(row.address),
        gateway: network.gateway,
        mac: row.mac.to_string(),
        mtu: network.mtu,
        search: format!("{}.internal", network.name),
        hide,
        ports: ports_of(row, snapshot, seen),
    }
}

/// A published port and how it is.
pub(super) fn port(row: &PortRow, snapshot: &Snapshot, seen: &Seen) -> PublishedPort {
    let target_there =
        snapshot.workloads.iter().any(|w| w.name == row.target && seen.is_reachable(w));
    PublishedPort {
        id: row.id.0,
        host_ip: row.host.ip(),
        host_port: row.host.port(),
        target: row.target.clone(),
        target_port: row.target_port,
        protocol: row.protocol,
        status: match (seen.forwards.get(&row.id), target_there) {
            (Some(Err(reason)), _) => State::Error { reason: reason.clone() },
            (_, false) => State::Pending,
            (Some(Ok(())), true) => State::Active,
            (None, true) => State::Error { reason: datapath_reason(seen) },
        },
        source: row.source,
        ends_with_workload: row.workload.is_some(),
    }
}

fn ports_of(row: &WorkloadRow, snapshot: &Snapshot, seen: &Seen) -> Vec<PublishedPort> {
    snapshot
        .ports
        .iter()
        .filter(|port| port.target == row.name)
        .map(|row| port(row, snapshot, seen))
        .collect()
}

fn network_of<'a>(row: &WorkloadRow, snapshot: &'a Snapshot) -> &'a NetworkRow {
    snapshot
        .networks
        .iter()
        .find(|network| network.id == row.network)
        .expect("a workload's network is kept by a foreign key")
}

/// Why something is not in force that nobody refused.
fn datapath_reason(seen: &Seen) -> String {
    match &seen.datapath.state {
        DatapathState::Running { .. } => "being set up".to_owned(),
        DatapathState::Starting { reason: Some(reason) } => reason.clone(),
        DatapathState::Starting { reason: None } => "the datapath is starting".to_owned(),
    }
}
