//! ICMP echo outward: a guest's ping of a host beyond the gateway, by the host's ping sockets.
//!
//! The host allows those to the groups in `net.ipv4.ping_group_range`; where it does not, the guest is
//! told "administratively prohibited".
//!
//! With NAT64 a request of ICMPv6 leaves as one of ICMP, and the reply comes back the other way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::datagram_table::{Bounds, DatagramTable};
use super::outgoing::{MAX_BURST, Options, Outgoing, Quote, Sending, tell, tell_bounces, try_send};
use super::view::FlowView;
use super::{FlowContext, FlowKey, Work};
use crate::command::FlowProtocol;
use crate::counters::DropReason;
use crate::host::{Arrival, Bounce, Datagram, Host, TokenKind};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::be16;
use crate::wire::icmp::{ECHO_REPLY, ECHO_REQUEST, ICMP_LEN, IcmpError, PROTOCOL_ICMP, echo_reply};
use crate::wire::icmp6::{self, PROTOCOL_ICMPV6};
use crate::wire::ip::IpHeader;

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 256;
/// How long a silent flow lives (RFC 5508 REQ-2: at least 60 s).
pub const LIFETIME: Duration = Duration::from_secs(60);
const BOUNDS: Bounds =
    Bounds { kind: TokenKind::Echo, flows: MAX_FLOWS, lifetime: LIFETIME, shortest: LIFETIME };

/// The echo flows of one port; each keeps its ping socket.
pub struct EchoFlows<D> {
    table: DatagramTable<Flow<D>>,
}

struct Flow<D> {
    socket: D,
    options: Options,
    /// Both headers of the last request.
    quote: Quote,
    /// Whom the socket speaks with.
    to: IpAddr,
}

/// A guest's echo request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who sent it.
    pub guest: IpAddr,
    /// Where to, as the guest says it.
    pub remote: IpAddr,
    /// Where that is for the host.
    pub to: IpAddr,
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
    /// The sockets, with their flows' indexes.
    pub fn sockets(&self) -> impl Iterator<Item = (usize, &D)> {
        self.table.iter().map(|(index, entry)| (index, &entry.flow.socket))
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// The flows as they are shown.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.table.views(FlowProtocol::Icmp)
    }

    /// Whether the guest has such a flow already.
    pub fn contains(&self, guest: IpAddr, identifier: u16, to: IpAddr) -> bool {
        self.table.find(&key(guest, identifier, to)).is_some()
    }

    /// Sends a guest's echo request out.
    pub fn handle_request<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        request: &Request<'_>,
    ) {
        let key = key(request.guest, request.identifier, request.remote);
        let Outgoing { packet, payload: message, fragmentation, ttl, .. } = request.outgoing;
        let index = match self.table.find(&key) {
            Some(index) => index,
            None => match self.open(cx, key, request.to) {
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
        entry.traffic.from_guest += message.len() as u64;
        let flow = &mut entry.flow;
        flow.quote = Quote::at(packet, packet.len() - message.len());
        flow.options.change(Options::of(fragmentation, ttl), &mut flow.socket);
        let translated = translated(key, flow.to, message);
        let bytes = translated.as_deref().unwrap_or(message);
        let sending = Sending { bytes, segment_size: None, route: None };
        let quote_of = quoting(flow.quote);
        if let Err(unsent) = try_send(cx, &mut flow.socket, &sending, quote_of) {
            tell(cx, &unsent.error, packet);
        }
    }

    fn open<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        to: IpAddr,
    ) -> io::Result<usize> {
        if self.table.make_room().is_some() {
            cx.to_guest.counters.drop(DropReason::IcmpBudget);
        }
        self.table.insert(cx.now, cx.slot, key, |token| {
            let socket = cx.host.open_echo(to, token)?;
            Ok(Flow { socket, options: Options::default(), quote: Quote::EMPTY, to })
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
                Ok(Arrival { len, .. })
                    if len >= ICMP_LEN && is_reply(entry.flow.to, buffer[0]) =>
                {
                    entry.heard = cx.now;
                    entry.traffic.to_guest += len as u64;
                    let FlowKey { guest, remote } = entry.key;
                    let (sequence, data) = (be16(buffer, 6), &buffer[ICMP_LEN..len]);
                    let echo = Echo { identifier: guest.port(), sequence, data };
                    send_reply(cx, remote.ip(), guest.ip(), &echo);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    let Flow { socket, quote, .. } = &mut entry.flow;
                    tell_bounces(cx, socket, quoting(*quote));
                }
            }
        }
        true
    }

    /// Closes the flows that were silent for [`LIFETIME`].
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.table.expire(now).is_some() {}
    }

    /// What was done for the flows' timers so far.
    pub fn work(&self) -> Work {
        self.table.work()
    }

    /// When [`EchoFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout()
    }
}

/// Finds the request that an error is about: the last one, but with the sequence number that is quoted.
fn quoting(last: Quote) -> impl Fn(&Bounce, &[u8]) -> Option<Quote> {
    move |_, quoted| match quoted {
        &[_, _, _, _, _, _, high, low] => Some(last.ending([high, low])),
        _ => Some(last),
    }
}

fn key(guest: IpAddr, identifier: u16, to: IpAddr) -> FlowKey {
    FlowKey { guest: SocketAddr::new(guest, identifier), remote: SocketAddr::new(to, 0) }
}

fn is_reply(from: IpAddr, kind: u8) -> bool {
    kind == if from.is_ipv4() { ECHO_REPLY } else { icmp6::ECHO_REPLY }
}

/// A guest's request in the words of whom it goes to, where those are of the other family (RFC 7915 5.2). The host makes
/// the checksum.
fn translated(key: FlowKey, to: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    (key.guest.is_ipv6() && to.is_ipv4()).then(|| {
        let mut message = message.to_vec();
        message[0] = ECHO_REQUEST;
        message
    })
}

/// What an echo carries.
#[derive(Clone, Copy, Debug)]
pub struct Echo<'a> {
    /// Whose it is.
    pub identifier: u16,
    /// Which of several.
    pub sequence: u16,
    /// Its data.
    pub data: &'a [u8],
}

/// Sends an echo reply to the guest. Its sequence number tells its fragments from those of the next.
pub fn send_reply<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: IpAddr,
    to: IpAddr,
    echo: &Echo<'_>,
) {
    let Echo { identifier, sequence, data } = *echo;
    let (protocol, message) = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut message = icmp6::echo_reply(identifier, sequence, data);
            icmp6::fill_checksum((from, to), &mut message);
            (PROTOCOL_ICMPV6, message)
        }
        _ => (PROTOCOL_ICMP, echo_reply(identifier, sequence, data)),
    };
    let header = IpHeader::between(from, to, protocol);
    cx.send_packet(header, sequence.into(), &[&message]);
}
