//! What a guest sees of its network over IPv6: its router, its neighbours, and nothing that another guest says.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use lichen_netstack::command::{NetworkSpec, SourceRule};
use lichen_netstack::host::{Peer, Route};
use lichen_netstack::ids::MacAddr;
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{
    Received, Segment, echo_request6, ethernet, icmp6, ip, udp,
};
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::testing::ndp::{advertised_lifetime, advertised_options};
use lichen_netstack::wire::icmp::IcmpError;
use lichen_netstack::wire::ipv6::emit_fragment;
use lichen_netstack::wire::ndp::{
    ALL_NODES, ALL_ROUTERS, Advertisement, GATEWAY_LINK_LOCAL, NEIGHBOUR_ADVERTISEMENT, Occasion,
    ROUTER_SOLICITATION, Role, solicitation, solicited_node,
};
use lichen_netstack::wire::tcp::Flags;

const ROUTER: &str = "fd00:0:0:58::1";
const A: &str = "fd00:0:0:58::2";
const B: &str = "fd00:0:0:58::3";

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn own(port: u16) -> SocketAddr {
    SocketAddr::from((addr(A), port))
}

/// Sends an ICMPv6 message of guest 0 to the group or station that it is meant for.
fn say(lab: &mut Lab, from: &str, to: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<Received> {
    let packet = icmp6(addr(from), to, hop_limit, message);
    let mac = if to.is_multicast() { MacAddr::for_ipv6_multicast(to) } else { lab.gateway_mac(0) };
    let frame = ethernet(lab.spec(0).mac, mac, 0x86dd, &packet);
    lab.send(0, frame);
    lab.received(0)
}

/// Asks for a neighbour as the kernel does.
fn solicit(lab: &mut Lab, from: &str, target: &str) -> Vec<Received> {
    let target = addr(target);
    let mut message = solicitation(target, lab.spec(0).mac);
    if from == "::" {
        message.truncate(24);
    }
    say(lab, from, solicited_node(target), 255, &message)
}

/// Who a neighbour advertisement says has what, and whether it is a router that was asked.
fn advertised(frame: &Received) -> (Ipv6Addr, MacAddr, u8) {
    let message = frame.icmp().expect("ICMPv6");
    assert_eq!(message[0], NEIGHBOUR_ADVERTISEMENT);
    let target = Ipv6Addr::from_octets(message[8..24].try_into().unwrap());
    assert_eq!(frame.ipv6().unwrap().hop_limit, 255);
    (target, MacAddr(message[26..32].try_into().unwrap()), message[4])
}

fn solicit_router(lab: &mut Lab) -> Vec<Received> {
    let from = lab.spec(0).mac.link_local().to_string();
    say(lab, &from, ALL_ROUTERS, 255, &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0])
}

/// Type and code of the ICMPv6 messages among what was received.
fn told(received: &[Received]) -> Vec<[u8; 2]> {
    received.iter().filter_map(|frame| frame.icmp()).map(|icmp| [icmp[0], icmp[1]]).collect()
}

#[test]
fn neighbours_and_gateway_are_answered_for_and_never_asked() {
    let mut lab = Lab::new(2);
    let (b, gateway) = (lab.spec(1).mac, lab.gateway_mac(0));
    let answer = solicit(&mut lab, A, B);
    assert_eq!(advertised(&answer[0]), (addr(B), b, 0x60));
    assert_eq!(answer[0].ipv6().unwrap().destination, addr(A));
    let local = b.link_local().to_string();
    assert_eq!(advertised(&solicit(&mut lab, A, &local)[0]), (b.link_local(), b, 0x60));
    for router in [ROUTER, "fe80::1"] {
        assert_eq!(advertised(&solicit(&mut lab, A, router)[0]), (addr(router), gateway, 0xe0));
    }
    assert!(solicit(&mut lab, A, "fd00:0:0:58::99").is_empty());
    assert_eq!(lab.dropped(0, "ndp_unknown"), 1);
    assert!(lab.received(1).is_empty());
}

