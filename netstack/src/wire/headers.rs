//! A frame's headers, parsed once: whoever holds a [`Headers`] need not check a length again.
//!
//! What cannot be parsed is a [`DropReason`]. Nothing here depends on who sent the frame; that is the
//! guard's business.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::arp::Arp;
use super::icmp::{ICMP_LEN, IcmpHeader, PROTOCOL_ICMP};
use super::icmp6::PROTOCOL_ICMPV6;
use super::ipv4::IPV4_LEN;
use super::ipv6::{ChainError, Fragment, IPV6_LEN, UnknownOption, walk};
use super::ndp::{self, Ndp};
use super::tcp::{PROTOCOL_TCP, TcpHeader};
use super::udp::{PROTOCOL_UDP, UDP_LEN, UdpHeader};
use super::{ETHERNET_LEN, be16, be32, checksum};
use crate::counters::DropReason;
use crate::ids::MacAddr;

/// Who has computed the transport checksum of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// The field holds a full checksum, to be verified.
    Full,
    /// The sender left it to us (virtio-net NEEDS_CSUM): the frame never was on a wire.
    Partial,
}

/// A whole frame's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Ethernet destination.
    pub destination: MacAddr,
    /// Ethernet source.
    pub source: MacAddr,
    /// What the frame carries.
    pub network: Network,
}

/// What follows the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Address resolution.
    Arp(Arp),
    /// An IPv4 packet.
    Ipv4(Ipv4),
    /// An IPv6 packet.
    Ipv6(Ipv6),
}

/// An IPv4 packet; it starts at byte 14 of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Header length in bytes, 20..=60.
    pub header_len: usize,
    /// Header and payload in bytes; the frame is at least that long.
    pub total_len: usize,
    /// Identification, for reassembly.
    pub identification: u16,
    /// Don't-fragment bit.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Where this fragment's data belongs, in bytes.
    pub fragment_offset: usize,
    /// The transport's header, for whole packets only.
    pub transport: Transport,
}

/// An IPv6 packet; it starts at byte 14 of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// What the packet carries, behind its extension headers.
    pub protocol: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Bytes in front of what the packet carries: the fixed header and its extension headers.
    pub header_len: usize,
    /// Header and payload in bytes; the frame is at least that long.
    pub total_len: usize,
    /// The fragment header, if there is one.
    pub fragment: Option<Fragment>,
    /// An option that must not be skipped.
    pub unknown: Option<UnknownOption>,
    /// The transport's header, for whole packets only; ICMPv6 is [`Transport::Icmp`].
    pub transport: Transport,
    /// The message of neighbour discovery that the packet is.
    pub ndp: Option<Ndp>,
}

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(TcpHeader),
    /// UDP.
    Udp(UdpHeader),
    /// ICMP.
    Icmp(IcmpHeader),
    /// One of several fragments. The first of UDP tells its ports, source and destination.
    Fragment(Option<(u16, u16)>),
    /// Another protocol.
    Other,
}

impl Ipv4 {
    /// Whether the packet is one of several fragments.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }

    /// Source address and port of a transport that has ports.
    pub fn source_endpoint(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.source, port))
    }

    /// Destination address and port of a transport that has ports.
    pub fn destination_endpoint(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.destination, port))
    }
}

impl Ipv6 {
    /// Whether the packet is one of several fragments.
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.is_atomic())
    }
}

impl Headers {
    /// Parses a frame that starts with its Ethernet header.
    // Inlined, with all that it is made of, into who judges a frame: handed back through memory in pieces
    // and picked up whole, the headers cost more than their parsing.
    #[inline(always)]
    pub fn parse(frame: &[u8], checksum: ChecksumState) -> Result<Self, DropReason> {
        if frame.len() < ETHERNET_LEN {
            return Err(DropReason::L2Runt);
        }
        let mac = |at: usize| MacAddr(frame[at..at + 6].try_into().expect("six bytes"));
        let payload = &frame[ETHERNET_LEN..];
        let network = match be16(frame, 12) {
            0x0800 => Network::Ipv4(parse_ipv4(payload, checksum)?),
            0x0806 => Network::Arp(Arp::parse(payload).ok_or(DropReason::ArpSpoof)?),
            0x86dd => Network::Ipv6(parse_ipv6(payload, checksum)?),
            0x8100 | 0x88a8 | 0x9100 => return Err(DropReason::Vlan),
            _ => return Err(DropReason::Ethertype),
        };
        Ok(Self { destination: mac(0), source: mac(6), network })
    }
}

