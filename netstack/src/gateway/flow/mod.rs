//! Flows: a guest's side, the host's side, and what lies between.
//!
//! Every flow belongs to the port whose guest speaks it. A flow is found by its [`FlowKey`] and
//! addressed by its index, which is also in the token of its host socket.

mod datagram_batch;
mod datagram_table;
mod direct;
pub mod echo;
pub mod idle_queue;
mod one_shot;
pub mod outgoing;
mod past;
pub mod published;
mod ring_memory;
pub mod tcp;
mod tcp_device;
pub mod tcp_endpoint;
mod tcp_flow;
pub mod tcp_guard;
pub mod tcp_stack;
mod train;
pub mod udp;
pub mod view;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::nat64;
use crate::budget::TokenBucket;
use crate::port::Port;
use crate::port::to_guest::ToGuest;
use crate::time::Instant;
use crate::wire::icmp::IcmpError;
use crate::wire::icmp6;
use crate::wire::ip::IpHeader;
use crate::wire::ipv4::MORE_FRAGMENTS;
use crate::wire::ipv6::{FRAGMENT, FRAGMENT_LEN, emit_fragment};
use crate::wire::ndp::GATEWAY_LINK_LOCAL;

/// What was done for flows. Each packet and each deadline may add a few, however many flows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// TCP flows that were served at the end of a batch.
    pub served: u64,
    /// Entries that were taken from queues of deadlines.
    pub timers: u64,
    /// Entries that are in those queues now, those of flows that have gone included.
    pub queued: u64,
}

impl Work {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            served: self.served + other.served,
            timers: self.timers + other.timers,
            queued: self.queued + other.queued,
        }
    }
}

/// The two ends of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// From key to index. The hash is fast and seeded, so that a guest cannot aim at one bucket.
#[derive(Debug, Default)]
pub struct FlowIndex(HashMap<FlowKey, usize, foldhash::fast::RandomState>);

impl FlowIndex {
    /// The flow with that key.
    pub fn get(&self, key: &FlowKey) -> Option<usize> {
        self.0.get(key).copied()
    }

    /// Makes a flow findable.
    pub fn insert(&mut self, key: FlowKey, index: usize) {
        self.0.insert(key, index);
    }

    /// Makes a flow unfindable.
    pub fn remove(&mut self, key: &FlowKey) {
        self.0.remove(key);
    }
}

/// What a flow needs of the rest of the worker while it is served.
pub struct FlowContext<'a, P, H> {
    /// The time.
    pub now: Instant,
    /// The host.
    pub host: &'a mut H,
    /// The way to the guest.
    pub to_guest: ToGuest<'a, P>,
    /// The gateway's address.
    pub gateway: Ipv4Addr,
    /// The same in IPv6, where the network has it.
    pub gateway6: Option<Ipv6Addr>,
    /// Largest IP packet on the network.
    pub mtu: u16,
    /// The port's slot, for tokens.
    pub slot: u16,
    /// How many ICMP errors the guest may be sent (RFC 1812 4.3.2.8 asks for a limit).
    pub icmp_errors: &'a mut TokenBucket,
}

/// Which source address a workload sees of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardSource {
    /// The client's own.
    Client(SocketAddr),
    /// The gateway's.
    Gateway(IpAddr),
}

impl ForwardSource {
    /// The two ends of a client's flow as the guest sees them: the client's own port where the source is kept and
    /// that is free, the first of `ports` that is else.
    fn key(
        self,
        guest: SocketAddr,
        ports: impl Iterator<Item = u16>,
        is_free: impl Fn(&FlowKey) -> bool,
    ) -> Option<FlowKey> {
        let (own, ip) = match self {
            Self::Client(client) => (Some(client), client.ip()),
            Self::Gateway(ip) => (None, ip),
        };
        let remotes = own.into_iter().chain(ports.map(|port| SocketAddr::new(ip, port)));
        remotes.map(|remote| FlowKey { guest, remote }).find(is_free)
    }
}

