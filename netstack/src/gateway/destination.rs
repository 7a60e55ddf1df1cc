//! Where a guest's packet may go beyond its own network: closed towards the host and other networks by
//! default, open to everywhere else. And as whom a guest sees who comes in by a published port.
//!
//! What NAT64 makes of an address comes before any rule, so that those of IPv4 hold for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flow::ForwardSource;
use super::names::NAMES_PORT;
use super::nat64::{embedded, meant};
use crate::command::{HostOpening, NetworkSpec, PortSpec, SourceRule, Transport};
use crate::counters::DropReason;
use crate::host::Route;
use crate::switch::directory::{Directory, NetworkView};
use crate::wire::ndp::GATEWAY_LINK_LOCAL;

/// Addresses at which clouds serve credentials to whoever asks (169.254/16 is refused whole).
const METADATA: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// The same over IPv6, by their first 32 bits: fd00:ec2::/32 of one cloud, fd20:ce::/32 of another.
const METADATA6: [[u16; 2]; 2] = [[0xfd00, 0x0ec2], [0xfd20, 0x00ce]];

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a server; on the host's loopback only where the workload has an opening.
    Host(SocketAddr),
    /// To the network's name service.
    Names,
    /// Nowhere.
    Refused(DropReason),
}

/// Whether an address means the gateway.
pub fn is_gateway(network: &NetworkSpec, address: IpAddr) -> bool {
    match meant(network, address) {
        IpAddr::V4(address) => address == network.gateway,
        IpAddr::V6(address) => address == GATEWAY_LINK_LOCAL || network.gateway6() == Some(address),
    }
}

/// Judges the destination of a new flow. `route` asks the host, and is only asked when it matters.
pub fn judge(
    port: &PortSpec,
    network: &NetworkView,
    directory: &Directory,
    transport: Transport,
    to: SocketAddr,
    route: impl FnOnce(IpAddr) -> Route,
) -> Destination {
    if is_gateway(&network.spec, to.ip()) {
        return at_gateway(port, transport, to.port());
    }
    match address(network, directory, to.ip(), route) {
        Ok(ip) => Destination::Host(SocketAddr::new(ip, to.port())),
        Err(reason) => Destination::Refused(reason),
    }
}

fn at_gateway(port: &PortSpec, transport: Transport, number: u16) -> Destination {
    if port.allow_host.contains(&HostOpening { port: number, protocol: transport }) {
        Destination::Host(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))
    } else if number == NAMES_PORT {
        Destination::Names
    } else {
        Destination::Refused(DropReason::GatewayPort)
    }
}

/// Judges an address that is not the gateway's, and answers at which one the host finds who is meant.
pub fn address(
    network: &NetworkView,
    directory: &Directory,
    to: IpAddr,
    route: impl FnOnce(IpAddr) -> Route,
) -> Result<IpAddr, DropReason> {
    let to = meant(&network.spec, to);
    match to {
        IpAddr::V4(to) => special(to)?,
        IpAddr::V6(to) => special6(to)?,
    }
    let is_here = match to {
        IpAddr::V4(to) => network.spec.subnet.contains(to),
        IpAddr::V6(to) => network.spec.prefix6.is_some_and(|prefix| prefix.contains(to)),
    };
    if is_here {
        return Err(DropReason::NoRoute);
    }
    if directory.owns(to) {
        return Err(DropReason::OtherNetwork);
    }
    if network.spec.internal {
        return Err(DropReason::Internal);
    }
    match route(to) {
        Route::Unicast => Ok(to),
        Route::Local => Err(DropReason::HostAddress),
        Route::Broadcast => Err(DropReason::Broadcast),
        Route::Unreachable => Err(DropReason::NoRoute),
    }
}

