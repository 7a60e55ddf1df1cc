//! Who is where: every network with its members, immutable, swapped whole when anything changes.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::command::{NetworkSpec, PortSpec};
use crate::ids::{Ipv4Prefix, MacAddr, NetworkId};

/// Where a port lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which worker owns it.
    pub worker: u16,
    /// Which of that worker's slots.
    pub slot: u16,
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// All networks.
#[derive(Debug, Default)]
pub struct Directory {
    networks: Map<NetworkId, NetworkView>,
}

/// One network with its members.
#[derive(Debug)]
pub struct NetworkView {
    /// Its definition.
    pub spec: NetworkSpec,
    by_mac: Map<MacAddr, Location>,
    by_address: Map<Ipv4Addr, Member>,
    by_name: Map<String, Vec<Ipv4Addr>>,
}

/// What neighbours may know of a port.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its workload's name.
    pub name: String,
}

impl Directory {
    /// The directory of these networks and ports; a port of an unknown network is left out.
    pub fn new<'a>(
        networks: impl IntoIterator<Item = &'a NetworkSpec>,
        ports: impl IntoIterator<Item = (&'a PortSpec, Location)>,
    ) -> Self {
        let mut directory = Self::default();
        for spec in networks {
            directory.networks.insert(spec.id, NetworkView::new(spec.clone()));
        }
        for (port, location) in ports {
            if let Some(network) = directory.networks.get_mut(&port.network) {
                network.add(port, location);
            }
        }
        directory
    }

    /// One network.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkView> {
        self.networks.get(&id)
    }

    /// Whether an address belongs to any network of ours.
    pub fn owns(&self, address: Ipv4Addr) -> bool {
        self.networks.values().any(|network| network.spec.subnet.contains(address))
    }

    /// Every network's name and subnet.
    pub fn names_and_subnets(&self) -> impl Iterator<Item = (String, Ipv4Prefix)> + '_ {
        self.networks.values().map(|network| (network.spec.name.clone(), network.spec.subnet))
    }
}

impl NetworkView {
    /// A network without members.
    pub fn new(spec: NetworkSpec) -> Self {
        Self { spec, by_mac: Map::default(), by_address: Map::default(), by_name: Map::default() }
    }

    fn add(&mut self, port: &PortSpec, location: Location) {
        self.by_mac.insert(port.mac, location);
        self.by_address
            .insert(port.address, Member { mac: port.mac, name: port.name.to_ascii_lowercase() });
        for name in std::iter::once(&port.name).chain(&port.aliases) {
            let addresses = self.by_name.entry(name.to_ascii_lowercase()).or_default();
            if !addresses.contains(&port.address) {
                addresses.push(port.address);
            }
        }
    }

    /// The port with that Ethernet address.
    #[inline]
    pub fn location_of(&self, mac: MacAddr) -> Option<Location> {
        self.by_mac.get(&mac).copied()
    }

    /// The port with that address.
    pub fn member(&self, address: Ipv4Addr) -> Option<&Member> {
        self.by_address.get(&address)
    }

    /// The addresses of a workload or alias, by its lower-case name; empty when there is none.
    pub fn addresses_of(&self, name: &str) -> &[Ipv4Addr] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }
}
