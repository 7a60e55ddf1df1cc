//! A guest that speaks IPv6 with servers of IPv4, on a network with NAT64.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lichen_netstack::command::{HostOpening, SourceRule, Transport};
use lichen_netstack::gateway::nat64::embed;
use lichen_netstack::host::{Bounce, Fragmentation, Route};
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Received, Segment, echo_request6, ethernet, icmp6, udp};
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::testing::ndp::advertised_options;
use lichen_netstack::wire::icmp::IcmpError;
use lichen_netstack::wire::ndp::{ALL_ROUTERS, ROUTER_SOLICITATION};
use lichen_netstack::wire::tcp::Flags;
use lichen_netstack::worker::{WorkerCommand, WorkerEvent};

const ROUTER: &str = "fd00:0:0:58::1";
const A: &str = "fd00:0:0:58::2";
/// 192.0.2.1.
const SERVER: &str = "64:ff9b::192.0.2.1";

fn lab() -> Lab {
    let mut lab = Lab::new(2);
    lab.change_network(1, |network| network.nat64 = true);
    lab
}

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn server(port: u16) -> SocketAddr {
    SocketAddr::from((addr(SERVER), port))
}

fn own(port: u16) -> SocketAddr {
    SocketAddr::from((addr(A), port))
}

fn own4(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 88, 0, 2], port))
}

/// Type and code of the ICMPv6 messages among what was received.
fn told(received: &[Received]) -> Vec<[u8; 2]> {
    received.iter().filter_map(|frame| frame.icmp()).map(|icmp| [icmp[0], icmp[1]]).collect()
}

fn source(frame: &Received) -> Ipv6Addr {
    frame.ipv6().expect("IPv6").source
}

#[test]
fn a_connection_carries_bytes_both_ways_with_a_server_of_ipv4() {
    let mut lab = lab();
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    let mut guest = TcpGuest::with_large_segments6(&lab, 0, Impairment::default(), 1);
    guest.connect(&lab, 4000, &server(80).to_string());
    let upload: Vec<u8> = (0..200_000u32).map(|nth| (nth % 253) as u8).collect();
    let (mut sent, mut download) = (0, Vec::new());
    for _ in 0..3000 {
        guest.step(&mut lab);
        if guest.socket().can_send() && sent < upload.len() {
            sent += guest.socket().send_slice(&upload[sent..]).unwrap();
        }
        let Some(id) = lab.world.connections("192.0.2.1:80").first().copied() else { continue };
        let bytes = lab.world.peer_receive(id);
        lab.world.peer_send(id, &bytes);
        while guest.socket().can_recv() {
            guest.socket().recv(|bytes| (bytes.len(), download.extend_from_slice(bytes))).unwrap();
        }
        if download.len() == upload.len() {
            break;
        }
    }
    assert!(download == upload, "{} of {}", download.len(), upload.len());
    assert!(lab.world.connections(&server(80).to_string()).is_empty());
}

#[test]
fn without_nat64_the_prefix_is_the_hosts_business() {
    let mut lab = Lab::new(1);
    lab.world.serve(&server(80).to_string(), Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(own(4000), server(80)));
    lab.send_ip(0, &udp(own(4000), server(53), b"x"));
    lab.send_ip(0, &echo_request6(addr(A), addr(SERVER), 1, b"x"));
    assert_eq!(lab.world.connections(&server(80).to_string()).len(), 1);
    for there in [server(53), server(0)] {
        assert_eq!(lab.world.datagram_sockets(&there.to_string()).len(), 1, "{there}");
    }
    assert_eq!(lab.world.open_sockets(), 3);
}

