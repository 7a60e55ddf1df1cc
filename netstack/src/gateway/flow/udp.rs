//! UDP flows of one port: a connected host socket for each pair of ends.
//!
//! Because the socket is connected, the kernel drops what anyone else sends to it: filtering is by address
//! and port (RFC 4787 calls it address and port-dependent), so a mapping is open to nobody but its peer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::datagram_table::{Bounds, DatagramTable, Room};
use super::{FlowContext, FlowKey};
use crate::counters::DropReason;
use crate::host::{Datagram, Fragmentation, Host, TokenKind};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::icmp::IcmpError;
use crate::wire::ipv4::{DONT_FRAGMENT, IPV4_LEN, Ipv4Header};
use crate::wire::udp::{PROTOCOL_UDP, UDP_LEN, emit_header};

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 4096;
/// How long a silent flow lives (RFC 4787 REQ-5 recommends five minutes).
pub const LIFETIME: Duration = Duration::from_secs(300);
const BOUNDS: Bounds = Bounds { kind: TokenKind::Udp, flows: MAX_FLOWS, lifetime: LIFETIME };
/// Datagrams read from one socket in one go.
const MAX_BURST: usize = 64;
/// Bytes of a datagram quoted in an ICMP error: its IP and UDP header.
const QUOTE_LEN: usize = IPV4_LEN + UDP_LEN;

/// The UDP flows of one port.
pub struct UdpFlows<D> {
    table: DatagramTable<Flow<D>>,
    identification: u16,
}

struct Flow<D> {
    socket: D,
    fragmentation: Option<Fragmentation>,
    quote: [u8; QUOTE_LEN],
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
}

impl<D: Datagram> UdpFlows<D> {
    /// No flows yet; `seed` starts the identification of fragments.
    pub fn new(seed: u64) -> Self {
        Self {
            table: DatagramTable::new(BOUNDS),
            identification: u16::try_from(seed & 0xffff).expect("sixteen bits"),
        }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Whether a flow with that key exists.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.table.find(key).is_some()
    }

    /// Sends a guest's datagram out, on a flow that exists or, towards `to`, on a new one.
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
                    return tell(cx, &error, None, outgoing.packet);
                }
            },
        };
        let entry = self.table.get_mut(index).expect("it was found or opened");
        entry.heard = cx.now;
        let flow = &mut entry.flow;
        flow.remember(outgoing.packet, outgoing.payload);
        if flow.fragmentation != Some(outgoing.fragmentation) {
            flow.socket.set_fragmentation(outgoing.fragmentation);
            flow.fragmentation = Some(outgoing.fragmentation);
        }
        let sent = match outgoing.segment_size {
            Some(size) => flow.socket.send_segmented(outgoing.payload, usize::from(size)),
            None => flow.socket.send(outgoing.payload),
        };
        if let Err(error) = sent {
            cx.to_guest.counters.drop(DropReason::HostSend);
            let mtu = flow.socket.path_mtu();
            tell(cx, &error, mtu, outgoing.packet);
        }
    }

    fn open<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        to: SocketAddr,
    ) -> io::Result<usize> {
        if self.table.make_room() == Room::WasMade {
            cx.to_guest.counters.drop(DropReason::UdpBudget);
        }
        self.table.insert(cx.now, cx.slot, key, |token| {
            let socket = cx.host.open_udp(to, token)?;
            Ok(Flow { socket, fragmentation: None, quote: [0; QUOTE_LEN] })
        })
    }

    /// Closes the flow that was idle longest; false when there is none.
    pub fn evict_oldest(&mut self) -> bool {
        self.table.evict_oldest()
    }

    /// A host socket became readable. `buffer` holds at least 65,535 bytes. Answers whether more waits.
    pub fn handle_ready<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        buffer: &mut [u8],
    ) -> bool {
        for _ in 0..MAX_BURST {
            let Some(entry) = self.table.get_mut(index) else { return false };
            match entry.flow.socket.receive(buffer) {
                Ok(len) => {
                    entry.heard = cx.now;
                    let key = entry.key;
                    self.identification = self.identification.wrapping_add(1);
                    send_to_guest(cx, key.remote, key.guest, &buffer[..len], self.identification);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let quote = entry.flow.quote;
                    tell(cx, &error, None, &quote);
                }
            }
        }
        true
    }

    /// Closes the flows that were silent for [`LIFETIME`].
    pub fn handle_timeout(&mut self, now: Instant) {
        self.table.handle_timeout(now);
    }

    /// When [`UdpFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout()
    }
}

impl<D> Flow<D> {
    /// Keeps what an ICMP error about this flow will quote: both headers of the last datagram.
    fn remember(&mut self, packet: &[u8], payload: &[u8]) {
        let udp = packet.len() - payload.len() - UDP_LEN;
        self.quote[..IPV4_LEN].copy_from_slice(&packet[..IPV4_LEN]);
        self.quote[0] = 0x45;
        self.quote[IPV4_LEN..].copy_from_slice(&packet[udp..udp + UDP_LEN]);
    }
}

/// Sends one datagram to a guest, in fragments when it is larger than the MTU.
pub fn send_to_guest<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
    identification: u16,
) {
    let header = Ipv4Header {
        source: *from.ip(),
        destination: *to.ip(),
        protocol: PROTOCOL_UDP,
        ttl: 64,
        traffic_class: 0,
        identification: 0,
        fragment: DONT_FRAGMENT,
        payload_len: 0,
    };
    cx.send_packet(header, identification, &[&emit_header(from, to, payload), payload]);
}

/// Tells a guest what became of its datagram, where ICMP has a word for it.
fn tell<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    error: &io::Error,
    path_mtu: Option<u16>,
    packet: &[u8],
) {
    let message = match error.kind() {
        io::ErrorKind::ConnectionRefused => IcmpError::PortUnreachable,
        io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
        _ => match (error.raw_os_error(), path_mtu) {
            (Some(libc::EMSGSIZE), Some(mtu)) => IcmpError::FragmentationNeeded(mtu.max(576)),
            _ => return,
        },
    };
    let Some(source) = packet.get(12..16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else {
        return;
    };
    let message = message.emit(cx.gateway, Ipv4Addr::from_octets(source), packet);
    cx.to_guest.send_ip(&message);
}
