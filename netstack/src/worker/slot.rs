//! One port with everything that belongs to it: frames, guard, flows, forwards, counters.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};

use slab::Slab;

use super::WorkerEvent;
use crate::budget::TokenBucket;
use crate::command::{
    Budget, Event, FlowRow, ForwardSpec, NetworkSpec, PortSpec, PortStatistics, Transport,
};
use crate::counters::{Counters, DropReason};
use crate::frame::vnet_header::{PartialChecksum, VNET_LEN, VnetHeader};
use crate::gateway::destination::forward_source;
use crate::gateway::flow::FlowContext;
use crate::gateway::names::{self, NameService};
use crate::gateway::{Gateway, GatewayContext, Refusal, flow};
use crate::host::{Host, Stream, Token, TokenKind};
use crate::ids::MacAddr;
use crate::port::to_guest::{ToGuest, deliver, deliver_whole, pass_whole};
use crate::port::{Front, Passed, Port};
use crate::switch::addresses::{Claim, OwnAddresses};
use crate::switch::directory::{Directory, Location, NetworkView};
use crate::switch::fast_lane::Passage;
use crate::switch::{Decision, Judged, judge};
use crate::time::Instant;
use crate::wire::headers::{ChecksumState, Headers, Network};
use crate::wire::icmp::IcmpError;
use crate::wire::ndp::GATEWAY_LINK_LOCAL;
use crate::wire::reassembly;

/// Broadcast frames of one port in a second; ARP is all that they are good for.
const BROADCAST_RATE: u32 = 500;
/// Refusals of one port that are told in a second.
const REFUSAL_RATE: u32 = 10;
/// ICMP errors to one guest in a second.
const ICMP_ERROR_RATE: u32 = 100;

/// A port in its place.
pub(super) struct Slot<P, H: Host> {
    pub(super) spec: PortSpec,
    pub(super) io: P,
    pub(super) counters: Counters,
    pub(super) gateway: Gateway<H>,
    /// Published TCP ports.
    pub(super) forwards: Slab<Forward<H::Listener>>,
    /// Which life of the slot this is.
    pub(super) generation: u32,
    /// Whether the last turn brought one frame.
    pub(super) asks_and_waits: bool,
    /// Whether its guest need not tell of frames.
    pub(super) is_polled: bool,
    number: u16,
    broadcasts: TokenBucket,
    icmp_errors: TokenBucket,
    refusals: Vec<Refusal>,
    refusal_rate: TokenBucket,
    suppressed: u64,
    /// Frames that were counted when that was last asked for.
    frames_told: u64,
    own_mac: OwnMac,
    /// The guest's IPv6 addresses.
    own: OwnAddresses,
}

/// Whether a guest that comes and goes uses the address of its port, as far as its frames have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnMac {
    /// It has not sent anything since it came.
    Unknown,
    /// It has used another, which was told.
    Wrong,
    /// It has used the right one. Others that it may use besides are not worth a word.
    Right,
}

/// A published port of this slot.
pub(super) struct Forward<L> {
    pub(super) spec: ForwardSpec,
    pub(super) listener: L,
}

/// What surrounds a slot while it handles a frame.
pub(super) struct Surroundings<'a, H, N> {
    pub(super) now: Instant,
    pub(super) host: &'a mut H,
    pub(super) names: &'a mut N,
    pub(super) network: &'a NetworkView,
    pub(super) directory: &'a Directory,
    pub(super) scratch: &'a mut [u8],
}

/// A frame for another port.
pub(super) struct Crossing {
    pub(super) to: Location,
    pub(super) vnet: VnetHeader,
    /// Spares whoever has to cut it another parsing.
    pub(super) headers: Option<Headers>,
}

impl From<Passage> for Crossing {
    fn from(passage: Passage) -> Self {
        Self { to: passage.to, vnet: passage.vnet(), headers: None }
    }
}