#[test]
fn a_probe_is_answered_for_what_another_has_and_else_gives_the_address() {
    let mut lab = Lab::new(2);
    let answer = solicit(&mut lab, "::", B);
    assert_eq!(advertised(&answer[0]), (addr(B), lab.spec(1).mac, 0x20));
    assert_eq!(answer[0].ipv6().unwrap().destination, ALL_NODES);
    assert_eq!(answer[0].headers.destination, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    let chosen = "fd00:0:0:58:1:2:3:4";
    assert!(solicit(&mut lab, "::", chosen).is_empty());
    lab.send_ip(0, &echo_request6(addr(chosen), addr(ROUTER), 1, b"x"));
    assert_eq!(told(&lab.received(0)), [[129, 0]]);
    // From now on it is the first one's, whoever else wants it.
    let packet = icmp6(
        Ipv6Addr::UNSPECIFIED,
        solicited_node(addr(chosen)),
        255,
        &solicitation(addr(chosen), MacAddr([0; 6]))[..24],
    );
    let mac = MacAddr::for_ipv6_multicast(solicited_node(addr(chosen)));
    lab.send(1, ethernet(lab.spec(1).mac, mac, 0x86dd, &packet));
    let answer = lab.received(1);
    assert_eq!(advertised(&answer[0]), (addr(chosen), lab.spec(0).mac, 0x20));
}

#[test]
fn what_control_gives_and_what_follows_from_anothers_mac_is_nobodys_to_choose() {
    let mut lab = Lab::new(2);
    lab.become_virtual(1);
    // The second guest has not shown any address yet, and the last of these is nobody's at all.
    let theirs = lab.spec(1).slaac_address().unwrap().to_string();
    let local = lab.spec(1).mac.link_local().to_string();
    for taken in [B, theirs.as_str(), local.as_str(), "fd00:0:0:58::99"] {
        let answer = solicit(&mut lab, "::", taken);
        assert_eq!(advertised(&answer[0]), (addr(taken), lab.gateway_mac(0), 0x20), "{taken}");
        lab.send_ip(0, &echo_request6(addr(taken), addr(ROUTER), 1, b"x"));
        assert!(lab.received(0).is_empty(), "{taken}");
    }
    assert_eq!(lab.dropped(0, "ip_spoof"), 4);
    assert!(solicit(&mut lab, A, B).is_empty(), "nobody answers there yet");
}

#[test]
fn an_address_that_was_chosen_before_our_time_is_its_guests_again() {
    let mut lab = Lab::new(2);
    lab.become_virtual(0);
    let chosen = addr("fd00:0:0:58:1:2:3:4");
    let packet = echo_request6(chosen, addr(B), 1, b"hello");
    let frame = ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x86dd, &packet);
    lab.send(0, frame.clone());
    assert_eq!(lab.received(1).len(), 1, "without a probe: the datapath may be a new one");
    // And its neighbour finds the way back, also to the address that was merely used.
    let back = |lab: &mut Lab, target: Ipv6Addr| {
        let message = solicitation(target, lab.spec(1).mac);
        let packet = icmp6(addr(B), solicited_node(target), 255, &message);
        let mac = MacAddr::for_ipv6_multicast(solicited_node(target));
        lab.send(1, ethernet(lab.spec(1).mac, mac, 0x86dd, &packet));
        lab.received(1).first().map(advertised)
    };
    let mac = lab.spec(0).mac;
    assert_eq!(back(&mut lab, chosen), Some((chosen, mac, 0x60)));
    assert_eq!(back(&mut lab, addr(A)), None);
    let packet = echo_request6(addr(A), addr(B), 1, b"hello");
    lab.send(0, ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x86dd, &packet));
    lab.received(1);
    assert_eq!(back(&mut lab, addr(A)), Some((addr(A), mac, 0x60)));
    // But nobody becomes another so.
    for foreign in [B, ROUTER, "fe80::1", "2001:db8::5", "fd00:0:0:59:1:2:3:4"] {
        let before = lab.dropped(0, "ip_spoof");
        lab.send_ip(0, &echo_request6(addr(foreign), addr("2001:db8::1"), 1, b"x"));
        assert_eq!(lab.dropped(0, "ip_spoof"), before + 1, "{foreign}");
    }
}

