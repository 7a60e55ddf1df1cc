//! ICMP echo outward: a guest's ping of a host beyond the gateway, by the host's ping sockets.
//!
//! The host allows those to the groups in `net.ipv4.ping_group_range`; where it does not, the guest is
//! told "administratively prohibited".

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use slab::Slab;

use super::idle_queue::IdleQueue;
use super::{FlowContext, FlowIndex, FlowKey};
use crate::counters::DropReason;
use crate::host::{Datagram, Host, Token, TokenKind};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::icmp::{ECHO_REPLY, ICMP_LEN, IcmpError, IcmpHeader, echo_reply};
use crate::wire::{be16, icmp};

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 256;
/// How long a silent flow lives (RFC 5508 REQ-2: at least 60 s).
pub const LIFETIME: Duration = Duration::from_secs(60);
const MAX_BURST: usize = 64;

/// The echo flows of one port.
pub struct EchoFlows<D> {
    index: FlowIndex,
    flows: Slab<Flow<D>>,
    idle: IdleQueue,
}

struct Flow<D> {
    key: FlowKey,
    socket: D,
    heard: Instant,
}

impl<D> Default for EchoFlows<D> {
    fn default() -> Self {
        Self { index: FlowIndex::default(), flows: Slab::new(), idle: IdleQueue::default() }
    }
}

impl<D: Datagram> EchoFlows<D> {
    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Whether the guest has such a flow already.
    pub fn contains(&self, guest: Ipv4Addr, identifier: u16, to: Ipv4Addr) -> bool {
        self.index.get(&key(guest, identifier, to)).is_some()
    }

    /// Sends a guest's echo request out. `packet` is the IP packet, `message` the ICMP message in it.
    pub fn handle_request<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        guest: Ipv4Addr,
        to: Ipv4Addr,
        header: &IcmpHeader,
        packet: &[u8],
        message: &[u8],
    ) {
        let key = key(guest, header.identifier, to);
        let index = match self.index.get(&key) {
            Some(index) => index,
            None => match self.open(cx, key) {
                Ok(index) => index,
                Err(error) => {
                    let message = match error.kind() {
                        io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
                        io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
                        _ => IcmpError::AdministrativelyProhibited,
                    };
                    cx.to_guest.counters.drop(DropReason::HostSocket);
                    let message = message.emit(cx.gateway, guest, packet);
                    cx.to_guest.send_ip(&message);
                    return;
                }
            },
        };
        let flow = &mut self.flows[index];
        flow.heard = cx.now;
        if flow.socket.send(message).is_err() {
            cx.to_guest.counters.drop(DropReason::HostSend);
        }
    }

    fn open<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
    ) -> io::Result<usize> {
        if self.flows.len() >= MAX_FLOWS {
            let flows = &self.flows;
            let oldest = self.idle.pop_oldest(|index| flows.get(index).map(|flow| flow.heard));
            if let Some(index) = oldest.filter(|index| self.flows.contains(*index)) {
                cx.to_guest.counters.drop(DropReason::IcmpBudget);
                let flow = self.flows.remove(index);
                self.index.remove(&flow.key);
            }
        }
        let entry = self.flows.vacant_entry();
        let index = entry.key();
        let token = Token {
            port: cx.slot,
            kind: TokenKind::Echo,
            index: u32::try_from(index).expect("a port has at most 256 flows"),
        };
        let socket = cx.host.open_echo(*key.remote.ip(), token)?;
        entry.insert(Flow { key, socket, heard: cx.now });
        self.index.insert(key, index);
        self.idle.push(cx.now, index);
        Ok(index)
    }

    /// A host socket became readable: replies go to the guest under the guest's own identifier.
    pub fn handle_ready<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        buffer: &mut [u8],
    ) -> bool {
        for _ in 0..MAX_BURST {
            let Some(flow) = self.flows.get_mut(index) else { return false };
            match flow.socket.receive(buffer) {
                Ok(len) if len >= ICMP_LEN && buffer[0] == ECHO_REPLY => {
                    flow.heard = cx.now;
                    let reply = echo_reply(
                        *flow.key.remote.ip(),
                        *flow.key.guest.ip(),
                        64,
                        flow.key.guest.port(),
                        be16(buffer, 6),
                        &buffer[ICMP_LEN..len],
                    );
                    send_fragmented(cx, &reply);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {}
            }
        }
        true
    }

    /// Closes the flows that were silent for [`LIFETIME`].
    pub fn handle_timeout(&mut self, now: Instant) {
        let flows = &mut self.flows;
        loop {
            let expired = self
                .idle
                .pop_expired(now, LIFETIME, |index| flows.get(index).map(|flow| flow.heard));
            let Some(index) = expired else { return };
            let flow = flows.remove(index);
            self.index.remove(&flow.key);
        }
    }

    /// When [`EchoFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.idle.poll_timeout(LIFETIME)
    }
}

fn key(guest: Ipv4Addr, identifier: u16, to: Ipv4Addr) -> FlowKey {
    FlowKey { guest: SocketAddrV4::new(guest, identifier), remote: SocketAddrV4::new(to, 0) }
}

/// Sends an IP packet without options to the guest, in fragments when it is larger than the MTU.
pub fn send_fragmented<P: Port, H>(cx: &mut FlowContext<'_, P, H>, packet: &[u8]) {
    use crate::wire::ipv4::{IPV4_LEN, Ipv4Header, MORE_FRAGMENTS};
    if packet.len() <= usize::from(cx.mtu) {
        cx.to_guest.send_ip(packet);
        return;
    }
    let ip = |at: usize| Ipv4Addr::from_octets(packet[at..at + 4].try_into().expect("four bytes"));
    let room = (usize::from(cx.mtu) - IPV4_LEN) & !7;
    let payload = &packet[IPV4_LEN..];
    for (at, piece) in payload.chunks(room).enumerate().map(|(nth, piece)| (nth * room, piece)) {
        let more = if at + piece.len() < payload.len() { MORE_FRAGMENTS } else { 0 };
        let header = Ipv4Header {
            source: ip(12),
            destination: ip(16),
            protocol: icmp::PROTOCOL_ICMP,
            ttl: packet[8],
            traffic_class: packet[1],
            // The sequence number of the echo tells its fragments from those of the next.
            identification: be16(packet, IPV4_LEN + 6),
            fragment: more | u16::try_from(at / 8).expect("packets are below 64 KiB"),
            payload_len: piece.len(),
        };
        cx.to_guest.send_ip_parts(&[&header.emit(), piece]);
    }
}
