//! UDP flows of one port: a connected host socket for each pair of ends.
//!
//! Because the socket is connected, the kernel drops what anyone else sends to it: filtering is by address
//! and port (RFC 4787 calls it address and port-dependent), so a mapping is open to nobody but its peer.
//!
//! Datagrams of one flow that come in one batch leave in one system call.
//!
//! A flow that is no more than a question and its answer (`one_shot`) is closed sooner than a conversation.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::datagram_batch::Batch;
use super::datagram_table::{Bounds, DatagramTable, Entry};
use super::one_shot::{self, Exchange};
use super::train::Train;
use super::view::FlowView;
use super::{FlowContext, FlowKey, Work};
use crate::command::FlowProtocol;
use crate::counters::DropReason;
use crate::frame::vnet_header::{Gso, GsoKind, MAX_SEGMENTS, PartialChecksum, VnetHeader};
use crate::host::{Bounce, Datagram, Fragmentation, Host, Peer, TokenKind};
use crate::port::Port;
use crate::port::to_guest::IP_OFFSET;
use crate::time::Instant;
use crate::wire::ETHERNET_LEN;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{IpHeader, header_len};
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::udp::{PROTOCOL_UDP, UDP_LEN, emit_header, emit_partial_header};

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 4096;
/// How long a silent flow lives (RFC 4787 REQ-5 recommends five minutes).
pub const LIFETIME: Duration = Duration::from_secs(300);
const BOUNDS: Bounds = Bounds {
    kind: TokenKind::Udp,
    flows: MAX_FLOWS,
    lifetime: LIFETIME,
    shortest: one_shot::LIFETIME,
};
/// Reads of one socket in one go.
pub(super) const MAX_BURST: usize = 64;
/// A packet of the guest that has as many hops left as its kernel gives by default leaves with what the
/// host gives by default; one with fewer leaves with as many as it has.
const ORDINARY_TTL: u8 = 63;

/// The UDP flows of one port.
pub struct UdpFlows<D> {
    table: DatagramTable<Flow<D>>,
    batch: Batch,
    identification: u32,
}

struct Flow<D> {
    socket: D,
    options: Options,
    quote: Quote,
    exchange: Exchange,
}

/// One datagram (or several of equal size) of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The IP packet it came in, header first.
    pub packet: &'a [u8],
    /// The UDP payload.
    pub payload: &'a [u8],
    /// Bytes of each datagram when the payload stands for several.
    pub segment_size: Option<u16>,
    /// What the guest's don't-fragment bit says.
    pub fragmentation: Fragmentation,
    /// Hops that are left beyond us.
    pub ttl: u8,
}

/// What a socket was last told of how to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    fragmentation: Option<Fragmentation>,
    ttl: Option<u8>,
}

impl Options {
    /// What a datagram of the guest asks for.
    pub(super) fn of(fragmentation: Fragmentation, ttl: u8) -> Self {
        let ttl = (ttl < ORDINARY_TTL).then_some(ttl);
        Self { fragmentation: Some(fragmentation), ttl }
    }

    /// Makes a socket that was told `self` do as `wanted` says.
    pub(super) fn change<D: Datagram>(&mut self, wanted: Self, socket: &mut D) {
        if let Some(fragmentation) = wanted.fragmentation
            && wanted.fragmentation != self.fragmentation
        {
            socket.set_fragmentation(fragmentation);
        }
        if wanted.ttl != self.ttl {
            socket.set_ttl(wanted.ttl.unwrap_or(ORDINARY_TTL + 1));
        }
        *self = wanted;
    }
}

/// Bytes that follow the IP header in a [`Quote`] (RFC 792): the whole header of UDP and of an echo.
pub(super) const QUOTED: usize = 8;

/// What an ICMP error about a flow quotes: both headers of its last datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quote {
    bytes: [u8; IPV6_LEN + QUOTED],
    len: usize,
}

impl Quote {
    pub(super) const EMPTY: Self = Self { bytes: [0; IPV6_LEN + QUOTED], len: QUOTED };