#[test]
fn who_asks_for_a_router_is_told_everything_and_a_virtual_machine_again_and_again() {
    let mut lab = Lab::new(1);
    let answer = solicit_router(&mut lab);
    let ip = answer[0].ipv6().unwrap();
    assert_eq!((ip.source, ip.hop_limit), (GATEWAY_LINK_LOCAL, 255));
    let message = answer[0].icmp().unwrap();
    assert_eq!(advertised_lifetime(message), Some(1800));
    let kinds: Vec<u8> = advertised_options(message).iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 5, 3, 25, 31]);
    lab.advance(Duration::from_secs(3600));
    assert!(lab.received(0).is_empty(), "who was given everything is left in peace");
    lab.become_virtual(0);
    solicit_router(&mut lab);
    lab.advance(Duration::from_secs(3600));
    let again = lab.received(0);
    assert_eq!(again.len(), 8);
    assert!(again.iter().all(|frame| frame.ipv6().unwrap().destination == ALL_NODES));
}

#[test]
fn an_internal_network_has_a_prefix_and_no_router() {
    let mut lab = Lab::new(1);
    lab.change_network(1, |network| network.internal = true);
    let answer = solicit_router(&mut lab);
    assert_eq!(advertised_lifetime(answer[0].icmp().unwrap()), Some(0));
}

#[test]
fn nobody_plays_the_router_or_another_guest() {
    let mut lab = Lab::new(2);
    let local = lab.spec(0).mac.link_local().to_string();
    let rogue = {
        let mut lab = Lab::new(1);
        solicit_router(&mut lab)[0].icmp().unwrap().to_vec()
    };
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0xfe; 32]].concat();
    for message in [rogue.clone(), redirect] {
        say(&mut lab, &local, ALL_NODES, 255, &message);
    }
    assert_eq!(lab.dropped(0, "router_guard"), 2);
    // Not behind extension headers, and not in fragments.
    let from = addr(&local);
    let mut summed = icmp6(from, ALL_NODES, 255, &rogue);
    summed.drain(..40);
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &summed].concat();
    let fragment = [&emit_fragment(58, 0, true, 7)[..], &summed[..64]].concat();
    for (protocol, payload) in [(60, options), (44, fragment)] {
        let mut packet = ip(from.into(), ALL_NODES.into(), protocol, &payload);
        packet[7] = 255;
        lab.send(0, ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x86dd, &packet));
    }
    assert_eq!(lab.dropped(0, "router_guard"), 4);
    let claim = Advertisement {
        target: addr(B),
        mac: lab.spec(0).mac,
        role: Role::Host,
        occasion: Occasion::Asked,
    };
    say(&mut lab, A, ALL_NODES, 255, &claim.emit());
    let far = solicitation(addr(B), lab.spec(0).mac);
    say(&mut lab, A, solicited_node(addr(B)), 64, &far);
    assert_eq!(lab.dropped(0, "ndp_spoof"), 2);
    assert!(lab.received(1).is_empty());
}

#[test]
fn a_report_of_groups_is_counted_and_answered_by_nothing() {
    let mut lab = Lab::new(2);
    let local = lab.spec(0).mac.link_local().to_string();
    for from in ["::", &local] {
        let report = [143, 0, 0, 0, 0, 0, 0, 0];
        assert!(say(&mut lab, from, addr("ff02::16"), 1, &report).is_empty());
    }
    assert_eq!(lab.dropped(0, "multicast_listener"), 2);
    assert!(lab.received(1).is_empty());
}

#[test]
fn a_packet_between_two_guests_arrives_as_it_was_sent() {
    let mut lab = Lab::new(2);
    let packet = echo_request6(addr(A), addr(B), 1, b"hello");
    let frame = ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x86dd, &packet);
    lab.send(0, frame.clone());
    let got = lab.received(1);
    assert_eq!(got[0].bytes, frame[12..]);
    let spoofed = echo_request6(addr(B), addr(A), 1, b"hello");
    lab.send(0, ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x86dd, &spoofed));
    assert_eq!(lab.dropped(0, "ip_spoof"), 1);
}

