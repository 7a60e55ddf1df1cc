//! Which subnet a network gets, and which it may not have.

use std::net::{Ipv4Addr, Ipv6Addr};

use lichen_netstack::ids::{Ipv4Prefix, Ipv6Prefix, ParsePrefix6Error};

use super::host_routes::HostRoute;

/// Why a subnet cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// No room for a gateway and a workload, or absurdly large.
    #[error("subnet {0} is too {1}; use a prefix length from 8 to 30, such as /24")]
    Size(Ipv4Prefix, &'static str),
    /// Addresses with a meaning of their own (RFC 6890).
    #[error("subnet {0} lies in {1}, which is not for networks; use one such as 10.89.0.0/16")]
    Special(Ipv4Prefix, Ipv4Prefix),
    /// Another network of ours.
    #[error("subnet {subnet} overlaps {other} of network `{network}`; choose another")]
    Network {
        /// What was asked for.
        subnet: Ipv4Prefix,
        /// What is in the way.
        other: Ipv4Prefix,
        /// Whose that is.
        network: String,
    },
    /// A route of the host.
    #[error(
        "subnet {subnet} overlaps the host's route {route} by {interface}; choose another, \
         since what lies behind that route would be out of reach"
    )]
    Route {
        /// What was asked for.
        subnet: Ipv4Prefix,
        /// What is in the way.
        route: Ipv4Prefix,
        /// Which interface it leads to.
        interface: String,
    },
    /// The gateway is not an address of the subnet.
    #[error("gateway {gateway} is not a usable address of {subnet}; the usual one is {usual}")]
    Gateway {
        /// What was asked for.
        gateway: Ipv4Addr,
        /// Its subnet.
        subnet: Ipv4Prefix,
        /// The first address.
        usual: Ipv4Addr,
    },
    /// The IPv6 gateway is not an address of the subnet.
    #[error("gateway {gateway} does not lie in IPv6 subnet {prefix}; its gateway is {usual}")]
    Gateway6 {
        /// What was asked for.
        gateway: Ipv6Addr,
        /// Its subnet.
        prefix: Ipv6Prefix,
        /// The first address.
        usual: Ipv6Addr,
    },
    /// The IPv6 gateway has its place.
    #[error(
        "gateway {gateway} is not the first address of IPv6 subnet {prefix}, where the gateway always is; \
         write {usual}, or leave it out"
    )]
    NotFirst6 {
        /// What was asked for.
        gateway: Ipv6Addr,
        /// Its subnet.
        prefix: Ipv6Prefix,
        /// The first address.
        usual: Ipv6Addr,
    },
    /// Not a /64.
    #[error(
        "IPv6 subnet {0} is no /64, which guests need to make addresses; write one such as fd12:3456:789a:1::/64"
    )]
    Size6(Ipv6Prefix),
    /// IPv6 addresses with a meaning of their own.
    #[error(
        "IPv6 subnet {0} lies in {1}, which is not for networks; leave it out to have one picked"
    )]
    Special6(Ipv6Prefix, Ipv6Prefix),
    /// Another network of ours.
    #[error("IPv6 subnet {prefix} overlaps {other} of network `{network}`; choose another")]
    Network6 {
        /// What was asked for.
        prefix: Ipv6Prefix,
        /// What is in the way.
        other: Ipv6Prefix,
        /// Whose that is.
        network: String,
    },
    /// A route of the host.
    #[error(
        "IPv6 subnet {prefix} overlaps the host's route {route} by {interface}; choose another, \
         since what lies behind that route would be out of reach"
    )]
    Route6 {
        /// What was asked for.
        prefix: Ipv6Prefix,
        /// What is in the way.
        route: Ipv6Prefix,
        /// Which interface it leads to.
        interface: String,
    },
    /// The state holds something else than a prefix.
    #[error("the state's own IPv6 prefix cannot be read")]
    Site(#[source] ParsePrefix6Error),
    /// Everything is taken.
    #[error("no free private subnet is left; name one with --subnet")]
    NoneLeft,
}