#[inline(always)]
fn parse_ipv4(packet: &[u8], checksum_state: ChecksumState) -> Result<Ipv4, DropReason> {
    if packet.len() < IPV4_LEN {
        return Err(DropReason::L2Runt);
    }
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let total_len = usize::from(be16(packet, 2));
    if packet[0] >> 4 != 4
        || header_len < IPV4_LEN
        || header_len > total_len
        || total_len > packet.len()
    {
        return Err(DropReason::IpHeader);
    }
    if checksum::fold(checksum::add(0, &packet[..header_len])) != 0xffff {
        return Err(DropReason::Checksum);
    }
    if has_source_route(&packet[IPV4_LEN..header_len]) {
        return Err(DropReason::IpOptions);
    }
    let fragment = be16(packet, 6);
    let ipv4 = Ipv4 {
        source: Ipv4Addr::from_bits(be32(packet, 12)),
        destination: Ipv4Addr::from_bits(be32(packet, 16)),
        protocol: packet[9],
        ttl: packet[8],
        header_len,
        total_len,
        identification: be16(packet, 4),
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset: usize::from(fragment & 0x1fff) * 8,
        transport: Transport::Fragment(None),
    };
    let payload = &packet[header_len..total_len];
    if ipv4.is_fragment() {
        let begins = ipv4.protocol == PROTOCOL_UDP && ipv4.fragment_offset == 0;
        let ports = (begins && payload.len() >= 4).then(|| (be16(payload, 0), be16(payload, 2)));
        return Ok(Ipv4 { transport: Transport::Fragment(ports), ..ipv4 });
    }
    let transport = parse_transport(&ipv4, payload, checksum_state)?;
    Ok(Ipv4 { transport, ..ipv4 })
}

// The long way, so that the short one of IPv4 stays as short as it is.
#[inline(never)]
fn parse_ipv6(packet: &[u8], checksum_state: ChecksumState) -> Result<Ipv6, DropReason> {
    if packet.len() < IPV6_LEN {
        return Err(DropReason::L2Runt);
    }
    let total_len = IPV6_LEN + usize::from(be16(packet, 4));
    if packet[0] >> 4 != 6 || total_len > packet.len() {
        return Err(DropReason::IpHeader);
    }
    let packet = &packet[..total_len];
    let chain = walk(packet).map_err(|error| match error {
        ChainError::Malformed => DropReason::IpHeader,
        ChainError::Refused => DropReason::IpOptions,
    })?;
    let address = |at: usize| Ipv6Addr::from_octets(packet[at..at + 16].try_into().expect("16"));
    let ip = Ipv6 {
        source: address(8),
        destination: address(24),
        protocol: chain.protocol,
        hop_limit: packet[7],
        header_len: chain.len,
        total_len,
        fragment: chain.fragment,
        unknown: chain.unknown,
        transport: Transport::Fragment(None),
        ndp: None,
    };
    let payload = &packet[chain.len..];
    if ip.is_fragment() {
        let transport = Transport::Fragment(first_ports(&ip, payload)?);
        return Ok(Ipv6 { transport, ..ip });
    }
    let transport = parse_transport6(&ip, payload, checksum_state)?;
    let ndp = match transport {
        Transport::Icmp(icmp) if Ndp::is_kind(icmp.kind) => Some(parse_ndp(&ip, payload)?),
        _ => None,
    };
    Ok(Ipv6 { transport, ndp, ..ip })
}