    /// Of a guest's UDP datagram.
    pub(super) fn of(outgoing: &Outgoing<'_>) -> Self {
        Self::at(outgoing.packet, outgoing.packet.len() - outgoing.payload.len() - UDP_LEN)
    }

    /// Of a guest's packet whose transport begins there, with the options of its IP header left out.
    pub(super) fn at(packet: &[u8], transport: usize) -> Self {
        let mut quote = Self::EMPTY;
        // What has extension headers has lost them on its way here.
        let header_len = if packet[0] >> 4 == 6 { IPV6_LEN } else { IPV4_LEN };
        quote.bytes[..header_len].copy_from_slice(&packet[..header_len]);
        if header_len == IPV4_LEN {
            quote.bytes[0] = 0x45;
        }
        quote.len = header_len + QUOTED;
        quote.bytes[header_len..quote.len].copy_from_slice(&packet[transport..transport + QUOTED]);
        quote
    }

    /// The same with these as the last bytes.
    pub(super) fn ending<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.bytes[self.len - N..self.len].copy_from_slice(&bytes);
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<D: Datagram> UdpFlows<D> {
    /// No flows yet; `seed` starts the identification of fragments.
    pub fn new(seed: u64) -> Self {
        Self {
            table: DatagramTable::new(BOUNDS),
            batch: Batch::default(),
            identification: (seed & 0xffff_ffff) as u32,
        }
    }

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
        self.table.views(FlowProtocol::Udp)
    }

    /// Whether a flow with that key exists.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.table.find(key).is_some()
    }

    /// Sends a guest's datagram out, on a flow that exists or, towards `to`, on a new one. It may wait for
    /// [`UdpFlows::handle_batch_end`].
    pub fn handle_datagram<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        to: SocketAddr,
        outgoing: Outgoing<'_>,
    ) {
        let index = match self.table.find(&key) {
            Some(index) => index,
            None => match self.open(cx, key, to) {
                Ok(index) => index,
                Err(error) => {
                    cx.to_guest.counters.drop(DropReason::HostSocket);
                    return tell(cx, &error, outgoing.packet);
                }
            },
        };
        let wanted = Options::of(outgoing.fragmentation, outgoing.ttl);
        if self.table.get_mut(index).is_some_and(|entry| entry.flow.options != wanted) {
            self.handle_batch_end(cx);
        }
        let Some(entry) = self.table.get_mut(index) else { return };
        entry.heard = cx.now;
        entry.traffic.from_guest += outgoing.payload.len() as u64;
        let size = outgoing.segment_size.map_or(outgoing.payload.len(), usize::from);
        entry.flow.exchange.ask(outgoing.payload.len().div_ceil(size.max(1)).max(1));
        entry.choose_lifetime();
        entry.flow.quote = Quote::of(&outgoing);
        entry.flow.options.change(wanted, &mut entry.flow.socket);
        if let Some(size) = outgoing.segment_size {
            self.handle_batch_end(cx);
            let Some(entry) = self.table.get_mut(index) else { return };
            entry.flow.send(cx, outgoing.payload, Some(usize::from(size)));
        } else if !self.batch.add(index, outgoing.payload) {
            self.handle_batch_end(cx);
            self.batch.add(index, outgoing.payload);
        }
    }

    /// Sends what waits.
    pub fn handle_batch_end<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
    ) {
        if let Some(entry) = self.batch.flow().and_then(|index| self.table.get_mut(index)) {
            let (bytes, size) = self.batch.waiting();
            entry.flow.send(cx, bytes, size);
        }
        self.batch.clear();
    }

    fn open<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        to: SocketAddr,
    ) -> io::Result<usize> {
        // A flow that goes takes nothing unsent with it.
        self.handle_batch_end(cx);
        if self.table.make_room().is_some() {
            cx.to_guest.counters.drop(DropReason::UdpBudget);
        }
        self.table.insert(cx.now, cx.slot, key, |token| {
            let socket = cx.host.open_udp(to, token)?;
            let (options, exchange) = (Options::default(), Exchange::default());
            Ok(Flow { socket, options, quote: Quote::EMPTY, exchange })
        })
    }

    /// The guest says that nobody hears what comes on a flow. Its socket is closed, so that the host tells
    /// the peer the same when it sends more. Answers whether there is such a flow.
    pub fn handle_unreachable<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: &FlowKey,
    ) -> bool {
        self.handle_batch_end(cx);
        self.table.find(key).inspect(|index| self.table.close(*index)).is_some()
    }

    /// Closes the flow that was idle longest; false when there is none.
    pub fn evict_oldest<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
    ) -> bool {
        self.handle_batch_end(cx);
        self.table.evict_oldest().is_some()
    }

    /// A host socket became readable. `buffer` holds at least twice 65,535 bytes. Answers whether more waits.
    pub fn handle_ready<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        buffer: &mut [u8],
    ) -> bool {
        let Some(FlowKey { guest, remote }) = self.table.get_mut(index).map(|entry| entry.key)
        else {
            return false;
        };
        let mut train = Train::default();
        let mut more = true;
        for _ in 0..MAX_BURST {
            let Some(entry) = self.table.get_mut(index) else { break };
            match entry.flow.socket.receive(train.room(buffer)) {
                Ok(arrival) => {
                    entry.heard = cx.now;
                    entry.traffic.to_guest += arrival.len as u64;
                    entry
                        .flow
                        .exchange
                        .answer(arrival.len.div_ceil(arrival.segment_size.max(1)).max(1));
                    entry.choose_lifetime();
                    if !train.add(&arrival) {
                        send_train(cx, remote, guest, &train, buffer, &mut self.identification);
                        train.restart(buffer, &arrival);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let quote = entry.flow.quote;
                    if tell_bounces(cx, &mut entry.flow.socket, |_, _| Some(quote)) == 0 {
                        tell(cx, &error, quote.bytes());
                    }
                }
            }
        }
        send_train(cx, remote, guest, &train, buffer, &mut self.identification);
        more
    }

    /// Closes the flows that were silent for their lifetime.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.table.expire(now).is_some() {}
    }

    /// What was done for the flows' timers so far.
    pub fn work(&self) -> Work {
        self.table.work()
    }

    /// When [`UdpFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout()
    }
}