/// A slot's gateway together with what its flows need.
pub(super) struct Served<'a, P, H: Host> {
    pub(super) gateway: &'a mut Gateway<H>,
    pub(super) port: &'a PortSpec,
    pub(super) flow: FlowContext<'a, P, H>,
}

impl<P: Port, H: Host> Slot<P, H> {
    pub(super) fn new(
        spec: PortSpec,
        io: P,
        number: u16,
        generation: u32,
        seed: u64,
        mtu: u16,
        now: Instant,
    ) -> Self {
        Self {
            spec,
            io,
            counters: Counters::default(),
            gateway: Gateway::new(seed, mtu, now),
            forwards: Slab::new(),
            generation,
            asks_and_waits: false,
            is_polled: false,
            number,
            broadcasts: TokenBucket::new(BROADCAST_RATE, BROADCAST_RATE),
            icmp_errors: TokenBucket::new(ICMP_ERROR_RATE, ICMP_ERROR_RATE),
            refusals: Vec::new(),
            refusal_rate: TokenBucket::new(REFUSAL_RATE, REFUSAL_RATE),
            suppressed: 0,
            frames_told: 0,
            own_mac: OwnMac::Unknown,
            own: OwnAddresses::default(),
        }
    }

    /// Has the guest tell of frames again; answers whether some wait of which it has not told.
    pub(super) fn end_polling(&mut self) -> bool {
        std::mem::take(&mut self.is_polled) && self.io.end_polling()
    }

    /// Changes how the port's frames come; answers how they came before.
    pub(super) fn plug(&mut self, io: P) -> P {
        self.flush();
        self.end_polling();
        self.own_mac = OwnMac::Unknown;
        self.own.forget();
        self.gateway.forget_guest();
        self.replace_io(io)
    }

    /// Changes how the port's frames come; who sees them stays.
    pub(super) fn replace_io(&mut self, io: P) -> P {
        let recorders = self.io.take_recorders();
        let before = std::mem::replace(&mut self.io, io);
        recorders.into_iter().for_each(|recorder| self.io.record(recorder));
        before
    }

    /// Which slot it is in.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Whether it may go to another worker: not while the names of this one have a question of its.
    pub(super) fn may_move(&self) -> bool {
        self.gateway.names_in_flight == 0 && self.gateway.tcp.conversations() == 0
    }

    /// Lets nobody here hear of its descriptors any more.
    pub(super) fn unwatch(&mut self, host: &mut H) {
        if let Some(watch) = host.frame_watch(self.number) {
            self.io.unwatch(&watch);
        }
        let Gateway { tcp, udp, echo, published, .. } = &self.gateway;
        tcp.sockets().for_each(|(_, stream)| host.unwatch_stream(stream));
        let datagrams = udp.sockets().chain(echo.sockets()).chain(published.sockets());
        datagrams.for_each(|(_, socket)| host.unwatch_datagram(socket));
        self.forwards.iter().for_each(|(_, forward)| host.unwatch_listener(&forward.listener));
    }

    /// Has all its descriptors watched here. Those that are ready are told of again, so nothing is missed.
    pub(super) fn watch(&mut self, host: &mut H, generation: u32) -> std::io::Result<()> {
        self.generation = generation;
        let port = self.number;
        let token = |kind, index: usize| {
            let index = u32::try_from(index).expect("a port has a few thousand flows");
            Token { port, kind, index }
        };
        let Gateway { tcp, udp, echo, published, .. } = &self.gateway;
        for (index, stream) in tcp.sockets() {
            host.watch_stream(stream, token(TokenKind::Tcp, index))?;
        }
        let udp = udp.sockets().map(|(index, socket)| (TokenKind::Udp, index, socket));
        let echo = echo.sockets().map(|(index, socket)| (TokenKind::Echo, index, socket));
        let published =
            published.sockets().map(|(index, socket)| (TokenKind::Published, index, socket));
        for (kind, index, socket) in udp.chain(echo).chain(published) {
            host.watch_datagram(socket, token(kind, index))?;
        }
        for (index, forward) in &self.forwards {
            host.watch_listener(&forward.listener, token(TokenKind::Listener, index))?;
        }
        if let Some(watch) = host.frame_watch(port) {
            self.io.watch(&watch)?;
        }
        Ok(())
    }

