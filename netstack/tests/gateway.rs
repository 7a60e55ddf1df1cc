//! What the gateway answers, what it carries outward, and what it refuses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lichen_netstack::command::{HostOpening, Transport};
use lichen_netstack::host::{Fragmentation, Route};
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Received, Segment, echo_request, packet, packet_with, udp};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::tcp::Flags;
use lichen_netstack::worker::WorkerCommand;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

fn from(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 88, 0, 2], port))
}

fn to(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn me() -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, 2)
}

/// Type and code of the ICMP messages among what was received.
fn icmp(received: &[Received]) -> Vec<[u8; 2]> {
    received.iter().filter_map(Received::icmp).map(|message| [message[0], message[1]]).collect()
}

#[test]
fn the_gateway_answers_a_ping_of_any_size() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &echo_request(me(), GATEWAY, 3, b"payload"));
    let reply = lab.received(0);
    assert_eq!(reply[0].icmp().unwrap(), echo_reply_of(b"payload"));
    let data = vec![5; 4000];
    send_in_fragments(&mut lab, &echo_request(me(), GATEWAY, 3, &data));
    let pieces = lab.received(0);
    assert_eq!(pieces.len(), 3, "a reply larger than the MTU comes in fragments");
    assert!(pieces.iter().all(|piece| piece.bytes.len() <= 1514));
}

fn echo_reply_of(data: &[u8]) -> Vec<u8> {
    let request = echo_request(GATEWAY, me(), 3, data);
    let mut reply = request[20..].to_vec();
    reply[0] = 0;
    reply[2..4].fill(0);
    use lichen_netstack::wire::checksum;
    let sum = checksum::finish(checksum::add(0, &reply));
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    reply
}

/// Sends a packet in fragments of 1480 bytes.
fn send_in_fragments(lab: &mut Lab, whole: &[u8]) {
    let payload = &whole[20..];
    for at in (0..payload.len()).step_by(1480) {
        let piece = &payload[at..payload.len().min(at + 1480)];
        let more = if at + piece.len() < payload.len() { 0x20 } else { 0 };
        let source = Ipv4Addr::from_octets(whole[12..16].try_into().unwrap());
        let destination = Ipv4Addr::from_octets(whole[16..20].try_into().unwrap());
        let fragment = packet_with(source, destination, whole[9], piece, |packet| {
            packet[6] = more | ((at / 8) >> 8) as u8;
            packet[7] = (at / 8) as u8;
        });
        lab.send_ip(0, &fragment);
    }
}

