//! The short way of most frames between two ports: IPv4 without options or fragments, IPv6 without extension
//! headers, TCP or UDP, nothing to cut and no checksum to verify, to a neighbour.
//!
//! Only what [`judge`](super::judge) would let pass to that port passes here, so the lane decides nothing of
//! its own: a frame that it does not know goes the long way, and is dropped there if it is to be. It exists
//! because the long way takes three times as long; a test holds one against the other. What judges frames by
//! anything else than these headers (a firewall) has to be asked here too.

use std::net::Ipv6Addr;
use std::ops::Range;

use super::addresses::OwnAddresses;
use super::directory::{Location, NetworkView};
use crate::command::PortSpec;
use crate::frame::vnet_header::{PartialChecksum, VNET_LEN, VnetHeader};
use crate::ids::MacAddr;
use crate::wire::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::wire::dhcp6;
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::tcp::{PROTOCOL_TCP, TCP_LEN};
use crate::wire::udp::{PROTOCOL_UDP, UDP_LEN};
use crate::wire::{ETHERNET_LEN, be16, be32, checksum};

const IP: usize = VNET_LEN + ETHERNET_LEN;
const TRANSPORT: usize = IP + IPV4_LEN;
const SHORTEST: usize = TRANSPORT + UDP_LEN;
const TRANSPORT6: usize = IP + IPV6_LEN;
const SHORTEST6: usize = TRANSPORT6 + UDP_LEN;
/// The ports of a server and a client.
const DHCP6: (u16, u16) = (dhcp6::SERVER_PORT, dhcp6::CLIENT_PORT);

/// What is left to do of a frame that passes: nothing of segments, of its checksum perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Where it goes.
    pub to: Location,
    /// The checksum that its receiver completes.
    pub checksum: Option<PartialChecksum>,
}

impl Passage {
    /// The same in a virtio-net header.
    pub fn vnet(self) -> VnetHeader {
        VnetHeader { checksum: self.checksum, gso: None }
    }
}

/// A look at the frames of one port, as long as nobody moves.
pub struct FastLane<'a> {
    network: &'a NetworkView,
    /// The last frame of IPv4 that passed; the next one is mostly of the same flow.
    last: Option<([u8; SHORTEST], Passage)>,
    /// The neighbour that was looked up last; the next frame mostly goes there too, of whichever flow it is.
    neighbour: Option<(MacAddr, Location)>,
}

impl<'a> FastLane<'a> {
    /// A lane on this network.
    pub fn new(network: &'a NetworkView) -> Self {
        Self { network, last: None, neighbour: None }
    }

    /// Judges a frame of `port` that has `frame_len` bytes and begins with `front`; `None` sends it the long way.
    #[inline(always)]
    pub fn judge(&mut self, port: &PortSpec, front: &[u8], frame_len: usize) -> Option<Passage> {
        let head = front.first_chunk::<SHORTEST>()?;
        let passage = match &self.last {
            Some((last, passage)) if is_alike(head, last) => *passage,
            _ => self.judge_first(port, head)?,
        };
        let len = usize::from(be16(head, IP + 2));
        let fits = self.is_within_mtu(frame_len) && len <= frame_len - IP;
        if !(fits && len >= IPV4_LEN && sums_up(head)) {
            return None;
        }
        let (transport, len) = (&front[TRANSPORT..], len - IPV4_LEN);
        let is_sound = match head[IP + 9] {
            PROTOCOL_UDP => {
                is_sound_datagram(transport, len)
                    && (passage.checksum.is_some() || be16(transport, 6) == 0)
            }
            _ => is_sound_segment(transport, len),
        };
        is_sound.then_some(passage)
    }

