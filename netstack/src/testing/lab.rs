//! The lab itself: one worker or several, their guests, the world outside, and a clock that moves when told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::frames::{self, Received};
use super::host::{SimDatagram, SimListener, World};
use super::names::Echo;
use super::specs;
use super::wire::Wire;
use crate::command::{
    Attachment, Event, ForwardSpec, HostOpening, NetworkSpec, PortSpec, PortStatistics, SourceRule,
    Transport,
};
use crate::gateway::flow::Work;
use crate::host::{PublishedSocket, TokenKind};
use crate::ids::{ForwardId, MacAddr, NetworkId, PortId};
use crate::port::Offloads;
use crate::switch::directory::{Directory, Location};
use crate::time::Instant;
use crate::worker::crossing::{Doorbell, Links};
use crate::worker::{Possessions, Worker, WorkerCommand, WorkerEvent};

/// Frames that a guest of the lab leaves lying about.
const ROOM: usize = 1024;
/// Host sockets that all guests share; few enough to be reached.
const DESCRIPTORS: usize = 12_000;
/// Rounds without an end in sight.
const MAX_ROUNDS: usize = 100_000;

/// A network in a test.
pub struct Lab {
    /// The workers under test, each with where it is woken.
    workers: Vec<(Worker<Wire, World, Echo>, Arc<Doorbell>)>,
    /// The world outside.
    pub world: World,
    /// Now.
    pub now: Instant,
    networks: Vec<NetworkSpec>,
    ports: Vec<(PortSpec, Wire)>,
    /// Guests that are on another worker than at first.
    moved: BTreeMap<u16, usize>,
    /// Whose ports are published.
    published: Vec<usize>,
    /// The IPv6 addresses that guests have shown to use.
    used: BTreeMap<PortId, Vec<Ipv6Addr>>,
    /// What the workers told control.
    pub events: Vec<WorkerEvent>,
}

impl Lab {
    /// A lab with the network `bridge`, 10.88.0.0/16, and that many guests at .2 and on.
    pub fn new(guests: u8) -> Self {
        Self::with_offloads(guests, Offloads::ChecksumAndTcp)
    }

    /// The same with guests that can do less, or more.
    pub fn with_offloads(guests: u8, offloads: Offloads) -> Self {
        Self::with_workers(default_workers(), guests, offloads)
    }

    /// The same where all flows of a worker together may hold that many host sockets.
    pub fn with_descriptors(guests: u8, descriptors: usize) -> Self {
        Self::with(default_workers(), guests, Offloads::ChecksumAndTcp, descriptors)
    }

    /// The same with that many workers, among which guests are spread in turn.
    pub fn with_workers(workers: usize, guests: u8, offloads: Offloads) -> Self {
        Self::with(workers, guests, offloads, DESCRIPTORS)
    }

    fn with(workers: usize, guests: u8, offloads: Offloads, descriptors: usize) -> Self {
        let world = World::default();
        let bells: Vec<_> = (0..workers).map(|_| Arc::new(Doorbell::new(None))).collect();
        let links = Links::between(&bells).into_iter();
        let worker = || Worker::new(world.clone(), Echo::default(), 42, descriptors);
        let workers = links.map(|links| worker().linked(links)).zip(bells).collect();
        let mut lab = Self {
            workers,
            world,
            now: Instant::from_micros(1_000_000),
            networks: vec![network(1, "bridge", 88)],
            ports: Vec::new(),
            published: Vec::new(),
            moved: BTreeMap::new(),
            used: BTreeMap::new(),
            events: Vec::new(),
        };
        lab.publish();
        for guest in 0..guests {
            lab.add_guest(1, 88, guest + 2, offloads);
        }
        lab
    }

    /// Adds a network 10.`second`.0.0/16.
    pub fn add_network(&mut self, id: u32, name: &str, second: u8) {
        self.networks.push(network(id, name, second));
        self.publish();
    }

    /// Changes a network.
    pub fn change_network(&mut self, id: u32, change: impl FnOnce(&mut NetworkSpec)) {
        let id = NetworkId(id);
        change(self.networks.iter_mut().find(|network| network.id == id).expect("a network"));
        self.publish();
    }

