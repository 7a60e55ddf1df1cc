//! What the reconciler has seen, for whoever asks how things are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};

use lichen_api::{Datapath, DatapathState, WorkloadKind};
use lichen_netstack::command::LinkState;
use lichen_netstack::ids::{ForwardId, PortId};

use crate::state::WorkloadRow;

/// Shared by the reconciler, which writes, and the API, which reads.
#[derive(Debug)]
pub struct Observed(Mutex<Seen>);

/// The latest of each.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The datapath.
    pub datapath: Datapath,
    /// The host's resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// Ports in force (`Ok`) or refused, with the reason.
    pub ports: BTreeMap<PortId, Result<(), String>>,
    /// How the links of virtual machines are.
    pub links: BTreeMap<PortId, LinkState>,
    /// Published ports in force (`Ok`) or refused, with the reason.
    pub forwards: BTreeMap<ForwardId, Result<(), String>>,
}

impl Default for Observed {
    fn default() -> Self {
        Self(Mutex::new(Seen {
            datapath: Datapath { state: DatapathState::Starting { reason: None }, restarts: 0 },
            resolvers: Vec::new(),
            ports: BTreeMap::new(),
            links: BTreeMap::new(),
            forwards: BTreeMap::new(),
        }))
    }
}

impl Observed {
    /// A copy of the latest.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// For the reconciler alone.
    pub(super) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl Seen {
    /// Whether connections to a workload's published ports can be brought to it: those to a virtual machine
    /// only while it is connected. Before, clients are refused rather than kept waiting.
    pub fn is_reachable(&self, workload: &WorkloadRow) -> bool {
        match workload.kind {
            WorkloadKind::Run | WorkloadKind::Attach => workload.process.is_some(),
            WorkloadKind::Vm => self.links.get(&workload.id) == Some(&LinkState::Connected),
        }
    }
}