    /// Judges what the frames of one flow have alike, and remembers it.
    #[inline(never)]
    fn judge_first(&mut self, port: &PortSpec, head: &[u8; SHORTEST]) -> Option<Passage> {
        let (destination, is_for_neighbour) = self.look_at_macs(port, head);
        let is_plain =
            be16(head, IP - 2) == 0x0800 && head[IP] == 0x45 && be16(head, IP + 6) & 0x3fff == 0;
        let addresses = (be32(head, IP + 12), be32(head, IP + 16));
        let is_own = addresses.0 == port.address.to_bits()
            && addresses.0 != addresses.1
            && !matches!(head[IP + 12], 0 | 127 | 224..);
        if !(is_for_neighbour && is_plain && is_own) {
            return None;
        }
        let ports = (be16(head, TRANSPORT), be16(head, TRANSPORT + 2));
        let checksum = match head[IP + 9] {
            PROTOCOL_UDP if are_between_neighbours(ports, (SERVER_PORT, CLIENT_PORT)) => {
                left_to_do(head, IPV4_LEN, 6, true)?
            }
            PROTOCOL_TCP if ports.0 != 0 && ports.1 != 0 => left_to_do(head, IPV4_LEN, 16, false)?,
            _ => return None,
        };
        let passage = Passage { to: self.location_of(destination)?, checksum };
        self.last = Some((*head, passage));
        Some(passage)
    }

    /// The same for IPv6, from an address that the guest is known to use. Beside the lane of IPv4, which is not
    /// to become longer.
    #[inline(never)]
    pub fn judge6(
        &mut self,
        port: &PortSpec,
        own: &OwnAddresses,
        front: &[u8],
        frame_len: usize,
    ) -> Option<Passage> {
        let head = front.first_chunk::<SHORTEST6>()?;
        if be16(head, IP - 2) != 0x86dd || head[IP] >> 4 != 6 {
            return None;
        }
        let (destination, is_for_neighbour) = self.look_at_macs(port, head);
        let len = usize::from(be16(head, IP + 4));
        let fits = self.is_within_mtu(frame_len) && len <= frame_len - TRANSPORT6;
        let address =
            |at: usize| Ipv6Addr::from_octets(head[at..at + 16].try_into().expect("sixteen bytes"));
        let (from, to) = (address(IP + 8), address(IP + 24));
        let is_own = from != to && !to.is_multicast() && own.is_known(port, from);
        if !(is_for_neighbour && fits && is_own) {
            return None;
        }
        let transport = &front[TRANSPORT6..];
        let ports = (be16(transport, 0), be16(transport, 2));
        let (offset, is_sound) = match head[IP + 6] {
            PROTOCOL_UDP if are_between_neighbours(ports, DHCP6) => {
                (6, is_sound_datagram(transport, len))
            }
            PROTOCOL_TCP => (16, is_sound_segment(transport, len) && ports.0 != 0 && ports.1 != 0),
            _ => return None,
        };
        // A datagram without a checksum is none (RFC 8200 8.1).
        let checksum = left_to_do(head, IPV6_LEN, offset, false).filter(|_| is_sound)?;
        Some(Passage { to: self.location_of(destination)?, checksum })
    }

    /// Where a frame goes, and whether it goes from this port to another.
    #[inline(always)]
    fn look_at_macs(&self, port: &PortSpec, head: &[u8]) -> (MacAddr, bool) {
        let mac = |at: usize| MacAddr(head[at..at + 6].try_into().expect("six bytes"));
        let (destination, source) = (mac(VNET_LEN), mac(VNET_LEN + 6));
        let is_for_neighbour = source == port.mac
            && destination != source
            && destination != self.network.spec.gateway_mac
            && !destination.is_multicast();
        (destination, is_for_neighbour)
    }

    #[inline(always)]
    fn is_within_mtu(&self, frame_len: usize) -> bool {
        frame_len - VNET_LEN <= ETHERNET_LEN + usize::from(self.network.spec.mtu)
    }

    #[inline(always)]
    fn location_of(&mut self, mac: MacAddr) -> Option<Location> {
        if let Some((neighbour, location)) = self.neighbour
            && neighbour == mac
        {
            return Some(location);
        }
        let location = self.network.location_of(mac)?;
        self.neighbour = Some((mac, location));
        Some(location)
    }
}

