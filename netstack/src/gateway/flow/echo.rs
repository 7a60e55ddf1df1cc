//! ICMP echo outward: a guest's ping of a host beyond the gateway, by the host's ping sockets.
//!
//! The host allows those to the groups in `net.ipv4.ping_group_range`; where it does not, the guest is
//! told "administratively prohibited".

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::datagram_table::{Bounds, DatagramTable};
use super::udp::{MAX_BURST, Options, Outgoing, tell};
use super::{FlowContext, FlowKey};
use crate::counters::DropReason;
use crate::host::{Arrival, Datagram, Host, TokenKind};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::be16;
use crate::wire::icmp::{ECHO_REPLY, ICMP_LEN, IcmpError, PROTOCOL_ICMP, echo_reply};
use crate::wire::ipv4::{IPV4_LEN, Ipv4Header};

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 256;
/// How long a silent flow lives (RFC 5508 REQ-2: at least 60 s).
pub const LIFETIME: Duration = Duration::from_secs(60);
const BOUNDS: Bounds = Bounds { kind: TokenKind::Echo, flows: MAX_FLOWS, lifetime: LIFETIME };

/// Bytes of the packet that an error about a request quotes.
const QUOTE_LEN: usize = IPV4_LEN + ICMP_LEN;

/// The echo flows of one port; each keeps its ping socket.
pub struct EchoFlows<D> {
    table: DatagramTable<Flow<D>>,
}

struct Flow<D> {
    socket: D,
    options: Options,
    /// Both headers of the last request.
    quote: [u8; QUOTE_LEN],
}

/// A guest's echo request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who sent it.
    pub guest: Ipv4Addr,
    /// Where to.
    pub to: Ipv4Addr,
    /// Its identifier.
    pub identifier: u16,
    /// The packet it came in; the payload is the ICMP message.
    pub outgoing: Outgoing<'a>,
}

impl<D> Default for EchoFlows<D> {
    fn default() -> Self {
        Self { table: DatagramTable::new(BOUNDS) }
    }
}

impl<D: Datagram> EchoFlows<D> {
    /// Flows now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Whether the guest has such a flow already.
    pub fn contains(&self, guest: Ipv4Addr, identifier: u16, to: Ipv4Addr) -> bool {
        self.table.find(&key(guest, identifier, to)).is_some()
    }

    /// Sends a guest's echo request out.
    pub fn handle_request<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        request: &Request<'_>,
    ) {
        let key = key(request.guest, request.identifier, request.to);
        let Outgoing { packet, payload: message, fragmentation, ttl, .. } = request.outgoing;
        let index = match self.table.find(&key) {
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
                    return cx.tell(message, None, packet);
                }
            },
        };
        let Some(entry) = self.table.get_mut(index) else { return };
        entry.heard = cx.now;
        let flow = &mut entry.flow;
        flow.quote = quote(packet, message);
        flow.options.change(Options::of(fragmentation, ttl), &mut flow.socket);
        let Err(mut error) = flow.socket.send(message, None, None) else { return };
        // An error of an earlier request is told by the next call, which then does nothing else.
        if flow.tell_bounces(cx) > 0 && error.raw_os_error() != Some(libc::EMSGSIZE) {
            match flow.socket.send(message, None, None) {
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
        cx.to_guest.counters.drop(DropReason::HostSend);
        tell(cx, &error, packet);
    }

    fn open<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
    ) -> io::Result<usize> {
        if self.table.make_room().is_some() {
            cx.to_guest.counters.drop(DropReason::IcmpBudget);
        }
        self.table.insert(cx.now, cx.slot, key, |token| {
            let socket = cx.host.open_echo(*key.remote.ip(), token)?;
            Ok(Flow { socket, options: Options::default(), quote: [0; QUOTE_LEN] })
        })
    }

    /// A host socket became readable: replies go to the guest under the guest's own identifier.
    pub fn handle_ready<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        buffer: &mut [u8],
    ) -> bool {
        for _ in 0..MAX_BURST {
            let Some(entry) = self.table.get_mut(index) else { return false };
            match entry.flow.socket.receive(buffer) {
                Ok(Arrival { len, .. }) if len >= ICMP_LEN && buffer[0] == ECHO_REPLY => {
                    entry.heard = cx.now;
                    let FlowKey { guest, remote } = entry.key;
                    let (sequence, data) = (be16(buffer, 6), &buffer[ICMP_LEN..len]);
                    let reply = echo_reply(guest.port(), sequence, data);
                    send_reply(cx, *remote.ip(), *guest.ip(), sequence, &reply);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => drop(entry.flow.tell_bounces(cx)),
            }
        }
        true
    }

    /// Closes the flows that were silent for [`LIFETIME`].
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.table.expire(now).is_some() {}
    }

    /// When [`EchoFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout()
    }
}

impl<D: Datagram> Flow<D> {
    /// Tells the guest of the errors that came back, each about the request that it quotes; answers how
    /// many.
    fn tell_bounces<P: Port, H>(&mut self, cx: &mut FlowContext<'_, P, H>) -> usize {
        let mut bounced = 0;
        let mut header = [0; ICMP_LEN];
        while bounced < MAX_BURST
            && let Some(bounce) = self.socket.take_bounce(&mut header)
        {
            let mut quote = self.quote;
            if bounce.quoted >= ICMP_LEN {
                quote[QUOTE_LEN - 2..].copy_from_slice(&header[ICMP_LEN - 2..]);
            }
            cx.tell(bounce.error, bounce.from, &quote);
            bounced += 1;
        }
        bounced
    }
}

/// Both headers of a packet, with the options of its IP header left out.
fn quote(packet: &[u8], message: &[u8]) -> [u8; QUOTE_LEN] {
    let mut quote = [0; QUOTE_LEN];
    quote[..IPV4_LEN].copy_from_slice(&packet[..IPV4_LEN]);
    quote[0] = 0x45;
    quote[IPV4_LEN..].copy_from_slice(&message[..ICMP_LEN]);
    quote
}

fn key(guest: Ipv4Addr, identifier: u16, to: Ipv4Addr) -> FlowKey {
    FlowKey { guest: SocketAddrV4::new(guest, identifier), remote: SocketAddrV4::new(to, 0) }
}

/// Sends an echo reply to the guest. Its sequence number tells its fragments from those of the next.
pub fn send_reply<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: Ipv4Addr,
    to: Ipv4Addr,
    sequence: u16,
    message: &[u8],
) {
    let header = Ipv4Header {
        source: from,
        destination: to,
        protocol: PROTOCOL_ICMP,
        ttl: 64,
        traffic_class: 0,
        identification: 0,
        fragment: 0,
        payload_len: 0,
    };
    cx.send_packet(header, sequence, &[message]);
}