    /// Lets the guest know of what was done for it.
    pub(super) fn flush(&mut self) {
        self.io.flush(&mut self.counters);
    }

    /// What control should hear of the guest's Ethernet address after a frame of it was judged.
    pub(super) fn note_mac(&mut self, frame: &[u8]) -> Option<WorkerEvent> {
        if self.own_mac == OwnMac::Right || self.spec.attachment.is_tap() {
            return None;
        }
        let source = frame.get(VNET_LEN + 6..VNET_LEN + 12)?;
        let used = MacAddr(source.try_into().expect("six bytes"));
        let port = self.spec.id;
        let before = self.own_mac;
        self.own_mac = if used == self.spec.mac { OwnMac::Right } else { OwnMac::Wrong };
        match (before, self.own_mac) {
            (OwnMac::Unknown, OwnMac::Wrong) => Some(WorkerEvent::WrongMac { port, used }),
            (OwnMac::Wrong, OwnMac::Right) => Some(WorkerEvent::RightMac { port }),
            _ => None,
        }
    }

    /// Counts a frame of the guest.
    pub(super) fn count(&mut self, len: usize) {
        self.counters.frames_from_guest += 1;
        self.counters.bytes_from_guest += len.saturating_sub(VNET_LEN) as u64;
    }

    /// Passes on the frame that was just shown, if it can be done from guest to guest.
    #[inline(always)]
    pub(super) fn pass(
        &mut self,
        front: &Front,
        receiver: &mut Self,
        checksum: Option<PartialChecksum>,
    ) -> Passed {
        // Until its own address is known, what it uses is told on the way of all frames.
        if self.own_mac != OwnMac::Right {
            return Passed::No;
        }
        let to = (&mut receiver.io, &mut receiver.counters);
        let passed = pass_whole(&mut self.io, to, front, checksum);
        if passed == Passed::Sent {
            self.count(front.frame_len);
        }
        passed
    }

    /// Judges a frame of the guest and handles it, unless it is for another port.
    // Never inlined: the short way of most frames is beside it.
    #[inline(never)]
    pub(super) fn handle_frame<N: NameService>(
        &mut self,
        around: Surroundings<'_, H, N>,
        frame: &mut [u8],
    ) -> Option<Crossing> {
        match self.judge(&around, frame) {
            Ok(Judged { headers, vnet, decision }) => match decision {
                Decision::Port(to) => Some(Crossing { to, vnet, headers: Some(headers) }),
                Decision::Drop(reason) => {
                    self.counters.drop(reason);
                    None
                }
                Decision::Gateway => {
                    self.enter_gateway(around, &headers, &vnet, frame);
                    None
                }
            },
            Err(reason) => {
                self.counters.drop(reason);
                None
            }
        }
    }

    fn judge<N>(
        &mut self,
        around: &Surroundings<'_, H, N>,
        frame: &[u8],
    ) -> Result<Judged, DropReason> {
        let judged = match judge(&self.spec, &self.own, around.network, frame) {
            Err(DropReason::IpSpoof) => self.judge_newcomer(around, frame)?,
            judged => judged?,
        };
        if let Network::Ipv6(ip) = &judged.headers.network
            && !ip.source.is_unspecified()
        {
            self.own.note_use(around.now, &self.spec, ip.source);
        }
        if judged.headers.destination.is_multicast() && !self.broadcasts.take(around.now) {
            return Err(DropReason::StormLimit);
        }
        Ok(judged)
    }

