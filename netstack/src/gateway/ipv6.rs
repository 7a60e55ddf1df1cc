//! A guest's IPv6 packet on its way into the gateway: what only IPv6 has is done here (RFC 8200), and what is
//! left takes the way of IPv4's.

use std::net::SocketAddr;

use super::destination::is_gateway;
use super::flow::udp::send_to_guest;
use super::names::NameService;
use super::packet::Packet;
use super::{Gateway, GatewayContext, tell};
use crate::counters::DropReason;
use crate::frame::vnet_header::{GsoKind, VnetHeader};
use crate::host::Host;
use crate::port::Port;
use crate::wire::ETHERNET_LEN;
use crate::wire::dhcp6;
use crate::wire::headers::{ChecksumState, Ipv6, Transport, parse_transport6};
use crate::wire::icmp::IcmpError;
use crate::wire::icmp6::{self, MULTICAST_LISTENER, ParameterProblem};
use crate::wire::ipv6::{IPV6_LEN, UnknownAction, UnknownOption, is_empty};
use crate::wire::ndp::GATEWAY_LINK_LOCAL;
use crate::wire::reassembly::Outcome;
use crate::wire::udp::UDP_LEN;

impl<H: Host> Gateway<H> {
    /// Takes a guest's IPv6 packet; `frame` starts with its Ethernet header.
    pub fn handle_packet6<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv6,
        vnet: &VnetHeader,
        frame: &mut [u8],
    ) {
        let packet = &mut frame[ETHERNET_LEN..ETHERNET_LEN + ip.total_len];
        if let Some(ndp) = &ip.ndp {
            return self.handle_ndp(cx, ip, ndp);
        }
        if is_listener_report(ip) {
            return cx.drop(DropReason::MulticastListener);
        }
        if ip.hop_limit == 0 {
            return cx.drop(DropReason::TtlExpired);
        }
        if is_dhcp(cx, ip) {
            return match vnet.gso {
                None => self.handle_dhcp6(cx, ip, &packet[ip.header_len + UDP_LEN..]),
                // Several messages in one would be read as one.
                Some(_) => cx.drop(DropReason::DhcpMalformed),
            };
        }
        if ip.hop_limit == 1
            && !is_gateway(&cx.network.spec, ip.destination.into())
            && !ip.destination.is_multicast()
        {
            cx.drop(DropReason::TtlExpired);
            return tell(cx, &Packet::from(ip), IcmpError::TtlExceeded, packet);
        }
        if let Some(unknown) = ip.unknown {
            return refuse_option(cx, ip, unknown, packet);
        }
        if is_empty(ip.protocol) {
            // RFC 8200 4.7: there is nothing to do, and nobody is told.
            return cx.drop(DropReason::Protocol);
        }
        if ip.is_fragment() {
            return self.handle_fragment6(cx, ip, packet);
        }
        let gso = vnet.gso.filter(|gso| gso.kind == GsoKind::UdpL4).map(|gso| gso.size);
        if ip.header_len == IPV6_LEN {
            return self.handle_whole(cx, &Packet::from(ip), gso, packet);
        }
        let mut plain = without_extensions(ip, packet, &packet[ip.header_len..]);
        let packet = Packet { header_len: IPV6_LEN, ..Packet::from(ip) };
        self.handle_whole(cx, &packet, gso, &mut plain);
    }

    fn handle_dhcp6<P: Port, N>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv6,
        message: &[u8],
    ) {
        let spec = &cx.network.spec;
        match self.dhcp6.handle_message(cx.flow.now, cx.port, spec, message) {
            Ok(Some(answer)) => {
                let from = SocketAddr::from((GATEWAY_LINK_LOCAL, dhcp6::SERVER_PORT));
                let to = SocketAddr::from((ip.source, dhcp6::CLIENT_PORT));
                send_to_guest(&mut cx.flow, from, to, &answer, 0);
            }
            Ok(None) => {}
            Err(reason) => cx.drop(reason),
        }
    }

    fn handle_fragment6<P: Port, N: NameService>(
        &mut self,
        cx: &mut GatewayContext<'_, P, H, N>,
        ip: &Ipv6,
        packet: &[u8],
    ) {
        let now = cx.flow.now;
        let fragment = ip.fragment.expect("the caller saw it");
        let data = &packet[fragment.at + crate::wire::ipv6::FRAGMENT_LEN..];
        let told = Packet::from(ip).may_be_told_about().then_some(packet);
        let payload = match self.reassembly.handle_fragment6(now, ip, &fragment, data, told) {
            Outcome::Whole(payload) => payload,
            Outcome::Waiting(reasons) => {
                return reasons.into_iter().for_each(|reason| cx.drop(reason));
            }
            Outcome::Dropped(reason) => return cx.drop(reason),
        };
        // The fragmented part begins with what the fragment header names: perhaps more extension headers.
        let mut whole = packet[..fragment.at].to_vec();
        whole[fragment.named_at] = fragment.next_header;
        whole.extend_from_slice(&payload);
        let Ok(len) = u16::try_from(whole.len() - IPV6_LEN) else {
            return cx.drop(DropReason::FragmentOverlap);
        };
        whole[4..6].copy_from_slice(&len.to_be_bytes());
        let chain = match crate::wire::ipv6::walk(&whole) {
            Ok(chain) if chain.fragment.is_none() => chain,
            _ => return cx.drop(DropReason::IpHeader),
        };
        let total_len = whole.len();
        let ip = Ipv6 { protocol: chain.protocol, header_len: chain.len, total_len, ..*ip };
        let payload = &whole[chain.len..];
        match parse_transport6(&ip, payload, ChecksumState::Full) {
            Ok(transport) => {
                let mut plain = without_extensions(&ip, &whole, payload);
                let packet = Packet {
                    header_len: IPV6_LEN,
                    is_later_fragment: false,
                    transport,
                    ..Packet::from(&ip)
                };
                self.handle_whole(cx, &packet, None, &mut plain);
            }
            Err(reason) => cx.drop(reason),
        }
    }
}

