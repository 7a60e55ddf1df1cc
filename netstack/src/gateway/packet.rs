//! What the gateway looks at in a packet, whichever family it has: from here on they take one way.

use std::net::{IpAddr, SocketAddr};

use crate::wire::headers::{Ipv4, Ipv6, Transport};
use crate::wire::icmp::{self, IcmpError, PROTOCOL_ICMP};
use crate::wire::icmp6::{self, PROTOCOL_ICMPV6};
use crate::wire::ndp::REDIRECT;
use crate::wire::{be16, be32};

/// A packet of a guest. Where it is IPv6, it has lost its extension headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Time to live, or hop limit.
    pub(super) hops: u8,
    /// Bytes in front of its transport.
    pub(super) header_len: usize,
    /// Nobody may cut it on its way.
    pub(super) dont_fragment: bool,
    /// It is a fragment, and not the first.
    pub(super) is_later_fragment: bool,
    pub(super) transport: Transport,
}

impl From<&Ipv4> for Packet {
    fn from(ip: &Ipv4) -> Self {
        Self {
            source: ip.source.into(),
            destination: ip.destination.into(),
            protocol: ip.protocol,
            hops: ip.ttl,
            header_len: ip.header_len,
            dont_fragment: ip.dont_fragment,
            is_later_fragment: ip.fragment_offset > 0,
            transport: ip.transport,
        }
    }
}

impl From<&Ipv6> for Packet {
    fn from(ip: &Ipv6) -> Self {
        Self {
            source: ip.source.into(),
            destination: ip.destination.into(),
            protocol: ip.protocol,
            hops: ip.hop_limit,
            header_len: ip.header_len,
            // Who has cut it already knows how, and minds no further cuts by the host.
            dont_fragment: ip.fragment.is_none(),
            is_later_fragment: ip.fragment.is_some_and(|fragment| fragment.offset > 0),
            transport: ip.transport,
        }
    }
}

impl Packet {
    /// Source address and port of a transport that has ports.
    pub(super) fn source_endpoint(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.source, port)
    }

    /// Destination address and port of a transport that has ports.
    pub(super) fn destination_endpoint(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.destination, port)
    }

    fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The ICMP type "destination unreachable".
    pub(super) fn unreachable_kind(&self) -> u8 {
        let kinds = (icmp::DESTINATION_UNREACHABLE, icmp6::DESTINATION_UNREACHABLE);
        if self.is_ipv4() { kinds.0 } else { kinds.1 }
    }

    /// The ICMP type "echo request".
    pub(super) fn echo_request_kind(&self) -> u8 {
        if self.is_ipv4() { icmp::ECHO_REQUEST } else { icmp6::ECHO_REQUEST }
    }

    /// The error that an ICMP message of this packet is.
    pub(super) fn error_of(&self, message: &[u8]) -> Option<IcmpError> {
        let (kind, code) = (message[0], message[1]);
        if self.is_ipv4() {
            IcmpError::from_icmp(kind, code, be16(message, 6))
        } else {
            let mtu = u16::try_from(be32(message, 4)).unwrap_or(u16::MAX);
            IcmpError::from_icmp6(kind, code, mtu)
        }
    }

    /// The ends of the datagram that an ICMP error of this packet is about: from, to.
    pub(super) fn quoted_datagram(&self, message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
        if self.is_ipv4() {
            icmp::quoted_datagram(message)
        } else {
            icmp6::quoted_datagram(message)
        }
    }

    /// Whether an error may be sent about it (RFC 1122 3.2.2, RFC 4443 2.4 e).
    pub(super) fn may_be_told_about(&self) -> bool {
        let is_error = match (self.protocol, self.transport) {
            (PROTOCOL_ICMP, Transport::Icmp(icmp)) => icmp.kind != icmp::ECHO_REQUEST,
            (PROTOCOL_ICMPV6, Transport::Icmp(icmp)) => {
                icmp6::is_error(icmp.kind) || icmp.kind == REDIRECT
            }
            (PROTOCOL_ICMP | PROTOCOL_ICMPV6, _) => true,
            _ => false,
        };
        let is_to_many = match self.destination {
            IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
            IpAddr::V6(to) => to.is_multicast(),
        };
        !(is_error || self.is_later_fragment || is_to_many)
    }
}