#[test]
fn the_gateway_answers_ping_at_each_of_its_addresses() {
    let mut lab = Lab::new(1);
    let local = lab.spec(0).mac.link_local().to_string();
    for (from, to, answers) in [
        (A, ROUTER, ROUTER),
        (A, "fe80::1", "fe80::1"),
        (local.as_str(), "fe80::1", "fe80::1"),
        (local.as_str(), "ff02::1", "fe80::1"),
        (local.as_str(), "ff02::2", "fe80::1"),
    ] {
        let packet = echo_request6(addr(from), addr(to), 7, b"data");
        let mac = if to.starts_with("ff") {
            MacAddr::for_ipv6_multicast(addr(to))
        } else {
            lab.gateway_mac(0)
        };
        lab.send(0, ethernet(lab.spec(0).mac, mac, 0x86dd, &packet));
        let answer = lab.received(0);
        let ip = answer[0].ipv6().expect("an answer");
        assert_eq!((ip.source, ip.destination), (addr(answers), addr(from)), "{to}");
        assert_eq!(answer[0].icmp().unwrap()[4..], [0x12, 0x34, 0, 7, b'd', b'a', b't', b'a']);
    }
}

#[test]
fn a_large_ping_of_the_gateway_goes_both_ways_in_fragments() {
    let mut lab = Lab::new(1);
    let data: Vec<u8> = (0..4000u32).map(|nth| (nth % 251) as u8).collect();
    let whole = echo_request6(addr(A), addr(ROUTER), 3, &data);
    let message = &whole[40..];
    for (nth, piece) in message.chunks(1448).enumerate() {
        let at = nth * 1448;
        let more = at + piece.len() < message.len();
        let payload = [&emit_fragment(58, at, more, 77)[..], piece].concat();
        lab.send_ip(0, &ip(addr(A).into(), addr(ROUTER).into(), 44, &payload));
    }
    let mut parts = Vec::new();
    for frame in lab.received(0) {
        let ip = *frame.ipv6().unwrap();
        let fragment = ip.fragment.expect("larger than the MTU");
        assert!(ip.total_len <= 1500 && fragment.next_header == 58);
        parts.push((fragment.offset, frame.bytes[14 + 48..14 + ip.total_len].to_vec()));
    }
    let answer = parts.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>();
    assert_eq!(answer.len(), message.len());
    assert_eq!((answer[0], &answer[8..]), (129, &data[..]));
}

#[test]
fn fragments_that_overlap_cost_the_datagram() {
    let mut lab = Lab::new(1);
    for (at, more) in [(0, true), (8, true), (16, false)] {
        let payload =
            [&emit_fragment(17, at, more, 5)[..], &[0, 9, 0, 9, 0, 40, 1, 1].repeat(2)].concat();
        lab.send_ip(0, &ip(addr(A).into(), addr("2001:db8::1").into(), 44, &payload));
    }
    assert_eq!(lab.dropped(0, "frag_overlap"), 1);
    assert!(lab.world.datagram_sockets("[2001:db8::1]:9").is_empty());
}

/// RFC 8200 4.5.
#[test]
fn a_sender_whose_fragments_do_not_all_come_is_told() {
    let mut lab = Lab::new(1);
    let fragment = |at| {
        let payload = [&emit_fragment(17, at, true, 5)[..], &[9; 1400]].concat();
        ip(addr(A).into(), addr("2001:db8::1").into(), 44, &payload)
    };
    lab.send_ip(0, &fragment(1400));
    lab.send_ip(0, &fragment(0));
    lab.advance(Duration::from_secs(31));
    assert_eq!(lab.dropped(0, "frag_timeout"), 1);
    let answer = lab.received(0);
    assert_eq!(told(&answer), [[3, 1]]);
    assert_eq!(answer[0].icmp().unwrap()[8..], fragment(0)[..1232], "as fits the smallest MTU");
}