impl<P: Port, H> FlowContext<'_, P, H> {
    /// Tells the guest what became of `packet` (a packet of its own, or its first bytes), as often as the rate
    /// allows. `from` is who found out, where that is another than the gateway.
    pub fn tell(&mut self, error: IcmpError, from: Option<IpAddr>, packet: &[u8]) {
        if packet.first().is_some_and(|byte| byte >> 4 == 6) {
            let from = from.and_then(|from| match from {
                IpAddr::V6(from) => Some(from),
                IpAddr::V4(from) => router6(from, packet),
            });
            self.tell6(from, packet, |ends| icmp6::emit_error(error, ends, packet));
        } else {
            let from = from.and_then(|from| match from {
                IpAddr::V4(from) => Some(from),
                IpAddr::V6(_) => None,
            });
            self.tell4(error, from, packet);
        }
    }

    fn tell4(&mut self, error: IcmpError, from: Option<Ipv4Addr>, packet: &[u8]) {
        let guest = packet.get(12..).and_then(|bytes| bytes.first_chunk());
        let Some(guest) = guest.map(|guest| Ipv4Addr::from_octets(*guest)) else { return };
        // RFC 791: every path takes 68 bytes; Linux believes nobody who says less than 552.
        let error = match error {
            IcmpError::FragmentationNeeded(mtu) => IcmpError::FragmentationNeeded(mtu.max(576)),
            other => other,
        };
        if speaks(&guest) && self.icmp_errors.take(self.now) {
            let from = from.filter(speaks).unwrap_or(self.gateway);
            let message = error.emit(from, guest, packet);
            self.to_guest.send_ip(&message);
        }
    }

    /// Tells the guest of an IPv6 packet what `emit` says between who tells it and the guest.
    pub fn tell6(
        &mut self,
        from: Option<Ipv6Addr>,
        packet: &[u8],
        emit: impl FnOnce((Ipv6Addr, Ipv6Addr)) -> Vec<u8>,
    ) {
        let guest = packet.get(8..).and_then(|bytes| bytes.first_chunk());
        let Some(guest) = guest.map(|guest| Ipv6Addr::from_octets(*guest)) else { return };
        let speaks =
            |ip: &Ipv6Addr| !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast());
        let own =
            if guest.is_unicast_link_local() { Some(GATEWAY_LINK_LOCAL) } else { self.gateway6 };
        let Some(from) = from.filter(speaks).or(own) else { return };
        if speaks(&guest) && self.icmp_errors.take(self.now) {
            let message = emit((from, guest));
            self.to_guest.send_ip(&message);
        }
    }

    /// Sends an IP packet to the guest: with `header` as it is where the whole fits the MTU, else in
    /// fragments under `identification`.
    pub fn send_packet(&mut self, header: IpHeader, identification: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let header = header.with_payload_len(len);
        let room = usize::from(self.mtu) - header.len();
        if len <= room {
            self.to_guest.send_ip_parts(header.emit().as_slice(), parts);
            return;
        }
        let whole = parts.concat();
        let room = match header {
            IpHeader::V4(_) => room & !7,
            IpHeader::V6(_) => (room - FRAGMENT_LEN) & !7,
        };
        for (at, piece) in whole.chunks(room).enumerate().map(|(nth, piece)| (nth * room, piece)) {
            let more = at + piece.len() < whole.len();
            self.send_fragment(header, identification, (at, more), piece);
        }
    }

    fn send_fragment(
        &mut self,
        header: IpHeader,
        identification: u32,
        (at, more): (usize, bool),
        piece: &[u8],
    ) {
        match header {
            IpHeader::V4(mut header) => {
                header.identification = (identification & 0xffff) as u16;
                header.fragment = if more { MORE_FRAGMENTS } else { 0 }
                    | u16::try_from(at / 8).expect("packets are below 64 KiB");
                header.payload_len = piece.len();
                self.to_guest.send_ip_parts(&header.emit(), &[piece]);
            }
            IpHeader::V6(mut header) => {
                let fragment = emit_fragment(header.next_header, at, more, identification);
                header.next_header = FRAGMENT;
                header.payload_len = FRAGMENT_LEN + piece.len();
                self.to_guest.send_ip_parts(&header.emit(), &[&fragment, piece]);
            }
        }
    }
}

/// Whether an address is one that an error can come from and go to.
fn speaks(ip: &Ipv4Addr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
}

/// As whom a guest sees a router of IPv4 that tells something about its packet of IPv6 (RFC 7915 4.2). Only with NAT64
/// does such a packet come by one, on its way to an address under the prefix.
fn router6(from: Ipv4Addr, packet: &[u8]) -> Option<Ipv6Addr> {
    let to = Ipv6Addr::from_octets(*packet.get(24..)?.first_chunk()?);
    nat64::embedded(to).filter(|_| speaks(&from)).map(|_| nat64::embed(from))
}
