//! Which IPv6 prefix a network gets, and which it may not have.

use std::net::Ipv6Addr;

use lichen_netstack::ids::Ipv6Prefix;

use super::host_routes::HostRoute6;
use super::subnets::SubnetError;

/// What is not for networks: addresses without a network, IPv4 in disguise, link-local and site-local ones, groups
/// (RFC 4291), translated and relayed ones (RFC 6052, RFC 3056).
const SPECIAL: [(u128, u8); 6] = [
    (0, 8),
    (0x0064_ff9b << 96, 96),
    (0x2002 << 112, 16),
    (0xfe80 << 112, 10),
    (0xfec0 << 112, 10),
    (0xff00 << 112, 8),
];

/// Whether a network may have `prefix` beside the networks (with their names) and the host's routes. It is a
/// /64, because guests make addresses of their own in it (RFC 7421).
pub fn check_prefix6(
    prefix: Ipv6Prefix,
    networks: &[(String, Ipv6Prefix)],
    routes: &[HostRoute6],
) -> Result<(), SubnetError> {
    if prefix.len() != 64 {
        return Err(SubnetError::Size6(prefix));
    }
    let special = SPECIAL
        .iter()
        .filter_map(|(bits, len)| Ipv6Prefix::containing(Ipv6Addr::from_bits(*bits), *len));
    if let Some(special) = special.into_iter().find(|special| special.overlaps(prefix)) {
        return Err(SubnetError::Special6(prefix, special));
    }
    if let Some((network, other)) = networks.iter().find(|(_, other)| other.overlaps(prefix)) {
        return Err(SubnetError::Network6 { prefix, other: *other, network: network.clone() });
    }
    if let Some(route) = routes.iter().find(|route| route.prefix.overlaps(prefix)) {
        return Err(SubnetError::Route6 {
            prefix,
            route: route.prefix,
            interface: route.interface.clone(),
        });
    }
    Ok(())
}

/// The gateway of a network is the first address of its prefix: who is told of it knows it as resolver and as
/// `gateway`, while routes lead to its link-local address.
pub fn check_gateway6(prefix: Ipv6Prefix, gateway: Ipv6Addr) -> Result<(), SubnetError> {
    let usual = prefix.with_interface_id(1);
    match gateway {
        _ if gateway == usual => Ok(()),
        _ if prefix.contains(gateway) => Err(SubnetError::NotFirst6 { gateway, prefix, usual }),
        _ => Err(SubnetError::Gateway6 { gateway, prefix, usual }),
    }
}

/// The first free /64 of this installation's own /48. Chance has made that one, so no route is in its way.
pub fn pick_prefix6(
    site: Ipv6Prefix,
    networks: &[(String, Ipv6Prefix)],
) -> Result<Ipv6Prefix, SubnetError> {
    (1..=u128::from(u16::MAX))
        .filter_map(|subnet| {
            let bits = site.address().to_bits() | subnet << 64;
            Ipv6Prefix::containing(Ipv6Addr::from_bits(bits), 64)
        })
        .find(|prefix| networks.iter().all(|(_, other)| !other.overlaps(*prefix)))
        .ok_or(SubnetError::NoneLeft)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Ipv6Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_free_prefix_of_the_site_is_picked() {
        let site = prefix("fd12:3456:789a::/48");
        let taken = [("a".to_owned(), prefix("fd12:3456:789a:1::/64"))];
        assert_eq!(pick_prefix6(site, &[]).unwrap().to_string(), "fd12:3456:789a:1::/64");
        assert_eq!(pick_prefix6(site, &taken).unwrap().to_string(), "fd12:3456:789a:2::/64");
    }

    #[test]
    fn a_gateway_is_the_first_address_of_its_prefix_or_refused_with_that() {
        let prefix = prefix("fd12:3456:789a:1::/64");
        let told = |gateway: &str| {
            let checked = check_gateway6(prefix, gateway.parse().unwrap());
            checked.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(told("fd12:3456:789a:1::1"), "");
        for (gateway, reason) in [
            ("fd12:3456:789a:2::1", "does not lie in"),
            ("10::1", "does not lie in"),
            ("fe80::1", "does not lie in"),
            ("fd12:3456:789a:1::", "is not the first address of"),
            ("fd12:3456:789a:1::2", "is not the first address of"),
        ] {
            let told = told(gateway);
            assert!(told.contains(reason) && told.contains("fd12:3456:789a:1::1"), "{told}");
        }
    }

    #[test]
    fn what_cannot_be_a_network_is_refused() {
        let networks = [("a".to_owned(), prefix("fd12:3456:789a:1::/64"))];
        let route = HostRoute6 { prefix: prefix("2001:db8:1::/48"), interface: "eth0".into() };
        for text in [
            "fd12::/48",
            "fd12::/96",
            "::/64",
            "0:0:0:1::/64",
            "fe80::/64",
            "ff02::/64",
            "2002:c000:201:1::/64",
            "fd12:3456:789a:1::/64",
            "2001:db8:1:5::/64",
        ] {
            let refused = check_prefix6(prefix(text), &networks, std::slice::from_ref(&route));
            assert!(refused.is_err(), "{text}");
        }
        for text in ["fd12:3456:789a:2::/64", "2001:db8:2::/64"] {
            let allowed = check_prefix6(prefix(text), &networks, std::slice::from_ref(&route));
            assert_eq!(allowed, Ok(()), "{text}");
        }
    }
}
