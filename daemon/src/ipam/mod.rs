//! Which addresses networks and workloads get. Pure: what is taken is an argument.

mod host_routes;
mod prefixes6;
mod subnets;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lichen_netstack::ids::Ipv4Prefix;

pub use host_routes::{HostRoute, HostRoute6, HostRoutes, host_routes};
pub use prefixes6::{check_gateway6, check_prefix6, pick_prefix6};
pub use subnets::{SubnetError, check_subnet, default_subnet, first_gateway, pick_subnet};

/// The lowest address of `subnet` that a workload may have. The network's own address, its broadcast
/// address and the gateway never are (RFC 1122 §3.2.1.3).
pub fn lowest_free(
    subnet: Ipv4Prefix,
    gateway: Ipv4Addr,
    taken: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let first = subnet.address().to_bits().saturating_add(1);
    (first..subnet.broadcast().to_bits())
        .map(Ipv4Addr::from_bits)
        .find(|address| *address != gateway && !taken.contains(address))
}

/// How many addresses of a subnet workloads may have: all but the network's own, its broadcast address and the
/// gateway.
pub fn assignable(subnet: Ipv4Prefix) -> u32 {
    (subnet.broadcast().to_bits() - subnet.address().to_bits()).saturating_sub(2)
}

/// Whether a workload may have that address.
pub fn is_assignable(subnet: Ipv4Prefix, gateway: Ipv4Addr, address: Ipv4Addr) -> bool {
    subnet.contains(address)
        && address != subnet.address()
        && address != subnet.broadcast()
        && address != gateway
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_address_comes_first() {
        let gateway = Ipv4Addr::new(10, 88, 0, 1);
        let mut taken = BTreeSet::new();
        let first = lowest_free(net("10.88.0.0/16"), gateway, &taken).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 88, 0, 2));
        taken.extend([first, Ipv4Addr::new(10, 88, 0, 4)]);
        let next = lowest_free(net("10.88.0.0/16"), gateway, &taken).unwrap();
        assert_eq!(next, Ipv4Addr::new(10, 88, 0, 3));
    }

    #[test]
    fn network_broadcast_and_gateway_address_are_never_given() {
        let gateway = Ipv4Addr::new(10, 0, 0, 2);
        let mut taken = BTreeSet::new();
        while let Some(address) = lowest_free(net("10.0.0.0/29"), gateway, &taken) {
            taken.insert(address);
        }
        let last: Vec<u8> = taken.iter().map(|a| a.octets()[3]).collect();
        assert_eq!(last, [1, 3, 4, 5, 6]);
        assert_eq!(assignable(net("10.0.0.0/29")), 5);
        assert_eq!(
            (assignable(net("10.0.0.0/30")), assignable(net("10.0.0.0/8"))),
            (1, 16_777_213)
        );
    }
}
