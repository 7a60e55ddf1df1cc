//! What IPv4 and IPv6 have in common: a header that we write, of the family that its ends have.

use std::net::IpAddr;

use super::ipv4::{IPV4_LEN, Ipv4Header};
use super::ipv6::{IPV6_LEN, Ipv6Header};

/// A header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpHeader {
    /// IPv4.
    V4(Ipv4Header),
    /// IPv6.
    V6(Ipv6Header),
}

/// A header that was written.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBytes {
    bytes: [u8; IPV6_LEN],
    len: usize,
}

impl HeaderBytes {
    /// The header.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl IpHeader {
    /// A header between two ends of one family, with as many hops as Linux gives by default.
    pub fn between(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(Ipv4Header {
                source,
                destination,
                protocol,
                ttl: 64,
                traffic_class: 0,
                identification: 0,
                fragment: 0,
                payload_len: 0,
            }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::V6(Ipv6Header {
                source,
                destination,
                next_header: protocol,
                hop_limit: 64,
                traffic_class: 0,
                payload_len: 0,
            }),
            _ => unreachable!("both ends of a packet have one family"),
        }
    }

    /// The same with the don't-fragment bit, which IPv6 has not and means always.
    pub fn unfragmented(self) -> Self {
        match self {
            Self::V4(header) => {
                Self::V4(Ipv4Header { fragment: super::ipv4::DONT_FRAGMENT, ..header })
            }
            Self::V6(_) => self,
        }
    }

    /// The same with so many bytes behind it.
    pub fn with_payload_len(self, payload_len: usize) -> Self {
        match self {
            Self::V4(header) => Self::V4(Ipv4Header { payload_len, ..header }),
            Self::V6(header) => Self::V6(Ipv6Header { payload_len, ..header }),
        }
    }

    /// Bytes of the header.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Self::V4(_) => IPV4_LEN,
            Self::V6(_) => IPV6_LEN,
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> HeaderBytes {
        let mut bytes = [0; IPV6_LEN];
        match self {
            Self::V4(header) => bytes[..IPV4_LEN].copy_from_slice(&header.emit()),
            Self::V6(header) => bytes.copy_from_slice(&header.emit()),
        }
        HeaderBytes { bytes, len: self.len() }
    }
}

/// Bytes of the header that a packet between such ends has.
pub fn header_len(end: IpAddr) -> usize {
    if end.is_ipv4() { IPV4_LEN } else { IPV6_LEN }
}

/// Bytes of a packet's header without options or extension headers, by its version.
pub fn header_len_of(packet: &[u8]) -> usize {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => IPV6_LEN,
        _ => packet.first().map_or(IPV4_LEN, |byte| usize::from(byte & 0xf) * 4),
    }
}
