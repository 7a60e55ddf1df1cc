//! UDP beyond one datagram at a time: published ports and their clients, several datagrams in one call,
//! and the errors that come back, both ways.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lichen_netstack::command::SourceRule;
use lichen_netstack::frame::offload::segment;
use lichen_netstack::frame::vnet_header::{GsoKind, VnetHeader};
use lichen_netstack::host::{Bounce, Peer};
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{
    Received, echo_request, ethernet, packet, packet_with, udp,
};
use lichen_netstack::wire::headers::{ChecksumState, Headers};
use lichen_netstack::wire::icmp::IcmpError;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

fn v4(end: SocketAddr) -> Ipv4Addr {
    match end.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is IPv6"),
    }
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn client(text: &str) -> Peer {
    Peer { address: text.parse().unwrap(), local: Some([192, 0, 2, 254].into()) }
}

/// Source and payload of the UDP datagrams among what was received.
fn datagrams(received: &[Received]) -> Vec<(SocketAddr, Vec<u8>)> {
    let datagram = |frame: &Received| {
        let payload = frame.udp()?.to_vec();
        let ip = frame.ipv4()?;
        let port = u16::from_be_bytes(frame.bytes[34..36].try_into().unwrap());
        Some((SocketAddr::from((ip.source, port)), payload))
    };
    received.iter().filter_map(datagram).collect()
}

/// Sender, type and code of the ICMP messages among what was received.
fn errors(received: &[Received]) -> Vec<(Ipv4Addr, u8, u8)> {
    let error = |frame: &Received| {
        let message = frame.icmp()?;
        Some((frame.ipv4()?.source, message[0], message[1]))
    };
    received.iter().filter_map(error).collect()
}

/// A guest's port unreachable about a datagram that it got.
fn unreachable(got: &Received) -> Vec<u8> {
    IcmpError::PortUnreachable.emit(GUEST, got.ipv4().unwrap().source, &got.bytes[14..])
}

#[test]
fn a_client_is_seen_as_itself_and_answered_from_the_address_it_asked() {
    let mut lab = Lab::new(1);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    lab.world.client_sends(socket, client("203.0.113.9:4000"), b"ask", 3);
    lab.settle();
    assert_eq!(datagrams(&lab.received(0)), [(end("203.0.113.9:4000"), b"ask".to_vec())]);
    assert_eq!(lab.used(0, "udp_clients"), 1);

    lab.send_ip(0, &udp(end("10.88.0.2:53"), end("203.0.113.9:4000"), b"answer"));
    let sent = lab.world.sent(socket);
    assert_eq!(sent[0].bytes, b"answer");
    assert_eq!(sent[0].route, Some(client("203.0.113.9:4000")));
    assert_eq!(lab.used(0, "udp_flows"), 0, "an answer is no flow of its own");
}

#[test]
fn clients_that_cannot_be_answered_are_ports_of_the_gateway() {
    let mut lab = Lab::new(1);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    for address in ["127.0.0.1:4000", "10.88.0.9:4000", "169.254.1.1:9"] {
        lab.world.client_sends(socket, client(address), address.as_bytes(), 100);
    }
    lab.settle();
    let seen = datagrams(&lab.received(0));
    assert_eq!(seen.len(), 3);
    for (source, payload) in seen {
        assert_eq!(source.ip(), IpAddr::from(GATEWAY));
        lab.send_ip(0, &udp(end("10.88.0.2:53"), source, b"answer"));
        let sent = lab.world.sent(socket);
        let address: SocketAddr = std::str::from_utf8(&payload).unwrap().parse().unwrap();
        assert_eq!(sent[0].route.unwrap().address, address);
    }
    let snat = lab.publish_udp(0, 54, SourceRule::Gateway);
    lab.world.client_sends(snat, client("203.0.113.9:4000"), b"x", 1);
    lab.settle();
    assert_eq!(datagrams(&lab.received(0))[0].0.ip(), IpAddr::from(GATEWAY));
}