#[test]
fn the_host_itself_is_closed_and_says_so() {
    let mut lab = Lab::new(1);
    lab.world.route_to("192.168.7.7", Route::Local);
    lab.world.route_to("192.168.7.255", Route::Broadcast);
    for (target, rule) in [
        ("10.88.0.1:8099", "gateway_port"),
        ("10.88.0.1:80", "gateway_port"),
        ("127.0.0.1:8099", "host_address"),
        ("127.1.2.3:22", "host_address"),
        ("0.0.0.0:8099", "host_address"),
        ("0.1.2.3:8099", "host_address"),
        ("192.168.7.7:22", "host_address"),
        ("192.168.7.255:22", "broadcast"),
        ("169.254.169.254:80", "metadata"),
        ("169.254.1.1:80", "metadata"),
        ("100.100.100.200:80", "metadata"),
        ("168.63.129.16:80", "metadata"),
        ("224.0.0.1:80", "broadcast"),
        ("255.255.255.255:80", "broadcast"),
        ("240.0.0.1:80", "broadcast"),
    ] {
        lab.world.serve(target, Behaviour::Accept);
        lab.advance(Duration::from_secs(1));
        let before = lab.dropped(0, rule);
        lab.send_ip(0, &Segment::syn(1).emit(from(4000), to(target)));
        let answer = lab.received(0);
        let (header, _) = answer[0].tcp().unwrap();
        assert_eq!(header.flags.0, Flags::RST | Flags::ACK, "{target}");
        assert_eq!(header.acknowledgement, 2, "{target}");
        lab.send_ip(0, &udp(from(4000), to(target), b"x"));
        let code = if rule == "gateway_port" { 3 } else { 13 };
        let multicast = to(target).ip().is_multicast() || to(target).ip() == Ipv4Addr::BROADCAST;
        let expected = if multicast { vec![] } else { vec![[3, code]] };
        assert_eq!(icmp(&lab.received(0)), expected, "{target}");
        assert_eq!(lab.dropped(0, rule), before + 2, "{target}");
        assert!(lab.world.connections(target).is_empty(), "{target}");
        let asked = format!("tcp {target}");
        assert!(lab.refusals().contains(&(asked, rule.to_owned())), "{target} is told");
    }
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn an_opening_leads_to_the_hosts_loopback_and_nowhere_else() {
    let mut lab = Lab::new(2);
    lab.allow_host(0, HostOpening { port: 5432, protocol: Transport::Tcp });
    lab.world.serve("127.0.0.1:5432", Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(from(4000), to("10.88.0.1:5432")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::SYN | Flags::ACK);
    assert_eq!(lab.world.connections("127.0.0.1:5432").len(), 1);
    // Not for the other transport, not by the loopback address, not for the neighbour.
    lab.send_ip(0, &udp(from(4000), to("10.88.0.1:5432"), b"x"));
    assert_eq!(icmp(&lab.received(0)), [[3, 3]]);
    lab.send_ip(0, &Segment::syn(1).emit(from(4001), to("127.0.0.1:5432")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    let neighbour = SocketAddr::from(([10, 88, 0, 3], 4000));
    lab.send_ip(1, &Segment::syn(1).emit(neighbour, to("10.88.0.1:5432")));
    assert_eq!(lab.received(1)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
}

#[test]
fn an_opening_leads_to_the_loopback_of_ipv6_where_nobody_listens_on_that_of_ipv4() {
    let mut lab = Lab::new(1);
    lab.allow_host(0, HostOpening { port: 5432, protocol: Transport::Tcp });
    lab.world.serve("[::1]:5432", Behaviour::Accept);
    let ask = |lab: &mut Lab, port| {
        lab.send_ip(0, &Segment::syn(1).emit(from(port), to("10.88.0.1:5432")));
        lab.received(0)[0].tcp().unwrap().0.flags.0
    };
    assert_eq!(ask(&mut lab, 4000), Flags::SYN | Flags::ACK);
    assert_eq!(lab.world.connections("[::1]:5432").len(), 1);
    // The first that is asked is the one of IPv4, and the last word is refused.
    lab.world.serve("127.0.0.1:5432", Behaviour::Accept);
    assert_eq!(ask(&mut lab, 4001), Flags::SYN | Flags::ACK);
    assert_eq!(lab.world.connections("[::1]:5432").len(), 1);
    for loopback in ["127.0.0.1:5432", "[::1]:5432"] {
        lab.world.serve(loopback, Behaviour::Refuse);
    }
    assert_eq!(ask(&mut lab, 4002), Flags::RST | Flags::ACK);
    lab.world.serve("[::1]:5432", Behaviour::Unreachable);
    assert_eq!(ask(&mut lab, 4003), Flags::RST | Flags::ACK);
    assert_eq!(lab.world.open_sockets(), 2);
}

#[test]
fn the_host_is_asked_for_each_new_destination_anew() {
    let mut lab = Lab::new(1);
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(from(1), to("192.0.2.1:80")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::SYN | Flags::ACK);
    lab.world.route_to("192.0.2.1", Route::Local);
    lab.send_ip(0, &Segment::syn(1).emit(from(2), to("192.0.2.1:80")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    assert_eq!(lab.world.route_questions(), 2);
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut lab = Lab::new(1);
    lab.change_network(1, |network| network.internal = true);
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(from(1), to("192.0.2.1:80")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    lab.send_ip(0, &udp(from(1), to("192.0.2.1:53"), b"x"));
    lab.send_ip(0, &echo_request(me(), [192, 0, 2, 1].into(), 1, b"x"));
    assert_eq!(icmp(&lab.received(0)), [[3, 13], [3, 13]]);
    assert_eq!(lab.dropped(0, "internal"), 3);
    assert_eq!(lab.world.open_sockets(), 0);
    lab.send_ip(0, &echo_request(me(), GATEWAY, 1, b"x"));
    assert_eq!(icmp(&lab.received(0)), [[0, 0]]);
}

#[test]
fn a_spent_time_to_live_is_told_within_bounds() {
    let mut lab = Lab::new(1);
    let with_ttl = |ttl: u8, to: Ipv4Addr| {
        packet_with(me(), to, 17, &udp(from(1), SocketAddr::from((to, 9)), b"x")[20..], |packet| {
            packet[8] = ttl;
        })
    };
    lab.send_ip(0, &with_ttl(0, [192, 0, 2, 1].into()));
    assert!(lab.received(0).is_empty());
    lab.send_ip(0, &with_ttl(1, [192, 0, 2, 1].into()));
    let answer = lab.received(0);
    assert_eq!(icmp(&answer), [[11, 0]]);
    assert_eq!(answer[0].ipv4().unwrap().source, GATEWAY);
    for _ in 0..1000 {
        lab.send_ip(0, &with_ttl(1, [192, 0, 2, 1].into()));
    }
    assert!(lab.received(0).len() <= 100);
    assert_eq!(lab.dropped(0, "ttl_expired"), 1002);
}

#[test]
fn datagrams_go_out_and_only_their_peer_may_answer() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(from(5000), to("192.0.2.1:9"), b"one"));
    lab.send_ip(0, &udp(from(5000), to("192.0.2.1:9"), b"two"));
    lab.send_ip(0, &udp(from(5000), to("192.0.2.2:9"), b"other"));
    let sockets = lab.world.datagram_sockets("192.0.2.1:9");
    assert_eq!(sockets.len(), 1, "one pair of ends is one flow");
    assert_eq!(lab.world.datagrams_sent(sockets[0]), [b"one", b"two"]);
    assert_eq!(lab.used(0, "udp_flows"), 2);
    lab.world.datagram_reply(sockets[0], Ok(b"reply".to_vec()));
    lab.settle();
    let reply = lab.received(0);
    assert_eq!(reply[0].udp().unwrap(), b"reply");
    assert_eq!(reply[0].ipv4().unwrap().source.to_string(), "192.0.2.1");
    lab.advance(Duration::from_secs(299));
    assert_eq!(lab.used(0, "udp_flows"), 2);
    lab.advance(Duration::from_secs(2));
    assert_eq!(lab.used(0, "udp_flows"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn what_was_meant_for_a_guest_that_has_gone_never_reaches_the_next_one_with_its_address() {
    let mut lab = Lab::new(1);
    let ask = udp(from(5000), to("192.0.2.1:9"), b"ask");
    lab.send_ip(0, &ask);
    let old = lab.world.datagram_sockets("192.0.2.1:9")[0];
    lab.command(WorkerCommand::RemovePort { slot: 0 });
    let next = lab.add_guest(1, 88, 2, Offloads::ChecksumAndTcp);
    assert_eq!(lab.spec(next).address, me());
    lab.world.datagram_reply(old, Ok(b"late".to_vec()));
    lab.settle();
    assert!(lab.received(next).is_empty());
    lab.send_ip(next, &ask);
    lab.world.datagram_reply(old, Ok(b"later".to_vec()));
    let new = *lab.world.datagram_sockets("192.0.2.1:9").last().unwrap();
    assert_ne!(old, new);
    lab.world.datagram_reply(new, Ok(b"its own".to_vec()));
    lab.settle();
    let received = lab.received(next);
    assert_eq!(received.iter().map(|it| it.udp().unwrap()).collect::<Vec<_>>(), [b"its own"]);
}

#[test]
fn a_datagram_larger_than_the_mtu_reaches_the_guest_in_fragments() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(from(5000), to("192.0.2.1:9"), b"ask"));
    let socket = lab.world.datagram_sockets("192.0.2.1:9")[0];
    let long: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    lab.world.datagram_reply(socket, Ok(long.clone()));
    lab.settle();
    let mut whole = vec![0; long.len() + 8];
    let pieces = lab.received(0);
    for piece in &pieces {
        let ip = piece.ipv4().unwrap();
        assert!(ip.total_len <= 1500 && !ip.dont_fragment);
        let data = &piece.bytes[34..14 + ip.total_len];
        whole[ip.fragment_offset..ip.fragment_offset + data.len()].copy_from_slice(data);
    }
    assert_eq!(pieces.len(), 14);
    assert_eq!(whole[8..], long);
}

#[test]
fn a_fragmented_datagram_goes_out_whole_and_an_overlapping_one_not_at_all() {
    let mut lab = Lab::new(1);
    let long: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
    send_in_fragments(&mut lab, &udp(from(5000), to("192.0.2.1:9"), &long));
    let socket = lab.world.datagram_sockets("192.0.2.1:9")[0];
    assert_eq!(lab.world.datagrams_sent(socket), [long]);
    let fragment = |offset: u8, more: u8, len: usize| {
        packet_with(me(), [192, 0, 2, 1].into(), 17, &vec![1; len], |packet| {
            packet[6] = more;
            packet[7] = offset;
        })
    };
    lab.send_ip(0, &fragment(0, 0x20, 64));
    lab.send_ip(0, &fragment(4, 0x20, 64));
    assert_eq!(lab.dropped(0, "frag_overlap"), 1);
    assert_eq!(lab.used(0, "fragments"), 0);
    for identification in 0..10_000u16 {
        let fragment = packet_with(me(), [192, 0, 2, 1].into(), 17, &[1; 64], |packet| {
            packet[4..6].copy_from_slice(&identification.to_be_bytes());
            packet[6] = 0x20;
        });
        lab.wire(0).send(lichen_netstack::testing::frames::ethernet(
            lab.spec(0).mac,
            lab.gateway_mac(0),
            0x0800,
            &fragment,
        ));
    }
    lab.settle();
    assert_eq!(lab.used(0, "fragments"), 64);
    assert_eq!(lab.dropped(0, "frag_budget"), 10_000 - 64);
    lab.advance(Duration::from_secs(31));
    assert_eq!(lab.used(0, "fragments"), 0);
    assert_eq!(lab.dropped(0, "frag_timeout"), 64);
}

/// RFC 1122 3.3.2: of the first fragment only, since nothing else says what the datagram was.
#[test]
fn a_sender_whose_fragments_do_not_all_come_is_told() {
    let mut lab = Lab::new(1);
    let fragment = |identification: u8, offset: u8, protocol: u8| {
        packet_with(me(), [192, 0, 2, 1].into(), protocol, &[1; 64], |packet| {
            (packet[5], packet[6], packet[7]) = (identification, 0x20, offset);
        })
    };
    lab.send_ip(0, &fragment(1, 8, 17));
    lab.send_ip(0, &fragment(2, 8, 17));
    lab.send_ip(0, &fragment(2, 0, 17));
    lab.send_ip(0, &fragment(3, 0, 1));
    lab.advance(Duration::from_secs(31));
    assert_eq!(lab.dropped(0, "frag_timeout"), 3);
    let answer = lab.received(0);
    assert_eq!(icmp(&answer), [[11, 1]], "not of a later one alone, nor of what may be an error");
    assert_eq!(answer[0].icmp().unwrap()[8..], fragment(2, 0, 17));
}

#[test]
fn errors_of_the_host_come_back_as_icmp_that_quotes_the_datagram() {
    let mut lab = Lab::new(1);
    let sent = udp(from(5000), to("192.0.2.1:9"), b"ask");
    lab.send_ip(0, &sent);
    let socket = lab.world.datagram_sockets("192.0.2.1:9")[0];
    for (kind, code) in [
        (io::ErrorKind::ConnectionRefused, 3),
        (io::ErrorKind::HostUnreachable, 1),
        (io::ErrorKind::NetworkUnreachable, 0),
    ] {
        lab.world.datagram_reply(socket, Err(kind));
        lab.settle();
        let answer = lab.received(0);
        let message = answer[0].icmp().unwrap();
        assert_eq!(message[..2], [3, code]);
        assert_eq!(message[8..36], sent[..28]);
    }
}

#[test]
fn the_dont_fragment_bit_is_carried_to_the_hosts_socket() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &udp(from(5000), to("192.0.2.1:9"), b"x"));
    let socket = lab.world.datagram_sockets("192.0.2.1:9")[0];
    assert_eq!(lab.world.fragmentation(socket), Some(Fragmentation::Allowed));
    let datagram = udp(from(5000), to("192.0.2.1:9"), b"x");
    let whole = packet_with(me(), [192, 0, 2, 1].into(), 17, &datagram[20..], |packet| {
        packet[6] = 0x40;
    });
    lab.send_ip(0, &whole);
    assert_eq!(lab.world.fragmentation(socket), Some(Fragmentation::Forbidden));
}

#[test]
fn flows_beyond_the_budget_push_out_the_one_that_was_idle_longest() {
    let mut lab = Lab::new(2);
    for port in 1001..=6000u16 {
        lab.now = lab.now + Duration::from_millis(1);
        lab.send_ip(0, &udp(from(port), to("192.0.2.1:9"), b"x"));
        if port > 1001 {
            lab.send_ip(0, &udp(from(1001), to("192.0.2.1:9"), b"keep"));
        }
    }
    assert_eq!(lab.used(0, "udp_flows"), 4096);
    assert_eq!(lab.dropped(0, "udp_budget"), 5000 - 4096);
    assert_eq!(lab.world.open_sockets(), 4096);
    let neighbour = SocketAddr::from(([10, 88, 0, 3], 1));
    lab.send_ip(1, &udp(neighbour, to("192.0.2.1:9"), b"x"));
    assert_eq!(lab.used(1, "udp_flows"), 1);
    assert_eq!(lab.used(0, "udp_flows"), 4096);
}

#[test]
fn a_ping_goes_out_and_comes_back_under_the_guests_own_identifier() {
    let mut lab = Lab::new(1);
    let request = echo_request(me(), [192, 0, 2, 1].into(), 9, b"data");
    lab.send_ip(0, &request);
    let socket = lab.world.datagram_sockets("192.0.2.1:0")[0];
    let sent = lab.world.datagrams_sent(socket);
    assert_eq!(sent, [&request[20..]]);
    let mut reply = sent[0].clone();
    reply[0] = 0;
    reply[4..6].copy_from_slice(&[0xde, 0xad]);
    lab.world.datagram_reply(socket, Ok(reply));
    lab.settle();
    let received = lab.received(0);
    let message = received[0].icmp().unwrap();
    assert_eq!(message[..2], [0, 0]);
    assert_eq!(message[4..8], request[24..28]);
    lab.advance(Duration::from_secs(61));
    assert_eq!(lab.used(0, "icmp_flows"), 0);
}

#[test]
fn a_host_that_forbids_ping_sockets_is_told() {
    let mut lab = Lab::new(1);
    lab.world.forbid_echo();
    lab.send_ip(0, &echo_request(me(), [192, 0, 2, 1].into(), 9, b"data"));
    assert_eq!(icmp(&lab.received(0)), [[3, 13]]);
}

#[test]
fn other_protocols_are_unreachable_and_forged_errors_ignored() {
    let mut lab = Lab::new(1);
    lab.send_ip(0, &packet(me(), [192, 0, 2, 1].into(), 132, b"sctp"));
    assert_eq!(icmp(&lab.received(0)), [[3, 2]]);
    assert_eq!(lab.dropped(0, "proto"), 1);
    for kind in [3, 4, 5, 11, 12, 0, 13] {
        let mut message = vec![kind, 4, 0, 0, 0, 0, 0, 68];
        message.extend_from_slice(&[0x45; 28]);
        use lichen_netstack::wire::checksum;
        let sum = checksum::finish(checksum::add(0, &message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        lab.send_ip(0, &packet(me(), [192, 0, 2, 1].into(), 1, &message));
    }
    assert!(lab.received(0).is_empty());
    assert_eq!(lab.dropped(0, "icmp"), 7);
}

#[test]
fn names_are_asked_within_bounds() {
    let mut lab = Lab::new(2);
    lab.send_ip(0, &udp(from(4000), to("10.88.0.1:53"), b"question"));
    let answer = lab.received(0);
    assert_eq!(answer[0].udp().unwrap(), b"question");
    assert_eq!(answer[0].ipv4().unwrap().source, GATEWAY);
    for port in 1001..=6000 {
        lab.send_ip(0, &udp(from(port), to("10.88.0.1:53"), b"question"));
    }
    let answered = lab.received(0).len() as u64;
    assert!((300..=420).contains(&answered), "{answered} answers");
    assert_eq!(lab.dropped(0, "dns_budget"), 5000 - answered);
    let neighbour = SocketAddr::from(([10, 88, 0, 3], 1));
    lab.send_ip(1, &udp(neighbour, to("10.88.0.1:53"), b"question"));
    assert_eq!(lab.received(1).len(), 1);
}

#[test]
fn names_over_tcp_are_answered_within_bounds() {
    let mut lab = Lab::new(1);
    let server = to("10.88.0.1:53");
    let open = |lab: &mut Lab, port: u16| {
        lab.send_ip(0, &Segment::syn(1).emit(from(port), server));
        let (header, _) = lab.received(0)[0].tcp().map(|(h, d)| (h, d.to_vec())).unwrap();
        header
    };
    let header = open(&mut lab, 1);
    let ours = header.sequence.wrapping_add(1);
    let question = Segment::new(Flags::ACK, 2, ours).with(&[0, 3, 7, 8, 9]);
    lab.send_ip(0, &question.emit(from(1), server));
    let answer = lab.received(0);
    let data: Vec<u8> =
        answer.iter().filter_map(Received::tcp).flat_map(|(_, data)| data.to_vec()).collect();
    assert_eq!(data, [0, 3, 7, 8, 9]);
    for port in 2..=16 {
        let header = open(&mut lab, port);
        assert!(header.flags.has(Flags::SYN), "connection {port}");
        let ack = Segment::new(Flags::ACK, 2, header.sequence.wrapping_add(1));
        lab.send_ip(0, &ack.emit(from(port), server));
    }
    assert_eq!(open(&mut lab, 17).flags.0, Flags::RST | Flags::ACK);
    assert_eq!(lab.dropped(0, "dns_budget"), 1);
    assert_eq!(lab.used(0, "dns_connections"), 16);
    lab.advance(Duration::from_secs(6));
    assert_eq!(lab.used(0, "dns_connections"), 0);
}

#[test]
fn many_ports_share_the_hosts_descriptors_fairly() {
    let mut lab = Lab::new(6);
    for port in 1001..=4000u16 {
        lab.send_ip(0, &udp(from(port), to("192.0.2.1:9"), b"x"));
    }
    // 12,000 descriptors for six guests: each has 2,000, and its own oldest flow makes room.
    assert_eq!(lab.used(0, "udp_flows"), 2000);
    assert_eq!(lab.dropped(0, "udp_budget"), 1000);
    assert_eq!(lab.world.open_sockets(), 2000);
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    lab.send_ip(0, &Segment::syn(1).emit(from(1), to("192.0.2.1:80")));
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    let neighbour = SocketAddr::from(([10, 88, 0, 3], 1));
    lab.send_ip(1, &Segment::syn(1).emit(neighbour, to("192.0.2.1:80")));
    assert_eq!(lab.received(1)[0].tcp().unwrap().0.flags.0, Flags::SYN | Flags::ACK);
}
