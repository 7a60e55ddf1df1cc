//! The gateway of a network, as one port sees it: it answers what is meant for itself and turns the
//! rest into flows with sockets of the host.
//!
//! It is never a router between networks, and nothing here waits: what the host or the name service
//! answers later comes in through `handle_ready` and the worker.

pub mod destination;
pub mod dhcp;
pub mod dhcp6;
pub mod flow;
mod ipv6;
pub mod names;
pub mod nat64;
mod neighbours;
mod packet;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use self::destination::{Destination, forward_source, is_gateway, judge};
use self::dhcp::DhcpServer;
use self::dhcp6::Dhcp6Server;
use self::flow::echo::{Echo, EchoFlows, Request, send_reply};
use self::flow::outgoing::Outgoing;
use self::flow::published::{Admission, PublishedFlows};
use self::flow::tcp::{Target, TcpFlows};
use self::flow::udp::UdpFlows;
use self::flow::{FlowContext, FlowKey, Work};
use self::names::{Asker, NAMES_PORT, NameService, Ticket};
use self::neighbours::Advertiser;
use self::packet::Packet;
use crate::budget::TokenBucket;
use crate::command::{HostOpening, NetworkSpec, PortSpec, Transport as Protocol};
use crate::counters::DropReason;
use crate::frame::vnet_header::{GsoKind, VnetHeader};
use crate::host::{Fragmentation, Host};
use crate::ids::MacAddr;
use crate::port::Port;
use crate::switch::addresses::OwnAddresses;
use crate::switch::directory::{Directory, NetworkView};
use crate::time::Instant;
use crate::wire::arp::{Arp, Operation};
use crate::wire::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::wire::headers::{ChecksumState, Ipv4, Transport, parse_transport};
use crate::wire::icmp::{ICMP_LEN, IcmpError, IcmpHeader};
use crate::wire::ndp::GATEWAY_LINK_LOCAL;
use crate::wire::reassembly::{Outcome, Reassembly};
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::{UDP_LEN, UdpHeader};
use crate::wire::{ETHERNET_LEN, be16};

/// One port's side of the gateway.
pub struct Gateway<H: Host> {
    /// TCP flows.
    pub tcp: TcpFlows<H::Stream>,
    /// UDP flows.
    pub udp: UdpFlows<H::Datagram>,
    /// Published UDP ports.
    pub published: PublishedFlows<H::Datagram>,
    /// ICMP echo flows.
    pub echo: EchoFlows<H::Datagram>,
    /// What the port's DHCP client is told.
    pub dhcp: DhcpServer,
    /// The same over IPv6.
    pub dhcp6: Dhcp6Server,
    /// When the guest is told of its router.
    advertiser: Advertiser,
    /// Fragments that wait for their rest.
    pub reassembly: Reassembly,
    /// Name queries under way.
    pub names_in_flight: usize,
    /// How often the port may ask for names.
    pub name_rate: TokenBucket,
    /// Host sockets that the port's flows may hold, all kinds together.
    share: usize,
}

/// What the gateway needs of the worker while it handles a packet.
pub struct GatewayContext<'a, P, H, N> {
    /// What flows need.
    pub flow: FlowContext<'a, P, H>,
    /// The name service.
    pub names: &'a mut N,
    /// The port.
    pub port: &'a PortSpec,
    /// Its network.
    pub network: &'a NetworkView,
    /// All networks.
    pub directory: &'a Directory,
    /// Which life of the slot this is.
    pub generation: u32,
    /// Where refusals are told.
    pub refusals: &'a mut Vec<Refusal>,
    /// The guest's IPv6 addresses.
    pub own: &'a mut OwnAddresses,
}

/// A flow that was refused by rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which transport, or `None` for ICMP.
    pub protocol: Option<Protocol>,
    /// Where to.
    pub to: SocketAddr,
    /// Which rule.
    pub rule: DropReason,
}

impl<P: Port, H: Host, N> GatewayContext<'_, P, H, N> {
    fn drop(&mut self, reason: DropReason) {
        self.flow.to_guest.counters.drop(reason);
    }

    fn refuse(&mut self, protocol: Option<Protocol>, to: SocketAddr, rule: DropReason) {
        self.drop(rule);
        self.refusals.push(Refusal { protocol, to, rule });
    }
}