/// RFC 6890: this host, loopback, link-local, multicast, reserved and broadcast.
const SPECIAL: [([u8; 4], u8); 5] = [
    ([0, 0, 0, 0], 8),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Whether a network may have `subnet` beside the networks (with their names) and the host's routes.
pub fn check_subnet(
    subnet: Ipv4Prefix,
    networks: &[(String, Ipv4Prefix)],
    routes: &[HostRoute],
) -> Result<(), SubnetError> {
    match subnet.len() {
        0..8 => return Err(SubnetError::Size(subnet, "large")),
        31.. => return Err(SubnetError::Size(subnet, "small")),
        _ => {}
    }
    let special = SPECIAL.iter().filter_map(|(octets, len)| prefix(*octets, *len));
    if let Some(special) = special.into_iter().find(|special| special.overlaps(subnet)) {
        return Err(SubnetError::Special(subnet, special));
    }
    if let Some((network, other)) = networks.iter().find(|(_, other)| other.overlaps(subnet)) {
        return Err(SubnetError::Network { subnet, other: *other, network: network.clone() });
    }
    if let Some(route) = routes.iter().find(|route| route.prefix.overlaps(subnet)) {
        return Err(SubnetError::Route {
            subnet,
            route: route.prefix,
            interface: route.interface.clone(),
        });
    }
    Ok(())
}

/// The gateway a network gets when none is named.
pub fn first_gateway(subnet: Ipv4Prefix) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.address().to_bits() + 1)
}

/// The default network's subnet: 10.88.0.0/16, or the first of 10.89–10.99/16 that clashes with nothing,
/// or any other. Where a broad route covers everything private (some VPNs), a workload's network beats
/// it: then 10.88.0.0/16 hides that part of it from workloads only.
pub fn default_subnet(routes: &[HostRoute]) -> Ipv4Prefix {
    let first = prefix([10, 88, 0, 0], 16).expect("a length below 33");
    if check_subnet(first, &[], routes).is_ok() {
        return first;
    }
    pick_subnet(&[], routes).unwrap_or(first)
}

/// The first free subnet for a network that named none.
pub fn pick_subnet(
    networks: &[(String, Ipv4Prefix)],
    routes: &[HostRoute],
) -> Result<Ipv4Prefix, SubnetError> {
    let ten = (89..=255).filter_map(|octet| prefix([10, octet, 0, 0], 16));
    let carrier = (16..=31).filter_map(|octet| prefix([172, octet, 0, 0], 16));
    let home = (0..=255).rev().filter_map(|octet| prefix([192, 168, octet, 0], 24));
    ten.chain(carrier)
        .chain(home)
        .find(|candidate| check_subnet(*candidate, networks, routes).is_ok())
        .ok_or(SubnetError::NoneLeft)
}

fn prefix(octets: [u8; 4], len: u8) -> Option<Ipv4Prefix> {
    Ipv4Prefix::containing(octets.into(), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> HostRoute {
        HostRoute { prefix: text.parse().unwrap(), interface: "eth0".into() }
    }

    #[test]
    fn the_default_network_moves_aside_for_a_route_of_the_host() {
        assert_eq!(default_subnet(&[]).to_string(), "10.88.0.0/16");
        assert_eq!(default_subnet(&[route("10.88.0.0/16")]).to_string(), "10.89.0.0/16");
        assert_eq!(
            default_subnet(&[route("10.88.7.0/24"), route("10.88.0.0/15")]).to_string(),
            "10.90.0.0/16"
        );
        assert_eq!(default_subnet(&[route("10.0.0.0/8")]).to_string(), "172.16.0.0/16");
    }

    #[test]
    fn an_unnamed_subnet_is_the_first_that_clashes_with_nothing() {
        let networks = [("a".to_owned(), "10.89.0.0/16".parse().unwrap())];
        let picked = pick_subnet(&networks, &[route("10.90.1.0/24")]).unwrap();
        assert_eq!(picked.to_string(), "10.91.0.0/16");
    }

    #[test]
    fn what_cannot_be_a_network_is_refused() {
        let networks = [("a".to_owned(), "10.89.0.0/16".parse().unwrap())];
        for text in [
            "10.0.0.0/7",
            "10.1.2.0/31",
            "10.1.2.3/32",
            "127.1.0.0/16",
            "169.254.0.0/24",
            "224.0.0.0/8",
            "255.0.0.0/8",
            "10.89.3.0/24",
            "10.88.0.0/15",
            "192.168.1.0/24",
        ] {
            let subnet = text.parse().unwrap();
            assert!(check_subnet(subnet, &networks, &[route("192.168.0.0/16")]).is_err(), "{text}");
        }
        assert!(check_subnet("10.1.2.0/30".parse().unwrap(), &networks, &[]).is_ok());
    }
}