impl<D> Entry<Flow<D>> {
    fn choose_lifetime(&mut self) {
        let is_over = self.flow.exchange.is_over(self.key.remote.port());
        self.lifetime = if is_over { one_shot::LIFETIME } else { LIFETIME };
    }
}

impl<D: Datagram> Flow<D> {
    fn send<P: Port, H>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        bytes: &[u8],
        segment_size: Option<usize>,
    ) {
        let quote = self.quote;
        let sending = Sending { bytes, segment_size, route: None };
        send(cx, &mut self.socket, &sending, &quote, |_, _| Some(quote));
    }
}

/// What a guest's datagrams are sent with.
pub(super) struct Sending<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of each, when they are several.
    pub(super) segment_size: Option<usize>,
    /// Whereto, unless the socket is connected.
    pub(super) route: Option<Peer>,
}

/// What the host did not take.
pub(super) struct Unsent {
    pub(super) error: io::Error,
    /// Errors of earlier datagrams that the guest was told of on the way.
    bounced: usize,
}

/// Sends datagrams of a guest, and tells it what became of them; what came back for earlier ones is told
/// too, about what `quote_of` finds.
pub(super) fn send<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    sending: &Sending<'_>,
    quote: &Quote,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) {
    if let Err(Unsent { error, bounced: 0 }) = try_send(cx, socket, sending, quote_of) {
        tell(cx, &error, quote.bytes());
    }
}

/// Sends datagrams of a guest. What came back for earlier ones is told.
pub(super) fn try_send<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    sending: &Sending<'_>,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) -> Result<(), Unsent> {
    let Sending { bytes, segment_size, route } = *sending;
    let Err(mut error) = socket.send(bytes, segment_size, route) else { return Ok(()) };
    // An error of an earlier datagram is told by the next call, which then does nothing else.
    let bounced = tell_bounces(cx, socket, quote_of);
    if bounced > 0 && error.raw_os_error() != Some(libc::EMSGSIZE) {
        match socket.send(bytes, segment_size, route) {
            Ok(()) => return Ok(()),
            Err(again) => error = again,
        }
    }
    cx.to_guest.counters.drop(DropReason::HostSend);
    Err(Unsent { error, bounced })
}