#[test]
fn one_client_of_two_ports_that_lead_to_one_is_told_apart() {
    let mut lab = Lab::new(1);
    // What the guest speaks to itself is taken as well.
    lab.send_ip(0, &udp(end("10.88.0.2:53"), end("203.0.113.9:4000"), b"outward"));
    let first = lab.publish_udp(0, 53, SourceRule::Client);
    lab.world.client_sends(first, client("203.0.113.9:4000"), b"x", 1);
    lab.settle();
    let (source, _) = datagrams(&lab.received(0))[0];
    assert_eq!(source.ip(), IpAddr::from([203, 0, 113, 9]));
    assert_ne!(source.port(), 4000);
    lab.send_ip(0, &udp(end("10.88.0.2:53"), source, b"answer"));
    assert_eq!(lab.world.sent(first)[0].route, Some(client("203.0.113.9:4000")));
}

#[test]
fn nobody_else_is_answered_by_a_published_port() {
    let mut lab = Lab::new(2);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    lab.world.client_sends(socket, client("127.0.0.1:4000"), b"x", 1);
    lab.settle();
    let (source, _) = datagrams(&lab.received(0))[0];
    // Another port of the guest, another port of the gateway, another guest.
    lab.send_ip(0, &udp(end("10.88.0.2:54"), source, b"x"));
    lab.send_ip(0, &udp(end("10.88.0.2:53"), SocketAddr::from((GATEWAY, 9999)), b"x"));
    lab.send_ip(1, &udp(end("10.88.0.3:53"), source, b"x"));
    assert!(lab.world.sent(socket).is_empty());
    assert_eq!(lab.dropped(0, "gateway_port"), 2);
    assert_eq!(lab.dropped(1, "gateway_port"), 1);
}

#[test]
fn clients_are_forgotten_when_silent_when_unpublished_and_with_the_address() {
    let mut lab = Lab::new(1);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    let ask = |lab: &mut Lab| {
        lab.world.client_sends(socket, client("203.0.113.9:4000"), b"x", 1);
        lab.settle();
    };
    ask(&mut lab);
    lab.advance(Duration::from_secs(200));
    ask(&mut lab);
    lab.advance(Duration::from_secs(200));
    assert_eq!(lab.used(0, "udp_clients"), 1, "it was heard in between");
    lab.advance(Duration::from_secs(101));
    assert_eq!(lab.used(0, "udp_clients"), 0);

    ask(&mut lab);
    lab.readdress(0, Ipv4Addr::new(10, 88, 0, 77));
    assert_eq!(lab.used(0, "udp_clients"), 0);
    lab.received(0);
    ask(&mut lab);
    let got = lab.received(0);
    assert_eq!(got[0].ipv4().unwrap().destination, Ipv4Addr::new(10, 88, 0, 77));

    lab.unpublish(0, 53);
    assert_eq!(lab.used(0, "udp_clients"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn a_flood_of_clients_takes_neither_the_guests_flows_nor_other_networks_clients() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"mine"));
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    let forged = |lab: &mut Lab, from: u16| {
        for nth in from..from + 1000 {
            let host = (nth % 250) as u8;
            let address = SocketAddr::from(([203, 0, 113, host], 1024 + nth));
            let peer = Peer { address, local: None };
            lab.world.client_sends(socket, peer, b"x", 1);
        }
        lab.settle();
        lab.received(0).len()
    };
    // 1500 at once, and no more of that network.
    let all = [0, 1000, 2000].map(|from| forged(&mut lab, from));
    assert_eq!(all, [1000, 500, 0]);
    assert_eq!(lab.dropped(0, "client_rate"), 1500);
    // Of loopback, whose addresses nobody can forge, all come through; the oldest make room.
    for port in 1..=5000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        lab.world.client_sends(socket, Peer { address, local: None }, b"x", 1);
        if port % 500 == 0 {
            lab.settle();
            lab.received(0);
        }
    }
    assert_eq!(lab.used(0, "udp_clients"), 4096);
    assert_eq!(lab.dropped(0, "client_budget"), 1500 + 5000 - 4096);
    assert_eq!(lab.used(0, "udp_flows"), 1);
    // A second later the network is let in again.
    lab.advance(Duration::from_secs(1));
    assert_eq!(forged(&mut lab, 3000), 500);
}