    /// A frame from an IPv6 address that is not known to be the guest's. It may be one of its own choice that it has
    /// taken before our time: then nobody has it, and it is the guest's again.
    #[cold]
    fn judge_newcomer<N>(
        &mut self,
        around: &Surroundings<'_, H, N>,
        frame: &[u8],
    ) -> Result<Judged, DropReason> {
        let bytes = frame.get(VNET_LEN..).unwrap_or_default();
        let source = match Headers::parse(bytes, ChecksumState::Partial) {
            Ok(Headers { network: Network::Ipv6(ip), .. }) => ip.source,
            _ => return Err(DropReason::IpSpoof),
        };
        let is_nobodys = source != GATEWAY_LINK_LOCAL
            && around.network.spec.gateway6() != Some(source)
            && around.network.member6(source).is_none();
        if !is_nobodys || self.own.claim(around.now, &self.spec, source) != Claim::Granted {
            return Err(DropReason::IpSpoof);
        }
        judge(&self.spec, &self.own, around.network, frame)
    }

    /// The guest's IPv6 addresses.
    pub(super) fn own(&self) -> &OwnAddresses {
        &self.own
    }

    fn enter_gateway<N: NameService>(
        &mut self,
        around: Surroundings<'_, H, N>,
        headers: &Headers,
        vnet: &VnetHeader,
        frame: &mut [u8],
    ) {
        let (gateway, mut cx) = self.gateway_context(around);
        match &headers.network {
            Network::Arp(arp) => gateway.handle_arp(&mut cx, arp),
            Network::Ipv4(ip) => gateway.handle_packet(&mut cx, ip, vnet, &mut frame[VNET_LEN..]),
            Network::Ipv6(ip) => gateway.handle_packet6(&mut cx, ip, vnet, &mut frame[VNET_LEN..]),
        }
    }