    /// Adds a guest at 10.`second`.0.`host`; answers its slot.
    pub fn add_guest(&mut self, network: u32, second: u8, host: u8, offloads: Offloads) -> usize {
        let slot = self.ports.len();
        let address = Ipv4Addr::new(10, second, 0, host);
        let id = u32::try_from(slot).expect("few guests") + 1;
        let spec = PortSpec {
            network: NetworkId(network),
            address6: Some(Ipv6Addr::new(0xfd00, 0, 0, second.into(), 0, 0, 0, host.into())),
            ..specs::port(id, &format!("guest{slot}"), address, Attachment::TAP)
        };
        let wire = Wire::new(offloads, ROOM);
        self.ports.push((spec.clone(), wire.clone()));
        self.publish();
        self.command(WorkerCommand::SetPort { slot: number(slot), spec, io: Some(wire) });
        self.share_descriptors();
        slot
    }

    /// Takes a guest's IPv6 address away, as on a network without any.
    pub fn forget_address6(&mut self, guest: usize) {
        self.ports[guest].0.address6 = None;
        let spec = self.ports[guest].0.clone();
        self.publish();
        self.command(WorkerCommand::SetPort { slot: number(guest), spec, io: None });
    }

    /// Lets a guest's frames come as those of a virtual machine, which was told nothing.
    pub fn become_virtual(&mut self, guest: usize) {
        self.ports[guest].0.attachment = Attachment::VhostUser;
        let spec = self.ports[guest].0.clone();
        self.publish();
        self.command(WorkerCommand::SetPort { slot: number(guest), spec, io: None });
    }

    /// Gives a guest an opening to the host.
    pub fn allow_host(&mut self, guest: usize, opening: HostOpening) {
        self.ports[guest].0.allow_host.push(opening);
        let spec = self.ports[guest].0.clone();
        self.command(WorkerCommand::SetPort { slot: number(guest), spec, io: None });
    }

    /// Gives a guest another address, as control does when one was declined.
    pub fn readdress(&mut self, guest: usize, address: Ipv4Addr) {
        self.ports[guest].0.address = address;
        let spec = self.ports[guest].0.clone();
        self.publish();
        self.command(WorkerCommand::SetPort { slot: number(guest), spec, io: None });
    }

    /// Publishes a port of a guest; answers the listener's number for [`World::connect_to`].
    pub fn publish_port(&mut self, guest: usize, target_port: u16, source: SourceRule) -> u64 {
        let listener = self.world.listen();
        let id = listener.id;
        self.set_forward(guest, target_port, source, PublishedSocket::Tcp(listener));
        id
    }

    /// Publishes a UDP port of a guest; answers the socket's number for [`World::client_sends`].
    pub fn publish_udp(&mut self, guest: usize, target_port: u16, source: SourceRule) -> u64 {
        let socket = self.world.bind();
        let id = socket.id;
        self.set_forward(guest, target_port, source, PublishedSocket::Udp(socket));
        id
    }

    fn set_forward(
        &mut self,
        guest: usize,
        target_port: u16,
        source: SourceRule,
        socket: PublishedSocket<SimListener, SimDatagram>,
    ) {
        let spec = ForwardSpec {
            id: ForwardId(u32::from(target_port)),
            port: self.ports[guest].0.id,
            target_port,
            protocol: match socket {
                PublishedSocket::Tcp(_) => Transport::Tcp,
                PublishedSocket::Udp(_) => Transport::Udp,
            },
            bound: ([127, 0, 0, 1], target_port).into(),
            source,
        };
        self.command(WorkerCommand::SetForward { slot: number(guest), spec, socket });
        self.published.push(guest);
        self.share_descriptors();
    }

    /// Takes back a published port of a guest.
    pub fn unpublish(&mut self, guest: usize, target_port: u16) {
        let forward = ForwardId(u32::from(target_port));
        self.published.retain(|it| *it != guest);
        self.command(WorkerCommand::RemoveForward { slot: number(guest), forward });
    }

    /// Gives a command to the worker whose it is, or to all.
    pub fn command(&mut self, command: WorkerCommand<Wire, World>) {
        use WorkerCommand as Command;
        let slot = match &command {
            Command::SetPort { slot, .. }
            | Command::Plug { slot, .. }
            | Command::Yield { slot, .. }
            | Command::RemovePort { slot }
            | Command::SetForward { slot, .. }
            | Command::RemoveForward { slot, .. }
            | Command::Record { slot, .. } => *slot,
            Command::Adopt { moving } => moving.slot(),
            Command::SetDirectory(directory) => {
                return self.command_all(|| Command::SetDirectory(Arc::clone(directory)));
            }
            Command::SetResolvers(resolvers) => {
                return self.command_all(|| Command::SetResolvers(resolvers.clone()));
            }
            Command::Others(others) => return self.command_all(|| Command::Others(*others)),
            Command::Statistics => return self.command_all(|| Command::Statistics),
            Command::Flows { port } => return self.command_all(|| Command::Flows { port: *port }),
            Command::Stop => return self.command_all(|| Command::Stop),
        };
        let now = self.now;
        self.worker_of(slot).handle_command(now, command);
    }

