//! What a guest may say: only what carries its own addresses. Everything else is dropped at its own port,
//! before anyone else sees it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::command::PortSpec;
use crate::counters::DropReason;
use crate::ids::MacAddr;
use crate::wire::arp::{Arp, Operation};
use crate::wire::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::wire::dhcp6;
use crate::wire::headers::{Headers, Ipv4, Ipv6, Network, Transport};
use crate::wire::icmp6;
use crate::wire::ndp::Ndp;

use super::addresses::OwnAddresses;

/// Lets a frame of the port pass, or says why not.
#[inline(always)]
pub fn check(port: &PortSpec, own: &OwnAddresses, headers: &Headers) -> Result<(), DropReason> {
    check_source(port.mac, headers.source)?;
    match &headers.network {
        Network::Arp(arp) => check_arp(port, arp),
        Network::Ipv4(ip) => check_ipv4(port, ip),
        Network::Ipv6(ip) => check_ipv6(port, own, ip),
    }
}

/// The source address alone, which can be judged even when the rest of a frame cannot be parsed.
pub fn check_source(own: MacAddr, source: MacAddr) -> Result<(), DropReason> {
    if source == own { Ok(()) } else { Err(DropReason::MacSpoof) }
}

/// Own addresses only; a probe (RFC 5227) has no sender address yet.
fn check_arp(port: &PortSpec, arp: &Arp) -> Result<(), DropReason> {
    let is_probe = arp.operation == Operation::Request && arp.sender.is_unspecified();
    if arp.sender_mac == port.mac && (arp.sender == port.address || is_probe) {
        Ok(())
    } else {
        Err(DropReason::ArpSpoof)
    }
}

#[inline(always)]
fn check_ipv4(port: &PortSpec, ip: &Ipv4) -> Result<(), DropReason> {
    if ip.source == ip.destination {
        return Err(DropReason::Land);
    }
    let ports = match ip.transport {
        Transport::Udp(udp) => Some((udp.source_port, udp.destination_port)),
        // Without its first fragment a datagram is never whole.
        Transport::Fragment(ports) => ports,
        _ => None,
    };
    if ports.is_some_and(|(from, to)| from == SERVER_PORT || to == CLIENT_PORT) {
        // To whomever: only the gateway answers DHCP.
        return Err(DropReason::DhcpGuard);
    }
    if is_martian(ip.source) {
        return if is_client_without_address(ip) { Ok(()) } else { Err(DropReason::Martian) };
    }
    if ip.source != port.address {
        return Err(DropReason::IpSpoof);
    }
    Ok(())
}

#[inline(never)]
fn check_ipv6(port: &PortSpec, own: &OwnAddresses, ip: &Ipv6) -> Result<(), DropReason> {
    if port.address6.is_none() {
        return Err(DropReason::Ipv6Off);
    }
    if ip.source == ip.destination {
        return Err(DropReason::Land);
    }
    let ports = match ip.transport {
        Transport::Udp(udp) => Some((udp.source_port, udp.destination_port)),
        Transport::Fragment(ports) => ports,
        _ => None,
    };
    if ports.is_some_and(|(from, to)| from == dhcp6::SERVER_PORT || to == dhcp6::CLIENT_PORT) {
        return Err(DropReason::DhcpGuard);
    }
    if let Some(ndp) = &ip.ndp {
        check_ndp(port, own, ip, ndp)?;
    }
    if ip.source.is_unspecified() {
        return if may_have_no_address(ip) { Ok(()) } else { Err(DropReason::Martian) };
    }
    if is_martian6(ip.source) {
        return Err(DropReason::Martian);
    }
    if own.has(port, ip.source) { Ok(()) } else { Err(DropReason::IpSpoof) }
}