/// What a fragment tells of ports. The first must hold the whole chain of headers with what they lead to
/// (RFC 7112), and is none of neighbour discovery (RFC 6980).
fn first_ports(ip: &Ipv6, payload: &[u8]) -> Result<Option<(u16, u16)>, DropReason> {
    if ip.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return Ok(None);
    }
    if payload.len() < 8 {
        return Err(DropReason::IpHeader);
    }
    match ip.protocol {
        PROTOCOL_ICMPV6 if Ndp::is_kind(payload[0]) => Err(DropReason::RouterGuard),
        PROTOCOL_UDP => Ok(Some((be16(payload, 0), be16(payload, 2)))),
        _ => Ok(None),
    }
}

/// Neighbour discovery comes from this link and is not in fragments, not even one that is whole.
fn parse_ndp(ip: &Ipv6, message: &[u8]) -> Result<Ndp, DropReason> {
    if ip.fragment.is_some() {
        return Err(DropReason::RouterGuard);
    }
    if !ndp::is_from_link(ip.hop_limit, message) {
        return Err(DropReason::NdpSpoof);
    }
    Ndp::parse(message).ok_or(DropReason::NdpSpoof)
}

/// Parses the transport header in `payload`, which is exactly what a whole IPv6 packet carries.
pub fn parse_transport6(
    ip: &Ipv6,
    payload: &[u8],
    checksum_state: ChecksumState,
) -> Result<Transport, DropReason> {
    let verify = || match checksum_state {
        ChecksumState::Full => {
            let len = payload.len();
            let sum = checksum::pseudo_header6(ip.source, ip.destination, ip.protocol, len);
            let right = checksum::fold(checksum::add(sum, payload)) == 0xffff;
            if right { Ok(()) } else { Err(DropReason::Checksum) }
        }
        ChecksumState::Partial => Ok(()),
    };
    match ip.protocol {
        PROTOCOL_TCP => {
            let header = TcpHeader::parse(payload).ok_or(DropReason::TcpHeader)?;
            verify().map(|()| Transport::Tcp(header))
        }
        PROTOCOL_UDP => {
            let header = parse_udp(payload).ok_or(DropReason::UdpHeader)?;
            // Unlike in IPv4 there is no datagram without a checksum (RFC 8200 8.1).
            if be16(payload, 6) == 0 && checksum_state == ChecksumState::Full {
                return Err(DropReason::Checksum);
            }
            verify().map(|()| Transport::Udp(header))
        }
        PROTOCOL_ICMPV6 => {
            if payload.len() < ICMP_LEN {
                return Err(DropReason::Icmp);
            }
            verify().map(|()| Transport::Icmp(icmp_header(payload)))
        }
        _ => Ok(Transport::Other),
    }
}

fn icmp_header(payload: &[u8]) -> IcmpHeader {
    IcmpHeader {
        kind: payload[0],
        code: payload[1],
        identifier: be16(payload, 4),
        sequence: be16(payload, 6),
        payload_len: payload.len() - ICMP_LEN,
    }
}

/// Loose or strict source route (RFC 791), refused as every host on the Internet does (RFC 7126).
fn has_source_route(options: &[u8]) -> bool {
    let mut rest = options;
    while let [kind, tail @ ..] = rest {
        match (kind, tail) {
            (0, _) => return false,
            (1, _) => rest = tail,
            (0x83 | 0x89, _) => return true,
            (_, [len, ..]) if *len >= 2 && usize::from(*len) <= rest.len() => {
                rest = &rest[usize::from(*len)..];
            }
            // Malformed options mean nothing to us, and we never act on options.
            _ => return false,
        }
    }
    false
}