#[test]
fn a_hop_limit_that_is_spent_and_options_that_must_not_be_skipped_are_told() {
    let mut lab = Lab::new(1);
    let mut packet = udp(own(9), end("[2001:db8::1]:9"), b"x");
    packet[7] = 1;
    lab.send_ip(0, &packet);
    let answer = lab.received(0);
    assert_eq!(told(&answer), [[3, 0]]);
    assert_eq!(answer[0].ipv6().unwrap().source, addr(ROUTER));
    assert_eq!(answer[0].icmp().unwrap()[8..], packet);
    let datagram = &udp(own(9), end("[2001:db8::1]:9"), b"x")[40..];
    for (kind, expected) in [(0x3e, vec![]), (0x7e, vec![]), (0xbe, vec![[4, 2]])] {
        let payload = [&[17, 0, 0, kind, 2, 0, 0, 0][..], datagram].concat();
        lab.send_ip(0, &ip(addr(A).into(), addr("2001:db8::1").into(), 60, &payload));
        let answer = lab.received(0);
        assert_eq!(told(&answer), expected, "{kind:#x}");
        if let Some(answer) = answer.first() {
            assert_eq!(answer.icmp().unwrap()[4..8], 43_u32.to_be_bytes());
        }
    }
    // The one that may be skipped was, and its datagram went out without it.
    let sockets = lab.world.datagram_sockets("[2001:db8::1]:9");
    assert_eq!(lab.world.datagrams_sent(sockets[0]), [b"x".to_vec()]);
    lab.send_ip(0, &ip(addr(A).into(), addr("2001:db8::1").into(), 99, &[0; 8]));
    assert_eq!(told(&lab.received(0)), [[4, 1]], "a protocol that nobody knows");
}

#[test]
fn a_connection_over_ipv6_carries_bytes_both_ways_in_large_segments() {
    for offloads in [Offloads::ChecksumAndTcp, Offloads::None] {
        let mut lab = Lab::with_offloads(1, offloads);
        let server = "[2001:db8::1]:80";
        lab.world.serve(server, Behaviour::Accept);
        let mut guest = TcpGuest::with_large_segments6(&lab, 0, Impairment::default(), 1);
        guest.connect(&lab, 4000, server);
        let upload: Vec<u8> = (0..300_000u32).map(|nth| (nth % 253) as u8).collect();
        let (mut sent, mut arrived, mut download) = (0, Vec::new(), Vec::new());
        for _ in 0..3000 {
            guest.step(&mut lab);
            if guest.socket().can_send() && sent < upload.len() {
                sent += guest.socket().send_slice(&upload[sent..]).unwrap();
            }
            let Some(id) = lab.world.connections(server).first().copied() else { continue };
            let bytes = lab.world.peer_receive(id);
            lab.world.peer_send(id, &bytes);
            arrived.extend(bytes);
            while guest.socket().can_recv() {
                guest
                    .socket()
                    .recv(|bytes| (bytes.len(), download.extend_from_slice(bytes)))
                    .unwrap();
            }
            if download.len() == upload.len() {
                break;
            }
        }
        assert!(arrived == upload, "{offloads:?}: {} of {}", arrived.len(), upload.len());
        assert!(download == upload, "{offloads:?}: {} of {}", download.len(), upload.len());
        assert_eq!(lab.dropped(0, "csum"), 0);
    }
}

#[test]
fn a_host_without_ipv6_is_told_at_once() {
    let mut lab = Lab::new(1);
    lab.world.route_to("2001:db8::1", Route::Unreachable);
    lab.send_ip(0, &Segment::syn(1).emit(own(4000), end("[2001:db8::1]:80")));
    assert_eq!(told(&lab.received(0)), [[1, 0]]);
    lab.send_ip(0, &udp(own(4000), end("[2001:db8::1]:80"), b"x"));
    lab.send_ip(0, &echo_request6(addr(A), addr("2001:db8::1"), 1, b"x"));
    assert_eq!(told(&lab.received(0)), [[1, 0], [1, 0]]);
}

