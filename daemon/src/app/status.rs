//! The daemon as a whole.

use lichen_api::{BudgetUse, Status, VERSION, Version, WorkloadCounters};
use lichen_netstack::command::{PROTOCOL, PortStatistics};

use super::{App, Refusal};
use crate::state::{Snapshot, snapshot};

impl App {
    /// Who we are.
    pub fn version(&self) -> Version {
        Version {
            version: VERSION.to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            service: self.service,
        }
    }

    /// How we are.
    pub async fn status(&self) -> Result<Status, Refusal> {
        let snapshot = self.store.transact(snapshot).await?;
        let statistics = self.reconciler.statistics().await.unwrap_or_default();
        let seen = self.observed.seen();
        Ok(Status {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            datapath: seen.datapath,
            runtime_directory: self.directories.runtime.path().display().to_string(),
            state_directory: self.directories.state.path().display().to_string(),
            resolvers: seen.resolvers,
            networks: snapshot.networks.len(),
            workloads: snapshot.workloads.len(),
            ports: snapshot.ports.len(),
            counters: statistics
                .ports
                .into_iter()
                .filter_map(|port| counters(port, &snapshot))
                .collect(),
        })
    }
}

/// A port that has just ended has no name any more, and is left out.
fn counters(port: PortStatistics, snapshot: &Snapshot) -> Option<WorkloadCounters> {
    let workload = snapshot.workloads.iter().find(|row| row.id.0 == port.port)?;
    Some(WorkloadCounters {
        workload: workload.name.clone(),
        frames_from_guest: port.frames_from_guest,
        bytes_from_guest: port.bytes_from_guest,
        frames_to_guest: port.frames_to_guest,
        bytes_to_guest: port.bytes_to_guest,
        drops: port.drops,
        budgets: port
            .budgets
            .into_iter()
            .map(|(name, budget)| (name, BudgetUse { used: budget.used, cap: budget.cap }))
            .collect(),
    })
}