/// Parses the transport header in `payload`, which is exactly the IP payload of a whole packet.
#[inline(always)]
pub fn parse_transport(
    ipv4: &Ipv4,
    payload: &[u8],
    checksum_state: ChecksumState,
) -> Result<Transport, DropReason> {
    let verify = |sum: u64| match checksum_state {
        ChecksumState::Full if checksum::fold(checksum::add(sum, payload)) != 0xffff => {
            Err(DropReason::Checksum)
        }
        _ => Ok(()),
    };
    let pseudo =
        checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, payload.len());
    match ipv4.protocol {
        PROTOCOL_TCP => {
            let header = TcpHeader::parse(payload).ok_or(DropReason::TcpHeader)?;
            verify(pseudo)?;
            Ok(Transport::Tcp(header))
        }
        PROTOCOL_UDP => {
            let header = parse_udp(payload).ok_or(DropReason::UdpHeader)?;
            if be16(payload, 6) != 0 {
                verify(pseudo)?;
            }
            Ok(Transport::Udp(header))
        }
        PROTOCOL_ICMP => {
            if payload.len() < ICMP_LEN {
                return Err(DropReason::Icmp);
            }
            verify(0)?;
            Ok(Transport::Icmp(icmp_header(payload)))
        }
        _ => Ok(Transport::Other),
    }
}