#[test]
fn datagrams_of_one_flow_leave_from_one_socket_and_what_comes_back_is_told_in_ipv6() {
    let mut lab = lab();
    let ask = udp(own(4000), server(53), b"ask");
    lab.send_ip(0, &ask);
    lab.send_ip(0, &ask);
    let sockets = lab.world.datagram_sockets("192.0.2.1:53");
    let [id] = sockets[..] else { panic!("{sockets:?}") };
    assert_eq!(lab.world.datagrams_sent(id), [b"ask".to_vec(), b"ask".to_vec()]);
    lab.world.datagram_reply(id, Ok(b"answer".to_vec()));
    lab.settle();
    let answer = lab.received(0);
    assert_eq!((answer[0].udp(), source(&answer[0])), (Some(&b"answer"[..]), addr(SERVER)));
    // As long as the link takes in IPv4, too long for it in IPv6.
    lab.world.datagram_reply(id, Ok(vec![7; 1472]));
    lab.settle();
    let pieces = lab.received(0);
    assert!(pieces.len() == 2 && pieces.iter().all(|piece| piece.bytes.len() <= 1514));
    let router = Ipv4Addr::new(203, 0, 113, 7);
    for (error, from, expected, seen) in [
        (IcmpError::PortUnreachable, Some(router), [1, 4], embed(router)),
        (IcmpError::TtlExceeded, Some(router), [3, 0], embed(router)),
        (IcmpError::HostUnreachable, Some(Ipv4Addr::LOCALHOST), [1, 3], addr(ROUTER)),
        (IcmpError::FragmentationNeeded(1380), None, [2, 0], addr(ROUTER)),
        (IcmpError::FragmentationNeeded(600), None, [2, 0], addr(ROUTER)),
    ] {
        let from = from.map(Into::into);
        lab.world.bounce(id, Bounce { error, from, to: None, quoted: 0 });
        lab.settle();
        let answer = lab.received(0);
        assert_eq!((told(&answer), source(&answer[0])), (vec![expected], seen), "{error:?}");
        let message = answer[0].icmp().unwrap();
        if let IcmpError::FragmentationNeeded(mtu) = error {
            let wider = (u32::from(mtu) + 20).max(1280);
            assert_eq!(message[4..8], wider.to_be_bytes(), "by what its header is longer");
        }
        assert_eq!(message[8..56], ask[..48]);
    }
    // Nobody listens there any more.
    let refused = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &udp(server(53), own(4000), b"answer")].concat();
    lab.send_ip(0, &icmp6(addr(A), addr(SERVER), 64, &refused));
    assert!(lab.world.datagram_sockets("192.0.2.1:53").is_empty());
}

/// RFC 7915 5.1.
#[test]
fn a_datagram_that_every_link_of_ipv6_takes_may_be_cut_and_a_longer_one_is_not() {
    let mut lab = lab();
    for (len, fragmentation) in [
        (1233, Fragmentation::Forbidden),
        (1232, Fragmentation::Allowed),
        (1, Fragmentation::Allowed),
    ] {
        lab.send_ip(0, &udp(own(4000), server(53), &vec![1; len]));
        let id = lab.world.datagram_sockets("192.0.2.1:53")[0];
        assert_eq!(lab.world.fragmentation(id), Some(fragmentation), "{len}");
    }
    lab.send_ip(0, &udp(own(4000), "[2001:db8::1]:53".parse().unwrap(), b"x"));
    let id = lab.world.datagram_sockets("[2001:db8::1]:53")[0];
    assert_eq!(lab.world.fragmentation(id), Some(Fragmentation::Forbidden), "IPv6 all the way");
}

#[test]
fn a_ping_leaves_as_one_of_ipv4_and_its_answer_comes_back_as_one_of_ipv6() {
    let mut lab = lab();
    lab.send_ip(0, &echo_request6(addr(A), addr(SERVER), 9, b"ping"));
    let id = lab.world.datagram_sockets("192.0.2.1:0")[0];
    let mut reply = lab.world.datagrams_sent(id)[0].clone();
    assert_eq!((&reply[..2], &reply[8..]), (&[8, 0][..], &b"ping"[..]));
    for (kind, answers) in [(129, 0), (0, 1)] {
        reply[0] = kind;
        lab.world.datagram_reply(id, Ok(reply.clone()));
        lab.settle();
        let answer = lab.received(0);
        assert_eq!(answer.len(), answers, "type {kind}");
        if let Some(answer) = answer.first() {
            let message = answer.icmp().unwrap();
            assert_eq!((&message[..2], &message[4..8]), (&[129, 0][..], &[0x12, 0x34, 0, 9][..]));
            assert_eq!((source(answer), &message[8..]), (addr(SERVER), &b"ping"[..]));
        }
    }
    let router = Ipv4Addr::new(203, 0, 113, 7);
    let error = IcmpError::TtlExceeded;
    lab.world.bounce(id, Bounce { error, from: Some(router.into()), to: None, quoted: 0 });
    lab.settle();
    let answer = lab.received(0);
    assert_eq!((told(&answer), source(&answer[0])), (vec![[3, 0]], embed(router)));
    lab.send_ip(0, &echo_request6(addr(A), addr(SERVER), 10, b"ping"));
    assert_eq!(lab.world.datagrams_sent(id).len(), 1, "the same flow");
    lab.world.forbid_echo();
    lab.send_ip(0, &echo_request6(addr(A), addr("64:ff9b::192.0.2.2"), 9, b"ping"));
    assert_eq!(told(&lab.received(0)), [[1, 1]]);
}

