//! The host's own routes, which no network of ours may cover.

use std::fs;
use std::net::Ipv4Addr;

use lichen_netstack::ids::Ipv4Prefix;

/// One route of the host's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Where it leads.
    pub prefix: Ipv4Prefix,
    /// By which interface.
    pub interface: String,
}

/// The host's IPv4 routes without the default route. A host whose table cannot be read has none.
pub fn host_routes() -> Vec<HostRoute> {
    fs::read_to_string("/proc/net/route").map(|text| parse(&text)).unwrap_or_default()
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
}
