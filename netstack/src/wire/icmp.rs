//! ICMP (RFC 792, 1122, 1812): echo, and the errors that a gateway sends.

use std::net::{Ipv4Addr, SocketAddr};

use super::ipv4::{IPV4_LEN, Ipv4Header};
use super::udp::PROTOCOL_UDP;
use super::{be16, checksum};

/// IP protocol number.
pub const PROTOCOL_ICMP: u8 = 1;
/// Bytes of the fixed part.
pub const ICMP_LEN: usize = 8;
/// Echo reply, type 0.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable, type 3.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Echo request, type 8.
pub const ECHO_REQUEST: u8 = 8;

/// What an ICMP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpHeader {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier of an echo.
    pub identifier: u16,
    /// Sequence number of an echo.
    pub sequence: u16,
    /// Bytes after the eight fixed ones.
    pub payload_len: usize,
}

/// An error about a packet that a guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Type 3 code 0.
    NetUnreachable,
    /// Type 3 code 1.
    HostUnreachable,
    /// Type 3 code 2.
    ProtocolUnreachable,
    /// Type 3 code 3.
    PortUnreachable,
    /// Type 3 code 4, with the MTU of the next hop for IPv4 (RFC 1191); for IPv6 it is twenty bytes more, as its
    /// header is.
    FragmentationNeeded(u16),
    /// Type 3 code 13 (RFC 1812).
    AdministrativelyProhibited,
    /// Type 11 code 0.
    TtlExceeded,
    /// Type 11 code 1: not all fragments have come in time.
    ReassemblyTimeExceeded,
}

impl IcmpError {
    /// The error of a message of that type and code; codes that hosts treat alike are one. `mtu` is what
    /// the message says of the next hop.
    pub fn from_icmp(kind: u8, code: u8, mtu: u16) -> Option<Self> {
        match (kind, code) {
            (3, 0 | 6 | 11) => Some(Self::NetUnreachable),
            (3, 1 | 7 | 8 | 12) => Some(Self::HostUnreachable),
            (3, 2) => Some(Self::ProtocolUnreachable),
            (3, 3) => Some(Self::PortUnreachable),
            (3, 4) => Some(Self::FragmentationNeeded(mtu)),
            (3, 9 | 10 | 13) => Some(Self::AdministrativelyProhibited),
            (11, 0) => Some(Self::TtlExceeded),
            (11, 1) => Some(Self::ReassemblyTimeExceeded),
            _ => None,
        }
    }

    /// The same for a message of ICMPv6 (RFC 4443), in the words of IPv4.
    pub fn from_icmp6(kind: u8, code: u8, mtu: u16) -> Option<Self> {
        match (kind, code) {
            (1, 0) => Some(Self::NetUnreachable),
            (1, 2 | 3) => Some(Self::HostUnreachable),
            (1, 4) => Some(Self::PortUnreachable),
            (1, 1 | 5 | 6) => Some(Self::AdministrativelyProhibited),
            // A header of IPv4 is twenty bytes shorter.
            (2, 0) => Some(Self::FragmentationNeeded(mtu.saturating_sub(20))),
            (3, 0) => Some(Self::TtlExceeded),
            (3, 1) => Some(Self::ReassemblyTimeExceeded),
            _ => None,
        }
    }

    fn type_and_code(self) -> (u8, u8) {
        match self {
            Self::NetUnreachable => (3, 0),
            Self::HostUnreachable => (3, 1),
            Self::ProtocolUnreachable => (3, 2),
            Self::PortUnreachable => (3, 3),
            Self::FragmentationNeeded(_) => (3, 4),
            Self::AdministrativelyProhibited => (3, 13),
            Self::TtlExceeded => (11, 0),
            Self::ReassemblyTimeExceeded => (11, 1),
        }
    }

