//! What a network knows of itself.

use std::net::Ipv4Addr;

/// One network's own names and addresses.
pub trait Catalog {
    /// The network's name: the label of its zone under `internal`.
    fn network(&self) -> &str;
    /// The gateway's address.
    fn gateway(&self) -> Ipv4Addr;
    /// The addresses of a workload or alias, by its lower-case label; none when there is no such name.
    fn addresses_of(&self, label: &str) -> Vec<Ipv4Addr>;
    /// The workload that has an address.
    fn name_of(&self, address: Ipv4Addr) -> Option<String>;
    /// Whether the network's subnet has the address.
    fn contains(&self, address: Ipv4Addr) -> bool;
    /// Whether any network of ours has the address.
    fn is_ours(&self, address: Ipv4Addr) -> bool;
    /// Whether any network of ours has that lower-case name.
    fn is_network(&self, label: &str) -> bool;
    /// Whether foreign names are refused.
    fn is_internal(&self) -> bool;
}
