//! ICMP (RFC 792, 1122, 1812): echo, and the errors that a gateway sends.

use std::net::Ipv4Addr;

use super::checksum;
use super::ipv4::{IPV4_LEN, Ipv4Header};

/// IP protocol number.
pub const PROTOCOL_ICMP: u8 = 1;
/// Bytes of the fixed part.
pub const ICMP_LEN: usize = 8;
/// Echo reply, type 0.
pub const ECHO_REPLY: u8 = 0;
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
    /// Type 3 code 4, with the MTU of the next hop (RFC 1191).
    FragmentationNeeded(u16),
    /// Type 3 code 13 (RFC 1812).
    AdministrativelyProhibited,
    /// Type 11 code 0.
    TtlExceeded,
}

impl IcmpError {
    fn type_and_code(self) -> (u8, u8) {
        match self {
            Self::NetUnreachable => (3, 0),
            Self::HostUnreachable => (3, 1),
            Self::ProtocolUnreachable => (3, 2),
            Self::PortUnreachable => (3, 3),
            Self::FragmentationNeeded(_) => (3, 4),
            Self::AdministrativelyProhibited => (3, 13),
            Self::TtlExceeded => (11, 0),
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
