//! What lies on the wire: parsing, once and whole, and the few packets that we write ourselves.
//!
//! Sources: RFC 791 and 1122 (IPv4), 8200 (IPv6), 792 (ICMP), 4443 (ICMPv6), 768 (UDP), 826 and 5227 (ARP), 4861 (NDP),
//! 9293 (TCP), 2131 (DHCP), 8415 (DHCPv6).

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod dhcp6;
pub mod headers;
mod headers6;
pub mod icmp;
pub mod icmp6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
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