#[test]
fn a_guest_that_hears_nobody_closes_the_flow_and_nothing_else() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask"));
    lab.send_ip(0, &udp(end("10.88.0.2:5001"), end("192.0.2.1:9"), b"ask"));
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    lab.world.datagram_reply(id, Ok(b"answer".to_vec()));
    lab.settle();
    let got = lab.received(0);
    lab.send_ip(0, &unreachable(&got[0]));
    // The socket is closed, so the peer hears the same from the host.
    assert!(!lab.world.datagram_sockets("192.0.2.1:9").contains(&id));
    assert_eq!(lab.used(0, "udp_flows"), 1);
    assert_eq!(lab.dropped(0, "icmp"), 0);

    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    lab.world.client_sends(socket, client("203.0.113.9:4000"), b"x", 1);
    lab.settle();
    let got = lab.received(0);
    lab.send_ip(0, &unreachable(&got[0]));
    assert_eq!(lab.used(0, "udp_clients"), 0);

    // About nothing, about another guest's, a quote that is cut: none of it means anything.
    lab.send_ip(0, &unreachable(&got[0]));
    let others = udp(end("192.0.2.1:9"), end("10.88.0.3:5001"), b"x");
    lab.send_ip(0, &IcmpError::PortUnreachable.emit(GUEST, [192, 0, 2, 1].into(), &others));
    lab.send_ip(0, &IcmpError::PortUnreachable.emit(GUEST, [192, 0, 2, 1].into(), &others[..22]));
    let mine = udp(end("192.0.2.1:9"), end("10.88.0.2:5001"), b"x");
    lab.send_ip(0, &IcmpError::TtlExceeded.emit(GUEST, [192, 0, 2, 1].into(), &mine));
    assert_eq!(lab.dropped(0, "icmp"), 4);
    assert_eq!(lab.used(0, "udp_flows"), 1);
}

#[test]
fn errors_of_the_way_reach_the_guest_with_who_sent_them() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask"));
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    let router = Ipv4Addr::new(198, 51, 100, 7);
    let bounce =
        Bounce { error: IcmpError::TtlExceeded, from: Some(router.into()), to: None, quoted: 0 };
    lab.world.bounce(id, bounce);
    lab.world.bounce(id, Bounce { error: IcmpError::FragmentationNeeded(1280), ..bounce });
    // What the host's own loopback says is the gateway's word.
    lab.world.bounce(id, Bounce { from: Some(Ipv4Addr::LOCALHOST.into()), ..bounce });
    lab.settle();
    let got = lab.received(0);
    assert_eq!(errors(&got), [(router, 11, 0), (router, 3, 4), (GATEWAY, 11, 0)]);
    let quote = &got[0].icmp().unwrap()[8..];
    assert_eq!(&quote[12..24], &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask")[12..24]);
    assert_eq!(got[1].icmp().unwrap()[6..8], 1280u16.to_be_bytes());
}

#[test]
fn an_answer_that_bounced_is_told_about_its_own_client() {
    let mut lab = Lab::new(1);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    for address in ["203.0.113.9:4000", "203.0.113.10:4001"] {
        lab.world.client_sends(socket, client(address), b"ask", 3);
        lab.settle();
        lab.send_ip(0, &udp(end("10.88.0.2:53"), end(address), b"answer"));
    }
    lab.received(0);
    let from = Ipv4Addr::new(203, 0, 113, 9);
    let to = Some("203.0.113.9:4000".parse().unwrap());
    lab.world.bounce(
        socket,
        Bounce { error: IcmpError::PortUnreachable, from: Some(from.into()), to, quoted: 0 },
    );
    // About somebody unknown.
    let to = Some("203.0.113.99:1".parse().unwrap());
    lab.world.bounce(
        socket,
        Bounce { error: IcmpError::PortUnreachable, from: Some(from.into()), to, quoted: 0 },
    );
    lab.settle();
    let got = lab.received(0);
    assert_eq!(errors(&got), [(from, 3, 3)]);
    assert_eq!(got[0].icmp().unwrap()[8 + 16..8 + 20], [203, 0, 113, 9]);
}