/// Whether the IPv4 header's checksum is right. In the processor's own order of bytes, which such a sum may be in (RFC
/// 1071, 2 B), and by words that begin where they are aligned: a frame was copied just now in aligned pieces, and for a
/// word that lies across two of them the processor would wait.
#[inline(always)]
fn sums_up(head: &[u8; SHORTEST]) -> bool {
    let half = |at: usize| u64::from(u16::from_ne_bytes([head[at], head[at + 1]]));
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))
    };
    let words = word(IP + 2) + word(IP + 6) + word(IP + 10) + word(IP + 14);
    checksum::fold(half(IP) + words + half(IP + 18)) == 0xffff
}

/// What the sender leaves to be done, if that is a checksum at most. One that it has computed itself is
/// verified the long way.
#[inline(always)]
fn left_to_do(
    head: &[u8],
    ip_len: usize,
    offset: u16,
    has_no_sum: bool,
) -> Option<Option<PartialChecksum>> {
    let le16 = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (start, field) = (le16(6), le16(8));
    match (head[0], head[1]) {
        (0, 0) if has_no_sum => Some(None),
        (1, 0) if usize::from(start) == ETHERNET_LEN + ip_len && field == offset => {
            Some(Some(PartialChecksum { start, offset }))
        }
        _ => None,
    }
}

/// Whether none of both ports makes it DHCP's, which is the gateway's affair.
#[inline(always)]
fn are_between_neighbours((from, to): (u16, u16), (server, client): (u16, u16)) -> bool {
    // What is for a server may be the gateway's to answer, by the address that it is sent to.
    to != 0 && from != server && to != server && to != client
}

/// As `wire::headers` has it. Eight bytes of `datagram` are there.
#[inline(always)]
fn is_sound_datagram(datagram: &[u8], len: usize) -> bool {
    usize::from(be16(datagram, 4)) == len && len >= UDP_LEN
}

/// As [`TcpHeader::parse`](crate::wire::tcp::TcpHeader::parse) has it. `segment` begins with the header, and `len`
/// bytes of it are there.
#[inline(always)]
fn is_sound_segment(segment: &[u8], len: usize) -> bool {
    if len < TCP_LEN {
        return false;
    }
    let header_len = usize::from(segment[12] >> 4) * 4;
    (TCP_LEN..=len).contains(&header_len)
}

