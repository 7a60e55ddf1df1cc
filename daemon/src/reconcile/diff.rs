//! From what is to what should be: a pure function, so that any pair can be tested.

use lichen_netstack::command::{ForwardSpec, Inventory, NetworkSpec, PortSpec};
use lichen_netstack::ids::{ForwardId, NetworkId, PortId};

use super::desired::Desired;

/// One change of the datapath.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Close the socket of a published port.
    RemoveForward(ForwardId),
    /// Remove a port; its tap goes.
    RemovePort(PortId),
    /// Remove a network.
    RemoveNetwork(NetworkId),
    /// Make or change a network.
    SetNetwork(NetworkSpec),
    /// Make a port, with its tap opened.
    AddPort(PortSpec),
    /// Change a port that keeps its tap.
    ChangePort(PortSpec),
    /// Publish, with a socket.
    SetForward(ForwardSpec),
    /// Name the resolvers.
    SetResolvers(Vec<std::net::SocketAddr>),
}

/// The steps from `present` to `desired`, in an order in which each is possible: removals first, from the
/// outside in, then additions, from the inside out.
pub(super) fn diff(present: &Inventory, desired: &Desired) -> Vec<Step> {
    let mut steps = Vec::new();
    let kept_port = |port: &PortSpec| {
        desired.ports.iter().any(|wanted| wanted.id == port.id && same_tap(port, wanted))
    };
    let port_goes = |id: PortId| present.ports.iter().any(|p| p.id == id && !kept_port(p));

    for forward in &present.forwards {
        // One that changes in anything is made anew: its socket may be bound elsewhere.
        if !desired.forwards.contains(forward) || port_goes(forward.port) {
            steps.push(Step::RemoveForward(forward.id));
        }
    }
    for port in present.ports.iter().filter(|port| !kept_port(port)) {
        steps.push(Step::RemovePort(port.id));
    }
    for network in &present.networks {
        if !desired.networks.iter().any(|wanted| wanted.id == network.id) {
            steps.push(Step::RemoveNetwork(network.id));
        }
    }
    for network in &desired.networks {
        if !present.networks.contains(network) {
            steps.push(Step::SetNetwork(network.clone()));
        }
    }
    if present.resolvers != desired.resolvers {
        steps.push(Step::SetResolvers(desired.resolvers.clone()));
    }
    for port in &desired.ports {
        match present.ports.iter().find(|there| there.id == port.id && kept_port(there)) {
            Some(there) if there == port => {}
            Some(_) => steps.push(Step::ChangePort(port.clone())),
            None => steps.push(Step::AddPort(port.clone())),
        }
    }
    for forward in &desired.forwards {
        if !present.forwards.contains(forward) || port_goes(forward.port) {
            steps.push(Step::SetForward(forward.clone()));
        }
    }
    steps
}

/// Whether a port's tap is the one that `wanted` means. Numbers alone do not tell: a state directory that
/// was lost begins to count again, beside a datapath that lived on. The MAC follows from the first address;
/// a workload that declined that one keeps its MAC and its tap.
fn same_tap(present: &PortSpec, wanted: &PortSpec) -> bool {
    present.network == wanted.network
        && present.name == wanted.name
        && present.mac == wanted.mac
        && present.attachment == wanted.attachment
}

#[cfg(test)]
mod tests {
    use lichen_netstack::command::{Attachment, HostOpening, SourceRule, Transport};
    use lichen_netstack::ids::MacAddr;

    use super::*;

    fn network(id: u32) -> NetworkSpec {
        NetworkSpec {
            id: NetworkId(id),
            name: format!("net{id}"),
            subnet: "10.88.0.0/16".parse().unwrap(),
            gateway: "10.88.0.1".parse().unwrap(),
            prefix6: None,
            gateway_mac: MacAddr([2; 6]),
            mtu: 1500,
            internal: false,
            nat64: false,
        }
    }