#[test]
fn icmp_errors_to_a_guest_are_limited_whoever_causes_them() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask"));
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    let from = Some(Ipv4Addr::new(192, 0, 2, 1));
    for _ in 0..500 {
        let bounce = Bounce {
            error: IcmpError::PortUnreachable,
            from: from.map(IpAddr::V4),
            to: None,
            quoted: 0,
        };
        lab.world.bounce(id, bounce);
    }
    lab.settle();
    assert_eq!(errors(&lab.received(0)).len(), 100);
}

#[test]
fn hops_that_are_left_are_spent_beyond_the_gateway() {
    let mut lab = Lab::new(1);
    let send = |lab: &mut Lab, ttl: u8, port: u16| {
        let from = SocketAddr::from((GUEST, port));
        let to = end("192.0.2.1:9");
        let whole = udp(from, to, b"x");
        let probe = packet_with(GUEST, v4(to), 17, &whole[20..], |packet| packet[8] = ttl);
        lab.send_ip(0, &probe);
        lab.world.datagram_sockets("192.0.2.1:9").last().copied()
    };
    assert_eq!(send(&mut lab, 1, 1000), None, "the gateway is the first hop");
    assert_eq!(errors(&lab.received(0)), [(GATEWAY, 11, 0)]);
    let id = send(&mut lab, 3, 1001).unwrap();
    assert_eq!(lab.world.ttl(id), Some(2));
    let id = send(&mut lab, 64, 1002).unwrap();
    assert_eq!(lab.world.ttl(id), None, "as many as everybody has");

    let probe = echo_request(GUEST, [192, 0, 2, 1].into(), 3, b"x");
    let probe = packet_with(GUEST, [192, 0, 2, 1].into(), 1, &probe[20..], |it| it[8] = 2);
    lab.send_ip(0, &probe);
    let id = lab.world.datagram_sockets("192.0.2.1:0")[0];
    assert_eq!(lab.world.ttl(id), Some(1));
}

#[test]
fn datagrams_of_one_flow_and_size_leave_in_one_call_and_in_order() {
    let mut lab = Lab::new(1);
    let queue = |lab: &Lab, port: u16, payload: &[u8]| {
        let from = SocketAddr::from((GUEST, port));
        let ip = udp(from, end("192.0.2.1:9"), payload);
        let frame = ethernet(lab.spec(0).mac, lab.gateway_mac(0), 0x0800, &ip);
        lab.wire(0).send(frame);
    };
    for nth in 0..20u8 {
        queue(&lab, 5000, &[nth; 100]);
    }
    queue(&lab, 5000, &[20; 40]);
    queue(&lab, 5000, &[21; 100]);
    queue(&lab, 5000, &[]);
    queue(&lab, 5001, &[22; 100]);
    lab.settle();
    let sockets = lab.world.datagram_sockets("192.0.2.1:9");
    let sent = lab.world.datagrams_sent(sockets[0]);
    let firsts: Vec<Option<u8>> = sent.iter().map(|bytes| bytes.first().copied()).collect();
    let expected: Vec<Option<u8>> = (0..22).map(Some).chain([None]).collect();
    assert_eq!(firsts, expected);
    assert!(sent[..20].iter().all(|bytes| bytes.len() == 100) && sent[20].len() == 40);
    assert_eq!(lab.world.send_calls(sockets[0]), 3, "a train, the one after it, the empty one");
    assert_eq!(lab.world.datagrams_sent(sockets[1]), [vec![22; 100]]);
}