impl<H: Host> Gateway<H> {
    /// A gateway without flows.
    pub fn new(seed: u64, mtu: u16, now: Instant) -> Self {
        Self {
            tcp: TcpFlows::new(seed, mtu, now),
            udp: UdpFlows::new(seed),
            published: PublishedFlows::new(seed),
            echo: EchoFlows::default(),
            dhcp: DhcpServer::default(),
            dhcp6: Dhcp6Server::default(),
            advertiser: Advertiser::default(),
            reassembly: Reassembly::default(),
            names_in_flight: 0,
            name_rate: TokenBucket::new(names::SUSTAINED_RATE, 2 * names::SUSTAINED_RATE),
            share: usize::MAX,
        }
    }

    /// Sets how many host sockets the port's flows may hold; those that it has stay.
    pub fn set_share(&mut self, share: usize) {
        self.share = share;
    }

    /// Whether the port's flows may hold one more host socket.
    pub fn has_share(&self) -> bool {
        self.tcp.len() + self.udp.len() + self.echo.len() < self.share
    }

    /// Answers for the gateway and for every neighbour; a probe is only answered when the address is
    /// somebody else's (RFC 5227).
    pub fn handle_arp<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        arp: &Arp,
    ) {
        let owner = match arp.operation {
            Operation::Reply => return,
            Operation::Request if arp.target == cx.port.address => return,
            Operation::Request => owner_of(cx.network, arp.target),
        };
        let Some(owner) = owner else { return cx.drop(DropReason::ArpUnknown) };
        let reply = Arp {
            operation: Operation::Reply,
            sender_mac: owner,
            sender: arp.target,
            target_mac: arp.sender_mac,
            target: arp.sender,
        };
        let mut frame = Vec::new();
        reply.emit(&mut frame);
        cx.flow.to_guest.send_ethernet(&frame);
    }

    /// Takes a guest's IPv4 packet; `frame` starts with its Ethernet header.
    pub fn handle_packet<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv4,
        vnet: &VnetHeader,
        frame: &mut [u8],
    ) {
        let packet = &mut frame[ETHERNET_LEN..ETHERNET_LEN + ip.total_len];
        if ip.ttl == 0 {
            return cx.drop(DropReason::TtlExpired);
        }
        if is_dhcp(&cx.network.spec, ip) {
            return match vnet.gso {
                None => self.handle_dhcp(cx, &packet[ip.header_len + UDP_LEN..]),
                // Several messages in one would be read as one.
                Some(_) => cx.drop(DropReason::DhcpMalformed),
            };
        }
        if ip.ttl == 1 && ip.destination != cx.network.spec.gateway {
            cx.drop(DropReason::TtlExpired);
            return tell(cx, &Packet::from(ip), IcmpError::TtlExceeded, packet);
        }
        if ip.is_fragment() {
            return self.handle_fragment(cx, ip, packet);
        }
        let gso = vnet.gso.filter(|gso| gso.kind == GsoKind::UdpL4).map(|gso| gso.size);
        self.handle_whole(cx, &Packet::from(ip), gso, packet);
    }

    fn handle_dhcp<P: Port, N>(&mut self, cx: &mut GatewayContext<'_, P, H, N>, message: &[u8]) {
        let network = &cx.network.spec;
        match self.dhcp.handle_message(cx.flow.now, cx.port, network, message) {
            dhcp::Outcome::Answer(answer) => {
                let from = SocketAddr::from((network.gateway, SERVER_PORT));
                let to = SocketAddr::from((answer.to, CLIENT_PORT));
                flow::udp::send_to_guest(&mut cx.flow, from, to, &answer.message, 0);
            }
            dhcp::Outcome::Accepted => {}
            dhcp::Outcome::Dropped(reason) => cx.drop(reason),
        }
    }

    fn handle_fragment<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv4,
        packet: &[u8],
    ) {
        let now = cx.flow.now;
        let told = Packet::from(ip).may_be_told_about().then_some(packet);
        let data = &packet[ip.header_len..];
        let payload = match self.reassembly.handle_fragment(now, ip, data, told) {
            Outcome::Whole(payload) => payload,
            Outcome::Waiting(reasons) => {
                return reasons.into_iter().for_each(|reason| cx.drop(reason));
            }
            Outcome::Dropped(reason) => return cx.drop(reason),
        };
        let mut whole = packet[..ip.header_len].to_vec();
        whole.extend_from_slice(&payload);
        let total_len = whole.len();
        let Ok(total) = u16::try_from(total_len) else {
            return cx.drop(DropReason::FragmentOverlap);
        };
        whole[2..4].copy_from_slice(&total.to_be_bytes());
        whole[6..8].fill(0);
        crate::wire::ipv4::fill_checksum(&mut whole, ip.header_len);
        let ip = Ipv4 { total_len, more_fragments: false, fragment_offset: 0, ..*ip };
        match parse_transport(&ip, &whole[ip.header_len..], ChecksumState::Full) {
            Ok(transport) => {
                let packet = Packet { transport, ..Packet::from(&ip) };
                self.handle_whole(cx, &packet, None, &mut whole);
            }
            Err(reason) => cx.drop(reason),
        }
    }

    fn handle_whole<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Packet,
        segment_size: Option<u16>,
        packet: &mut [u8],
    ) {
        match &ip.transport {
            Transport::Tcp(header) => self.handle_tcp(cx, ip, header, packet),
            Transport::Udp(header) => self.handle_udp(cx, ip, header, segment_size, packet),
            Transport::Icmp(header) => self.handle_icmp(cx, ip, header, packet),
            Transport::Fragment(_) | Transport::Other => {
                cx.drop(DropReason::Protocol);
                tell(cx, ip, IcmpError::ProtocolUnreachable, packet);
            }
        }
    }

    fn handle_tcp<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Packet,
        header: &TcpHeader,
        packet: &mut [u8],
    ) {
        let key = FlowKey {
            guest: ip.source_endpoint(header.source_port),
            remote: ip.destination_endpoint(header.destination_port),
        };
        if self.tcp.handle_segment(&mut cx.flow, &key, packet, header) {
            return;
        }
        if !header.flags.has(Flags::SYN) || header.flags.has(Flags::ACK) {
            cx.drop(DropReason::TcpNoFlow);
            return flow::tcp::reset(&mut cx.flow, &key, header);
        }
        if header.flags.has(Flags::RST) || header.flags.has(Flags::FIN) {
            return cx.drop(DropReason::TcpHeader);
        }
        let target = match self.judge(cx, Protocol::Tcp, key.remote) {
            Destination::Host(to) => Target::Host(to),
            Destination::Names if self.tcp.conversations() < names::MAX_CONVERSATIONS => {
                Target::Names
            }
            Destination::Names => {
                cx.drop(DropReason::DnsBudget);
                return flow::tcp::reset(&mut cx.flow, &key, header);
            }
            Destination::Refused(DropReason::NoRoute) => {
                cx.refuse(Some(Protocol::Tcp), key.remote, DropReason::NoRoute);
                return tell(cx, ip, IcmpError::NetUnreachable, packet);
            }
            Destination::Refused(rule) => {
                cx.refuse(Some(Protocol::Tcp), key.remote, rule);
                return flow::tcp::reset(&mut cx.flow, &key, header);
            }
        };
        if !self.has_share() {
            cx.drop(DropReason::TcpBudget);
            return flow::tcp::reset(&mut cx.flow, &key, header);
        }
        self.tcp.handle_syn(&mut cx.flow, key, packet, header, target);
    }

    fn handle_udp<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Packet,
        header: &UdpHeader,
        segment_size: Option<u16>,
        packet: &[u8],
    ) {
        let key = FlowKey {
            guest: ip.source_endpoint(header.source_port),
            remote: ip.destination_endpoint(header.destination_port),
        };
        let outgoing = outgoing(&cx.network.spec, ip, packet, UDP_LEN, segment_size);
        if self.published.handle_datagram(&mut cx.flow, &key, outgoing) {
            return;
        }
        let is_known = self.udp.contains(&key);
        let to = if is_known {
            key.remote
        } else {
            match self.judge(cx, Protocol::Udp, key.remote) {
                Destination::Host(to) => to,
                Destination::Names => return self.handle_query(cx, &key, outgoing.payload),
                Destination::Refused(rule) => {
                    let error = match rule {
                        DropReason::GatewayPort => IcmpError::PortUnreachable,
                        DropReason::NoRoute => IcmpError::NetUnreachable,
                        _ => IcmpError::AdministrativelyProhibited,
                    };
                    cx.refuse(Some(Protocol::Udp), key.remote, rule);
                    return tell(cx, ip, error, packet);
                }
            }
        };
        if !is_known && !self.has_share() {
            cx.drop(DropReason::UdpBudget);
            if !self.udp.evict_oldest(&mut cx.flow) {
                return;
            }
        }
        self.udp.handle_datagram(&mut cx.flow, key, to, outgoing);
    }

    /// The socket of a published UDP port became readable. Answers whether more waits.
    pub fn handle_published<P: Port>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        (port, network, directory): (&PortSpec, &NetworkView, &Directory),
        index: usize,
        buffer: &mut [u8],
    ) -> bool {
        let udp = &self.udp;
        let admission = Admission {
            source: &|client, rule| forward_source(port, network, directory, rule, client),
            is_taken: &|key| {
                let opening = HostOpening { port: key.remote.port(), protocol: Protocol::Udp };
                udp.contains(key) || port.allow_host.contains(&opening)
            },
        };
        self.published.handle_ready(cx, index, buffer, &admission)
    }

    /// Sends what waits for the end of the batch.
    pub fn handle_batch_end<P: Port>(&mut self, cx: &mut FlowContext<'_, P, H>) {
        self.udp.handle_batch_end(cx);
        self.published.handle_batch_end(cx);
    }

    fn judge<P: Port, N>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Destination {
        let host = &mut *cx.flow.host;
        judge(cx.port, cx.network, cx.directory, protocol, to, |ip| host.route(ip))
    }

    fn handle_query<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        key: &FlowKey,
        message: &[u8],
    ) {
        if !self.may_ask(cx.flow.now) {
            return cx.drop(DropReason::DnsBudget);
        }
        self.names_in_flight += 1;
        let asker = Asker::Datagram { from: key.guest, to: key.remote.ip() };
        let ticket = Ticket { slot: cx.flow.slot, generation: cx.generation, asker };
        cx.names.handle_query(cx.flow.now, ticket, cx.network, Protocol::Udp, message);
    }

    /// Whether the port may ask the name service one more question; counts it when it may.
    pub fn may_ask(&mut self, now: Instant) -> bool {
        self.names_in_flight < names::MAX_IN_FLIGHT && self.name_rate.take(now)
    }

    fn handle_icmp<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Packet,
        header: &IcmpHeader,
        packet: &[u8],
    ) {
        let message = &packet[ip.header_len..];
        if header.kind == ip.unreachable_kind() {
            return self.handle_unreachable(cx, ip, message);
        }
        if header.kind != ip.echo_request_kind() || header.code != 0 {
            // Nothing that we send depends on a guest's other errors.
            return cx.drop(DropReason::Icmp);
        }
        if is_gateway(&cx.network.spec, ip.destination) || ip.destination.is_multicast() {
            let from = match ip.destination {
                // All routers, or all nodes: one of them is here.
                to if to.is_multicast() => GATEWAY_LINK_LOCAL.into(),
                to => to,
            };
            let IcmpHeader { identifier, sequence, .. } = *header;
            let echo = Echo { identifier, sequence, data: &message[ICMP_LEN..] };
            return send_reply(&mut cx.flow, from, ip.source, &echo);
        }
        let host = &mut *cx.flow.host;
        let allowed =
            destination::address(cx.network, cx.directory, ip.destination, |ip| host.route(ip));
        match allowed {
            Ok(_)
                if !self.has_share()
                    && !self.echo.contains(ip.source, header.identifier, ip.destination) =>
            {
                cx.drop(DropReason::IcmpBudget);
            }
            Ok(to) => {
                let request = Request {
                    guest: ip.source,
                    remote: ip.destination,
                    to,
                    identifier: header.identifier,
                    outgoing: outgoing(&cx.network.spec, ip, packet, 0, None),
                };
                self.echo.handle_request(&mut cx.flow, &request);
            }
            Err(rule) => {
                let error = match rule {
                    DropReason::NoRoute => IcmpError::NetUnreachable,
                    _ => IcmpError::AdministrativelyProhibited,
                };
                cx.refuse(None, SocketAddr::new(ip.destination, 0), rule);
                tell(cx, ip, error, packet);
            }
        }
    }

    /// The guest says that a datagram which came on a flow reached nobody.
    fn handle_unreachable<P: Port, N>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Packet,
        message: &[u8],
    ) {
        let nobody = matches!(
            ip.error_of(message),
            Some(
                IcmpError::PortUnreachable
                    | IcmpError::ProtocolUnreachable
                    | IcmpError::AdministrativelyProhibited
            )
        );
        let quoted = ip.quoted_datagram(message).filter(|(_, to)| nobody && to.ip() == ip.source);
        let ended = quoted.is_some_and(|(from, to)| {
            let key = FlowKey { guest: to, remote: from };
            self.udp.handle_unreachable(&mut cx.flow, &key)
                || self.published.handle_unreachable(&mut cx.flow, &key)
        });
        if !ended {
            cx.drop(DropReason::Icmp);
        }
    }

    /// Sends an answer of the name service to the guest's socket that asked.
    pub fn handle_answer<P: Port>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        (from, to): (IpAddr, SocketAddr),
        message: &[u8],
    ) {
        self.names_in_flight = self.names_in_flight.saturating_sub(1);
        if !message.is_empty() {
            let from = SocketAddr::new(from, NAMES_PORT);
            let identification = message.get(..2).map_or(0, |id| be16(id, 0));
            flow::udp::send_to_guest(cx, from, to, message, identification.into());
        }
    }

    /// Hands an answer of the name service to the conversation that asked, if it is still there.
    pub fn handle_conversation_answer(
        &mut self,
        now: Instant,
        flow: usize,
        number: u64,
        message: &[u8],
    ) {
        self.names_in_flight = self.names_in_flight.saturating_sub(1);
        if let Some(conversation) = self.tcp.conversation(flow)
            && conversation.number == number
        {
            conversation.answer(now, message);
            self.tcp.mark(flow);
        }
    }

    /// Serves what has waited for its time. Answers, of each datagram whose fragments have not all come, what its
    /// sender is told of, if it is to be told.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Option<Box<[u8]>>> {
        self.tcp.handle_timeout(now);
        self.udp.handle_timeout(now);
        self.published.handle_timeout(now);
        self.echo.handle_timeout(now);
        self.reassembly.handle_timeout(now)
    }

    /// What was done for flows so far, but for the datagrams themselves.
    pub fn work(&self) -> Work {
        let kinds = [self.tcp.work(), self.udp.work(), self.published.work(), self.echo.work()];
        kinds.into_iter().fold(Work::default(), Work::plus)
    }

    /// When [`Gateway::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.tcp.poll_timeout(),
            self.udp.poll_timeout(),
            self.published.poll_timeout(),
            self.echo.poll_timeout(),
            self.reassembly.poll_timeout(),
            self.advertiser.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Sends an ICMP error about a packet, where RFC 1122 3.2.2 allows one and the rate does.