#[inline(always)]
fn parse_udp(payload: &[u8]) -> Option<UdpHeader> {
    if payload.len() < UDP_LEN || usize::from(be16(payload, 4)) != payload.len() {
        return None;
    }
    let header = UdpHeader {
        source_port: be16(payload, 0),
        destination_port: be16(payload, 2),
        payload_len: payload.len() - UDP_LEN,
    };
    (header.destination_port != 0).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ipv4::Ipv4Header;
    use crate::wire::tcp::{BareSegment, Flags};

    fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn segment() -> Vec<u8> {
        BareSegment {
            from: "10.88.0.2:1000".parse().unwrap(),
            to: "192.0.2.1:80".parse().unwrap(),
            sequence: 7,
            acknowledgement: 0,
            flags: Flags(Flags::SYN),
            window: 100,
        }
        .emit()
        .to_vec()
    }

    #[test]
    fn a_syn_is_parsed_whole() {
        let headers = Headers::parse(&frame(0x0800, &segment()), ChecksumState::Full).unwrap();
        let Network::Ipv4(ipv4) = headers.network else { panic!("not IPv4") };
        let Transport::Tcp(tcp) = ipv4.transport else { panic!("not TCP") };
        assert_eq!(ipv4.source_endpoint(tcp.source_port), "10.88.0.2:1000".parse().unwrap());
        assert_eq!((tcp.sequence, tcp.sequence_len(), tcp.payload_len), (7, 1, 0));
    }

    #[test]
    fn every_prefix_of_a_frame_is_refused_without_a_panic() {
        let whole = frame(0x0800, &segment());
        for len in 0..whole.len() {
            assert!(Headers::parse(&whole[..len], ChecksumState::Full).is_err(), "length {len}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_checked_packet_is_noticed() {
        let whole = frame(0x0800, &segment());
        for bit in ETHERNET_LEN * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Headers::parse(&flipped, ChecksumState::Full).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_partial_checksum_is_not_verified() {
        let mut whole = frame(0x0800, &segment());
        whole[ETHERNET_LEN + 36] ^= 0xff;
        assert_eq!(Headers::parse(&whole, ChecksumState::Full), Err(DropReason::Checksum));
        assert!(Headers::parse(&whole, ChecksumState::Partial).is_ok());
    }

    #[test]
    fn tags_and_unknown_types_have_reasons_of_their_own() {
        let reason = |ethertype| Headers::parse(&frame(ethertype, &[0; 60]), ChecksumState::Full);
        assert_eq!(reason(0x8100), Err(DropReason::Vlan));
        assert_eq!(reason(0x88a8), Err(DropReason::Vlan));
        assert_eq!(reason(0x86dd), Err(DropReason::IpHeader));
        assert_eq!(reason(0x88cc), Err(DropReason::Ethertype));
        assert_eq!(reason(0x0806), Err(DropReason::ArpSpoof));
    }

    #[test]
    fn header_lengths_that_contradict_each_other_are_refused() {
        for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (2, 0xff), (3, 5)] {
            let mut packet = segment();
            packet[at] = value;
            crate::wire::ipv4::fill_checksum(&mut packet, 20);
            assert_eq!(
                Headers::parse(&frame(0x0800, &packet), ChecksumState::Full),
                Err(DropReason::IpHeader),
                "byte {at} = {value:#x}"
            );
        }
    }

    #[test]
    fn udp_lengths_must_match_the_packet() {
        for (len, fine) in [(11, false), (12, true), (13, false), (0, false)] {
            let header = Ipv4Header {
                source: Ipv4Addr::new(10, 88, 0, 2),
                destination: Ipv4Addr::new(192, 0, 2, 1),
                protocol: PROTOCOL_UDP,
                ttl: 64,
                traffic_class: 0,
                identification: 0,
                fragment: 0,
                payload_len: 12,
            };
            let mut packet = header.emit().to_vec();
            packet.extend_from_slice(&[0, 9, 0, 9, 0, len, 0, 0, 1, 2, 3, 4]);
            let parsed = Headers::parse(&frame(0x0800, &packet), ChecksumState::Full);
            assert_eq!(parsed.is_ok(), fine, "length {len}");
        }
    }

    fn frame6(protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let header = crate::wire::ipv6::Ipv6Header {
            source: "fd00:0:0:1::2".parse().unwrap(),
            destination: "fd00:0:0:1::1".parse().unwrap(),
            next_header: protocol,
            hop_limit,
            traffic_class: 0,
            payload_len: payload.len(),
        };
        frame(0x86dd, &[&header.emit()[..], payload].concat())
    }

    fn segment6() -> Vec<u8> {
        BareSegment {
            from: "[fd00:0:0:1::2]:1000".parse().unwrap(),
            to: "[2001:db8::1]:80".parse().unwrap(),
            sequence: 7,
            acknowledgement: 0,
            flags: Flags(Flags::SYN),
            window: 100,
        }
        .emit()
    }

    #[test]
    fn a_segment_over_ipv6_is_parsed_whole() {
        let whole = frame(0x86dd, &segment6());
        let headers = Headers::parse(&whole, ChecksumState::Full).unwrap();
        let Network::Ipv6(ip) = headers.network else { panic!("not IPv6") };
        let Transport::Tcp(tcp) = ip.transport else { panic!("not TCP") };
        assert_eq!((ip.header_len, ip.total_len, tcp.sequence), (40, 60, 7));
        for len in 0..whole.len() {
            assert!(Headers::parse(&whole[..len], ChecksumState::Full).is_err(), "length {len}");
        }
        for bit in (ETHERNET_LEN + 8) * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Headers::parse(&flipped, ChecksumState::Full).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_datagram_over_ipv6_has_a_checksum() {
        let datagram = [0, 9, 0, 9, 0, 8, 0, 0];
        let parsed = Headers::parse(&frame6(PROTOCOL_UDP, 64, &datagram), ChecksumState::Full);
        assert_eq!(parsed, Err(DropReason::Checksum));
    }

    #[test]
    fn neighbour_discovery_comes_from_the_link_whole() {
        let ends = ("fd00:0:0:1::2".parse().unwrap(), "fd00:0:0:1::1".parse().unwrap());
        let mut message = ndp::solicitation(ends.1, MacAddr([2, 0, 0, 0, 0, 2]));
        crate::wire::icmp6::fill_checksum(ends, &mut message);
        let parse = |frame: &[u8]| Headers::parse(frame, ChecksumState::Full);
        let Network::Ipv6(ip) = parse(&frame6(58, 255, &message)).unwrap().network else {
            panic!("not IPv6")
        };
        assert!(matches!(ip.ndp, Some(Ndp::NeighbourSolicitation { .. })));
        assert_eq!(parse(&frame6(58, 254, &message)), Err(DropReason::NdpSpoof));
        for more in [false, true] {
            let fragment = crate::wire::ipv6::emit_fragment(58, 0, more, 1);
            let hidden = [&fragment[..], &message].concat();
            assert_eq!(parse(&frame6(44, 255, &hidden)), Err(DropReason::RouterGuard));
        }
        let fragment = crate::wire::ipv6::emit_fragment(17, 0, true, 1);
        assert_eq!(parse(&frame6(44, 64, &fragment)), Err(DropReason::IpHeader), "RFC 7112");
    }
}
