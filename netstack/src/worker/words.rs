//! What a worker is told, and what it tells.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, mpsc};

use super::slot::Slot;
use crate::balance::Load;
use crate::command::{Event, Flows, ForwardSpec, PortSpec, PortStatistics};
use crate::host::{Host, PublishedSocket};
use crate::ids::{ForwardId, MacAddr, PortId};
use crate::port::Port;
use crate::port::recording::Recorder;
use crate::switch::directory::Directory;

/// What the control thread tells a worker.
pub enum WorkerCommand<P, H: Host> {
    /// Puts a port into a slot, or changes the one that is there.
    SetPort {
        /// Which slot; the control thread chooses it.
        slot: u16,
        /// The port's definition.
        spec: PortSpec,
        /// Its frames; `None` keeps what is there.
        io: Option<P>,
    },
    /// Changes how a slot's frames come, while its flows go on.
    Plug {
        /// Which slot.
        slot: u16,
        /// Whose it must be; else `io` is what comes back.
        port: PortId,
        /// Its frames from now on.
        io: P,
        /// Gets what was there before, once the worker has let go of it.
        before: mpsc::Sender<P>,
    },
    /// Gives a port up whole, for another worker.
    Yield {
        /// Which slot.
        slot: u16,
        /// Whose it must be.
        port: PortId,
        /// Gets the port, or nothing where it cannot go now.
        to: mpsc::Sender<Option<Moving<P, H>>>,
    },
    /// Takes a port that another worker has given up, in the slot of that number.
    Adopt {
        /// The port.
        moving: Moving<P, H>,
    },
    /// Closes a slot's port and resets its flows.
    RemovePort {
        /// Which slot.
        slot: u16,
    },
    /// Publishes a port of a slot.
    SetForward {
        /// Which slot.
        slot: u16,
        /// The forward's definition.
        spec: ForwardSpec,
        /// What clients come to.
        socket: PublishedSocket<H::Listener, H::Datagram>,
    },
    /// Closes the socket of a published port.
    RemoveForward {
        /// Which slot.
        slot: u16,
        /// Which forward.
        forward: ForwardId,
    },
    /// Who is where from now on.
    SetDirectory(Arc<Directory>),
    /// Where foreign names are asked from now on.
    SetResolvers(Vec<SocketAddr>),
    /// What the other workers have, for a fair share of the host's descriptors.
    Others(Possessions),
    /// Answer with [`WorkerEvent::Statistics`].
    Statistics,
    /// Answer with [`WorkerEvent::Flows`].
    Flows {
        /// Of which port; `None` is all.
        port: Option<PortId>,
    },
    /// Shows every frame of a slot to a recorder.
    Record {
        /// Which slot.
        slot: u16,
        /// Whose it must be.
        port: PortId,
        /// Who is shown them.
        recorder: Box<dyn Recorder>,
    },
    /// Close every port and end.
    Stop,
}

/// A port between two workers, with all that belongs to it.
pub struct Moving<P, H: Host>(pub(super) Box<Slot<P, H>>);

impl<P: Port, H: Host> Moving<P, H> {
    /// Which slot it was in, and is to be in.
    pub fn slot(&self) -> u16 {
        self.0.number()
    }
}

/// What takes descriptors besides flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Possessions {
    /// Ports.
    pub ports: usize,
    /// Published ports.
    pub published: usize,
}

/// What a worker tells the control thread.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerEvent {
    /// For control.
    Event(Event),
    /// The counters of all ports.
    Statistics(Vec<PortStatistics>),
    /// The flows that were asked for.
    Flows(Flows),
    /// How busy it was, once a second; only one of several workers tells.
    Load(Load),
    /// A slot's port is gone.
    SlotLost {
        /// Which slot.
        slot: u16,
        /// Whose it was.
        port: PortId,
    },
    /// A guest that has just come uses another Ethernet address than its port's.
    WrongMac {
        /// Which port.
        port: PortId,
        /// The address it uses.
        used: MacAddr,
    },
    /// And now it uses the right one.
    RightMac {
        /// Which port.
        port: PortId,
    },
    /// The IPv6 addresses that a guest uses have changed, which its neighbours should know.
    Addresses {
        /// Which port.
        port: PortId,
        /// All of them.
        used: Vec<Ipv6Addr>,
    },
}