#[test]
fn what_is_closed_over_ipv4_is_closed_over_ipv6() {
    let mut lab = Lab::new(1);
    lab.add_network(2, "other", 89);
    lab.world.route_to("2001:db8::5", Route::Local);
    for (target, rule) in [
        ("[::1]:80", "host_address"),
        ("[::ffff:127.0.0.1]:80", "host_address"),
        ("[2001:db8::5]:80", "host_address"),
        ("[fe80::9]:80", "metadata"),
        ("[fd00:ec2::254]:80", "metadata"),
        ("[64:ff9b::a9fe:a9fe]:80", "metadata"),
        ("[fd00:0:0:59::2]:80", "other_network"),
        ("[fd00:0:0:58::1]:80", "gateway_port"),
        ("[fe80::1]:80", "gateway_port"),
    ] {
        lab.world.serve(target, Behaviour::Accept);
        lab.advance(Duration::from_secs(1));
        lab.send_ip(0, &Segment::syn(1).emit(own(4000), end(target)));
        let answer = lab.received(0);
        let (header, _) = answer[0].tcp().unwrap();
        assert_eq!(header.flags.0, Flags::RST | Flags::ACK, "{target}");
        lab.send_ip(0, &udp(own(4000), end(target), b"x"));
        let code = if rule == "gateway_port" { 4 } else { 1 };
        assert_eq!(told(&lab.received(0)), [[1, code]], "{target}");
        assert_eq!(lab.dropped(0, rule) % 2, 0, "{target}");
        assert!(lab.dropped(0, rule) >= 2, "{target}");
        assert!(lab.world.connections(target).is_empty(), "{target}");
        let asked = format!("tcp {target}");
        assert!(lab.refusals().contains(&(asked, rule.to_owned())), "{target} is told");
    }
}

#[test]
fn a_datagram_and_what_comes_back_for_it() {
    let mut lab = Lab::new(1);
    let server = "[2001:db8::1]:53";
    lab.send_ip(0, &udp(own(4000), end(server), b"ask"));
    let id = lab.world.datagram_sockets(server)[0];
    assert_eq!(lab.world.datagrams_sent(id), [b"ask".to_vec()]);
    lab.world.datagram_reply(id, Ok(b"answer".to_vec()));
    lab.settle();
    let answer = lab.received(0);
    assert_eq!(answer[0].udp(), Some(&b"answer"[..]));
    assert_eq!(answer[0].ipv6().unwrap().source, addr("2001:db8::1"));
    let router = addr("2001:db8:ffff::1");
    for (error, expected) in [
        (IcmpError::PortUnreachable, [1, 4]),
        (IcmpError::TtlExceeded, [3, 0]),
        (IcmpError::FragmentationNeeded(1380), [2, 0]),
    ] {
        let bounce =
            lichen_netstack::host::Bounce { error, from: Some(router.into()), to: None, quoted: 0 };
        lab.world.bounce(id, bounce);
        lab.settle();
        let answer = lab.received(0);
        assert_eq!(told(&answer), [expected]);
        assert_eq!(answer[0].ipv6().unwrap().source, router);
        let message = answer[0].icmp().unwrap();
        if expected[0] == 2 {
            assert_eq!(message[4..8], 1400_u32.to_be_bytes());
        }
        assert_eq!(message[8..56], udp(own(4000), end(server), b"ask")[..48]);
    }
    // Nobody listens there any more.
    let refused = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &udp(end(server), own(4000), b"answer")].concat();
    lab.send_ip(0, &icmp6(addr(A), addr("2001:db8::1"), 64, &refused));
    assert!(lab.world.datagram_sockets(server).is_empty());
}

#[test]
fn a_ping_goes_out_and_its_answer_comes_back() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &echo_request6(addr(A), addr("2001:db8::1"), 9, b"ping"));
    let id = lab.world.datagram_sockets("[2001:db8::1]:0")[0];
    let mut reply = lab.world.datagrams_sent(id)[0].clone();
    assert_eq!((reply[0], &reply[8..]), (128, &b"ping"[..]));
    reply[0] = 129;
    reply[4..6].copy_from_slice(&[9, 9]);
    lab.world.datagram_reply(id, Ok(reply));
    lab.settle();
    let answer = lab.received(0);
    assert_eq!(answer[0].icmp().unwrap()[4..8], [0x12, 0x34, 0, 9], "under its own identifier");
    lab.world.forbid_echo();
    lab.send_ip(0, &echo_request6(addr(A), addr("2001:db8::2"), 9, b"ping"));
    assert_eq!(told(&lab.received(0)), [[1, 1]]);
}

