//! The datapath as control sees it: commands in, answers and events out.
//!
//! This is the only place that knows which slot of which worker a port lives in. It owns no frame and no
//! flow; it builds the directory that workers look into, and hands them descriptors.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::command::{
    Attachment, Command, Event, ForwardSpec, Inventory, LinkState, NetworkSpec, PortLink, PortSpec,
    Transport,
};
use crate::host::PublishedSocket;
use crate::host::sys::{SysDatagram, SysListener};
use crate::ids::{ForwardId, MacAddr, NetworkId, PortId};
use crate::port::Port;
use crate::port::recording::Recorder;
use crate::switch::directory::{Directory, Location};
use crate::worker::WorkerCommand;
use crate::worker::event_loop::WorkerHandle;

/// Resolvers that are used at most.
pub const MAX_RESOLVERS: usize = 8;
/// Ports of one datapath at once.
pub const MAX_PORTS: usize = 1024;

/// Makes ports of the descriptors that control hands over.
pub trait Attacher {
    /// What it makes.
    type Port: Port;

    /// A port for `slot` with these frames, which the worker has been told to watch. Called for a new
    /// port, and when control has opened a port again.
    fn open(&mut self, slot: u16, frames: OwnedFd) -> io::Result<Self::Port>;

    /// A port without a guest, for a slot whose guest connects to a socket.
    fn unplugged(&mut self) -> Self::Port;

    /// The port is in its slot; from now on guests that connect to `socket` are plugged into it. Replaces
    /// an earlier socket, while a guest that is connected stays.
    fn listen(&mut self, spec: &PortSpec, slot: u16, socket: OwnedFd) -> io::Result<()>;

    /// A port has been removed.
    fn detach(&mut self, port: PortId);
}

/// Networks, ports and forwards, and the worker that serves them.
pub struct Datapath<A: Attacher> {
    worker: WorkerHandle<A::Port>,
    attacher: A,
    networks: BTreeMap<NetworkId, NetworkSpec>,
    ports: BTreeMap<PortId, Placed>,
    forwards: BTreeMap<ForwardId, Published>,
    resolvers: Vec<SocketAddr>,
    /// Which slots are in use.
    slots: Vec<Option<PortId>>,
}

struct Placed {
    spec: PortSpec,
    slot: u16,
    listening: Option<Listening>,
    /// The IPv6 addresses that its guest has shown to use.
    used: Vec<Ipv6Addr>,
}

/// What a port has whose guest comes and goes.
struct Listening {
    /// A copy of what the guest connects to, for a control that has lost its own.
    socket: OwnedFd,
    link: LinkState,
}

struct Published {
    spec: ForwardSpec,
    /// A copy of what clients come to, for a control that has lost its own.
    socket: OwnedFd,
}

/// Why a command was refused; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A port on a network that is not there.
    #[error("port {port} names network {network}, which does not exist; set the network first")]
    UnknownNetwork {
        /// The port.
        port: PortId,
        /// The network.
        network: NetworkId,
    },
    /// A forward to a port that is not there.
    #[error("forward {forward} names port {port}, which does not exist; set the port first")]
    UnknownPort {
        /// The forward.
        forward: ForwardId,
        /// The port.
        port: PortId,
    },
    /// A forward that is not there.
    #[error("forward {0} does not exist")]
    UnknownForward(ForwardId),
    /// A port that is not there, or whose guest does not connect to a socket.
    #[error("port {0} has no socket")]
    NoSocket(PortId),
    /// A gateway outside its subnet, or an MTU below what every IPv4 host takes (RFC 791).
    #[error("network {0} has a gateway outside its subnet or an MTU below 576")]
    InvalidNetwork(NetworkId),
    /// A new port without a tap, or a forward without a socket.
    #[error("the command must bring a descriptor, and did not")]
    NoDescriptor,
    /// Every slot is in use.
    #[error("all {MAX_PORTS} ports are in use; remove one first")]
    NoSlot,
    /// The descriptor is not what it should be.
    #[error("the descriptor cannot be used")]
    Descriptor(#[from] io::Error),
}

