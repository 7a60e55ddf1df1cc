//! Where a guest's packet may go beyond its own network: closed towards the host and other networks by
//! default, open to everywhere else. And as whom a guest sees who comes in by a published port.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::flow::ForwardSource;
use super::names::NAMES_PORT;
use crate::command::{HostOpening, PortSpec, SourceRule, Transport};
use crate::counters::DropReason;
use crate::host::Route;
use crate::switch::directory::{Directory, NetworkView};

/// Addresses at which clouds serve credentials to whoever asks (169.254/16 is refused whole).
const METADATA: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a server; on the host's loopback only where the workload has an opening.
    Host(SocketAddr),
    /// To the network's name service.
    Names,
    /// Nowhere.
    Refused(DropReason),
}

/// Judges the destination of a new flow. `route` asks the host, and is only asked when it matters.
pub fn judge(
    port: &PortSpec,
    network: &NetworkView,
    directory: &Directory,
    transport: Transport,
    to: SocketAddrV4,
    route: impl FnOnce(Ipv4Addr) -> Route,
) -> Destination {
    if *to.ip() == network.spec.gateway {
        return at_gateway(port, transport, to.port());
    }
    match address(network, directory, *to.ip(), route) {
        Ok(()) => Destination::Host(SocketAddr::V4(to)),
        Err(reason) => Destination::Refused(reason),
    }
}

fn at_gateway(port: &PortSpec, transport: Transport, number: u16) -> Destination {
    if port.allow_host.contains(&HostOpening { port: number, protocol: transport }) {
        Destination::Host(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))
    } else if number == NAMES_PORT {
        Destination::Names
    } else {
        Destination::Refused(DropReason::GatewayPort)
    }
}

/// Judges an address that is not the gateway's.
pub fn address(
    network: &NetworkView,
    directory: &Directory,
    to: Ipv4Addr,
    route: impl FnOnce(Ipv4Addr) -> Route,
) -> Result<(), DropReason> {
    if to.is_link_local() || METADATA.contains(&to) {
        return Err(DropReason::Metadata);
    }
    match to.octets()[0] {
        0 | 127 => return Err(DropReason::HostAddress),
        224.. => return Err(DropReason::Broadcast),
        _ => {}
    }
    if network.spec.subnet.contains(to) {
        return Err(DropReason::NoRoute);
    }
    if directory.owns(to) {
        return Err(DropReason::OtherNetwork);
    }
    if network.spec.internal {
        return Err(DropReason::Internal);
    }
    match route(to) {
        Route::Unicast => Ok(()),
        Route::Local => Err(DropReason::HostAddress),
        Route::Broadcast => Err(DropReason::Broadcast),
        Route::Unreachable => Err(DropReason::NoRoute),
    }
}

/// As whom a guest sees a client of a published port: as itself where the guest can answer it, else as the
/// gateway.
pub fn forward_source(
    port: &PortSpec,
    network: &NetworkView,
    directory: &Directory,
    rule: SourceRule,
    client: SocketAddr,
) -> ForwardSource {
    match client {
        SocketAddr::V4(client)
            if rule == SourceRule::Client
                && port.default_route
                && !network.spec.internal
                && can_be_answered(client, directory) =>
        {
            ForwardSource::Client(client)
        }
        _ => ForwardSource::Gateway(network.spec.gateway),
    }
}

/// Whether a guest whose default route is this network can answer a client at its own address. A Linux
/// guest drops what comes from 127.0.0.1 as a martian, and an address of ours would be answered elsewhere.
fn can_be_answered(client: SocketAddrV4, directory: &Directory) -> bool {
    let ip = *client.ip();
    let unroutable = ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_broadcast()
        || client.port() == 0;
    !unroutable && !directory.owns(ip)
}