fn tell<P: Port, H, N>(
    cx: &mut GatewayContext<'_, P, H, N>,
    ip: &Packet,
    error: IcmpError,
    packet: &[u8],
) {
    if ip.may_be_told_about() {
        cx.flow.tell(error, None, packet);
    }
}

/// What of a guest's packet goes out, after its IP header and `header_len` more bytes.
fn outgoing<'a>(
    network: &NetworkSpec,
    ip: &Packet,
    packet: &'a [u8],
    header_len: usize,
    segment_size: Option<u16>,
) -> Outgoing<'a> {
    let payload = &packet[ip.header_len + header_len..];
    let len = packet.len() - payload.len() + segment_size.map_or(payload.len(), usize::from);
    let may_be_cut = !ip.dont_fragment
        || len <= nat64::MAY_BE_CUT && nat64::meant(network, ip.destination) != ip.destination;
    let fragmentation = if may_be_cut { Fragmentation::Allowed } else { Fragmentation::Forbidden };
    Outgoing { packet, payload, segment_size, fragmentation, ttl: ip.hops.saturating_sub(1) }
}

/// Whether a packet is for the DHCP server; the guard has judged who sent it.
fn is_dhcp(network: &NetworkSpec, ip: &Ipv4) -> bool {
    let here = ip.destination == network.gateway || network.is_broadcast(ip.destination);
    here && matches!(ip.transport, Transport::Udp(udp) if udp.destination_port == SERVER_PORT)
}

fn owner_of(network: &NetworkView, address: Ipv4Addr) -> Option<MacAddr> {
    if address == network.spec.gateway {
        Some(network.spec.gateway_mac)
    } else {
        network.member(address).map(|member| member.mac)
    }
}