impl<A: Attacher> Datapath<A> {
    /// A datapath with nothing in it.
    pub fn new(worker: WorkerHandle<A::Port>, attacher: A) -> Self {
        Self {
            worker,
            attacher,
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
            forwards: BTreeMap::new(),
            resolvers: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// What is there.
    pub fn inventory(&self) -> Inventory {
        Inventory {
            networks: self.networks.values().cloned().collect(),
            ports: self.ports.values().map(|placed| placed.spec.clone()).collect(),
            forwards: self.forwards.values().map(|open| open.spec.clone()).collect(),
            resolvers: self.resolvers.clone(),
            links: self.links(),
        }
    }

    fn links(&self) -> Vec<PortLink> {
        let listening = self.ports.values().filter_map(|placed| {
            let state = placed.listening.as_ref()?.link.clone();
            Some(PortLink { port: placed.spec.id, state })
        });
        listening.collect()
    }

    /// The link of a port is like that from now on. Answers what control should hear of it.
    pub fn handle_link(&mut self, port: PortId, state: LinkState) -> Option<Event> {
        let listening = self.ports.get_mut(&port)?.listening.as_mut()?;
        if listening.link == state {
            return None;
        }
        listening.link = state.clone();
        Some(Event::Link(PortLink { port, state }))
    }

    /// A guest uses another Ethernet address than its port's: none of its frames pass.
    pub fn handle_wrong_mac(&mut self, port: PortId, used: MacAddr) -> Option<Event> {
        let right = self.ports.get(&port)?.spec.mac;
        let reason = format!("the guest uses {used}; start it with mac={right}");
        self.handle_link(port, LinkState::Trouble { reason })
    }

    /// A copy of the socket that a port's guest connects to.
    pub fn socket(&self, port: PortId) -> Result<OwnedFd, CommandError> {
        let placed = self.ports.get(&port);
        let listening = placed.and_then(|placed| placed.listening.as_ref());
        Ok(listening.ok_or(CommandError::NoSocket(port))?.socket.try_clone()?)
    }

    /// A copy of a forward's socket.
    pub fn listener(&self, forward: ForwardId) -> Result<OwnedFd, CommandError> {
        let open = self.forwards.get(&forward).ok_or(CommandError::UnknownForward(forward))?;
        Ok(open.socket.try_clone()?)
    }

    /// Asks the worker for its counters; they come as an event.
    pub fn request_statistics(&self) {
        self.worker.send(WorkerCommand::Statistics);
    }

    /// Asks the worker for the flows of a port, or of all; they come as an event.
    pub fn request_flows(&self, port: Option<PortId>) {
        self.worker.send(WorkerCommand::Flows { port });
    }

    /// A port's definition.
    pub fn port(&self, port: PortId) -> Option<&PortSpec> {
        self.ports.get(&port).map(|placed| &placed.spec)
    }

    /// Shows every frame of a port, from now on, to `recorder`.
    pub fn record(&self, port: PortId, recorder: Box<dyn Recorder>) {
        if let Some(placed) = self.ports.get(&port) {
            let slot = placed.slot;
            self.worker.send(WorkerCommand::Record { slot, port, recorder });
        }
    }

    /// Carries out a command that changes something; others are answered by who owns the link.
    pub fn handle_command(
        &mut self,
        command: Command,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), CommandError> {
        match command {
            Command::SetNetwork(spec) => self.set_network(spec)?,
            Command::RemoveNetwork { network } => self.remove_network(network),
            Command::SetPort(spec) => self.set_port(spec, descriptor)?,
            Command::RemovePort { port } => self.remove_port(port),
            Command::SetForward(spec) => self.set_forward(spec, descriptor)?,
            Command::RemoveForward { forward } => self.remove_forward(forward),
            Command::SetResolvers { mut resolvers } => {
                resolvers.truncate(MAX_RESOLVERS);
                self.resolvers.clone_from(&resolvers);
                self.worker.send(WorkerCommand::SetResolvers(resolvers));
            }
            Command::Stop => self.worker.send(WorkerCommand::Stop),
            Command::Hello { .. }
            | Command::Flows { .. }
            | Command::Capture { .. }
            | Command::Inventory
            | Command::TakeListener { .. }
            | Command::TakeSocket { .. }
            | Command::Statistics => {}
        }
        Ok(())
    }

    /// A guest uses these IPv6 addresses from now on.
    pub fn handle_addresses(&mut self, port: PortId, used: Vec<Ipv6Addr>) {
        if let Some(placed) = self.ports.get_mut(&port)
            && placed.used != used
        {
            placed.used = used;
            self.publish_directory();
        }
    }

    /// A worker has lost a port by itself.
    pub fn handle_slot_lost(&mut self, slot: u16, port: PortId) {
        if self.slots.get(usize::from(slot)) == Some(&Some(port)) {
            self.forget_port(port);
            self.publish_directory();
        }
    }

    fn set_network(&mut self, spec: NetworkSpec) -> Result<(), CommandError> {
        if !spec.subnet.contains(spec.gateway) || spec.mtu < 576 {
            return Err(CommandError::InvalidNetwork(spec.id));
        }
        self.networks.insert(spec.id, spec);
        self.publish_directory();
        Ok(())
    }

    fn remove_network(&mut self, network: NetworkId) {
        let members: Vec<PortId> = self
            .ports
            .values()
            .filter(|placed| placed.spec.network == network)
            .map(|placed| placed.spec.id)
            .collect();
        members.into_iter().for_each(|port| self.remove_port(port));
        if self.networks.remove(&network).is_some() {
            self.publish_directory();
        }
    }

    fn set_port(
        &mut self,
        spec: PortSpec,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), CommandError> {
        if !self.networks.contains_key(&spec.network) {
            return Err(CommandError::UnknownNetwork { port: spec.id, network: spec.network });
        }
        let (slot, is_new) = match self.ports.get(&spec.id) {
            Some(placed) => (placed.slot, false),
            None => (self.free_slot()?, true),
        };
        if is_new && descriptor.is_none() {
            return Err(CommandError::NoDescriptor);
        }
        let (mut tap, mut socket) = (None, None);
        match (descriptor, spec.attachment) {
            (Some(frames), Attachment::Tap) => tap = Some(self.attacher.open(slot, frames)?),
            (Some(own), _) => socket = Some((own.try_clone()?, own)),
            (None, _) => {}
        }
        let io = if spec.attachment.is_socket() && is_new {
            Some(self.attacher.unplugged())
        } else {
            tap
        };
        let (before, used) = match self.ports.remove(&spec.id) {
            Some(placed) => (placed.listening, placed.used),
            None => (None, Vec::new()),
        };
        let (listening, listener) = match socket {
            // A guest that is connected stays so; only the next one comes over the new socket.
            Some((socket, listener)) => {
                let link = before.map_or(LinkState::Waiting, |before| before.link);
                (Some(Listening { socket, link }), Some(listener))
            }
            None => (before, None),
        };
        self.slots[usize::from(slot)] = Some(spec.id);
        self.ports.insert(spec.id, Placed { spec: spec.clone(), slot, listening, used });
        self.publish_directory();
        self.worker.send(WorkerCommand::SetPort { slot, spec: spec.clone(), io });
        if let Some(listener) = listener {
            self.attacher.listen(&spec, slot, listener)?;
        }
        Ok(())
    }

    fn remove_port(&mut self, port: PortId) {
        if let Some(slot) = self.forget_port(port) {
            // The port first: its last segments are sent while its network is still known.
            self.worker.send(WorkerCommand::RemovePort { slot });
            self.publish_directory();
        }
    }

    fn forget_port(&mut self, port: PortId) -> Option<u16> {
        let slot = self.ports.remove(&port)?.slot;
        self.slots[usize::from(slot)] = None;
        self.forwards.retain(|_, open| open.spec.port != port);
        self.attacher.detach(port);
        Some(slot)
    }

    fn set_forward(
        &mut self,
        spec: ForwardSpec,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), CommandError> {
        let Some(placed) = self.ports.get(&spec.port) else {
            return Err(CommandError::UnknownPort { forward: spec.id, port: spec.port });
        };
        let descriptor = descriptor.ok_or(CommandError::NoDescriptor)?;
        let copy = descriptor.try_clone()?;
        let socket = match spec.protocol {
            Transport::Tcp => PublishedSocket::Tcp(SysListener::new(descriptor)?),
            Transport::Udp => PublishedSocket::Udp(SysDatagram::published(descriptor)?),
        };
        let slot = placed.slot;
        self.remove_forward(spec.id);
        self.forwards.insert(spec.id, Published { spec: spec.clone(), socket: copy });
        self.worker.send(WorkerCommand::SetForward { slot, spec, socket });
        Ok(())
    }

    fn remove_forward(&mut self, forward: ForwardId) {
        if let Some(open) = self.forwards.remove(&forward)
            && let Some(placed) = self.ports.get(&open.spec.port)
        {
            self.worker.send(WorkerCommand::RemoveForward { slot: placed.slot, forward });
        }
    }

    fn free_slot(&mut self) -> Result<u16, CommandError> {
        let index = match self.slots.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.slots.len() < MAX_PORTS => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return Err(CommandError::NoSlot),
        };
        Ok(u16::try_from(index).expect("at most 1024 slots"))
    }

    fn publish_directory(&self) {
        let ports = self
            .ports
            .values()
            .map(|placed| (&placed.spec, Location { worker: 0, slot: placed.slot }));
        let mut directory = Directory::new(self.networks.values(), ports);
        for placed in self.ports.values() {
            directory.add_used(&placed.spec, &placed.used);
        }
        self.worker.send(WorkerCommand::SetDirectory(Arc::new(directory)));
    }
}