#[test]
fn datagrams_that_the_host_has_put_together_reach_the_guest_apart() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask"));
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    lab.world.datagram_train(id, b"aaabbbc", 3);
    let socket = lab.publish_udp(0, 53, SourceRule::Client);
    lab.world.client_sends(socket, client("203.0.113.9:4000"), b"ddee", 2);
    lab.settle();
    let got: Vec<Vec<u8>> =
        datagrams(&lab.received(0)).into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(
        got,
        [b"aaa".to_vec(), b"bbb".to_vec(), b"c".to_vec(), b"dd".to_vec(), b"ee".to_vec()]
    );
}

#[test]
fn a_guest_that_cuts_large_datagrams_itself_gets_them_whole() {
    let mut lab = Lab::with_offloads(1, Offloads::ChecksumTcpAndUdp);
    lab.send_ip(0, &udp(end("10.88.0.2:5000"), end("192.0.2.1:9"), b"ask"));
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    // Put together by the host, and by us.
    lab.world.datagram_train(id, &[1; 2000], 1000);
    lab.world.datagram_reply(id, Ok(vec![2; 1000]));
    lab.world.datagram_reply(id, Ok(vec![3; 10]));
    // Too large to be a piece: each goes in fragments of its own.
    lab.world.datagram_train(id, &[4; 4000], 2000);
    lab.settle();
    let wire = lab.wire(0).clone();
    let frames: Vec<Vec<u8>> = std::iter::from_fn(|| wire.take()).collect();
    assert_eq!(frames.len(), 1 + 4);
    let large = VnetHeader::parse(frames[0][..12].try_into().unwrap()).unwrap();
    assert_eq!(large.gso.map(|gso| (gso.kind, gso.size)), Some((GsoKind::UdpL4, 1000)));
    assert_eq!(frames[0].len(), 12 + 14 + 20 + 8 + 3010);
    // What a kernel makes of it: all pieces, each with a right checksum.
    let headers = Headers::parse(&frames[0][12..], large.checksum_state()).unwrap();
    let mut pieces = Vec::new();
    segment(&frames[0][12..], &headers, large.gso.unwrap(), |piece| {
        let parsed = Headers::parse(&piece[12..], ChecksumState::Full);
        assert!(parsed.is_ok(), "{parsed:?}");
        pieces.push(piece.len() - 12 - 42);
    })
    .unwrap();
    assert_eq!(pieces, [1000, 1000, 1000, 10]);
    for frame in &frames[1..] {
        assert!(frame.len() <= 12 + 14 + 1500);
        assert_eq!(VnetHeader::parse(frame[..12].try_into().unwrap()).unwrap().gso, None);
    }
}

#[test]
fn other_protocols_errors_are_nothing_to_us() {
    let mut lab = Lab::new(1);
    let tcp = packet(v4(end("192.0.2.1:9")), GUEST, 6, &[0; 20]);
    lab.send_ip(0, &IcmpError::PortUnreachable.emit(GUEST, [192, 0, 2, 1].into(), &tcp));
    assert_eq!(lab.dropped(0, "icmp"), 1);
}

/// Asks from a port of the guest, and has it answered if there is something to say.
fn ask(lab: &mut Lab, port: u16, to: &str, answer: Option<&[u8]>) {
    let guest = SocketAddr::from(([10, 88, 0, 2], port));
    lab.send_ip(0, &udp(guest, end(to), b"ask"));
    if let Some(answer) = answer {
        let socket = *lab.world.datagram_sockets(to).last().expect("it has one");
        lab.world.datagram_reply(socket, Ok(answer.to_vec()));
        lab.settle();
    }
}

#[test]
fn a_question_with_its_answer_is_soon_over_and_a_conversation_is_not() {
    let mut lab = Lab::new(1);
    ask(&mut lab, 5000, "192.0.2.1:123", Some(b"answer"));
    // A name that nobody answers for, and something else that may yet be answered.
    ask(&mut lab, 5001, "192.0.2.2:53", None);
    ask(&mut lab, 5002, "192.0.2.3:9", None);
    for _ in 0..2 {
        ask(&mut lab, 5003, "192.0.2.4:443", Some(b"answer"));
    }
    lab.advance(Duration::from_secs(29));
    assert_eq!(lab.used(0, "udp_flows"), 4);
    lab.advance(Duration::from_secs(2));
    assert_eq!(lab.used(0, "udp_flows"), 2);
    for (to, lives) in [("192.0.2.1:123", 0), ("192.0.2.3:9", 1), ("192.0.2.4:443", 1)] {
        assert_eq!(lab.world.datagram_sockets(to).len(), lives, "{to}");
    }
    lab.advance(Duration::from_secs(268));
    assert_eq!(lab.used(0, "udp_flows"), 2);
    lab.advance(Duration::from_secs(2));
    assert_eq!(lab.used(0, "udp_flows"), 0);
}

