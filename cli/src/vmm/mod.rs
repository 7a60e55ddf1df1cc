//! How virtual machine monitors are started with a place on a network: their arguments, without starting them.

mod cloud_hypervisor;
pub(crate) mod qemu;

use lichen_api::Workload;
use serde::Serialize;

pub(crate) use cloud_hypervisor::arguments as cloud_hypervisor;

/// What a monitor must know of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Where it connects.
    pub(crate) socket: String,
    /// The only Ethernet address that passes.
    pub(crate) mac: String,
    /// Largest IP packet in bytes.
    pub(crate) mtu: u16,
}

impl Nic {
    /// The place of a virtual machine; `None` for another kind of workload.
    pub(crate) fn of(workload: &Workload) -> Option<Self> {
        let socket = workload.socket.clone()?;
        Some(Self { socket, mac: workload.mac.clone(), mtu: workload.mtu })
    }
}

/// The arguments for each monitor that is known.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Start {
    /// For QEMU, beside `-m SIZE` with the same size.
    pub(crate) qemu: Vec<String>,
    /// For cloud-hypervisor.
    pub(crate) cloud_hypervisor: Vec<String>,
}
