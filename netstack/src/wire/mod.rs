//! What lies on the wire: parsing, once and whole, and the few packets that we write ourselves.
//!
//! Sources: RFC 791 and 1122 (IPv4), 792 (ICMP), 768 (UDP), 826 and 5227 (ARP), 9293 (TCP), 2131 (DHCP).

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod headers;
pub mod icmp;
pub mod ipv4;
pub mod reassembly;
pub mod tcp;
pub mod udp;

/// Reads a big-endian u16. Callers have checked the length.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian u32. Callers have checked the length.
#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
