//! What a network knows of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One network's own names and addresses.
pub trait Catalog {
    /// The network's name: the label of its zone under `internal`.
    fn network(&self) -> &str;
    /// The gateway's address.
    fn gateway(&self) -> Ipv4Addr;
    /// The same in IPv6, where the network has it.
    fn gateway6(&self) -> Option<Ipv6Addr>;
    /// The addresses of a workload or alias, by its lower-case label; none when there is no such name.
    fn addresses_of(&self, label: &str) -> Vec<Ipv4Addr>;
    /// The same in IPv6; a workload that does not speak it has none.
    fn addresses6_of(&self, label: &str) -> Vec<Ipv6Addr>;
    /// The workload that has an address.
    fn name_of(&self, address: IpAddr) -> Option<String>;
    /// Whether the network has the address.
    fn contains(&self, address: IpAddr) -> bool;
    /// Whether any network of ours has the address.
    fn is_ours(&self, address: IpAddr) -> bool;
    /// Whether any network of ours has that lower-case name.
    fn is_network(&self, label: &str) -> bool;
    /// Whether foreign names are refused.
    fn is_internal(&self) -> bool;
    /// Whether a guest reaches IPv4 under 64:ff9b::/96.
    fn has_nat64(&self) -> bool;
}
