//! Which port a frame goes to. The switch never learns and never floods: it knows every address of its
//! network from the directory, so a guest can neither steal traffic nor fill a table.

pub mod directory;
pub mod guard;

use crate::counters::DropReason;
use crate::ids::MacAddr;
use crate::wire::headers::{Headers, Network, Transport};

use self::directory::{Location, NetworkView};

/// Where a guarded frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the gateway, ARP of any kind included: neighbours are answered for, never asked.
    Gateway,
    /// To another port of the same network.
    Port(Location),
    /// Nowhere.
    Drop(DropReason),
}

/// Decides for a frame that the guard has let through.
pub fn decide(network: &NetworkView, source: MacAddr, headers: &Headers) -> Decision {
    if matches!(headers.network, Network::Arp(_)) || headers.destination == network.spec.gateway_mac
    {
        return Decision::Gateway;
    }
    if headers.destination.is_multicast() {
        return Decision::Drop(broadcast_reason(headers));
    }
    match network.location_of(headers.destination) {
        Some(location) if headers.destination != source => Decision::Port(location),
        _ => Decision::Drop(DropReason::UnknownUnicast),
    }
}

/// DHCP has a reason of its own, since someone will look for it.
fn broadcast_reason(headers: &Headers) -> DropReason {
    match headers.network {
        Network::Ipv4(ip) => match ip.transport {
            Transport::Udp(udp) if udp.destination_port == 67 => DropReason::Dhcp,
            _ => DropReason::Broadcast,
        },
        Network::Arp(_) => DropReason::Broadcast,
    }
}
