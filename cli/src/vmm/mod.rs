//! How virtual machine monitors are started with a place on a network: their arguments, without starting them.

mod cloud_hypervisor;
pub(crate) mod qemu;
mod vfkit;

use lichen_api::{VmAttachment, Workload};
use serde::Serialize;

use self::qemu::{Machine, Version};
use crate::args::Queues;

/// What a monitor must know of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Where it connects.
    pub(crate) socket: String,
    /// What it speaks there.
    pub(crate) attachment: VmAttachment,
    /// What it may bind itself, to send datagrams from.
    pub(crate) peer: String,
    /// The only Ethernet address that passes.
    pub(crate) mac: String,
    /// Largest IP packet in bytes.
    pub(crate) mtu: u16,
    /// Pairs of rings, where it has rings.
    pub(crate) queues: Queues,
}

impl Nic {
    /// The place of a virtual machine, for one with so many pairs of rings; `None` for another kind of workload.
    pub(crate) fn of(workload: &Workload, queues: Queues) -> Option<Self> {
        let socket = workload.socket.clone()?;
        // As long as the socket's path, so it fits where that does.
        let peer = format!("{}.peer", socket.strip_suffix(".sock").unwrap_or(&socket));
        Some(Self {
            socket,
            attachment: workload.attachment?,
            peer,
            mac: workload.mac.clone(),
            mtu: workload.mtu,
            queues,
        })
    }
}

/// The arguments for each monitor that is known to speak what the place's socket does.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Start {
    /// For QEMU; over vhost-user beside `-m SIZE` with the same size.
    pub(crate) qemu: Vec<String>,
    /// For cloud-hypervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cloud_hypervisor: Option<Vec<String>>,
    /// For vfkit and krunkit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vfkit: Option<Vec<String>>,
}

impl Start {
    /// Of a guest with that much memory, where it matters, and a QEMU of that version.
    pub(crate) fn of(nic: &Nic, memory: &str, version: Option<Version>) -> Self {
        let of = |attachment, arguments: &dyn Fn() -> Vec<String>| {
            (nic.attachment == attachment).then(arguments)
        };
        Self {
            qemu: qemu::arguments(nic, &Machine::of_memory(memory), version),
            cloud_hypervisor: of(VmAttachment::VhostUser, &|| {
                cloud_hypervisor::arguments(nic, memory)
            }),
            vfkit: of(VmAttachment::Dgram, &|| vfkit::arguments(nic)),
        }
    }
}

#[cfg(test)]
pub(crate) fn example(attachment: VmAttachment) -> Nic {
    Nic {
        socket: "/run/db.sock".into(),
        attachment,
        peer: "/run/db.peer".into(),
        mac: "02:4c:0a:58:00:02".into(),
        mtu: 1500,
        queues: Queues::ONE,
    }
}
