//! ICMPv6 (RFC 4443): echo, and the errors that a gateway sends. The types of neighbour discovery are in
//! [`ndp`](super::ndp).

use std::net::{Ipv6Addr, SocketAddr};

use super::icmp::{ICMP_LEN, IcmpError};
use super::ipv6::{IPV6_LEN, Ipv6Header, MIN_MTU, walk};
use super::udp::PROTOCOL_UDP;
use super::{be16, checksum};

/// Next-header number.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Destination unreachable, type 1.
pub const DESTINATION_UNREACHABLE: u8 = 1;
/// Packet too big, type 2.
pub const PACKET_TOO_BIG: u8 = 2;
/// Parameter problem, type 4.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request, type 128.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply, type 129.
pub const ECHO_REPLY: u8 = 129;
/// Multicast listener query, report and done (RFC 2710), types 130 to 132; MLDv2's report (RFC 3810) is 143.
pub const MULTICAST_LISTENER: [u8; 4] = [130, 131, 132, 143];
/// What an error quotes at most: as much as fits the smallest MTU (RFC 4443 2.4 c). More than one of IPv4 does.
pub const MAX_QUOTE: usize = MIN_MTU as usize - IPV6_LEN - ICMP_LEN;
/// What IPv4's header is shorter by, for the MTU in an [`IcmpError::FragmentationNeeded`].
const SHORTER_BY: u16 = 20;

/// Whether a message of that type is an error, about which no error is sent.
pub fn is_error(kind: u8) -> bool {
    kind < 128
}

/// The errors of RFC 4443 that [`IcmpError`] has no word for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterProblem {
    /// Code 1: nobody knows what the packet carries.
    NextHeader,
    /// Code 2: an option must not be skipped.
    Option,
}

/// Writes the IPv6 packet that tells the sender of `offender` (an IPv6 packet) of an error.
pub fn emit_error(error: IcmpError, (from, to): (Ipv6Addr, Ipv6Addr), offender: &[u8]) -> Vec<u8> {
    let (kind, code, word) = match error {
        IcmpError::NetUnreachable => (1, 0, 0),
        IcmpError::HostUnreachable => (1, 3, 0),
        IcmpError::ProtocolUnreachable => {
            return emit_problem(
                ParameterProblem::NextHeader,
                named_at(offender),
                (from, to),
                offender,
            );
        }
        IcmpError::PortUnreachable => (1, 4, 0),
        IcmpError::FragmentationNeeded(mtu) => {
            (PACKET_TOO_BIG, 0, u32::from(mtu.saturating_add(SHORTER_BY).max(MIN_MTU)))
        }
        IcmpError::AdministrativelyProhibited => (1, 1, 0),
        IcmpError::TtlExceeded => (3, 0, 0),
        IcmpError::ReassemblyTimeExceeded => (3, 1, 0),
    };
    emit(kind, code, word, (from, to), offender)
}

/// Writes a parameter problem about the byte at `pointer` of `offender`.
pub fn emit_problem(
    problem: ParameterProblem,
    pointer: usize,
    (from, to): (Ipv6Addr, Ipv6Addr),
    offender: &[u8],
) -> Vec<u8> {
    let code = match problem {
        ParameterProblem::NextHeader => 1,
        ParameterProblem::Option => 2,
    };
    let pointer = u32::try_from(pointer).expect("packets are below 64 KiB");
    emit(PARAMETER_PROBLEM, code, pointer, (from, to), offender)
}

fn emit(
    kind: u8,
    code: u8,
    word: u32,
    (from, to): (Ipv6Addr, Ipv6Addr),
    offender: &[u8],
) -> Vec<u8> {
    let quote = &offender[..offender.len().min(MAX_QUOTE)];
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&word.to_be_bytes());
    message.extend_from_slice(quote);
    packet((from, to), 64, message)
}

/// Where the byte lies that names what a packet carries.
fn named_at(packet: &[u8]) -> usize {
    let mut at = 6;
    let mut next = IPV6_LEN;
    // Lengths were checked when the packet was parsed; what is cut off here ends the walk.
    while let Some(extension) = packet.get(next..next + 2)
        && matches!(packet[at], 0 | 43 | 44 | 60)
    {
        let len = if packet[at] == 44 { 8 } else { (usize::from(extension[1]) + 1) * 8 };
        at = next;
        next += len;
    }
    at
}

/// An echo reply with the request's identifier, sequence and data; its checksum is to be filled.
pub fn echo_reply(identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ICMP_LEN + data.len());
    message.extend_from_slice(&[ECHO_REPLY, 0, 0, 0]);
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(data);
    message
}

