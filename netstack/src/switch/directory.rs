//! Who is where: every network with its members, immutable, swapped whole when anything changes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::command::{NetworkSpec, PortSpec};
use crate::ids::{Ipv4Prefix, Ipv6Prefix, MacAddr, NetworkId, PortId};

/// Where a port lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which worker owns it.
    pub worker: u16,
    /// Which of its slots.
    pub slot: u16,
    /// Which port that is: a slot may have had another tenant when a frame was sent on its way.
    pub port: PortId,
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
    by_address6: Map<Ipv6Addr, Member>,
    by_name6: Map<String, Vec<Ipv6Addr>>,
    /// Where a port is reached over IPv6.
    by_port6: Map<PortId, Ipv6Addr>,
}

/// A network's name and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPrefixes {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses.
    pub subnet: Ipv4Prefix,
    /// Its IPv6 addresses.
    pub prefix6: Option<Ipv6Prefix>,
}

impl NamedPrefixes {
    /// Whether an address is one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.subnet.contains(address),
            IpAddr::V6(address) => self.prefix6.is_some_and(|prefix| prefix.contains(address)),
        }
    }
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

    /// Adds the IPv6 addresses that a port's guest has shown to use. One that is another's stays so.
    pub fn add_used(&mut self, port: &PortSpec, used: &[Ipv6Addr]) {
        if let Some(network) = self.networks.get_mut(&port.network) {
            network.add_used(port, used);
        }
    }

    /// Whether an address belongs to any network of ours.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                self.networks.values().any(|network| network.spec.subnet.contains(address))
            }
            IpAddr::V6(address) => self
                .networks
                .values()
                .any(|network| network.spec.prefix6.is_some_and(|prefix| prefix.contains(address))),
        }
    }

    /// Every network's name and addresses.
    pub fn names_and_subnets(&self) -> impl Iterator<Item = NamedPrefixes> + '_ {
        self.networks.values().map(|network| NamedPrefixes {
            name: network.spec.name.clone(),
            subnet: network.spec.subnet,
            prefix6: network.spec.prefix6,
        })
    }
}

impl NetworkView {
    /// A network without members.
    pub fn new(spec: NetworkSpec) -> Self {
        Self {
            spec,
            by_mac: Map::default(),
            by_address: Map::default(),
            by_name: Map::default(),
            by_address6: Map::default(),
            by_name6: Map::default(),
            by_port6: Map::default(),
        }
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
        // A tap's kernel has been given its address by ourselves. Whether a virtual machine speaks IPv6 it has to
        // show first: nobody should wait for an answer that never comes.
        if port.attachment.is_tap()
            && let Some(address) = port.address6
        {
            self.add_used(port, &[address, port.mac.link_local()]);
        }
    }

    fn add_used(&mut self, port: &PortSpec, used: &[Ipv6Addr]) {
        let Some(prefix) = self.spec.prefix6 else { return };
        let member = Member { mac: port.mac, name: port.name.to_ascii_lowercase() };
        for address in used {
            self.by_address6.entry(*address).or_insert_with(|| member.clone());
        }
        let has = |address: &Ipv6Addr| {
            prefix.contains(*address)
                && self.by_address6.get(address).is_some_and(|owner| owner.mac == port.mac)
        };
        let named = [port.address6, port.slaac_address()].into_iter().flatten().find(has);
        let Some(named) = named else { return };
        self.by_port6.insert(port.id, named);
        for name in std::iter::once(&port.name).chain(&port.aliases) {
            let addresses = self.by_name6.entry(name.to_ascii_lowercase()).or_default();
            if !addresses.contains(&named) {
                addresses.push(named);
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

    /// The port with that IPv6 address.
    pub fn member6(&self, address: Ipv6Addr) -> Option<&Member> {
        self.by_address6.get(&address)
    }

    /// The IPv6 addresses of a workload or alias, by its lower-case name.
    pub fn addresses6_of(&self, name: &str) -> &[Ipv6Addr] {
        self.by_name6.get(name).map_or(&[], Vec::as_slice)
    }

    /// Where a port is reached over IPv6, if its guest speaks that.
    pub fn address6_of(&self, port: PortId) -> Option<Ipv6Addr> {
        self.by_port6.get(&port).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Attachment;
    use crate::ids::MacAddr;

    fn network() -> NetworkSpec {
        NetworkSpec {
            id: NetworkId(1),
            name: "bridge".into(),
            subnet: "10.88.0.0/16".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            prefix6: Some("fd00:0:0:1::/64".parse().unwrap()),
            gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            internal: false,
            nat64: false,
        }
    }

    fn port(id: u32, attachment: Attachment) -> PortSpec {
        let host = u8::try_from(id + 1).unwrap();
        PortSpec {
            id: PortId(id),
            network: NetworkId(1),
            name: format!("w{id}"),
            aliases: vec![],
            mac: MacAddr([2, 0x4c, 10, 88, 0, host]),
            address: Ipv4Addr::new(10, 88, 0, host),
            address6: Some(format!("fd00:0:0:1::{host:x}").parse().unwrap()),
            default_route: true,
            allow_host: vec![],
            attachment,
        }
    }

    #[test]
    fn a_virtual_machine_has_an_ipv6_name_once_it_has_shown_an_address() {
        let (tap, vm) = (port(1, Attachment::TAP), port(2, Attachment::VhostUser));
        let place = Location { worker: 0, slot: 0, port: tap.id };
        let make = || Directory::new([&network()], [(&tap, place), (&vm, place)]);
        let names = |directory: &Directory, name: &str| {
            directory.network(NetworkId(1)).unwrap().addresses6_of(name).to_vec()
        };
        assert_eq!(names(&make(), "w1"), [tap.address6.unwrap()]);
        assert!(names(&make(), "w2").is_empty());
        let mut directory = make();
        let own = vm.slaac_address().unwrap();
        directory.add_used(&vm, &[vm.mac.link_local(), own]);
        assert_eq!(names(&directory, "w2"), [own], "the one that it made itself");
        let mut directory = make();
        directory.add_used(&vm, &[own, vm.address6.unwrap()]);
        assert_eq!(names(&directory, "w2"), [vm.address6.unwrap()], "the fixed one before it");
    }

    #[test]
    fn an_address_stays_whose_it_was_first() {
        let (tap, vm) = (port(1, Attachment::TAP), port(2, Attachment::VhostUser));
        let place = Location { worker: 0, slot: 0, port: tap.id };
        let mut directory = Directory::new([&network()], [(&tap, place), (&vm, place)]);
        directory.add_used(&vm, &[tap.address6.unwrap(), tap.mac.link_local()]);
        let network = directory.network(NetworkId(1)).unwrap();
        assert_eq!(network.member6(tap.address6.unwrap()).unwrap().mac, tap.mac);
        assert_eq!(network.member6(tap.mac.link_local()).unwrap().mac, tap.mac);
        assert_eq!(network.address6_of(vm.id), None);
    }
}