/// Tells the guest of the errors that came back to a socket, each about what `quote_of` finds for it and the
/// first bytes that it quotes; answers how many.
pub(super) fn tell_bounces<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) -> usize {
    let mut bounced = 0;
    let mut quoted = [0; QUOTED];
    // No more than a burst may cause; the rest is told with the next.
    while bounced < MAX_BURST
        && let Some(bounce) = socket.take_bounce(&mut quoted)
    {
        if let Some(quote) = quote_of(&bounce, &quoted[..bounce.quoted.min(QUOTED)]) {
            cx.tell(bounce.error, bounce.from, quote.bytes());
        }
        bounced += 1;
    }
    bounced
}

/// Sends to a guest what a host socket has brought: several datagrams as one large one where that can be cut
/// into pieces that fit the MTU, each by itself else.
pub(super) fn send_train<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: SocketAddr,
    to: SocketAddr,
    train: &Train,
    buffer: &[u8],
    identification: &mut u32,
) {
    let Some((bytes, size)) = train.datagrams(buffer) else { return };
    if bytes.is_empty() {
        return send_to_guest(cx, from, to, bytes, *identification);
    }
    let fits = header_len(from.ip()) + UDP_LEN + size <= usize::from(cx.mtu);
    let at_once = if fits { MAX_SEGMENTS * size } else { size };
    for datagrams in bytes.chunks(at_once) {
        if datagrams.len() > size {
            send_large(cx, from, to, datagrams, size);
        } else {
            *identification = identification.wrapping_add(1);
            send_to_guest(cx, from, to, datagrams, *identification);
        }
    }
}

/// Sends datagrams of `size` bytes as one that is cut by who receives it.
fn send_large<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: SocketAddr,
    to: SocketAddr,
    datagrams: &[u8],
    size: usize,
) {
    let udp_len = UDP_LEN + datagrams.len();
    let header = header_to_guest(from, to).with_payload_len(udp_len);
    let ip_len = header.len();
    let scratch = &mut cx.to_guest.scratch[IP_OFFSET..];
    scratch[..ip_len].copy_from_slice(header.emit().as_slice());
    scratch[ip_len..ip_len + UDP_LEN].copy_from_slice(&emit_partial_header(from, to, udp_len));
    scratch[ip_len + UDP_LEN..ip_len + udp_len].copy_from_slice(datagrams);
    let start = u16::try_from(ETHERNET_LEN + ip_len).expect("two short headers");
    let header_len = start + u16::try_from(UDP_LEN).expect("eight");
    let size = u16::try_from(size).expect("it fits the MTU");
    let vnet = VnetHeader {
        checksum: Some(PartialChecksum { start, offset: 6 }),
        gso: Some(Gso { kind: GsoKind::UdpL4, size, header_len, ecn: false }),
    };
    cx.to_guest.send_scratch(ip_len + udp_len, vnet);
}

fn header_to_guest(from: SocketAddr, to: SocketAddr) -> IpHeader {
    IpHeader::between(from.ip(), to.ip(), PROTOCOL_UDP).unfragmented()
}

/// Sends one datagram to a guest, in fragments when it is larger than the MTU.
pub fn send_to_guest<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    identification: u32,
) {
    let header = header_to_guest(from, to);
    cx.send_packet(header, identification, &[&emit_header(from, to, payload), payload]);
}

/// Tells a guest what became of its datagram, where ICMP has a word for it.
pub(super) fn tell<P: Port, H>(cx: &mut FlowContext<'_, P, H>, error: &io::Error, packet: &[u8]) {
    let message = match error.kind() {
        io::ErrorKind::ConnectionRefused => IcmpError::PortUnreachable,
        io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
        _ => return,
    };
    cx.tell(message, None, packet);
}
