//! Neighbour discovery at the gateway (RFC 4861, 4862): it answers for itself and for every neighbour from the
//! directory, tells who asks of its router, and notes which addresses a guest uses.
//!
//! No solicitation reaches another guest and nothing is sent to groups, so nobody can be asked to death. A
//! guest's probe of an address that nobody has is how it takes the address (see `switch::addresses`).

use std::net::Ipv6Addr;
use std::time::Duration;

use super::names::NameService;
use super::nat64;
use super::{Gateway, GatewayContext};
use crate::command::NetworkSpec;
use crate::counters::DropReason;
use crate::host::Host;
use crate::ids::MacAddr;
use crate::port::Port;
use crate::port::to_guest::ToGuest;
use crate::switch::addresses::Claim;
use crate::switch::directory::NetworkView;
use crate::time::Instant;
use crate::wire::headers::Ipv6;
use crate::wire::icmp6;
use crate::wire::ndp::{
    ALL_NODES, Advertisement, GATEWAY_LINK_LOCAL, HOP_LIMIT, Ndp, Occasion, Role,
    RouterAdvertisement,
};

/// How long the gateway is a default router after one advertisement (RFC 4861 6.2.1 has the default).
const ROUTER_LIFETIME: Duration = Duration::from_secs(1800);
/// How long prefix and resolver are good.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// Between two advertisements that nobody asked for (RFC 4861 6.2.1: at most 600 s).
const INTERVAL: Duration = Duration::from_secs(450);

/// When a guest is told of its router without asking. Only guests that have asked once are: the others were
/// given everything when their interface was made.
#[derive(Debug, Default)]
pub(super) struct Advertiser {
    next: Option<Instant>,
}

impl Advertiser {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}

impl<H: Host> Gateway<H> {
    /// Takes a message of neighbour discovery, which the guard has let through.
    pub(super) fn handle_ndp<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv6,
        ndp: &Ndp,
    ) {
        match *ndp {
            Ndp::RouterSolicitation { .. } => {
                let to = if ip.source.is_unspecified() { ALL_NODES } else { ip.source };
                if !cx.port.attachment.is_tap() {
                    self.advertiser.next = Some(cx.flow.now + INTERVAL);
                }
                let router = cx.port.default_route;
                advertise_router(&mut cx.flow.to_guest, &cx.network.spec, router, to);
            }
            Ndp::NeighbourSolicitation { target, .. } => handle_solicitation(cx, ip, target),
            Ndp::NeighbourAdvertisement { target, .. } => {
                cx.own.note_use(cx.flow.now, cx.port, target);
            }
            Ndp::FromRouter => cx.drop(DropReason::RouterGuard),
        }
    }

    /// Tells the guest of its router again, when that is due.
    pub fn advertise<P: Port>(
        &mut self,
        now: Instant,
        to_guest: &mut ToGuest<'_, P>,
        network: &NetworkSpec,
        default_route: bool,
    ) {
        if self.advertiser.next.is_some_and(|next| next <= now) {
            self.advertiser.next = Some(now + INTERVAL);
            advertise_router(to_guest, network, default_route, ALL_NODES);
        }
    }

    /// Another guest may come: it will ask for its router.
    pub fn forget_guest(&mut self) {
        self.advertiser.next = None;
    }
}

fn handle_solicitation<P: Port, H: Host, N>(
    cx: &mut GatewayContext<'_, P, H, N>,
    ip: &Ipv6,
    target: Ipv6Addr,
) {
    let occasion = if ip.source.is_unspecified() { Occasion::Tried } else { Occasion::Asked };
    let owner = owner_of(cx.network, target).filter(|(mac, _)| *mac != cx.port.mac);
    match (owner, occasion) {
        (Some((mac, role)), _) => {
            let to = if occasion == Occasion::Tried { ALL_NODES } else { ip.source };
            let message = Advertisement { target, mac, role, occasion }.emit();
            send(&mut cx.flow.to_guest, (target, to), message);
        }
        // Who probes an address that nobody has is answered by silence, and has it (RFC 4862 5.4).
        (None, Occasion::Tried) => {
            match cx.own.claim(cx.flow.now, cx.port, target) {
                Claim::Granted => {}
                Claim::Refused => cx.drop(DropReason::AddressBudget),
                // Not this guest's to take. So it hears that the address is taken, and not silence later.
                Claim::Reserved => {
                    let mac = cx.network.spec.gateway_mac;
                    let message = Advertisement { target, mac, role: Role::Host, occasion }.emit();
                    send(&mut cx.flow.to_guest, (target, ALL_NODES), message);
                }
            }
        }
        (None, Occasion::Asked) if cx.own.has(cx.port, target) => {}
        (None, Occasion::Asked) => cx.drop(DropReason::NdpUnknown),
    }
}

fn owner_of(network: &NetworkView, address: Ipv6Addr) -> Option<(MacAddr, Role)> {
    if address == GATEWAY_LINK_LOCAL || network.spec.gateway6() == Some(address) {
        Some((network.spec.gateway_mac, Role::Router))
    } else {
        network.member6(address).map(|member| (member.mac, Role::Host))
    }
}

fn advertise_router<P: Port>(
    to_guest: &mut ToGuest<'_, P>,
    network: &NetworkSpec,
    default_route: bool,
    to: Ipv6Addr,
) {
    let (Some(prefix), Some(resolver)) = (network.prefix6, network.gateway6()) else { return };
    let is_router = default_route && !network.internal;
    let search = format!("{}.internal", network.name);
    let message = RouterAdvertisement {
        mac: network.gateway_mac,
        router_lifetime: if is_router { ROUTER_LIFETIME } else { Duration::ZERO },
        prefix,
        lifetime: LIFETIME,
        mtu: network.mtu,
        resolver,
        search: &search,
        nat64: network.nat64.then(nat64::prefix),
    }
    .emit();
    send(to_guest, (GATEWAY_LINK_LOCAL, to), message);
}

/// Sends a message of neighbour discovery in a frame of its own: to a group, it goes to the group's address.
fn send<P: Port>(
    to_guest: &mut ToGuest<'_, P>,
    (from, to): (Ipv6Addr, Ipv6Addr),
    message: Vec<u8>,
) {
    let destination =
        if to.is_multicast() { MacAddr::for_ipv6_multicast(to) } else { to_guest.guest_mac };
    let mut frame = destination.0.to_vec();
    frame.extend_from_slice(&to_guest.gateway_mac.0);
    frame.extend_from_slice(&[0x86, 0xdd]);
    frame.append(&mut icmp6::packet((from, to), HOP_LIMIT, message));
    to_guest.send_ethernet(&frame);
}
