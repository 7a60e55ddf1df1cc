//! The datapath as control sees it: commands in, answers and events out.
//!
//! This is the only place that decides which slot of which worker a port lives in. It owns no frame and no
//! flow; it builds the directory that workers look into, and hands them descriptors.

mod attacher;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use crate::balance::{Balance, Load};
use crate::command::{
    Attachment, Command, Event, ForwardSpec, Inventory, LinkState, NetworkSpec, PortLink, PortSpec,
    Transport,
};
use crate::host::PublishedSocket;
use crate::host::sys::{SysDatagram, SysHost, SysListener};
use crate::ids::{ForwardId, MacAddr, NetworkId, PortId};
use crate::port::recording::Recorder;
use crate::port::tap::MAX_QUEUES;
use crate::switch::directory::{Directory, Location};
use crate::worker::event_loop::WorkerHandle;
use crate::worker::{Possessions, WorkerCommand};

pub use self::attacher::{Attacher, Plugged};

/// Resolvers that are used at most.
pub const MAX_RESOLVERS: usize = 8;
/// Ports of one datapath at once.
pub const MAX_PORTS: usize = 1024;

/// Networks, ports and forwards, and the workers that serve them.
pub struct Datapath<A: Attacher> {
    workers: Vec<WorkerHandle<A::Port>>,
    attacher: A,
    networks: BTreeMap<NetworkId, NetworkSpec>,
    ports: BTreeMap<PortId, Placed>,
    forwards: BTreeMap<ForwardId, Published>,
    resolvers: Vec<SocketAddr>,
    /// Which slots are in use. A slot's number is one worker's only.
    slots: Vec<Option<PortId>>,
    balance: Balance,
}

struct Placed {
    spec: PortSpec,
    place: Location,
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
    /// A port that is not there, or whose guest does not hand over whole frames.
    #[error("port {0} does not exist, or takes no whole frames over a socket")]
    NoFrames(PortId),
    /// A second guest of one port.
    #[error("port {0} has a guest already")]
    Busy(PortId),
    /// A gateway outside its subnet, or an MTU below what every IPv4 host takes (RFC 791).
    #[error("network {0} has a gateway outside its subnet or an MTU below 576")]
    InvalidNetwork(NetworkId),
    /// A new port without a tap, or a forward without a socket.
    #[error("the command must bring a descriptor, and did not")]
    NoDescriptor,
    /// A tap with a queue more or less than it has.
    #[error(
        "the tap of port {port} has {queues} queues, at most {MAX_QUEUES}, and {brought} came; all of them must"
    )]
    Queues {
        /// The port.
        port: PortId,
        /// How many queues it should have.
        queues: u16,
        /// How many descriptors came.
        brought: usize,
    },
    /// Every slot is in use.
    #[error("all {MAX_PORTS} ports are in use; remove one first")]
    NoSlot,
    /// The descriptor is not what it should be.
    #[error("the descriptor cannot be used")]
    Descriptor(#[from] io::Error),
}