/// RFC 4861 6.1.2, 8.1 and 11.1: nobody here is a router, and nobody says more than who it is itself.
fn check_ndp(port: &PortSpec, own: &OwnAddresses, ip: &Ipv6, ndp: &Ndp) -> Result<(), DropReason> {
    let is_own_mac = |mac: Option<crate::ids::MacAddr>| mac.is_none_or(|mac| mac == port.mac);
    let is_sound = match *ndp {
        Ndp::FromRouter => return Err(DropReason::RouterGuard),
        // Who has no address has nothing to say of its MAC either (RFC 4861 4.1, 4.3).
        Ndp::RouterSolicitation { source } | Ndp::NeighbourSolicitation { source, .. } => {
            is_own_mac(source) && !(ip.source.is_unspecified() && source.is_some())
        }
        Ndp::NeighbourAdvertisement { target, mac } => is_own_mac(mac) && own.has(port, target),
    };
    if is_sound { Ok(()) } else { Err(DropReason::NdpSpoof) }
}

/// Duplicate address detection (RFC 4862 5.4.2), the search for a router, and reports of groups (RFC 3590).
fn may_have_no_address(ip: &Ipv6) -> bool {
    let listens = matches!(ip.transport, Transport::Icmp(icmp)
        if icmp6::MULTICAST_LISTENER.contains(&icmp.kind));
    listens
        || matches!(
            ip.ndp,
            Some(Ndp::RouterSolicitation { .. } | Ndp::NeighbourSolicitation { .. })
        )
}

/// Sources that never appear on a wire (RFC 4291 2.5.3, 2.5.5, 2.7): loopback, groups, and IPv4 in disguise.
fn is_martian6(source: Ipv6Addr) -> bool {
    source.is_multicast() || source.to_bits() >> 32 == 0 || source.to_ipv4_mapped().is_some()
}

/// A DHCP client that has no address yet (RFC 2131 4.1). The switch lets its messages reach the gateway
/// alone.
fn is_client_without_address(ip: &Ipv4) -> bool {
    ip.source.is_unspecified()
        && ip.destination.is_broadcast()
        && matches!(ip.transport, Transport::Udp(udp)
            if udp.source_port == CLIENT_PORT && udp.destination_port == SERVER_PORT)
}

