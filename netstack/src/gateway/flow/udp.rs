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
use super::outgoing::{MAX_BURST, Options, Outgoing, Quote, Sending, send, tell, tell_bounces};
use super::train::Train;
use super::view::FlowView;
use super::{FlowContext, FlowKey, Work};
use crate::command::FlowProtocol;
use crate::counters::DropReason;
use crate::frame::vnet_header::{Gso, GsoKind, MAX_SEGMENTS, PartialChecksum, VnetHeader};
use crate::host::{Datagram, Host, TokenKind};
use crate::port::Port;
use crate::port::to_guest::IP_OFFSET;
use crate::time::Instant;
use crate::wire::ETHERNET_LEN;
use crate::wire::ip::{IpHeader, header_len};
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
        entry.flow.exchange.ask(count(outgoing.payload.len(), size));
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
                    entry.flow.exchange.answer(count(arrival.len, arrival.segment_size));
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

/// How many datagrams of that size so many bytes are. One may have none.
fn count(len: usize, size: usize) -> usize {
    len.div_ceil(size.max(1)).max(1)
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
