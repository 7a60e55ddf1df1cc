//! Which port a frame goes to. The switch never learns and never floods: it knows every address of its
//! network from the directory, so a guest can neither steal traffic nor fill a table.

pub mod directory;
pub mod guard;

use crate::counters::DropReason;
use crate::ids::MacAddr;
use crate::wire::dhcp::SERVER_PORT;
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
#[inline(always)]
pub fn decide(network: &NetworkView, source: MacAddr, headers: &Headers) -> Decision {
    if headers.destination == network.spec.gateway_mac || is_for_gateway(network, headers) {
        return Decision::Gateway;
    }
    if headers.destination.is_multicast() {
        return Decision::Drop(DropReason::Broadcast);
    }
    match network.location_of(headers.destination) {
        Some(location) if headers.destination != source => Decision::Port(location),
        _ => Decision::Drop(DropReason::UnknownUnicast),
    }
}

/// What the gateway answers whomever it was sent to: ARP, and a DHCP client's broadcast.
fn is_for_gateway(network: &NetworkView, headers: &Headers) -> bool {
    match headers.network {
        Network::Arp(_) => true,
        Network::Ipv4(ip) => {
            network.spec.is_broadcast(ip.destination)
                && matches!(ip.transport, Transport::Udp(udp) if udp.destination_port == SERVER_PORT)
        }
    }
}
