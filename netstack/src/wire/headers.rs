//! A frame's headers, parsed once: whoever holds a [`Headers`] need not check a length again.
//!
//! What cannot be parsed is a [`DropReason`]. Nothing here depends on who sent the frame; that is the
//! guard's business.

use std::net::{Ipv4Addr, SocketAddr};

use super::arp::Arp;
use super::headers6::parse_ipv6;
pub use super::headers6::{Ipv6, parse_transport6};
use super::icmp::{ICMP_LEN, IcmpHeader, PROTOCOL_ICMP};
use super::ipv4::IPV4_LEN;
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

pub(super) fn icmp_header(payload: &[u8]) -> IcmpHeader {
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
pub(super) fn parse_udp(payload: &[u8]) -> Option<UdpHeader> {
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
pub(super) mod tests {
    use super::*;
    use crate::wire::ipv4::Ipv4Header;
    use crate::wire::tcp::{BareSegment, Flags};

    const FROM: &str = "10.88.0.2:1000";
    const TO: &str = "192.0.2.1:80";

    pub(crate) fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    pub(crate) fn segment(from: &str, to: &str) -> Vec<u8> {
        BareSegment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 7,
            acknowledgement: 0,
            flags: Flags(Flags::SYN),
            window: 100,
        }
        .emit()
    }

    #[test]
    fn a_syn_is_parsed_whole() {
        let headers =
            Headers::parse(&frame(0x0800, &segment(FROM, TO)), ChecksumState::Full).unwrap();
        let Network::Ipv4(ipv4) = headers.network else { panic!("not IPv4") };
        let Transport::Tcp(tcp) = ipv4.transport else { panic!("not TCP") };
        assert_eq!(ipv4.source_endpoint(tcp.source_port), FROM.parse().unwrap());
        assert_eq!((tcp.sequence, tcp.sequence_len(), tcp.payload_len), (7, 1, 0));
    }

    #[test]
    fn every_prefix_of_a_frame_is_refused_without_a_panic() {
        let whole = frame(0x0800, &segment(FROM, TO));
        for len in 0..whole.len() {
            assert!(Headers::parse(&whole[..len], ChecksumState::Full).is_err(), "length {len}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_checked_packet_is_noticed() {
        let whole = frame(0x0800, &segment(FROM, TO));
        for bit in ETHERNET_LEN * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Headers::parse(&flipped, ChecksumState::Full).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_partial_checksum_is_not_verified() {
        let mut whole = frame(0x0800, &segment(FROM, TO));
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
            let mut packet = segment(FROM, TO);
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
}
