//! An IPv6 packet's headers, parsed once: the fixed one, its extension headers, and what they lead to.

use std::net::Ipv6Addr;

use super::be16;
use super::checksum;
use super::headers::{ChecksumState, Transport, icmp_header, parse_udp};
use super::icmp::ICMP_LEN;
use super::icmp6::PROTOCOL_ICMPV6;
use super::ipv6::{ChainError, Fragment, IPV6_LEN, UnknownOption, walk};
use super::ndp::{self, Ndp};
use super::tcp::{PROTOCOL_TCP, TcpHeader};
use super::udp::PROTOCOL_UDP;
use crate::counters::DropReason;

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

impl Ipv6 {
    /// Whether the packet is one of several fragments.
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.is_atomic())
    }
}

// The long way, so that the short one of IPv4 stays as short as it is.
#[inline(never)]
pub(super) fn parse_ipv6(packet: &[u8], checksum_state: ChecksumState) -> Result<Ipv6, DropReason> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MacAddr;
    use crate::wire::ETHERNET_LEN;
    use crate::wire::headers::tests::{frame, segment};
    use crate::wire::headers::{Headers, Network};

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

    #[test]
    fn a_segment_over_ipv6_is_parsed_whole() {
        let whole = frame(0x86dd, &segment("[fd00:0:0:1::2]:1000", "[2001:db8::1]:80"));
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