#[test]
fn a_second_question_makes_a_flow_live_long_and_one_at_the_last_moment_too() {
    let mut lab = Lab::new(1);
    ask(&mut lab, 5000, "192.0.2.1:9", Some(b"answer"));
    lab.advance(Duration::from_secs(29));
    let socket = lab.world.datagram_sockets("192.0.2.1:9")[0];
    ask(&mut lab, 5000, "192.0.2.1:9", None);
    lab.advance(Duration::from_secs(299));
    assert_eq!(lab.world.datagram_sockets("192.0.2.1:9"), [socket]);
    lab.advance(Duration::from_secs(2));
    assert!(lab.world.datagram_sockets("192.0.2.1:9").is_empty());
}

#[test]
fn a_guest_that_asks_thousands_of_names_holds_no_socket_for_long() {
    let mut lab = Lab::new(1);
    for nth in 0..4096 {
        ask(&mut lab, 10_000 + nth, "192.0.2.1:53", Some(b"answer"));
    }
    assert_eq!((lab.used(0, "udp_flows"), lab.world.open_sockets()), (4096, 4096));
    lab.advance(Duration::from_secs(31));
    assert_eq!((lab.used(0, "udp_flows"), lab.world.open_sockets()), (0, 0));
    assert_eq!(lab.dropped(0, "udp_budget"), 0);
}

#[test]
fn answered_questions_make_room_for_others_before_a_conversation_does() {
    let mut lab = Lab::new(1);
    // Older than all questions.
    for _ in 0..2 {
        ask(&mut lab, 9999, "192.0.2.9:443", Some(b"answer"));
    }
    for nth in 0..4100 {
        ask(&mut lab, 10_000 + nth, "192.0.2.1:53", Some(b"answer"));
    }
    assert_eq!(lab.dropped(0, "udp_budget"), 5);
    assert_eq!(lab.world.datagram_sockets("192.0.2.9:443").len(), 1);
}

#[test]
fn a_minute_of_silence_changes_neither_ports_nor_who_hears_of_errors() {
    let mut lab = Lab::new(1);
    // As QUIC begins: several datagrams in each direction.
    for _ in 0..3 {
        ask(&mut lab, 5000, "192.0.2.1:443", Some(b"answer"));
    }
    let socket = lab.world.datagram_sockets("192.0.2.1:443")[0];
    lab.received(0);
    lab.advance(Duration::from_secs(60));
    // The peer speaks first, then the guest: the same socket, so the same ports outside.
    lab.world.datagram_reply(socket, Ok(b"ping".to_vec()));
    lab.settle();
    assert_eq!(datagrams(&lab.received(0)), [(end("192.0.2.1:443"), b"ping".to_vec())]);
    lab.advance(Duration::from_secs(60));
    lab.world.datagrams_sent(socket);
    ask(&mut lab, 5000, "192.0.2.1:443", None);
    assert_eq!(lab.world.datagrams_sent(socket), [b"ask"]);
    assert_eq!(lab.world.datagram_sockets("192.0.2.1:443"), [socket]);
    // The path has become narrower meanwhile.
    let router = Ipv4Addr::new(198, 51, 100, 7);
    let error = IcmpError::FragmentationNeeded(1280);
    lab.world.bounce(socket, Bounce { error, from: Some(router.into()), to: None, quoted: 0 });
    lab.settle();
    assert_eq!(errors(&lab.received(0)), [(router, 3, 4)]);
}
