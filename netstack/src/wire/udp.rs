//! UDP (RFC 768, RFC 8200 8.1), as we write it.

use std::net::SocketAddr;

use super::checksum;
use super::ipv4::IPV4_LEN;

/// Bytes of a header.
pub const UDP_LEN: usize = 8;
/// Bytes of data that an IPv4 packet carries at most; we send no more over IPv6 either.
pub const MAX_PAYLOAD: usize = 65_535 - IPV4_LEN - UDP_LEN;
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

/// The header of a datagram of `len` bytes, its own included, whose checksum is left to who receives it:
/// the field holds the pseudo-header's sum.
pub fn emit_partial_header(from: SocketAddr, to: SocketAddr, len: usize) -> [u8; UDP_LEN] {
    let sum = checksum::pseudo_header_between(from.ip(), to.ip(), PROTOCOL_UDP, len);
    fields(from, to, len, checksum::fold(sum))
}

/// The header of a datagram with its checksum.
pub fn emit_header(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> [u8; UDP_LEN] {
    let len = UDP_LEN + payload.len();
    let header = fields(from, to, len, 0);
    let sum = checksum::pseudo_header_between(from.ip(), to.ip(), PROTOCOL_UDP, len);
    let sum = match checksum::finish(checksum::add(checksum::add(sum, &header), payload)) {
        0 => 0xffff,
        sum => sum,
    };
    fields(from, to, len, sum)
}

fn fields(from: SocketAddr, to: SocketAddr, len: usize, sum: u16) -> [u8; UDP_LEN] {
    let len = u16::try_from(len).expect("datagrams are below 64 KiB");
    let mut header = [0; UDP_LEN];
    for (at, field) in [from.port(), to.port(), len, sum].into_iter().enumerate() {
        header[2 * at..2 * at + 2].copy_from_slice(&field.to_be_bytes());
    }
    header
}