/// Whether a packet is for the DHCPv6 server; the guard has judged who sent it.
fn is_dhcp<P: Port, H: Host, N>(cx: &GatewayContext<'_, P, H, N>, ip: &Ipv6) -> bool {
    let here =
        ip.destination == dhcp6::ALL_SERVERS || is_gateway(&cx.network.spec, ip.destination.into());
    here && matches!(ip.transport, Transport::Udp(udp)
        if udp.destination_port == dhcp6::SERVER_PORT)
}

fn is_listener_report(ip: &Ipv6) -> bool {
    matches!(ip.transport, Transport::Icmp(icmp)
        if MULTICAST_LISTENER.contains(&icmp.kind))
}

/// The packet with its fixed header and what it carries, and nothing in between.
fn without_extensions(ip: &Ipv6, packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(IPV6_LEN + payload.len());
    plain.extend_from_slice(&packet[..IPV6_LEN]);
    let len = u16::try_from(payload.len()).expect("shorter than its packet");
    plain[4..6].copy_from_slice(&len.to_be_bytes());
    plain[6] = ip.protocol;
    plain.extend_from_slice(payload);
    plain
}

/// RFC 8200 4.2: the option itself says who is told.
fn refuse_option<P: Port, H: Host, N>(
    cx: &mut GatewayContext<'_, P, H, N>,
    ip: &Ipv6,
    unknown: UnknownOption,
    packet: &[u8],
) {
    cx.drop(DropReason::IpOptions);
    let is_told = match unknown.action {
        UnknownAction::Discard => false,
        UnknownAction::Tell => true,
        UnknownAction::TellUnlessMulticast => !ip.destination.is_multicast(),
    };
    if is_told {
        cx.flow.tell6(None, packet, |ends| {
            icmp6::emit_problem(ParameterProblem::Option, unknown.at, ends, packet)
        });
    }
}