impl<A: Attacher> Datapath<A> {
    /// A datapath with nothing in it.
    ///
    /// # Panics
    /// Without a worker.
    pub fn new(workers: Vec<WorkerHandle<A::Port>>, attacher: A) -> Self {
        assert!(!workers.is_empty(), "somebody must do the work");
        Self {
            balance: Balance::new(workers.len()),
            workers,
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

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        u16::try_from(self.workers.len()).expect("workers are few")
    }

    /// Asks the workers for their counters; they come as an event of each.
    pub fn request_statistics(&self) {
        self.tell_all(|| WorkerCommand::Statistics);
    }

    /// Asks the workers for the flows of a port, or of all; they come as an event of each.
    pub fn request_flows(&self, port: Option<PortId>) {
        self.tell_all(|| WorkerCommand::Flows { port });
    }

    fn tell(&self, place: Location, command: WorkerCommand<A::Port, SysHost>) {
        self.workers[usize::from(place.worker)].send(command);
    }

    fn tell_all(&self, command: impl Fn() -> WorkerCommand<A::Port, SysHost>) {
        self.workers.iter().for_each(|worker| worker.send(command()));
    }

    /// A port's definition.
    pub fn port(&self, port: PortId) -> Option<&PortSpec> {
        self.ports.get(&port).map(|placed| &placed.spec)
    }

    /// Shows every frame of a port, from now on, to `recorder`.
    pub fn record(&self, port: PortId, recorder: Box<dyn Recorder>) {
        if let Some(placed) = self.ports.get(&port) {
            let slot = placed.place.slot;
            self.tell(placed.place, WorkerCommand::Record { slot, port, recorder });
        }
    }

    /// Carries out a command that changes something; others are answered by who owns the link.
    pub fn handle_command(
        &mut self,
        command: Command,
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), CommandError> {
        let mut descriptors = descriptors.into_iter();
        match command {
            Command::SetNetwork(spec) => self.set_network(spec)?,
            Command::RemoveNetwork { network } => self.remove_network(network),
            Command::SetPort(spec) => self.set_port(spec, descriptors.collect())?,
            Command::RemovePort { port } => self.remove_port(port),
            Command::Plug { port } => self.plug(port, descriptors.next())?,
            Command::SetForward(spec) => self.set_forward(spec, descriptors.next())?,
            Command::RemoveForward { forward } => self.remove_forward(forward),
            Command::SetResolvers { mut resolvers } => {
                resolvers.truncate(MAX_RESOLVERS);
                self.resolvers.clone_from(&resolvers);
                self.tell_all(|| WorkerCommand::SetResolvers(resolvers.clone()));
            }
            Command::Stop => self.tell_all(|| WorkerCommand::Stop),
            Command::Hello { .. }
            | Command::Flows { .. }
            | Command::Capture(_)
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
            self.share_descriptors();
        }
    }

    /// Moves a port to another worker, with its flows and all else that is its own. Answers whether it could go: not
    /// while a name that it has asked for is under way.
    pub fn move_port(&mut self, port: PortId, worker: u16) -> bool {
        let Some(placed) = self.ports.get_mut(&port) else { return false };
        let (from, to) = (placed.place, Location { worker, ..placed.place });
        let Some(target) = self.workers.get(usize::from(worker)) else { return false };
        if from == to {
            return false;
        }
        let source = &self.workers[usize::from(from.worker)];
        let has_gone = self.attacher.relocate(port, to, || {
            let (sender, moving) = mpsc::channel();
            source.send(WorkerCommand::Yield { slot: from.slot, port, to: sender });
            // Between two turns of that worker. One that has ended has let go of the sender.
            let Ok(Some(moving)) = moving.recv() else { return false };
            target.send(WorkerCommand::Adopt { moving });
            true
        });
        if has_gone {
            placed.place = to;
            self.publish_directory();
            self.share_descriptors();
        }
        has_gone
    }

    /// A worker tells how busy it was. Moves a port, where that makes the work more even.
    pub fn handle_load(&mut self, worker: u16, load: &Load) {
        if let Some((port, to)) = self.balance.handle_load(worker, load)
            && self.move_port(port, to)
        {
            tracing::info!(%port, from = worker, to, busy = load.busy, "a port moves to another worker");
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

    fn set_port(&mut self, spec: PortSpec, descriptors: Vec<OwnedFd>) -> Result<(), CommandError> {
        if !self.networks.contains_key(&spec.network) {
            return Err(CommandError::UnknownNetwork { port: spec.id, network: spec.network });
        }
        let (place, is_new) = match self.ports.get(&spec.id) {
            Some(placed) => (placed.place, false),
            None => (self.free_place(spec.id)?, true),
        };
        if is_new && descriptors.is_empty() {
            return Err(CommandError::NoDescriptor);
        }
        let (mut tap, mut socket) = (None, None);
        match spec.attachment {
            _ if descriptors.is_empty() => {}
            Attachment::Tap { queues } => {
                let brought = descriptors.len();
                if brought != usize::from(queues) || queues > MAX_QUEUES {
                    return Err(CommandError::Queues { port: spec.id, queues, brought });
                }
                tap = Some(self.attacher.open(place, descriptors)?);
            }
            Attachment::VhostUser | Attachment::UnixStream | Attachment::UnixDatagram => {
                let own = descriptors.into_iter().next();
                socket = own.map(|own| Ok::<_, io::Error>((own.try_clone()?, own))).transpose()?;
            }
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
        let slot = place.slot;
        self.slots[usize::from(slot)] = Some(spec.id);
        self.ports.insert(spec.id, Placed { spec: spec.clone(), place, listening, used });
        self.publish_directory();
        self.tell(place, WorkerCommand::SetPort { slot, spec: spec.clone(), io });
        self.share_descriptors();
        if let Some(listener) = listener {
            self.attacher.listen(&spec, place, listener)?;
        }
        Ok(())
    }

    fn plug(&mut self, port: PortId, descriptor: Option<OwnedFd>) -> Result<(), CommandError> {
        if !self.ports.get(&port).is_some_and(|it| it.spec.attachment.takes_frames()) {
            return Err(CommandError::NoFrames(port));
        }
        let descriptor = descriptor.ok_or(CommandError::NoDescriptor)?;
        match self.attacher.plug(port, descriptor)? {
            Plugged::Yes => Ok(()),
            Plugged::Busy => Err(CommandError::Busy(port)),
        }
    }

    fn remove_port(&mut self, port: PortId) {
        if let Some(place) = self.forget_port(port) {
            // The port first: its last segments are sent while its network is still known.
            self.tell(place, WorkerCommand::RemovePort { slot: place.slot });
            self.publish_directory();
            self.share_descriptors();
        }
    }

    fn forget_port(&mut self, port: PortId) -> Option<Location> {
        let place = self.ports.remove(&port)?.place;
        self.slots[usize::from(place.slot)] = None;
        self.forwards.retain(|_, open| open.spec.port != port);
        self.attacher.detach(port);
        Some(place)
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
        let place = placed.place;
        self.remove_forward(spec.id);
        self.forwards.insert(spec.id, Published { spec: spec.clone(), socket: copy });
        self.tell(place, WorkerCommand::SetForward { slot: place.slot, spec, socket });
        self.share_descriptors();
        Ok(())
    }

    fn remove_forward(&mut self, forward: ForwardId) {
        if let Some(open) = self.forwards.remove(&forward)
            && let Some(placed) = self.ports.get(&open.spec.port)
        {
            let slot = placed.place.slot;
            self.tell(placed.place, WorkerCommand::RemoveForward { slot, forward });
            self.share_descriptors();
        }
    }

    /// A place for a new port: at the worker that has the fewest.
    fn free_place(&mut self, port: PortId) -> Result<Location, CommandError> {
        let slot = self.free_slot()?;
        let workers = self.possessions().into_iter().zip(0..);
        let fewest = workers.min_by_key(|(it, _)| it.ports).expect("there is a worker");
        Ok(Location { worker: fewest.1, slot, port })
    }

    /// What each worker has.
    fn possessions(&self) -> Vec<Possessions> {
        let mut all = vec![Possessions::default(); self.workers.len()];
        for placed in self.ports.values() {
            all[usize::from(placed.place.worker)].ports += 1;
        }
        for placed in self.forwards.values().filter_map(|it| self.ports.get(&it.spec.port)) {
            all[usize::from(placed.place.worker)].published += 1;
        }
        all
    }

    /// Tells each worker what the others have.
    fn share_descriptors(&self) {
        if self.workers.len() == 1 {
            return;
        }
        let all = self.possessions();
        let sum = |part: fn(&Possessions) -> usize| all.iter().map(part).sum::<usize>();
        let (ports, published) = (sum(|it| it.ports), sum(|it| it.published));
        for (worker, own) in self.workers.iter().zip(&all) {
            worker.send(WorkerCommand::Others(Possessions {
                ports: ports - own.ports,
                published: published - own.published,
            }));
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
        let ports = self.ports.values().map(|placed| (&placed.spec, placed.place));
        let mut directory = Directory::new(self.networks.values(), ports);
        for placed in self.ports.values() {
            directory.add_used(&placed.spec, &placed.used);
        }
        let directory = Arc::new(directory);
        self.tell_all(|| WorkerCommand::SetDirectory(Arc::clone(&directory)));
    }
}