    /// Writes the IPv4 packet that tells the sender of `offender` (an IPv4 packet) so. It quotes up to
    /// 548 bytes of the offender, as RFC 1812 4.3.2.3 asks for.
    pub fn emit(self, from: Ipv4Addr, to: Ipv4Addr, offender: &[u8]) -> Vec<u8> {
        let quote = &offender[..offender.len().min(548)];
        let (kind, code) = self.type_and_code();
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        if let Self::FragmentationNeeded(mtu) = self {
            message[6..8].copy_from_slice(&mtu.to_be_bytes());
        }
        message.extend_from_slice(quote);
        fill_checksum(&mut message);
        let header = Ipv4Header {
            source: from,
            destination: to,
            protocol: PROTOCOL_ICMP,
            ttl: 64,
            // Precedence "internetwork control", as RFC 1812 4.3.2.5 has it and Linux does.
            traffic_class: 0xc0,
            identification: 0,
            fragment: 0,
            payload_len: message.len(),
        };
        let mut packet = Vec::with_capacity(IPV4_LEN + message.len());
        packet.extend_from_slice(&header.emit());
        packet.append(&mut message);
        packet
    }
}

/// The ends of the UDP datagram that an ICMP error (from its first byte on) is about: from, to.
pub fn quoted_datagram(message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let quote = message.get(ICMP_LEN..)?;
    let header: &[u8; IPV4_LEN] = quote.first_chunk()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let is_first_of_udp = header[0] >> 4 == 4
        && header_len >= IPV4_LEN
        && header[9] == PROTOCOL_UDP
        && be16(header, 6) & 0x1fff == 0;
    let ports = quote.get(header_len..header_len + 4).filter(|_| is_first_of_udp)?;
    let end = |address: usize, port: usize| {
        let ip = Ipv4Addr::from_octets(*header[address..].first_chunk().expect("four bytes"));
        SocketAddr::from((ip, be16(ports, port)))
    };
    Some((end(12, 0), end(16, 2)))
}

/// An echo reply (RFC 792) with the request's identifier, sequence and data.
pub fn echo_reply(identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ICMP_LEN + data.len());
    message.extend_from_slice(&[ECHO_REPLY, 0, 0, 0]);
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(data);
    fill_checksum(&mut message);
    message
}

/// Makes the checksum of a message whose field is zero.
fn fill_checksum(message: &mut [u8]) {
    let sum = checksum::finish(checksum::add(0, message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::udp::emit_header;

    fn error(offender: &[u8]) -> Vec<u8> {
        let (here, there) = (Ipv4Addr::new(10, 88, 0, 2), Ipv4Addr::new(10, 88, 0, 1));
        IcmpError::PortUnreachable.emit(here, there, offender)[IPV4_LEN..].to_vec()
    }

    fn datagram() -> Vec<u8> {
        let (source, destination) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 88, 0, 2));
        let (from, to) = ((source, 4000).into(), (destination, 53).into());
        let header = Ipv4Header {
            source,
            destination,
            protocol: PROTOCOL_UDP,
            ttl: 64,
            traffic_class: 0,
            identification: 0,
            fragment: 0,
            payload_len: 8,
        };
        [&header.emit()[..], &emit_header(from, to, &[])].concat()
    }

    #[test]
    fn the_datagram_that_an_error_is_about_is_found() {
        let (from, to) = quoted_datagram(&error(&datagram())).unwrap();
        assert_eq!(from.to_string(), "192.0.2.1:4000");
        assert_eq!(to.to_string(), "10.88.0.2:53");
    }

    #[test]
    fn a_quote_that_is_no_datagram_is_none() {
        let whole = error(&datagram());
        for len in 0..ICMP_LEN + IPV4_LEN + 4 {
            assert_eq!(quoted_datagram(&whole[..len]), None, "{len} bytes");
        }
        for (at, byte) in [(0, 0x65), (0, 0x44), (0, 0x4f), (9, 6), (7, 1)] {
            let mut quote = datagram();
            quote[at] = byte;
            assert_eq!(quoted_datagram(&error(&quote)), None, "byte {at} is {byte:#x}");
        }
    }

    #[test]
    fn errors_read_what_they_write() {
        for error in [
            IcmpError::NetUnreachable,
            IcmpError::HostUnreachable,
            IcmpError::ProtocolUnreachable,
            IcmpError::PortUnreachable,
            IcmpError::FragmentationNeeded(1280),
            IcmpError::AdministrativelyProhibited,
            IcmpError::TtlExceeded,
            IcmpError::ReassemblyTimeExceeded,
        ] {
            let (kind, code) = error.type_and_code();
            assert_eq!(IcmpError::from_icmp(kind, code, 1280), Some(error));
        }
        assert_eq!(IcmpError::from_icmp(5, 0, 0), None);
        assert_eq!(IcmpError::from_icmp6(1, 4, 0), Some(IcmpError::PortUnreachable));
    }
}