/// Whatever the rule: the same for an address and for what stands for it.
#[test]
fn what_is_closed_to_a_guest_over_ipv4_is_closed_by_the_same_rule_under_the_prefix() {
    let mut lab = lab();
    lab.add_network(2, "other", 89);
    lab.world.route_to("192.168.7.7", Route::Local);
    lab.world.route_to("192.168.7.255", Route::Broadcast);
    lab.world.route_to("198.51.100.1", Route::Unreachable);
    for (target, rule) in [
        ("127.0.0.1", "host_address"),
        ("127.1.2.3", "host_address"),
        ("0.0.0.0", "host_address"),
        ("192.168.7.7", "host_address"),
        ("192.168.7.255", "broadcast"),
        ("169.254.169.254", "metadata"),
        ("169.254.1.1", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("224.0.0.1", "broadcast"),
        ("255.255.255.255", "broadcast"),
        ("10.88.0.1", "gateway_port"),
        ("10.88.0.3", "no_route"),
        ("10.88.255.255", "no_route"),
        ("10.89.0.2", "other_network"),
        ("198.51.100.1", "no_route"),
    ] {
        let target: Ipv4Addr = target.parse().unwrap();
        let (to4, to6) = (SocketAddr::from((target, 80)), SocketAddr::from((embed(target), 80)));
        lab.advance(Duration::from_secs(1));
        lab.received(0);
        for to in [to4, to6] {
            lab.world.serve(&to.to_string(), Behaviour::Accept);
            let from = if to.is_ipv4() { own4(4000) } else { own(4000) };
            let before = lab.dropped(0, rule);
            lab.send_ip(0, &Segment::syn(1).emit(from, to));
            lab.send_ip(0, &udp(from, to, b"x"));
            assert_eq!(lab.dropped(0, rule), before + 2, "{to}");
            let asked = (format!("tcp {to}"), rule.to_owned());
            assert!(lab.refusals().contains(&asked), "{to} is told");
        }
        // Never silence: a reset or an error for the one, an error for the other.
        let answers = lab.received(0);
        let over6: Vec<_> = answers.iter().filter(|frame| frame.ipv6().is_some()).collect();
        let code = match rule {
            "no_route" => 0,
            "gateway_port" => 4,
            _ => 1,
        };
        let [first, second] = over6[..] else { panic!("{target}: {} answers", over6.len()) };
        match first.tcp() {
            Some((header, _)) => assert_eq!(header.flags.0, Flags::RST | Flags::ACK, "{target}"),
            None => assert_eq!(first.icmp().unwrap()[..2], [1, code], "{target}"),
        }
        assert_eq!(second.icmp().unwrap()[..2], [1, code], "{target}");
        if rule != "gateway_port" {
            let before = lab.dropped(0, rule);
            lab.send_ip(0, &echo_request6(addr(A), embed(target), 1, b"x"));
            assert_eq!(told(&lab.received(0)), [[1, code]], "{target}");
            assert_eq!(lab.dropped(0, rule), before + 1, "{target}");
        }
    }
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn private_addresses_are_reached_as_over_ipv4_and_an_internal_network_reaches_nothing() {
    let mut lab = lab();
    for host in ["192.168.1.9", "172.16.0.9", "10.200.0.9", "100.64.0.9"] {
        let there = format!("{host}:53");
        lab.send_ip(0, &udp(own(4000), (embed(host.parse().unwrap()), 53).into(), b"x"));
        assert_eq!(lab.world.datagram_sockets(&there).len(), 1, "{host}");
    }
    let before = lab.world.open_sockets();
    lab.change_network(1, |network| network.internal = true);
    lab.send_ip(0, &Segment::syn(1).emit(own(4001), server(80)));
    lab.send_ip(0, &udp(own(4001), server(53), b"x"));
    lab.send_ip(0, &echo_request6(addr(A), addr(SERVER), 1, b"x"));
    assert_eq!(told(&lab.received(0)), [[1, 1], [1, 1]]);
    assert_eq!(lab.dropped(0, "internal"), 3);
    assert_eq!(lab.world.open_sockets(), before);
}

#[test]
fn what_the_gateway_is_over_ipv4_it_is_under_the_prefix() {
    let mut lab = lab();
    let gateway = embed([10, 88, 0, 1].into());
    let mut ping = echo_request6(addr(A), gateway, 7, b"data");
    ping[7] = 1;
    lab.send_ip(0, &ping);
    let answer = lab.received(0);
    assert_eq!((told(&answer), source(&answer[0])), (vec![[129, 0]], gateway));
    lab.send_ip(0, &udp(own(4000), (gateway, 53).into(), b"a question"));
    let answer = lab.received(0);
    assert_eq!((answer[0].udp(), source(&answer[0])), (Some(&b"a question"[..]), gateway));
    lab.allow_host(0, HostOpening { port: 5432, protocol: Transport::Tcp });
    lab.world.serve("127.0.0.1:5432", Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(own(4000), (gateway, 5432).into()));
    let answer = lab.received(0);
    assert_eq!(answer[0].tcp().unwrap().0.flags.0, Flags::SYN | Flags::ACK);
    assert_eq!(lab.world.connections("127.0.0.1:5432").len(), 1);
    // And not for who has no opening.
    let neighbour = SocketAddr::from((addr("fd00:0:0:58::3"), 4000));
    lab.send_ip(1, &Segment::syn(1).emit(neighbour, (gateway, 5432).into()));
    let answer = lab.received(1);
    assert_eq!(answer[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
}

#[test]
fn a_server_that_cannot_be_reached_or_refuses_and_a_spent_hop_limit_are_told() {
    let mut lab = lab();
    lab.world.serve("192.0.2.1:80", Behaviour::Unreachable);
    lab.world.serve("192.0.2.1:81", Behaviour::Refuse);
    lab.send_ip(0, &Segment::syn(1).emit(own(4000), server(80)));
    assert_eq!(told(&lab.received(0)), [[1, 3]]);
    lab.send_ip(0, &Segment::syn(1).emit(own(4000), server(81)));
    let answer = lab.received(0);
    assert_eq!(answer[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    let mut spent = udp(own(4000), server(53), b"x");
    spent[7] = 1;
    lab.send_ip(0, &spent);
    let answer = lab.received(0);
    assert_eq!((told(&answer), source(&answer[0])), (vec![[3, 0]], addr(ROUTER)));
    spent[7] = 5;
    lab.send_ip(0, &spent);
    let id = lab.world.datagram_sockets("192.0.2.1:53")[0];
    assert_eq!(lab.world.ttl(id), Some(4));
}

#[test]
fn a_flow_is_shown_with_the_destination_that_its_guest_used() {
    let mut lab = lab();
    lab.send_ip(0, &udp(own(4000), server(53), b"ask"));
    lab.command(WorkerCommand::Flows { port: None });
    lab.settle();
    // Each worker tells its own.
    let answers = lab.events.iter().filter_map(|event| match event {
        WorkerEvent::Flows(flows) => Some(&flows.rows),
        _ => None,
    });
    let ends: Vec<_> = answers.flatten().map(|row| (row.guest, row.remote)).collect();
    assert_eq!(ends, [(own(4000), server(53))]);
}

#[test]
fn a_client_from_under_the_prefix_is_seen_as_the_gateway_where_the_prefix_means_another() {
    for (nat64, seen) in [(true, ROUTER), (false, "64:ff9b::c000:209")] {
        let mut lab = Lab::new(1);
        lab.change_network(1, |network| network.nat64 = nat64);
        let listener = lab.publish_port(0, 80, SourceRule::Client);
        lab.world.connect_to(listener, "[64:ff9b::192.0.2.9]:5000");
        lab.settle();
        assert_eq!(source(&lab.received(0)[0]), addr(seen), "{nat64}");
    }
}

/// The options of the advertisement that answers a guest's solicitation.
fn options(lab: &mut Lab) -> Vec<(u8, Vec<u8>)> {
    let (mac, gateway) = (lab.spec(0).mac, lab.gateway_mac(0));
    let message = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    let packet = icmp6(mac.link_local(), ALL_ROUTERS, 255, &message);
    lab.send(0, ethernet(mac, gateway, 0x86dd, &packet));
    advertised_options(lab.received(0)[0].icmp().unwrap())
}

/// RFC 8781.
#[test]
fn the_prefix_is_advertised_where_it_means_something() {
    let pref64 = |lab: &mut Lab| options(lab).into_iter().find(|(kind, _)| *kind == 38);
    let mut lab = lab();
    let body = [7, 8, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(pref64(&mut lab), Some((38, body.to_vec())));
    lab.change_network(1, |network| network.nat64 = false);
    assert_eq!(pref64(&mut lab), None);
}