fn special(to: Ipv4Addr) -> Result<(), DropReason> {
    if to.is_link_local() || METADATA.contains(&to) {
        return Err(DropReason::Metadata);
    }
    match to.octets()[0] {
        0 | 127 => Err(DropReason::HostAddress),
        224.. => Err(DropReason::Broadcast),
        _ => Ok(()),
    }
}

fn special6(to: Ipv6Addr) -> Result<(), DropReason> {
    if to.is_multicast() {
        return Err(DropReason::Broadcast);
    }
    let [first, second, ..] = to.segments();
    if to.is_unicast_link_local() || METADATA6.contains(&[first, second]) {
        return Err(DropReason::Metadata);
    }
    match to.octets() {
        // Loopback, no address, and IPv4 in disguise (RFC 4291 2.5.5), which the host would send as IPv4.
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..]
        | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => Err(DropReason::HostAddress),
        // What a relay (RFC 3056) beyond the host makes IPv4 of; a translator (RFC 6052) does the same.
        [0x20, 2, a, b, c, d, ..] => special(Ipv4Addr::new(a, b, c, d)),
        _ => embedded(to).map_or(Ok(()), special),
    }
}

/// As whom a guest sees a client of a published port, and which of its own addresses that reaches: as itself
/// where the guest can answer it, else as the gateway; over the client's own family where the guest has it.
pub fn forward_source(
    port: &PortSpec,
    network: &NetworkView,
    directory: &Directory,
    rule: SourceRule,
    client: SocketAddr,
) -> (ForwardSource, IpAddr) {
    let over6 = match client {
        SocketAddr::V6(_) => network.address6_of(port.id).zip(network.spec.gateway6()),
        SocketAddr::V4(_) => None,
    };
    let (gateway, guest): (IpAddr, IpAddr) = match over6 {
        Some((guest, gateway)) => (gateway.into(), guest.into()),
        None => (network.spec.gateway.into(), port.address.into()),
    };
    let as_itself = rule == SourceRule::Client
        && port.default_route
        && !network.spec.internal
        && client.is_ipv4() == guest.is_ipv4()
        // Else the answer would go to the IPv4 address that the client's stands for.
        && meant(&network.spec, client.ip()) == client.ip()
        && can_be_answered(client, directory);
    let source =
        if as_itself { ForwardSource::Client(client) } else { ForwardSource::Gateway(gateway) };
    (source, guest)
}

/// Whether a guest whose default route is this network can answer a client at its own address. A Linux
/// guest drops what comes from 127.0.0.1 as a martian, and an address of ours would be answered elsewhere.
fn can_be_answered(client: SocketAddr, directory: &Directory) -> bool {
    let ip = client.ip();
    let unroutable = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let unroutable = unroutable
        || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || client.port() == 0;
    !unroutable && !directory.owns(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_destinations_that_are_no_servers_are_refused_each_for_its_reason() {
        for (address, reason) in [
            ("::1", DropReason::HostAddress),
            ("::", DropReason::HostAddress),
            ("::127.0.0.1", DropReason::HostAddress),
            ("::ffff:127.0.0.1", DropReason::HostAddress),
            ("::ffff:192.0.2.1", DropReason::HostAddress),
            ("fe80::5", DropReason::Metadata),
            ("fd00:ec2::254", DropReason::Metadata),
            ("fd20:ce::254", DropReason::Metadata),
            ("64:ff9b::a9fe:a9fe", DropReason::Metadata),
            ("64:ff9b::7f00:1", DropReason::HostAddress),
            ("2002:a9fe:a9fe::1", DropReason::Metadata),
            ("ff02::1", DropReason::Broadcast),
            ("ff0e::1", DropReason::Broadcast),
        ] {
            assert_eq!(special6(address.parse().unwrap()), Err(reason), "{address}");
        }
        for address in ["2001:db8::1", "fd12:3456::1", "64:ff9b::c000:201", "2002:c000:201::1"] {
            assert_eq!(special6(address.parse().unwrap()), Ok(()), "{address}");
        }
    }
}
