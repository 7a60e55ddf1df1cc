//! Which port a frame goes to. The switch never learns and never floods: it knows every address of its
//! network from the directory, so a guest can neither steal traffic nor fill a table.

pub mod addresses;
pub mod directory;
pub mod fast_lane;
pub mod guard;

use crate::command::PortSpec;
use crate::counters::DropReason;
use crate::frame::vnet_header::{VNET_LEN, VnetHeader};
use crate::ids::MacAddr;
use crate::wire::ETHERNET_LEN;
use crate::wire::dhcp::SERVER_PORT;
use crate::wire::dhcp6;
use crate::wire::headers::{Headers, Ipv6, Network, Transport};
use crate::wire::icmp6;
use crate::wire::ndp::{ALL_NODES, ALL_ROUTERS};

use self::addresses::OwnAddresses;
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

/// A frame that may go where it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What it is.
    pub headers: Headers,
    /// What is left to be done of it.
    pub vnet: VnetHeader,
    /// Where it goes.
    pub decision: Decision,
}

/// Judges a frame of `port`, which starts with its virtio-net header: whether it is the port's own, is sound,
/// and where it goes.
pub fn judge(
    port: &PortSpec,
    own: &OwnAddresses,
    network: &NetworkView,
    frame: &[u8],
) -> Result<Judged, DropReason> {
    let (vnet, frame) = frame.split_first_chunk::<VNET_LEN>().ok_or(DropReason::L2Runt)?;
    if frame.len() < ETHERNET_LEN {
        return Err(DropReason::L2Runt);
    }
    let source = MacAddr(frame[6..12].try_into().expect("six bytes"));
    guard::check_source(port.mac, source)?;
    let vnet = VnetHeader::parse(vnet)?;
    let headers = Headers::parse(frame, vnet.checksum_state())?;
    vnet.check(&headers, frame.len(), network.spec.mtu)?;
    guard::check(port, own, &headers)?;
    Ok(Judged { headers, vnet, decision: decide(network, port.mac, &headers) })
}

/// Decides for a frame that the guard has let through.
fn decide(network: &NetworkView, source: MacAddr, headers: &Headers) -> Decision {
    if headers.destination == network.spec.gateway_mac || is_for_gateway(network, headers) {
        return Decision::Gateway;
    }
    if headers.destination.is_multicast() {
        return Decision::Drop(multicast_reason(headers));
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
        Network::Ipv6(ip) => is_for_router(&ip),
    }
}

/// Neighbour discovery of any kind: neighbours are answered for. And what a host asks all routers or servers.
fn is_for_router(ip: &Ipv6) -> bool {
    let to_server = ip.destination == dhcp6::ALL_SERVERS
        && matches!(ip.transport, Transport::Udp(udp) if udp.destination_port == dhcp6::SERVER_PORT);
    let to_all = matches!(ip.destination, ALL_NODES | ALL_ROUTERS)
        && matches!(ip.transport, Transport::Icmp(icmp) if icmp.kind == icmp6::ECHO_REQUEST);
    ip.ndp.is_some() || to_server || to_all
}

fn multicast_reason(headers: &Headers) -> DropReason {
    match headers.network {
        Network::Ipv6(Ipv6 { transport: Transport::Icmp(icmp), .. })
            if icmp6::MULTICAST_LISTENER.contains(&icmp.kind) =>
        {
            DropReason::MulticastListener
        }
        _ => DropReason::Broadcast,
    }
}