/// Makes the checksum of a message, whatever its field holds.
pub fn fill_checksum((from, to): (Ipv6Addr, Ipv6Addr), message: &mut [u8]) {
    message[2..4].fill(0);
    let pseudo = checksum::pseudo_header6(from, to, PROTOCOL_ICMPV6, message.len());
    let sum = checksum::finish(checksum::add(pseudo, message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The packet of a message, whose checksum is made.
pub fn packet(ends: (Ipv6Addr, Ipv6Addr), hop_limit: u8, mut message: Vec<u8>) -> Vec<u8> {
    fill_checksum(ends, &mut message);
    let header = Ipv6Header {
        source: ends.0,
        destination: ends.1,
        next_header: PROTOCOL_ICMPV6,
        hop_limit,
        traffic_class: 0,
        payload_len: message.len(),
    };
    let mut packet = Vec::with_capacity(IPV6_LEN + message.len());
    packet.extend_from_slice(&header.emit());
    packet.append(&mut message);
    packet
}

/// The ends of the UDP datagram that an ICMPv6 error (from its first byte on) is about: from, to.
pub fn quoted_datagram(message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let quote = message.get(ICMP_LEN..)?;
    if quote.first()? >> 4 != 6 {
        return None;
    }
    let chain = walk(quote).ok()?;
    let is_first = chain.fragment.is_none_or(|fragment| fragment.offset == 0);
    if chain.protocol != PROTOCOL_UDP || !is_first {
        return None;
    }
    let ports = quote.get(chain.len..chain.len + 4)?;
    let end = |address: usize, port: usize| {
        let ip = Ipv6Addr::from_octets(*quote[address..].first_chunk().expect("sixteen bytes"));
        SocketAddr::from((ip, be16(ports, port)))
    };
    Some((end(8, 0), end(24, 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
    const TO: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);

    fn datagram(payload: usize) -> Vec<u8> {
        let header = Ipv6Header {
            source: TO,
            destination: FROM,
            next_header: PROTOCOL_UDP,
            hop_limit: 64,
            traffic_class: 0,
            payload_len: 8 + payload,
        };
        let udp = [0x10, 0, 0, 53, 0, 8, 0, 0];
        [&header.emit()[..], &udp, &vec![0; payload]].concat()
    }

    fn is_summed(packet: &[u8]) -> bool {
        let message = &packet[IPV6_LEN..];
        let pseudo = checksum::pseudo_header6(FROM, TO, PROTOCOL_ICMPV6, message.len());
        checksum::fold(checksum::add(pseudo, message)) == 0xffff
    }

    #[test]
    fn errors_have_the_types_of_rfc_4443_and_a_checksum() {
        for (error, kind, code) in [
            (IcmpError::NetUnreachable, 1, 0),
            (IcmpError::AdministrativelyProhibited, 1, 1),
            (IcmpError::HostUnreachable, 1, 3),
            (IcmpError::PortUnreachable, 1, 4),
            (IcmpError::FragmentationNeeded(1400), 2, 0),
            (IcmpError::TtlExceeded, 3, 0),
            (IcmpError::ProtocolUnreachable, 4, 1),
        ] {
            let packet = emit_error(error, (FROM, TO), &datagram(0));
            assert_eq!((packet[40], packet[41]), (kind, code), "{error:?}");
            assert!(is_summed(&packet), "{error:?}");
            let (from, to) = quoted_datagram(&packet[40..]).unwrap();
            assert_eq!((from, to), ((TO, 0x1000).into(), (FROM, 53).into()));
        }
    }

    #[test]
    fn an_error_fits_the_smallest_mtu_and_never_says_less() {
        let packet = emit_error(IcmpError::FragmentationNeeded(68), (FROM, TO), &datagram(3000));
        assert_eq!(packet.len(), usize::from(MIN_MTU));
        assert_eq!(packet[44..48], 1280_u32.to_be_bytes());
        let packet = emit_error(IcmpError::FragmentationNeeded(1480), (FROM, TO), &datagram(3000));
        assert_eq!(packet[44..48], 1500_u32.to_be_bytes());
    }

    #[test]
    fn a_protocol_that_nobody_knows_is_pointed_at() {
        let mut offender = datagram(0);
        offender[6] = 99;
        let packet = emit_error(IcmpError::ProtocolUnreachable, (FROM, TO), &offender);
        assert_eq!(packet[44..48], 6_u32.to_be_bytes());
        let mut behind_options = offender.clone();
        behind_options[6] = 60;
        behind_options.splice(40..40, [99, 0, 1, 4, 0, 0, 0, 0]);
        let packet = emit_error(IcmpError::ProtocolUnreachable, (FROM, TO), &behind_options);
        assert_eq!(packet[44..48], 40_u32.to_be_bytes());
    }

    #[test]
    fn a_quote_that_is_no_datagram_is_none() {
        let whole = emit_error(IcmpError::PortUnreachable, (FROM, TO), &datagram(0));
        let message = &whole[IPV6_LEN..];
        for len in 0..ICMP_LEN + IPV6_LEN + 4 {
            assert_eq!(quoted_datagram(&message[..len]), None, "{len} bytes");
        }
        let mut other = message.to_vec();
        other[ICMP_LEN + 6] = 6;
        assert_eq!(quoted_datagram(&other), None);
    }
}