    fn gateway_context<'a, N>(
        &'a mut self,
        around: Surroundings<'a, H, N>,
    ) -> (&'a mut Gateway<H>, GatewayContext<'a, P, H, N>) {
        let flow = FlowContext {
            now: around.now,
            host: around.host,
            to_guest: ToGuest {
                port: &mut self.io,
                counters: &mut self.counters,
                guest_mac: self.spec.mac,
                gateway_mac: around.network.spec.gateway_mac,
                scratch: around.scratch,
            },
            gateway: around.network.spec.gateway,
            gateway6: around.network.spec.gateway6(),
            mtu: around.network.spec.mtu,
            slot: self.number,
            icmp_errors: &mut self.icmp_errors,
        };
        let cx = GatewayContext {
            flow,
            names: around.names,
            port: &self.spec,
            network: around.network,
            directory: around.directory,
            generation: self.generation,
            refusals: &mut self.refusals,
            own: &mut self.own,
        };
        (&mut self.gateway, cx)
    }

    /// The gateway with what its flows need.
    pub(super) fn flow_context<'a>(
        &'a mut self,
        now: Instant,
        host: &'a mut H,
        network: &NetworkSpec,
        scratch: &'a mut [u8],
    ) -> Served<'a, P, H> {
        Served {
            gateway: &mut self.gateway,
            port: &self.spec,
            flow: FlowContext {
                now,
                host,
                to_guest: ToGuest {
                    port: &mut self.io,
                    counters: &mut self.counters,
                    guest_mac: self.spec.mac,
                    gateway_mac: network.gateway_mac,
                    scratch,
                },
                gateway: network.gateway,
                gateway6: network.gateway6(),
                mtu: network.mtu,
                slot: self.number,
                icmp_errors: &mut self.icmp_errors,
            },
        }
    }

    /// Takes a frame of another port.
    #[inline(always)]
    pub(super) fn deliver(
        &mut self,
        frame: &mut [u8],
        vnet: &VnetHeader,
        headers: Option<&Headers>,
    ) {
        // What cannot be delivered has been counted, as the receiver's drop.
        let _ = deliver(&mut self.io, &mut self.counters, frame, vnet, headers);
    }

    /// The same of a frame that took the short way.
    #[inline(always)]
    pub(super) fn deliver_whole(&mut self, frame: &mut [u8], checksum: Option<PartialChecksum>) {
        let _ = deliver_whole(&mut self.io, &mut self.counters, frame, checksum);
    }

    /// Takes a connection of a published port.
    pub(super) fn handle_accepted(
        &mut self,
        now: Instant,
        host: &mut H,
        network: &NetworkView,
        directory: &Directory,
        scratch: &mut [u8],
        (spec, stream, client): (&ForwardSpec, H::Stream, SocketAddr),
    ) {
        if !self.gateway.has_share() {
            self.counters.drop(DropReason::TcpBudget);
            return stream.reset();
        }
        let (source, guest) = forward_source(&self.spec, network, directory, spec.source, client);
        let guest = SocketAddr::new(guest, spec.target_port);
        let mut served = self.flow_context(now, host, &network.spec, scratch);
        served.gateway.tcp.handle_accepted(&mut served.flow, stream, source, guest);
    }

    /// Serves the flows that something happened to.
    pub(super) fn end_batch<N: NameService>(&mut self, around: Surroundings<'_, H, N>) {
        let (gateway, cx) = self.gateway_context(around);
        let GatewayContext { mut flow, names, network, generation, .. } = cx;
        gateway.handle_batch_end(&mut flow);
        let mut desk = names::Desk {
            now: flow.now,
            slot: flow.slot,
            generation,
            network,
            service: names,
            in_flight: &mut gateway.names_in_flight,
            rate: &mut gateway.name_rate,
            refused: 0,
        };
        gateway.tcp.handle_batch_end(&mut flow, |index, endpoint, conversation| {
            desk.serve(index, endpoint, conversation);
        });
        for _ in 0..desk.refused {
            flow.to_guest.counters.drop(DropReason::DnsBudget);
        }
    }

    /// When something that waits is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.gateway.poll_timeout().into_iter().chain(self.own.poll_timeout()).min()
    }

    /// Lets what has waited for its time go on. Without its network the guest is told nothing.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        host: &mut H,
        network: Option<&NetworkSpec>,
        scratch: &mut [u8],
    ) {
        self.own.handle_timeout(now);
        let incomplete = self.gateway.handle_timeout(now);
        for _ in &incomplete {
            self.counters.drop(DropReason::FragmentTimeout);
        }
        let Some(network) = network else { return };
        let mut served = self.flow_context(now, host, network, scratch);
        for fragment in incomplete.iter().flatten() {
            served.flow.tell(IcmpError::ReassemblyTimeExceeded, None, fragment);
        }
        let default_route = served.port.default_route;
        served.gateway.advertise(now, &mut served.flow.to_guest, network, default_route);
    }

    /// Resets all flows, as the last thing that is done with a slot.
    pub(super) fn reset_flows(
        &mut self,
        now: Instant,
        host: &mut H,
        network: &NetworkSpec,
        scratch: &mut [u8],
    ) {
        let mut served = self.flow_context(now, host, network, scratch);
        served.gateway.tcp.reset_all(&mut served.flow);
    }

    /// Changes the definition. With another address the port begins anew, as its flows were the old one's;
    /// what is counted and what its DHCP client may do goes on.
    pub(super) fn change(
        &mut self,
        now: Instant,
        host: &mut H,
        network: Option<&NetworkSpec>,
        scratch: &mut [u8],
        (spec, generation, seed): (PortSpec, u32, u64),
    ) {
        let is_elsewhere = (spec.address, spec.address6) != (self.spec.address, self.spec.address6);
        if is_elsewhere && let Some(network) = network {
            self.reset_flows(now, host, network, scratch);
            let fresh = Gateway::new(seed, network.mtu, now);
            let old = std::mem::replace(&mut self.gateway, fresh);
            self.gateway.dhcp = old.dhcp;
            self.gateway.dhcp6 = old.dhcp6;
            self.gateway.published = old.published;
            self.gateway.published.forget_clients();
            self.own.forget();
            self.generation = generation;
        }
        self.spec = spec;
    }

    /// The IPv6 addresses that the guest uses, when they have changed.
    pub(super) fn poll_addresses(&mut self) -> Option<Vec<Ipv6Addr>> {
        self.own.poll_changed()
    }

    /// Tells control of a declined address, and of refusals as many as a person would read.
    pub(super) fn tell_control(&mut self, now: Instant, events: &mut VecDeque<WorkerEvent>) {
        if let Some(address) = self.gateway.dhcp.poll_declined() {
            let port = self.spec.id;
            events.push_back(WorkerEvent::Event(Event::AddressDeclined { port, address }));
        }
        for refusal in self.refusals.drain(..) {
            if !self.refusal_rate.take(now) {
                self.suppressed += 1;
                continue;
            }
            let asked = match refusal.protocol {
                Some(Transport::Tcp) => format!("tcp {}", refusal.to),
                Some(Transport::Udp) => format!("udp {}", refusal.to),
                None => format!("icmp {}", refusal.to.ip()),
            };
            events.push_back(WorkerEvent::Event(Event::Refusal {
                port: self.spec.id,
                asked,
                rule: refusal.rule.name().to_owned(),
                suppressed: std::mem::take(&mut self.suppressed),
            }));
        }
    }

    /// How many flows there are.
    pub(super) fn flow_count(&self) -> usize {
        let Gateway { tcp, udp, published, echo, .. } = &self.gateway;
        tcp.len() + udp.len() + published.len() + echo.len()
    }

    /// The flows, as they are shown.
    pub(super) fn flows(&self, now: Instant) -> impl Iterator<Item = FlowRow> {
        let gateway = &self.gateway;
        let datagrams = gateway.udp.views().chain(gateway.published.views());
        let views = gateway.tcp.views().chain(datagrams).chain(gateway.echo.views());
        let port = self.spec.id.0;
        views.map(move |view| FlowRow {
            port,
            protocol: view.protocol,
            guest: view.key.guest,
            remote: view.key.remote,
            state: view.state,
            idle: now.since(view.heard).as_secs(),
            from_guest: view.traffic.from_guest,
            to_guest: view.traffic.to_guest,
        })
    }

    /// Frames that it has taken and given since this was last asked for.
    pub(super) fn frames_since_last_time(&mut self) -> u64 {
        let frames = self.counters.frames_from_guest + self.counters.frames_to_guest;
        frames - std::mem::replace(&mut self.frames_told, frames)
    }

    /// Counters and gauges.
    pub(super) fn statistics(&self) -> PortStatistics {
        let budget = |used: usize, cap: usize| Budget { used: used as u64, cap: cap as u64 };
        let gateway = &self.gateway;
        let budgets = [
            ("tcp_flows", budget(gateway.tcp.len(), flow::tcp::MAX_FLOWS)),
            ("half_open", budget(gateway.tcp.half_open(), flow::tcp::MAX_HALF_OPEN)),
            ("udp_flows", budget(gateway.udp.len(), flow::udp::MAX_FLOWS)),
            ("udp_clients", budget(gateway.published.len(), flow::published::MAX_CLIENTS)),
            ("icmp_flows", budget(gateway.echo.len(), flow::echo::MAX_FLOWS)),
            ("fragments", budget(gateway.reassembly.len(), reassembly::MAX_DATAGRAMS)),
            ("buffered_bytes", budget(gateway.tcp.buffered(), flow::tcp::MAX_BUFFERED)),
            ("dns_queries", budget(gateway.names_in_flight, names::MAX_IN_FLIGHT)),
            ("dns_connections", budget(gateway.tcp.conversations(), names::MAX_CONVERSATIONS)),
        ];
        PortStatistics {
            port: self.spec.id.0,
            frames_from_guest: self.counters.frames_from_guest,
            bytes_from_guest: self.counters.bytes_from_guest,
            frames_to_guest: self.counters.frames_to_guest,
            bytes_to_guest: self.counters.bytes_to_guest,
            drops: self.counters.drops(),
            budgets: budgets
                .into_iter()
                .map(|(name, budget)| (name.to_owned(), budget))
                .collect::<BTreeMap<_, _>>(),
        }
    }
}