    fn port(id: u32) -> PortSpec {
        PortSpec {
            id: PortId(id),
            network: NetworkId(1),
            name: format!("w{id}"),
            aliases: Vec::new(),
            mac: MacAddr([2, 0, 0, 0, 0, u8::try_from(id).unwrap()]),
            address: std::net::Ipv4Addr::from_bits(0x0a58_0000 + id),
            address6: None,
            default_route: true,
            allow_host: Vec::new(),
            attachment: Attachment::TAP,
        }
    }

    fn forward(id: u32, port: u32) -> ForwardSpec {
        ForwardSpec {
            id: ForwardId(id),
            port: PortId(port),
            target_port: 80,
            protocol: Transport::Tcp,
            bound: "127.0.0.1:8080".parse().unwrap(),
            source: SourceRule::Client,
        }
    }

    fn full() -> Desired {
        Desired {
            networks: vec![network(1)],
            ports: vec![port(1), port(2)],
            forwards: vec![forward(1, 1)],
            resolvers: vec!["127.0.0.53:53".parse().unwrap()],
        }
    }

    fn as_inventory(desired: Desired) -> Inventory {
        Inventory {
            networks: desired.networks,
            ports: desired.ports,
            forwards: desired.forwards,
            resolvers: desired.resolvers,
            links: Vec::new(),
        }
    }

    #[test]
    fn a_port_with_another_address_keeps_its_tap_and_one_with_another_mac_does_not() {
        let mut wanted = full();
        wanted.ports[0].address = "10.88.0.77".parse().unwrap();
        let changed = wanted.ports[0].clone();
        assert_eq!(diff(&as_inventory(full()), &wanted), [Step::ChangePort(changed)]);
        wanted.ports[0].mac = MacAddr([2, 0, 0, 0, 0, 77]);
        let steps = diff(&as_inventory(full()), &wanted);
        assert!(steps.contains(&Step::RemovePort(PortId(1))), "{steps:?}");
    }

    #[test]
    fn nothing_is_done_when_all_is_as_it_should_be() {
        assert_eq!(diff(&as_inventory(full()), &full()), []);
    }

    #[test]
    fn an_empty_datapath_is_given_everything_from_the_inside_out() {
        let steps = diff(&Inventory::default(), &full());
        assert_eq!(
            steps,
            [
                Step::SetNetwork(network(1)),
                Step::SetResolvers(full().resolvers),
                Step::AddPort(port(1)),
                Step::AddPort(port(2)),
                Step::SetForward(forward(1, 1)),
            ]
        );
    }

    #[test]
    fn what_is_no_longer_wanted_goes_from_the_outside_in() {
        let steps = diff(&as_inventory(full()), &Desired::default());
        assert_eq!(
            steps,
            [
                Step::RemoveForward(ForwardId(1)),
                Step::RemovePort(PortId(1)),
                Step::RemovePort(PortId(2)),
                Step::RemoveNetwork(NetworkId(1)),
                Step::SetResolvers(Vec::new()),
            ]
        );
    }

    #[test]
    fn a_port_that_only_changes_its_openings_keeps_its_tap() {
        let mut wanted = full();
        wanted.ports[0].allow_host.push(HostOpening { port: 5432, protocol: Transport::Tcp });
        let steps = diff(&as_inventory(full()), &wanted);
        assert_eq!(steps, [Step::ChangePort(wanted.ports[0].clone())]);
    }

    #[test]
    fn a_port_of_the_same_number_but_another_workload_is_made_anew_with_its_forwards() {
        let mut wanted = full();
        wanted.ports[0].name = "other".into();
        let steps = diff(&as_inventory(full()), &wanted);
        assert_eq!(
            steps,
            [
                Step::RemoveForward(ForwardId(1)),
                Step::RemovePort(PortId(1)),
                Step::AddPort(wanted.ports[0].clone()),
                Step::SetForward(forward(1, 1)),
            ]
        );
    }
}
