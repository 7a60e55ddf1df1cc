//! NAT64's addresses (RFC 6052): an IPv6 address under the well-known prefix stands for the IPv4 address in its last
//! 32 bits.
//!
//! Nothing is translated packet by packet: every flow ends here, and of one to such an address the host's socket is
//! IPv4's. So all there is to do is to say which address a flow is meant for, before that is judged
//! ([`destination`](super::destination)), and as whom a router of IPv4 is shown to the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::command::NetworkSpec;
use crate::ids::Ipv6Prefix;
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::ipv6::{IPV6_LEN, MIN_MTU};

/// The well-known prefix, 64:ff9b::/96 (RFC 6052 2.1), without the IPv4 address.
const WELL_KNOWN: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// A guest's packet of IPv6 that is longer than this leaves as one of IPv4 that nobody may cut (RFC 7915 5.1); a shorter
/// one may be cut, since no link of IPv6 is narrower and its sender would not make it smaller.
pub const MAY_BE_CUT: usize = MIN_MTU as usize;
const _: () = assert!(MAY_BE_CUT - IPV6_LEN + IPV4_LEN == 1260);

/// The well-known prefix, as guests are told it.
pub fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::containing(WELL_KNOWN, 96).expect("96 bits of 128")
}

/// The address that stands for one of IPv4.
pub fn embed(ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(WELL_KNOWN.to_bits() | u128::from(ip.to_bits()))
}

/// The IPv4 address that one of IPv6 stands for.
pub fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = ip.octets();
    prefix().contains(ip).then(|| Ipv4Addr::new(a, b, c, d))
}

/// What a guest's destination means on its network: with NAT64, what stands for an IPv4 address is that address.
pub fn meant(network: &NetworkSpec, to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V6(ip) if network.nat64 => embedded(ip).map_or(to, IpAddr::V4),
        _ => to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::specs::network;

    /// RFC 6052 2.4: 192.0.2.33 is 64:ff9b::192.0.2.33.
    #[test]
    fn an_ipv4_address_is_the_last_bits_of_one_under_the_prefix() {
        let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 33), "64:ff9b::192.0.2.33".parse().unwrap());
        assert_eq!(embed(v4), v6);
        assert_eq!(embedded(v6), Some(v4));
        assert_eq!(prefix().to_string(), "64:ff9b::/96");
        for other in ["64:ff9b:1::c000:221", "64:ff9b::1:c000:221", "65:ff9b::c000:221", "::"] {
            assert_eq!(embedded(other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn only_a_network_with_nat64_means_the_ipv4_address() {
        let to = "64:ff9b::192.0.2.33".parse().unwrap();
        let mut spec = network(1, "bridge", 88);
        assert_eq!(meant(&spec, to), to);
        spec.nat64 = true;
        assert_eq!(meant(&spec, to), "192.0.2.33".parse::<IpAddr>().unwrap());
        for other in ["2001:db8::1", "192.0.2.1", "64:ff9b:1::c000:221"] {
            let other = other.parse().unwrap();
            assert_eq!(meant(&spec, other), other);
        }
    }
}