/// Whether two frames have alike what `judge_first` looks at: of one flow, and with the same left to do.
/// Compared in the pieces in which a frame was just copied.
#[inline(always)]
fn is_alike(one: &[u8; SHORTEST], other: &[u8; SHORTEST]) -> bool {
    let same = |part: Range<usize>| one[part.clone()] == other[part];
    // The virtio-net header and the Ethernet header, the flags of fragments, protocol, addresses, ports.
    same(0..16)
        && same(16..IP + 2)
        && same(IP + 6..IP + 8)
        && one[IP + 9] == other[IP + 9]
        && same(IP + 12..IP + 20)
        && same(TRANSPORT..TRANSPORT + 2)
        && same(TRANSPORT + 2..TRANSPORT + 4)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

    use super::*;
    use crate::command::{Attachment, NetworkSpec};
    use crate::frame::vnet_header::{Gso, GsoKind};
    use crate::ids::{NetworkId, PortId};
    use crate::port::FRONT;
    use crate::switch::directory::Directory;
    use crate::switch::{Decision, judge};
    use crate::testing::chance::Chance;
    use crate::testing::frames;
    use crate::wire::ipv4::fill_checksum;
    use crate::wire::udp;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
    const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

    fn port(address: Ipv4Addr) -> PortSpec {
        PortSpec {
            id: PortId(address.to_bits()),
            network: NetworkId(1),
            name: "a".into(),
            aliases: vec![],
            mac: MacAddr::for_ipv4(address),
            address,
            address6: Some(address6(address)),
            default_route: true,
            allow_host: vec![],
            attachment: Attachment::TAP,
        }
    }

    fn directory() -> Directory {
        let network = NetworkSpec {
            id: NetworkId(1),
            name: "bridge".into(),
            subnet: "10.88.0.0/16".parse().unwrap(),
            gateway: GATEWAY,
            prefix6: Some("fd00:0:0:58::/64".parse().unwrap()),
            gateway_mac: MacAddr::for_ipv4(GATEWAY),
            mtu: 1500,
            internal: false,
            nat64: false,
        };
        let ports = [port(OURS), port(NEIGHBOUR)];
        let place = |slot, port| Location { worker: 0, slot, port };
        let places = ports.iter().zip(0..).map(|(port, slot)| (port, place(slot, port.id)));
        Directory::new([&network], places)
    }

    fn address6(address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0x58, 0, 0, 0, address.octets()[3].into())
    }

    fn frame6(vnet: VnetHeader, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let ends = [OURS, NEIGHBOUR].map(|end| address6(end).into());
        let packet = frames::ip(ends[0], ends[1], protocol, transport);
        let [from, to] = [OURS, NEIGHBOUR].map(MacAddr::for_ipv4);
        let mut frame = frames::ethernet(from, to, 0x86dd, &packet);
        frame[..VNET_LEN].copy_from_slice(&vnet.emit());
        frame
    }

    fn partial6(offset: u16) -> VnetHeader {
        VnetHeader { checksum: Some(PartialChecksum { start: 54, offset }), gso: None }
    }

    fn usual6() -> [Vec<u8>; 2] {
        [
            frame6(partial6(6), PROTOCOL_UDP, &datagram(b"hello")),
            frame6(partial6(16), PROTOCOL_TCP, &segment(&[5; 1400])),
        ]
    }

    /// A frame to the neighbour with this transport.
    fn frame(vnet: VnetHeader, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let packet = frames::packet(OURS, NEIGHBOUR, protocol, transport);
        let [from, to] = [OURS, NEIGHBOUR].map(MacAddr::for_ipv4);
        let mut frame = frames::ethernet(from, to, 0x0800, &packet);
        frame[..VNET_LEN].copy_from_slice(&vnet.emit());
        frame
    }

    fn partial(offset: u16) -> VnetHeader {
        VnetHeader { checksum: Some(PartialChecksum { start: 34, offset }), gso: None }
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let [from, to] = [SocketAddrV4::new(OURS, 1000), SocketAddrV4::new(NEIGHBOUR, 2000)];
        let header = udp::emit_partial_header(from.into(), to.into(), UDP_LEN + payload.len());
        [&header, payload].concat()
    }

    fn segment(payload: &[u8]) -> Vec<u8> {
        let mut segment =
            vec![3, 0xe8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 9, 9, 0, 0];
        segment.extend_from_slice(payload);
        segment
    }

    /// What most frames between two ports look like.
    fn usual() -> [Vec<u8>; 3] {
        let mut without_sum = datagram(b"hello");
        without_sum[6..8].fill(0);
        [
            frame(partial(6), PROTOCOL_UDP, &datagram(b"hello")),
            frame(partial(16), PROTOCOL_TCP, &segment(&[5; 1400])),
            frame(VnetHeader::default(), PROTOCOL_UDP, &without_sum),
        ]
    }

    /// No more of a frame than a port shows.
    fn front(frame: &[u8]) -> &[u8] {
        &frame[..frame.len().min(FRONT)]
    }

    /// What the lane says, after it was held against the long way.
    fn compared(frame: &[u8]) -> Option<Passage> {
        let directory = directory();
        let network = directory.network(NetworkId(1)).unwrap();
        let own = OwnAddresses::default();
        let mut lane = FastLane::new(network);
        let short = lane.judge(&port(OURS), front(frame), frame.len());
        let short = short.or_else(|| lane.judge6(&port(OURS), &own, front(frame), frame.len()));
        if let Some(passage) = short {
            let long = judge(&port(OURS), &own, network, frame);
            let long = long.unwrap_or_else(|reason| panic!("{reason:?} of {frame:02x?}"));
            let expected = (Decision::Port(passage.to), passage.vnet());
            assert_eq!((long.decision, long.vnet), expected, "{frame:02x?}");
        }
        // What passed before must not matter.
        for before in usual() {
            let mut lane = FastLane::new(network);
            lane.judge(&port(OURS), front(&before), before.len()).expect("a usual frame");
            let behind = lane.judge(&port(OURS), front(frame), frame.len());
            let behind =
                behind.or_else(|| lane.judge6(&port(OURS), &own, front(frame), frame.len()));
            assert_eq!(behind, short, "{frame:02x?} behind {before:02x?}");
        }
        short
    }

    #[test]
    fn usual_frames_take_the_lane() {
        for frame in usual().into_iter().chain(usual6()) {
            let passage = compared(&frame).expect("a usual frame");
            assert_eq!(passage.to.slot, 1);
        }
    }

    #[test]
    fn what_the_lane_lets_pass_would_pass_the_long_way() {
        let seed = 0x1a9e;
        let mut chance = Chance::new(seed);
        let mut passed = 0;
        for round in 0..300_000 {
            let mut frame = usual()[round / 2 % 3].clone();
            // The headers are what decides; small values and those that mean something are likelier to pass.
            for _ in 0..=chance.below(3) {
                let at = chance.below(frame.len().min(TRANSPORT + TCP_LEN));
                frame[at] = [0, 1, 2, 3, 0x45, 67, 68, 0xff, frame[at] ^ 1][chance.below(9)];
            }
            if chance.is(10) {
                frame.truncate(chance.below(frame.len() + 1));
            }
            if chance.is(70) && frame.len() >= TRANSPORT {
                fill_checksum(&mut frame[IP..], IPV4_LEN);
            }
            passed += usize::from(compared(&frame).is_some());
        }
        assert!(passed > 10_000, "{passed} of the frames passed, seed {seed:#x}");
    }

    #[test]
    fn what_the_lane_of_ipv6_lets_pass_would_pass_the_long_way() {
        let seed = 0x6a9e;
        let mut chance = Chance::new(seed);
        let mut passed = 0;
        for round in 0..300_000 {
            let mut frame = usual6()[round % 2].clone();
            for _ in 0..=chance.below(3) {
                let at = chance.below(frame.len().min(TRANSPORT6 + TCP_LEN));
                let known = [0, 1, 2, 3, 6, 0x60, 0x22, 0x23, 0xff, 0xfe, 0x80, frame[at] ^ 1];
                frame[at] = known[chance.below(known.len())];
            }
            if chance.is(10) {
                frame.truncate(chance.below(frame.len() + 1));
            }
            passed += usize::from(compared(&frame).is_some());
        }
        assert!(passed > 10_000, "{passed} of the frames passed, seed {seed:#x}");
    }

    #[test]
    fn ipv6_that_is_not_usual_goes_the_long_way() {
        let gso = Gso { kind: GsoKind::Tcpv6, size: 1400, header_len: 74, ecn: false };
        let large = VnetHeader { gso: Some(gso), ..partial6(16) };
        let server: SocketAddr = "[fd00:0:0:58::3]:546".parse().unwrap();
        let from: SocketAddr = "[fd00:0:0:58::2]:547".parse().unwrap();
        let dhcp = udp::emit_partial_header(from, server, UDP_LEN);
        let mut spoofed = frame6(partial6(6), PROTOCOL_UDP, &datagram(b"hello"));
        spoofed[IP + 23] = 9;
        let mut to_group = frame6(partial6(6), PROTOCOL_UDP, &datagram(b"hello"));
        to_group[IP + 24] = 0xff;
        for frame in [
            spoofed,
            to_group,
            frame6(large, PROTOCOL_TCP, &segment(&[5; 9000])),
            frame6(VnetHeader::default(), PROTOCOL_UDP, &datagram(b"hello")),
            frame6(partial6(6), PROTOCOL_UDP, &dhcp),
            frame6(VnetHeader::default(), 58, &[128, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(compared(&frame), None);
        }
    }

    #[test]
    fn what_is_not_usual_goes_the_long_way() {
        let gso = Gso { kind: GsoKind::Tcpv4, size: 1400, header_len: 54, ecn: false };
        let large = VnetHeader { gso: Some(gso), ..partial(16) };
        let own_sum = VnetHeader::default();
        for frame in [
            frame(large, PROTOCOL_TCP, &segment(&[5; 9000])),
            frame(own_sum, PROTOCOL_UDP, &datagram(b"hello")),
            frame(partial(16), PROTOCOL_UDP, &datagram(b"hello")),
            frame(partial(16), PROTOCOL_TCP, &segment(&[5; 1470])),
            frame(own_sum, 1, &[8, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(compared(&frame), None);
        }
    }
}
