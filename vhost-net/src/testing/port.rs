//! A port whose rings nobody has set up by messages.

use std::sync::Arc;

use lichen_netstack::port::Offloads;
use lichen_netstack::port::alarm::Alarm;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;

use crate::memory::Shared;
use crate::port::VhostPort;
use crate::queue::from_guest::FromGuest;
use crate::queue::to_guest::ToGuest;
use crate::rings::{Notifiers, Receiving, Sending, Served};

/// A port over one ring in each direction, for a guest that polls: its kicks are never heard, and nobody calls it.
///
/// # Panics
/// Where the system has no descriptor left.
pub fn port(memory: &Arc<GuestMemoryMmap>, from_guest: FromGuest, to_guest: ToGuest) -> VhostPort {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor"));
    let notifiers = Notifiers { kick: Arc::clone(&bell), call: None };
    let sending =
        Sending { ring: from_guest, notifiers: notifiers.clone(), served: Served::Enabled };
    let rings = (vec![sending], vec![Receiving::new(to_guest, notifiers)]);
    let memory = (Shared::unguarded(Arc::clone(memory)), None);
    VhostPort::new(rings, Offloads::ChecksumTcpAndUdp, memory, Arc::new(Alarm::new(bell)))
}
