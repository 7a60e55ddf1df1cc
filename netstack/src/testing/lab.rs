//! The lab itself: one worker, its guests, the world outside, and a clock that moves when told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::frames::{self, Received};
use super::host::{SimDatagram, SimListener, World};
use super::names::Echo;
use super::wire::Wire;
use crate::command::{
    Attachment, Event, ForwardSpec, HostOpening, NetworkSpec, PortSpec, PortStatistics, SourceRule,
    Transport,
};
use crate::gateway::flow::Work;
use crate::host::PublishedSocket;
use crate::ids::{ForwardId, MacAddr, NetworkId, PortId};
use crate::port::Offloads;
use crate::switch::directory::{Directory, Location};
use crate::time::Instant;
use crate::worker::{Worker, WorkerCommand, WorkerEvent};

/// Frames that a guest of the lab leaves lying about.
const ROOM: usize = 1024;
/// Host sockets that all guests share; few enough to be reached.
const DESCRIPTORS: usize = 12_000;
/// Rounds without an end in sight.
const MAX_ROUNDS: usize = 100_000;

/// A network in a test.
pub struct Lab {
    /// The worker under test.
    pub worker: Worker<Wire, World, Echo>,
    /// The world outside.
    pub world: World,
    /// Now.
    pub now: Instant,
    networks: Vec<NetworkSpec>,
    ports: Vec<(PortSpec, Wire)>,
    /// The IPv6 addresses that guests have shown to use.
    used: BTreeMap<PortId, Vec<Ipv6Addr>>,
    /// What the worker told control.
    pub events: Vec<WorkerEvent>,
}

impl Lab {
    /// A lab with the network `bridge`, 10.88.0.0/16, and that many guests at .2 and on.
    pub fn new(guests: u8) -> Self {
        Self::with_offloads(guests, Offloads::ChecksumAndTcp)
    }

    /// The same with guests that can do less, or more.
    pub fn with_offloads(guests: u8, offloads: Offloads) -> Self {
        Self::with(guests, offloads, DESCRIPTORS)
    }

    /// The same where all flows together may hold that many host sockets.
    pub fn with_descriptors(guests: u8, descriptors: usize) -> Self {
        Self::with(guests, Offloads::ChecksumAndTcp, descriptors)
    }

    fn with(guests: u8, offloads: Offloads, descriptors: usize) -> Self {
        let world = World::default();
        let mut lab = Self {
            worker: Worker::new(world.clone(), Echo::default(), 42, descriptors),
            world,
            now: Instant::from_micros(1_000_000),
            networks: vec![network(1, "bridge", 88)],
            ports: Vec::new(),
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
        let spec = PortSpec {
            id: PortId(u32::try_from(slot).expect("few guests") + 1),
            network: NetworkId(network),
            name: format!("guest{slot}"),
            aliases: vec![],
            mac: MacAddr::for_ipv4(address),
            address,
            address6: Some(Ipv6Addr::new(0xfd00, 0, 0, second.into(), 0, 0, 0, host.into())),
            default_route: true,
            allow_host: vec![],
            attachment: Attachment::Tap,
        };
        let wire = Wire::new(offloads, ROOM);
        self.ports.push((spec.clone(), wire.clone()));
        self.publish();
        self.command(WorkerCommand::SetPort { slot: number(slot), spec, io: Some(wire) });
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
    }

    /// Takes back a published port of a guest.
    pub fn unpublish(&mut self, guest: usize, target_port: u16) {
        let forward = ForwardId(u32::from(target_port));
        self.command(WorkerCommand::RemoveForward { slot: number(guest), forward });
    }

    /// Gives the worker a command.
    pub fn command(
        &mut self,
        command: WorkerCommand<Wire, PublishedSocket<SimListener, SimDatagram>>,
    ) {
        self.worker.handle_command(self.now, command);
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
                    self.worker.handle_frames(self.now, number(slot));
                    idle = false;
                }
            }
            while let Some((token, readiness)) = self.world.poll_ready() {
                self.worker.handle_ready(self.now, token, readiness);
                idle = false;
            }
            if self.worker.is_busy() || self.worker.poll_timeout().is_some_and(|at| at <= self.now)
            {
                self.worker.handle_timeout(self.now);
                idle = false;
            }
            while let Some(event) = self.worker.poll_event() {
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
            match self.worker.poll_timeout() {
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
        let all = self.events.iter().rev().find_map(|event| match event {
            WorkerEvent::Statistics(all) => Some(all.clone()),
            _ => None,
        });
        let all = all.expect("the worker answers");
        all.into_iter().find(|port| port.port == id).unwrap_or_default()
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
        self.worker.flow_work(number(guest)).expect("a port")
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
            .map(|(slot, (spec, _))| (spec, Location { worker: 0, slot: number(slot) }));
        let mut directory = Directory::new(&self.networks, ports);
        for (spec, _) in &self.ports {
            directory.add_used(spec, self.used.get(&spec.id).map_or(&[], Vec::as_slice));
        }
        self.command(WorkerCommand::SetDirectory(Arc::new(directory)));
    }
}

fn network(id: u32, name: &str, second: u8) -> NetworkSpec {
    let gateway = Ipv4Addr::new(10, second, 0, 1);
    NetworkSpec {
        id: NetworkId(id),
        name: name.to_owned(),
        subnet: format!("10.{second}.0.0/16").parse().expect("a subnet"),
        gateway,
        prefix6: Some(format!("fd00:0:0:{second:x}::/64").parse().expect("a prefix")),
        gateway_mac: MacAddr::for_ipv4(gateway),
        mtu: 1500,
        internal: false,
    }
}

fn number(slot: usize) -> u16 {
    u16::try_from(slot).expect("few guests")
}