/// Sources that never appear on a wire (RFC 1122 3.2.1.3, RFC 6890): this network, loopback, multicast,
/// reserved, broadcast.
fn is_martian(source: Ipv4Addr) -> bool {
    matches!(source.octets()[0], 0 | 127 | 224..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Attachment;
    use crate::testing::specs;
    use crate::wire::udp::UdpHeader;

    fn port() -> PortSpec {
        PortSpec {
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            address6: Some("fd00:0:0:1::2".parse().unwrap()),
            ..specs::port(1, "a", Ipv4Addr::new(10, 88, 0, 2), Attachment::TAP)
        }
    }

    fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Headers {
        Headers {
            destination: MacAddr([2, 0, 0, 0, 0, 1]),
            source: port().mac,
            network: Network::Ipv4(Ipv4 {
                source: source.into(),
                destination: destination.into(),
                protocol: 99,
                ttl: 64,
                header_len: 20,
                total_len: 20,
                identification: 0,
                dont_fragment: false,
                more_fragments: false,
                fragment_offset: 0,
                transport: Transport::Other,
            }),
        }
    }

    #[test]
    fn only_the_ports_own_addresses_pass() {
        for (source, destination, verdict) in [
            ([10, 88, 0, 2], [10, 88, 0, 3], Ok(())),
            ([10, 88, 0, 3], [10, 88, 0, 4], Err(DropReason::IpSpoof)),
            ([10, 88, 0, 1], [10, 88, 0, 4], Err(DropReason::IpSpoof)),
            ([192, 0, 2, 1], [10, 88, 0, 4], Err(DropReason::IpSpoof)),
            ([10, 88, 0, 2], [10, 88, 0, 2], Err(DropReason::Land)),
            ([127, 0, 0, 1], [10, 88, 0, 1], Err(DropReason::Martian)),
            ([0, 1, 2, 3], [10, 88, 0, 1], Err(DropReason::Martian)),
            ([224, 0, 0, 1], [10, 88, 0, 1], Err(DropReason::Martian)),
            ([255, 255, 255, 255], [10, 88, 0, 1], Err(DropReason::Martian)),
            ([0, 0, 0, 0], [255, 255, 255, 255], Err(DropReason::Martian)),
        ] {
            assert_eq!(
                check(&port(), &OwnAddresses::default(), &ipv4(source, destination)),
                verdict,
                "{source:?}"
            );
        }
    }

    #[test]
    fn only_a_dhcp_client_may_have_no_address_and_nobody_is_a_server() {
        let own = [10, 88, 0, 2];
        for (source, destination, ports, verdict) in [
            ([0; 4], [255; 4], (68, 67), Ok(())),
            (own, [10, 88, 0, 1], (68, 67), Ok(())),
            ([0; 4], [10, 88, 0, 3], (68, 67), Err(DropReason::Martian)),
            ([0; 4], [255; 4], (68, 53), Err(DropReason::Martian)),
            ([0; 4], [255; 4], (1000, 67), Err(DropReason::Martian)),
            (own, [10, 88, 0, 3], (67, 68), Err(DropReason::DhcpGuard)),
            (own, [255; 4], (67, 68), Err(DropReason::DhcpGuard)),
            (own, [10, 88, 0, 3], (1000, 68), Err(DropReason::DhcpGuard)),
            (own, [10, 88, 0, 3], (67, 1000), Err(DropReason::DhcpGuard)),
        ] {
            let mut headers = ipv4(source, destination);
            let Network::Ipv4(ip) = &mut headers.network else { panic!("it is IPv4") };
            let (source_port, destination_port) = ports;
            ip.transport =
                Transport::Udp(UdpHeader { source_port, destination_port, payload_len: 0 });
            assert_eq!(
                check(&port(), &OwnAddresses::default(), &headers),
                verdict,
                "{source:?} {destination:?} {ports:?}"
            );
        }
    }

    #[test]
    fn a_foreign_source_mac_never_passes() {
        for source in
            [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3], [0; 6], [0xff; 6], [3, 0, 0, 0, 0, 2]]
        {
            let mut headers = ipv4([10, 88, 0, 2], [10, 88, 0, 3]);
            headers.source = MacAddr(source);
            assert_eq!(
                check(&port(), &OwnAddresses::default(), &headers),
                Err(DropReason::MacSpoof)
            );
        }
    }

    #[test]
    fn arp_claims_only_the_ports_own_address() {
        let arp = |operation, sender: [u8; 4], sender_mac| Headers {
            destination: MacAddr::BROADCAST,
            source: port().mac,
            network: Network::Arp(Arp {
                operation,
                sender_mac: MacAddr(sender_mac),
                sender: sender.into(),
                target_mac: MacAddr([0; 6]),
                target: Ipv4Addr::new(10, 88, 0, 1),
            }),
        };
        let own = port().mac.0;
        let verdict = |headers| check(&port(), &OwnAddresses::default(), &headers);
        assert_eq!(verdict(arp(Operation::Request, [10, 88, 0, 2], own)), Ok(()));
        assert_eq!(verdict(arp(Operation::Reply, [10, 88, 0, 2], own)), Ok(()));
        assert_eq!(verdict(arp(Operation::Request, [0, 0, 0, 0], own)), Ok(()));
        for (operation, sender, mac) in [
            (Operation::Reply, [0, 0, 0, 0], own),
            (Operation::Reply, [10, 88, 0, 1], own),
            (Operation::Request, [10, 88, 0, 3], own),
            (Operation::Request, [10, 88, 0, 2], [2, 0, 0, 0, 0, 1]),
        ] {
            assert_eq!(verdict(arp(operation, sender, mac)), Err(DropReason::ArpSpoof));
        }
    }

    fn ipv6(source: &str, destination: &str, transport: Transport, ndp: Option<Ndp>) -> Headers {
        Headers {
            destination: MacAddr([2, 0, 0, 0, 0, 1]),
            source: port().mac,
            network: Network::Ipv6(Ipv6 {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: 99,
                hop_limit: 255,
                header_len: 40,
                total_len: 40,
                fragment: None,
                unknown: None,
                transport,
                ndp,
            }),
        }
    }

    fn verdict6(headers: &Headers) -> Result<(), DropReason> {
        check(&port(), &OwnAddresses::default(), headers)
    }

    #[test]
    fn only_the_ports_own_ipv6_addresses_pass() {
        for (source, verdict) in [
            ("fd00:0:0:1::2", Ok(())),
            ("fd00:0:0:1::ff:fe00:2", Ok(())),
            ("fe80::ff:fe00:2", Ok(())),
            ("fd00:0:0:1::3", Err(DropReason::IpSpoof)),
            ("fd00:0:0:1::1", Err(DropReason::IpSpoof)),
            ("fe80::1", Err(DropReason::IpSpoof)),
            ("2001:db8::2", Err(DropReason::IpSpoof)),
            ("fd00:0:0:1::9", Err(DropReason::Land)),
            ("::1", Err(DropReason::Martian)),
            ("::", Err(DropReason::Martian)),
            ("ff02::1", Err(DropReason::Martian)),
            ("::ffff:10.88.0.2", Err(DropReason::Martian)),
            ("::10.88.0.2", Err(DropReason::Martian)),
        ] {
            let headers = ipv6(source, "fd00:0:0:1::9", Transport::Other, None);
            assert_eq!(verdict6(&headers), verdict, "{source}");
        }
        let mut off = port();
        off.address6 = None;
        let headers = ipv6("fe80::ff:fe00:2", "fe80::1", Transport::Other, None);
        let own = OwnAddresses::default();
        assert_eq!(check(&off, &own, &headers), Err(DropReason::Ipv6Off));
    }

    #[test]
    fn nobody_is_a_router_or_a_server_and_nobody_advertises_another() {
        let own = Some(port().mac);
        let other = Some(MacAddr([2, 0, 0, 0, 0, 3]));
        let target = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let solicits = |source, target| Ndp::NeighbourSolicitation { target, source, nonce: None };
        let advertises = |mac, target| Ndp::NeighbourAdvertisement { target, mac };
        let (here, there) = (target("fd00:0:0:1::2"), target("fd00:0:0:1::3"));
        for (source, ndp, verdict) in [
            ("fe80::ff:fe00:2", Ndp::FromRouter, Err(DropReason::RouterGuard)),
            ("fd00:0:0:1::2", solicits(own, there), Ok(())),
            ("::", solicits(None, there), Ok(())),
            ("::", solicits(own, there), Err(DropReason::NdpSpoof)),
            ("fd00:0:0:1::2", solicits(other, there), Err(DropReason::NdpSpoof)),
            ("fd00:0:0:1::3", solicits(own, there), Err(DropReason::IpSpoof)),
            ("fd00:0:0:1::2", advertises(own, here), Ok(())),
            ("fd00:0:0:1::2", advertises(other, here), Err(DropReason::NdpSpoof)),
            ("fd00:0:0:1::2", advertises(own, there), Err(DropReason::NdpSpoof)),
            ("::", advertises(own, here), Err(DropReason::Martian)),
            ("::", Ndp::RouterSolicitation { source: None }, Ok(())),
        ] {
            let headers = ipv6(source, "ff02::1", Transport::Other, Some(ndp));
            assert_eq!(verdict6(&headers), verdict, "{source} {ndp:?}");
        }
        for (source_port, destination_port, verdict) in [
            (546, 547, Ok(())),
            (547, 546, Err(DropReason::DhcpGuard)),
            (1000, 546, Err(DropReason::DhcpGuard)),
            (547, 1000, Err(DropReason::DhcpGuard)),
        ] {
            let udp = UdpHeader { source_port, destination_port, payload_len: 0 };
            let headers = ipv6("fe80::ff:fe00:2", "ff02::1:2", Transport::Udp(udp), None);
            assert_eq!(verdict6(&headers), verdict);
        }
    }
}