    fn command_all(&mut self, command: impl Fn() -> WorkerCommand<Wire, World>) {
        for (worker, _) in &mut self.workers {
            worker.handle_command(self.now, command());
        }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Which worker a guest is on.
    fn place(&self, slot: u16) -> usize {
        let moved = self.moved.get(&slot).copied();
        moved.unwrap_or(usize::from(slot) % self.workers.len())
    }

    /// Moves a guest to another worker, as the datapath does. Answers whether it could go.
    pub fn move_to(&mut self, guest: usize, worker: usize) -> bool {
        let slot = number(guest);
        let (to, moving) = std::sync::mpsc::channel();
        let port = self.ports[guest].0.id;
        self.command(WorkerCommand::Yield { slot, port, to });
        let Some(moving) = moving.recv().expect("the worker answers") else { return false };
        self.moved.insert(slot, worker);
        self.command(WorkerCommand::Adopt { moving });
        self.publish();
        self.share_descriptors();
        true
    }

    fn worker_of(&mut self, slot: u16) -> &mut Worker<Wire, World, Echo> {
        let place = self.place(slot);
        &mut self.workers[place].0
    }

    /// Lets a guest's worker look at its frames, and nothing else happen.
    pub fn handle_frames(&mut self, guest: usize) {
        let now = self.now;
        self.worker_of(number(guest)).handle_frames(now, number(guest));
    }

    /// Lets a guest's worker take one turn, and no other.
    pub fn take_turn(&mut self, guest: usize) {
        let place = self.place(number(guest));
        let (worker, bell) = &mut self.workers[place];
        turn(worker, bell, self.now);
    }

    /// Tells each worker what the others have.
    fn share_descriptors(&mut self) {
        for at in 0..self.workers.len() {
            let on = |slot: usize| self.place(number(slot)) == at;
            let others = Possessions {
                ports: (0..self.ports.len()).filter(|slot| !on(*slot)).count(),
                published: self.published.iter().filter(|guest| !on(**guest)).count(),
            };
            self.workers[at].0.handle_command(self.now, WorkerCommand::Others(others));
        }
    }

    /// A guest's port.
    pub fn spec(&self, guest: usize) -> &PortSpec {
        &self.ports[guest].0
    }

    /// All networks.
    pub fn networks(&self) -> &[NetworkSpec] {
        &self.networks
    }

    /// A guest's wire.
    pub fn wire(&self, guest: usize) -> &Wire {
        &self.ports[guest].1
    }

    /// A guest's gateway's Ethernet address.
    pub fn gateway_mac(&self, guest: usize) -> MacAddr {
        let id = self.ports[guest].0.network;
        self.networks.iter().find(|network| network.id == id).expect("a network").gateway_mac
    }

    /// Lets a guest send a raw frame, and everything happen that follows at once.
    pub fn send(&mut self, guest: usize, frame: Vec<u8>) {
        self.wire(guest).send(frame);
        self.settle();
    }

    /// Lets a guest send an IP packet to the gateway.
    pub fn send_ip(&mut self, guest: usize, packet: &[u8]) {
        let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        let to = self.gateway_mac(guest);
        let frame = frames::ethernet(self.spec(guest).mac, to, ethertype, packet);
        self.send(guest, frame);
    }

    /// Takes what a guest has received.
    pub fn received(&mut self, guest: usize) -> Vec<Received> {
        let wire = self.wire(guest).clone();
        std::iter::from_fn(|| wire.take()).map(|frame| Received::parse(&frame)).collect()
    }

    /// Lets everything happen that can without time passing.
    pub fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut idle = true;
            for slot in 0..self.ports.len() {
                if self.ports[slot].1.is_readable() {
                    self.handle_frames(slot);
                    idle = false;
                }
            }
            while let Some((token, readiness)) = self.world.poll_ready() {
                let now = self.now;
                // Questions to resolvers have no port; nobody asks any here.
                assert_ne!(token.kind, TokenKind::Names);
                self.worker_of(token.port).handle_ready(now, token, readiness);
                idle = false;
            }
            for (worker, bell) in &mut self.workers {
                idle &= !turn(worker, bell, self.now);
            }
            let workers = self.workers.iter_mut().map(|(worker, _)| worker);
            let told = workers.flat_map(|worker| std::iter::from_fn(|| worker.poll_event()));
            for event in told.collect::<Vec<_>>() {
                if let WorkerEvent::Addresses { port, used } = &event {
                    self.used.insert(*port, used.clone());
                    self.publish();
                }
                self.events.push(event);
            }
            if idle {
                return;
            }
        }
        panic!("the worker never comes to rest");
    }

    /// Lets time pass, stopping wherever the worker has asked to be called.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            match self.workers.iter().filter_map(|(worker, _)| worker.poll_timeout()).min() {
                Some(at) if at <= end => self.now = at.max(self.now),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
    }

    /// Counters and gauges of a guest's port.
    pub fn statistics(&mut self, guest: usize) -> PortStatistics {
        self.command(WorkerCommand::Statistics);
        self.settle();
        let id = self.ports[guest].0.id.0;
        let answers = self.events.iter().rev().filter_map(|event| match event {
            WorkerEvent::Statistics(ports) => Some(ports),
            _ => None,
        });
        // The last answer of each.
        let answers = answers.take(self.workers.len()).flatten();
        let found: Vec<_> = answers.filter(|port| port.port == id).cloned().collect();
        assert!(found.len() <= 1, "a port is one worker's");
        found.into_iter().next().unwrap_or_default()
    }

    /// How many frames of a guest were dropped for that reason.
    pub fn dropped(&mut self, guest: usize, reason: &str) -> u64 {
        self.statistics(guest).drops.get(reason).copied().unwrap_or(0)
    }

    /// How much of a budget a guest uses.
    pub fn used(&mut self, guest: usize, budget: &str) -> u64 {
        self.statistics(guest).budgets.get(budget).expect("a budget").used
    }

    /// What was done for a guest's flows so far.
    pub fn work(&self, guest: usize) -> Work {
        self.workers[self.place(number(guest))].0.flow_work(number(guest)).expect("a port")
    }

    /// The refusals that control was told of, as `(asked, rule)`.
    pub fn refusals(&self) -> Vec<(String, String)> {
        let told = self.events.iter().filter_map(|event| match event {
            WorkerEvent::Event(Event::Refusal { asked, rule, .. }) => {
                Some((asked.clone(), rule.clone()))
            }
            _ => None,
        });
        told.collect()
    }

    fn publish(&mut self) {
        let ports = self
            .ports
            .iter()
            .enumerate()
            .map(|(slot, (spec, _))| (spec, self.location(slot, spec)));
        let mut directory = Directory::new(&self.networks, ports);
        for (spec, _) in &self.ports {
            directory.add_used(spec, self.used.get(&spec.id).map_or(&[], Vec::as_slice));
        }
        self.command(WorkerCommand::SetDirectory(Arc::new(directory)));
    }

    fn location(&self, slot: usize, spec: &PortSpec) -> Location {
        let slot = number(slot);
        let worker = u16::try_from(self.place(slot)).expect("few workers");
        Location { worker, slot, port: spec.id }
    }
}

/// One turn of a worker, as the event loop has it. Answers whether there was anything to do.
fn turn(worker: &mut Worker<Wire, World, Echo>, bell: &Doorbell, now: Instant) -> bool {
    let mut is_busy = false;
    // Nobody looks unless somebody has rung.
    if !bell.is_waiting() {
        worker.handle_crossings();
        bell.begin_waiting();
        if worker.has_crossings() {
            bell.end_waiting();
            is_busy = true;
        }
    }
    if worker.is_busy() || worker.poll_timeout().is_some_and(|at| at <= now) {
        worker.handle_timeout(now);
        is_busy = true;
    }
    is_busy
}

/// Tests that do not care run on one worker, and on as many as `LICHEN_LAB_WORKERS` says where that is set.
fn default_workers() -> usize {
    std::env::var("LICHEN_LAB_WORKERS").map_or(1, |count| count.parse().expect("a number"))
}

fn network(id: u32, name: &str, second: u8) -> NetworkSpec {
    let prefix6 = Some(format!("fd00:0:0:{second:x}::/64").parse().expect("a prefix"));
    NetworkSpec { prefix6, ..specs::network(id, name, second) }
}

fn number(slot: usize) -> u16 {
    u16::try_from(slot).expect("few guests")
}
