//! UDP over IPv4 (RFC 768), as we write it.

use std::net::SocketAddrV4;

use super::checksum;

/// Bytes of a header.
pub const UDP_LEN: usize = 8;
/// IP protocol number.
pub const PROTOCOL_UDP: u8 = 17;

/// What a UDP header says, parsed and bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    /// Source port; zero means none (RFC 768).
    pub source_port: u16,
    /// Destination port, never zero.
    pub destination_port: u16,
    /// Bytes of data.
    pub payload_len: usize,
}

/// The header of a datagram with its checksum, over IPv4.
pub fn emit_header(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> [u8; UDP_LEN] {
    let len = UDP_LEN + payload.len();
    let mut header = [0; UDP_LEN];
    header[0..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    let len16 = u16::try_from(len).expect("datagrams are below 64 KiB");
    header[4..6].copy_from_slice(&len16.to_be_bytes());
    let sum = checksum::pseudo_header(*from.ip(), *to.ip(), PROTOCOL_UDP, len);
    let sum = match checksum::finish(checksum::add(checksum::add(sum, &header), payload)) {
        0 => 0xffff,
        sum => sum,
    };
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    header
}