#[test]
fn a_published_port_reaches_the_guest_over_the_clients_family() {
    let mut lab = Lab::new(1);
    let listener = lab.publish_port(0, 80, SourceRule::Client);
    for (client, from, to) in [
        ("[2001:db8::9]:5000", "[2001:db8::9]:5000", A),
        ("[::1]:5000", ROUTER, A),
        ("192.0.2.9:5000", "192.0.2.9:5000", "10.88.0.2"),
    ] {
        lab.world.connect_to(listener, client);
        lab.settle();
        let got = lab.received(0);
        let (header, _) = got[0].tcp().unwrap();
        assert_eq!(header.flags.0, Flags::SYN);
        let (source, destination) = match (got[0].ipv4(), got[0].ipv6()) {
            (Some(ip), _) => (ip.source.to_string(), ip.destination.to_string()),
            (_, Some(ip)) => (ip.source.to_string(), ip.destination.to_string()),
            _ => panic!("neither"),
        };
        assert_eq!(destination, to, "{client}");
        match from.parse::<SocketAddr>() {
            Ok(from) => {
                let source = SocketAddr::new(source.parse().unwrap(), header.source_port);
                assert_eq!(source, from);
            }
            Err(_) => assert_eq!(source, from),
        }
    }
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    let peer = Peer { address: end("[2001:db8::9]:6000"), local: Some(addr("2001:db8::5").into()) };
    lab.world.client_sends(socket, peer, b"ask", 3);
    lab.settle();
    let got = lab.received(0);
    assert_eq!(got[0].ipv6().unwrap().source, addr("2001:db8::9"));
    lab.send_ip(0, &udp(own(53), end("[2001:db8::9]:6000"), b"answer"));
    let sent = lab.world.sent(socket);
    assert_eq!((&sent[0].bytes[..], sent[0].route), (&b"answer"[..], Some(peer)));
}

#[test]
fn a_virtual_machine_without_ipv6_is_reached_over_ipv4() {
    let mut lab = Lab::new(1);
    lab.become_virtual(0);
    let listener = lab.publish_port(0, 80, SourceRule::Client);
    lab.world.connect_to(listener, "[2001:db8::9]:5000");
    lab.settle();
    let got = lab.received(0);
    assert_eq!(got[0].ipv4().unwrap().source.to_string(), "10.88.0.1");
    // Once it has probed its address, and had the time to see that nobody answers, over that.
    solicit(&mut lab, "::", A);
    lab.advance(Duration::from_secs(2));
    lab.received(0);
    lab.world.connect_to(listener, "[2001:db8::9]:5001");
    lab.settle();
    let got = lab.received(0);
    assert_eq!(got[0].ipv6().unwrap().destination, addr(A));
}

#[test]
fn names_are_answered_at_each_of_the_gateways_addresses() {
    let mut lab = Lab::new(1);
    for gateway in [ROUTER, "fe80::1"] {
        let to = SocketAddr::from((addr(gateway), 53));
        lab.send_ip(0, &udp(own(4000), to, b"question"));
        let answer = lab.received(0);
        assert_eq!(answer[0].ipv6().unwrap().source, addr(gateway));
        assert!(answer[0].udp().is_some());
    }
}

#[test]
fn a_network_without_ipv6_drops_it_by_that_reason() {
    let mut lab = Lab::new(1);
    lab.change_network(1, |network: &mut NetworkSpec| network.prefix6 = None);
    lab.forget_address6(0);
    lab.send_ip(0, &echo_request6(addr(A), addr(ROUTER), 1, b"x"));
    solicit_router(&mut lab);
    assert!(lab.received(0).is_empty());
    assert_eq!(lab.dropped(0, "ipv6_off"), 2);
}
