//! The IPv4 header that we write (RFC 791): no options, never more than one header's worth of thought.

use std::net::Ipv4Addr;

use super::checksum;

/// Bytes of a header without options.
pub const IPV4_LEN: usize = 20;
/// Don't fragment, in the word that holds flags and offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// A header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Next protocol.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Differentiated services and ECN.
    pub traffic_class: u8,
    /// Identification, which only matters for fragments.
    pub identification: u16,
    /// Flags and fragment offset (in units of eight bytes), as they stand on the wire.
    pub fragment: u16,
    /// Bytes after the header.
    pub payload_len: usize,
}

impl Ipv4Header {
    /// Writes the header with its checksum. A payload that does not fit in 65,535 bytes is our own mistake.
    pub fn emit(&self) -> [u8; IPV4_LEN] {
        let total = u16::try_from(self.payload_len + IPV4_LEN).expect("packets are below 64 KiB");
        let mut header = [0; IPV4_LEN];
        header[0] = 0x45;
        header[1] = self.traffic_class;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&self.identification.to_be_bytes());
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        header[8] = self.ttl;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&self.source.octets());
        header[16..20].copy_from_slice(&self.destination.octets());
        let sum = checksum::finish(checksum::add(0, &header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// Recomputes the checksum of the header at the front of `packet`.
pub fn fill_checksum(packet: &mut [u8], header_len: usize) {
    packet[10..12].fill(0);
    let sum = checksum::finish(checksum::add(0, &packet[..header_len]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
