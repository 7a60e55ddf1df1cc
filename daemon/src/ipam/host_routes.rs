//! The host's own routes, which no network of ours may cover.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use lichen_netstack::ids::{Ipv4Prefix, Ipv6Prefix};

/// One route of the host's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Where it leads.
    pub prefix: Ipv4Prefix,
    /// By which interface.
    pub interface: String,
}

/// The same in IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute6 {
    /// Where it leads.
    pub prefix: Ipv6Prefix,
    /// By which interface.
    pub interface: String,
}

/// The routes of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// IPv4.
    pub v4: Vec<HostRoute>,
    /// IPv6.
    pub v6: Vec<HostRoute6>,
}

/// The host's routes without the default routes. A host whose tables cannot be read has none.
pub fn host_routes() -> HostRoutes {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    HostRoutes { v4: parse(&read("/proc/net/route")), v6: parse6(&read("/proc/net/ipv6_route")) }
}

/// The format of /proc/net/ipv6_route: `destination length source length gateway metric … interface`, in
/// hexadecimal digits. What leads to the loopback is the host's own addresses and what it rejects.
fn parse6(text: &str) -> Vec<HostRoute6> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = Ipv6Addr::from_bits(u128::from_str_radix(fields.first()?, 16).ok()?);
            let len = u8::from_str_radix(fields.get(1)?, 16).ok()?;
            let prefix = Ipv6Prefix::containing(address, len)?;
            let interface = *fields.get(9)?;
            (len > 0 && interface != "lo")
                .then(|| HostRoute6 { prefix, interface: interface.to_owned() })
        })
        .collect()
}

/// The format of /proc/net/route: a heading, then `interface destination gateway flags … mask …` with
/// addresses as hexadecimal numbers in the host's byte order.
fn parse(text: &str) -> Vec<HostRoute> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = |index: usize| {
                let bits = u32::from_str_radix(fields.get(index)?, 16).ok()?;
                Some(Ipv4Addr::from(bits.to_ne_bytes()))
            };
            let len = u8::try_from(address(7)?.to_bits().leading_ones()).ok()?;
            let prefix = Ipv4Prefix::containing(address(1)?, len)?;
            (len > 0).then(|| HostRoute { prefix, interface: fields[0].to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_and_the_default_route_is_left_out() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            broken\n";
        let prefix = "10.0.2.0/24".parse().unwrap();
        assert_eq!(parse(text), [HostRoute { prefix, interface: "eth0".into() }]);
    }

    #[test]
    fn routes_of_ipv6_are_read_likewise() {
        let gateway = "0".repeat(32);
        let text = format!(
            "20010db8000000010000000000000000 40 {gateway} 00 {gateway} 00000100 00000001 00000000 00000001 eth0\n\
             {gateway} 00 {gateway} 00 {gateway} 00000400 00000001 00000000 00000003 eth0\n\
             20010db8000000010000000000000005 80 {gateway} 00 {gateway} 00000000 00000002 00000000 80200001 lo\n\
             broken\n"
        );
        let prefix = "2001:db8:0:1::/64".parse().unwrap();
        assert_eq!(parse6(&text), [HostRoute6 { prefix, interface: "eth0".into() }]);
    }
}
