//! Definitions of networks and ports, as tests need them; what they need otherwise they change.

use std::net::Ipv4Addr;

use crate::command::{Attachment, NetworkSpec, PortSpec};
use crate::ids::{MacAddr, NetworkId, PortId};

/// The network 10.`second`.0.0/16 without IPv6.
pub fn network(id: u32, name: &str, second: u8) -> NetworkSpec {
    let gateway = Ipv4Addr::new(10, second, 0, 1);
    NetworkSpec {
        id: NetworkId(id),
        name: name.to_owned(),
        subnet: format!("10.{second}.0.0/16").parse().expect("a subnet"),
        gateway,
        prefix6: None,
        gateway_mac: MacAddr::for_ipv4(gateway),
        mtu: 1500,
        internal: false,
        nat64: false,
    }
}

/// A port on network 1 without IPv6, with the MAC that follows from its address.
pub fn port(id: u32, name: &str, address: Ipv4Addr, attachment: Attachment) -> PortSpec {
    PortSpec {
        id: PortId(id),
        network: NetworkId(1),
        name: name.to_owned(),
        aliases: Vec::new(),
        mac: MacAddr::for_ipv4(address),
        address,
        address6: None,
        default_route: true,
        allow_host: Vec::new(),
        attachment,
    }
}
