//! TCP segment by segment, as a hostile or unlucky guest would send them.

use std::net::SocketAddr;
use std::time::Duration;

use lichen_netstack::frame::vnet_header::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use lichen_netstack::host::Route;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Received, Segment};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::tcp::{Flags, option};

use crate::{SERVER, established, ethernet, flags, guest_end, send, send_from, server_end};

#[test]
fn a_syn_is_answered_only_after_the_host_has_connected() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Ignore);
    assert!(send(&mut lab, &Segment::syn(1000)).is_empty());
    // Sent again, it is the same connection, and no reason to end it.
    for _ in 0..5 {
        lab.advance(Duration::from_secs(1));
        assert!(send(&mut lab, &Segment::syn(1000)).is_empty());
    }
    assert_eq!(lab.world.connections(SERVER).len(), 1);
    assert_eq!(lab.dropped(0, "duplicate"), 5);
    lab.advance(Duration::from_secs(200));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn a_refusal_is_a_reset_that_acknowledges_the_syn() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Refuse);
    let answer = send(&mut lab, &Segment::syn(1000));
    let (header, _) = answer[0].tcp().unwrap();
    assert_eq!(header.flags, Flags(Flags::RST | Flags::ACK));
    assert_eq!((header.sequence, header.acknowledgement), (0, 1001));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

#[test]
fn an_unreachable_server_is_told_by_icmp_that_quotes_the_syn() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Unreachable);
    let syn = Segment::syn(1000).emit(guest_end(4000), server_end());
    lab.send_ip(0, &syn);
    let answer = lab.received(0);
    let message = answer[0].icmp().unwrap();
    assert_eq!(message[..2], [3, 1]);
    assert_eq!(message[8..], syn);
    lab.world.route_to("192.0.2.1", Route::Unreachable);
    lab.send_ip(0, &Segment::syn(1).emit(guest_end(4001), server_end()));
    assert_eq!(lab.received(0)[0].icmp().unwrap()[..2], [3, 0]);
    assert_eq!(lab.dropped(0, "no_route"), 2);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut lab = Lab::new(1);
    let answer = send(&mut lab, &Segment::new(Flags::ACK, 5, 77).with(b"x"));
    let (header, _) = answer[0].tcp().unwrap();
    assert_eq!((header.flags, header.sequence), (Flags(Flags::RST), 77));
    let answer = send(&mut lab, &Segment::new(Flags::FIN, 5, 0));
    let (header, _) = answer[0].tcp().unwrap();
    assert_eq!((header.flags.0, header.acknowledgement), (Flags::RST | Flags::ACK, 6));
    assert!(send(&mut lab, &Segment::new(Flags::RST, 5, 77)).is_empty());
    assert_eq!(lab.dropped(0, "tcp_no_flow"), 3);
}

#[test]
fn the_mss_we_announce_is_the_networks() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let answer = send(&mut lab, &Segment::syn(1000));
    let (header, _) = answer[0].tcp().unwrap();
    let options = &answer[0].bytes[34 + 20..34 + header.header_len];
    assert_eq!(option(options, 2), Some([0x05, 0xb4].as_slice()));
}

#[test]
fn strange_mss_and_options_harm_nobody() {
    let tiny: [&[u8]; 9] = [
        &[2, 4, 0, 0],
        &[2, 4, 0, 1],
        &[2, 4, 0xff, 0xff],
        &[2, 3, 1, 0],
        &[2, 0, 0, 0],
        &[3, 3, 255, 0],
        &[5, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        &[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        &[34, 4, 1, 2],
    ];
    for (nth, options) in tiny.into_iter().enumerate() {
        let mut lab = Lab::new(1);
        lab.world.serve(SERVER, Behaviour::Accept);
        let syn = Segment { options: options.to_vec(), ..Segment::syn(1000) };
        send(&mut lab, &syn);
        lab.advance(Duration::from_secs(1));
        let answer = send_from(&mut lab, 4001, &Segment::syn(1));
        assert!(flags(&answer).contains(&(Flags::SYN | Flags::ACK)), "options {nth}");
    }
}

#[test]
fn reset_and_syn_from_the_blind_end_nothing() {
    let (mut lab, ours) = established();
    for (segment, answered) in [
        (Segment::new(Flags::RST, 1002, 0), true),
        (Segment::new(Flags::RST, 1000, 0), false),
        (Segment::new(Flags::RST, 900_000_000, 0), false),
        (Segment::syn(5), true),
        (Segment::syn(1001), true),
        (Segment::new(Flags::ACK, 1001, ours.wrapping_add(1)), true),
        (Segment::new(Flags::ACK, 1001, ours.wrapping_sub(1 << 20)), true),
    ] {
        lab.advance(Duration::from_secs(1));
        let answer = send(&mut lab, &segment);
        let expected: &[u8] = if answered { &[Flags::ACK] } else { &[] };
        assert_eq!(flags(&answer), expected, "{segment:?}");
        assert_eq!(lab.used(0, "tcp_flows"), 1, "{segment:?}");
    }
    assert_eq!(lab.dropped(0, "tcp_blind"), 7);
    // Two challenges in one moment are one too many.
    assert_eq!(send(&mut lab, &Segment::syn(5)).len(), 0);
    assert!(send(&mut lab, &Segment::new(Flags::RST, 1001, 0)).is_empty());
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

#[test]
fn a_reset_right_behind_data_counts() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let data = Segment::new(Flags::ACK, 1001, ours).with(b"last words");
    lab.wire(0).send(ethernet(&lab, &data));
    lab.wire(0).send(ethernet(&lab, &Segment::new(Flags::RST, 1011, 0)));
    lab.settle();
    assert!(lab.world.ending(peer).reset);
}

#[test]
fn data_is_taken_once_in_order_and_within_the_window() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let data = |sequence, bytes: &[u8]| Segment::new(Flags::ACK, sequence, ours).with(bytes);
    send(&mut lab, &data(1004, b"def"));
    assert!(lab.world.peer_receive(peer).is_empty());
    send(&mut lab, &data(1001, b"abc"));
    assert_eq!(lab.world.peer_receive(peer), b"abcdef");
    // Again, overlapping, and far outside: acknowledged, never delivered.
    for segment in [data(1001, b"abc"), data(1001, b"ABCDEF"), data(90_000_000, b"x")] {
        lab.advance(Duration::from_secs(1));
        let answer = send(&mut lab, &segment);
        assert_eq!(answer.last().unwrap().tcp().unwrap().0.acknowledgement, 1007);
        assert!(lab.world.peer_receive(peer).is_empty());
    }
    // The part of an overlap that is new counts; what is known stays as it was.
    send(&mut lab, &data(1004, b"XYZg"));
    assert_eq!(lab.world.peer_receive(peer), b"g");
}

#[test]
fn after_large_data_every_number_is_still_the_guests_own() {
    let mut lab = Lab::new(2);
    lab.world.serve(SERVER, Behaviour::Accept);
    // With selective acknowledgements.
    let syn = Segment { options: vec![2, 4, 5, 0xb4, 4, 2, 1, 1], ..Segment::syn(1000) };
    let answer = send(&mut lab, &syn);
    let ours = answer[0].tcp().unwrap().0.sequence.wrapping_add(1);
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours));
    let peer = lab.world.connections(SERVER)[0];
    let data = |sequence, bytes: &[u8]| Segment::new(Flags::ACK, sequence, ours).with(bytes);
    let bytes: Vec<u8> = (0..20_000).map(|at| (at % 251) as u8).collect();
    let answer = send_large(&mut lab, &data(1001, &bytes));
    let acknowledged: Vec<u32> =
        answer.iter().map(|received| received.tcp().unwrap().0.acknowledgement).collect();
    assert_eq!(acknowledged, [21_001]);
    assert_eq!(lab.world.peer_receive(peer), bytes);
    // Once more, it is only acknowledged.
    lab.advance(Duration::from_secs(1));
    let answer = send_large(&mut lab, &data(1001, &bytes));
    assert_eq!(answer[0].tcp().unwrap().0.acknowledgement, 21_001);
    // A gap is told by the guest's numbers, and filled.
    let answer = send(&mut lab, &data(21_006, b"later"));
    let (header, _) = answer[0].tcp().unwrap();
    assert_eq!(header.acknowledgement, 21_001);
    let edges = [21_006_u32, 21_011].map(u32::to_be_bytes).concat();
    assert_eq!(option(&answer[0].bytes[54..34 + header.header_len], 5), Some(edges.as_slice()));
    let answer = send(&mut lab, &data(21_001, b"first"));
    assert_eq!(answer[0].tcp().unwrap().0.acknowledgement, 21_011);
    assert_eq!(lab.world.peer_receive(peer), b"firstlater");
    // So is an answer, and a reset right behind more of it counts.
    lab.world.peer_send(peer, b"thanks");
    lab.settle();
    let (header, thanks) = lab.received(0).pop().map(|it| (it.tcp().unwrap().0, it)).unwrap();
    assert_eq!((header.acknowledgement, thanks.tcp().unwrap().1), (21_011, &b"thanks"[..]));
    send(&mut lab, &Segment::new(Flags::ACK, 21_011, ours.wrapping_add(6)));
    let more = Segment::new(Flags::ACK, 21_011, ours.wrapping_add(6)).with(&bytes);
    lab.wire(0).send(large(&lab, &more));
    lab.wire(0).send(ethernet(&lab, &Segment::new(Flags::RST, 41_011, 0)));
    lab.settle();
    assert_eq!(lab.world.peer_receive(peer), bytes);
    assert!(lab.world.ending(peer).reset);
}

/// A frame that stands for several.
fn large(lab: &Lab, segment: &Segment) -> Vec<u8> {
    let mut frame = ethernet(lab, segment);
    let gso = Gso { kind: GsoKind::Tcpv4, size: 1460, header_len: 54, ecn: false };
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    frame[..VNET_LEN].copy_from_slice(&VnetHeader { checksum, gso: Some(gso) }.emit());
    frame
}

fn send_large(lab: &mut Lab, segment: &Segment) -> Vec<Received> {
    let frame = large(lab, segment);
    lab.send(0, frame);
    lab.received(0)
}

#[test]
fn data_with_an_old_acknowledgement_is_delivered() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_send(peer, b"hello");
    lab.settle();
    assert_eq!(lab.received(0)[0].tcp().unwrap().1, b"hello");
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours.wrapping_add(5)));
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours).with(b"late"));
    assert_eq!(lab.world.peer_receive(peer), b"late");
}

#[test]
fn data_after_the_guests_own_end_is_not_repeated() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let last = Segment::new(Flags::ACK | Flags::FIN, 1001, ours).with(b"end");
    for _ in 0..3 {
        send(&mut lab, &last);
        lab.advance(Duration::from_millis(600));
    }
    assert_eq!(lab.world.peer_receive(peer), b"end");
    assert!(lab.world.ending(peer).finished);
}

#[test]
fn thousands_of_gaps_cost_a_bounded_list() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    for gap in 0..10_000u32 {
        let segment = Segment::new(Flags::ACK, 1001 + 2 * (gap % 5000) + 1, ours).with(b"x");
        lab.send_ip(0, &segment.emit(guest_end(4000), server_end()));
        lab.received(0);
    }
    let whole = vec![b'y'; 1400];
    for at in (0..11_200).step_by(1400) {
        send(&mut lab, &Segment::new(Flags::ACK, 1001 + at, ours).with(&whole));
    }
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours).with(&whole));
    let answer = send(&mut lab, &Segment::new(Flags::ACK, 1001, ours).with(&whole));
    assert_eq!(answer.last().unwrap().tcp().unwrap().0.acknowledgement, 1001 + 11_200);
    assert_eq!(lab.world.peer_receive(peer).len(), 11_200);
}

#[test]
fn more_than_the_window_before_our_first_acknowledgement_overruns_nothing() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let syn = Segment { options: vec![2, 4, 5, 0xb4, 3, 3, 14, 0], ..Segment::syn(1000) };
    let answer = send(&mut lab, &syn);
    let ours = answer[0].tcp().unwrap().0.sequence.wrapping_add(1);
    let peer = lab.world.connections(SERVER)[0];
    lab.world.set_peer_capacity(peer, 0);
    let data = vec![b'z'; 1400];
    for nth in 0..1600u32 {
        let segment = Segment::new(Flags::ACK, 1001 + nth * 1400, ours).with(&data);
        lab.wire(0).send(ethernet(&lab, &segment));
    }
    lab.settle();
    assert_eq!(lab.used(0, "tcp_flows"), 1);
    assert!(lab.used(0, "buffered_bytes") < 1 << 20);
}

#[test]
fn a_connection_that_never_completes_is_given_up() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    send(&mut lab, &Segment::syn(1000));
    assert_eq!((lab.used(0, "tcp_flows"), lab.used(0, "half_open")), (1, 1));
    lab.advance(Duration::from_secs(11));
    assert_eq!((lab.used(0, "tcp_flows"), lab.used(0, "half_open")), (0, 0));
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn a_reset_instead_of_the_handshakes_end_closes_the_host_socket() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    send(&mut lab, &Segment::syn(1000));
    send(&mut lab, &Segment::new(Flags::RST, 1001, 0));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn an_end_that_is_never_acknowledged_is_given_up() {
    let (mut lab, _) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_finish(peer);
    lab.advance(Duration::from_secs(70));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn an_end_that_was_lost_is_sent_again_even_after_duplicate_acknowledgements() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_send(peer, b"data");
    lab.world.peer_finish(peer);
    lab.settle();
    lab.received(0);
    // The guest has the data, drops the FIN, and says so three times over.
    for _ in 0..5 {
        send(&mut lab, &Segment::new(Flags::ACK, 1001, ours.wrapping_add(4)));
    }
    lab.received(0);
    lab.advance(Duration::from_secs(5));
    let again = lab.received(0);
    let (header, _) = again[0].tcp().unwrap();
    assert!(header.flags.has(Flags::FIN | Flags::ACK));
    assert_eq!(header.sequence, ours.wrapping_add(4));
    send(&mut lab, &Segment::new(Flags::ACK | Flags::FIN, 1001, ours.wrapping_add(5)));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert!(!lab.world.ending(peer).reset);
}

#[test]
fn a_half_closed_silence_does_not_last_for_ever() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_finish(peer);
    lab.settle();
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours.wrapping_add(1)));
    lab.advance(Duration::from_secs(200));
    assert_eq!(lab.used(0, "tcp_flows"), 1);
    lab.advance(Duration::from_secs(50));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

#[test]
fn a_closed_window_is_probed_and_given_up_in_the_end() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let closed = Segment { window: 0, ..Segment::new(Flags::ACK, 1001, ours) };
    send(&mut lab, &closed);
    lab.world.peer_send(peer, b"data");
    lab.advance(Duration::from_secs(20));
    let probes = lab.received(0);
    assert!(!probes.is_empty(), "a closed window is probed");
    lab.advance(Duration::from_secs(1000));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert!(lab.world.ending(peer).reset);
}

#[test]
fn a_flood_of_syns_makes_room_for_the_honest_one() {
    let mut lab = Lab::new(1);
    lab.world.serve("192.0.2.9:80", Behaviour::Ignore);
    lab.world.serve(SERVER, Behaviour::Accept);
    for port in 1..=3000 {
        let target = if port % 2 == 0 { "192.0.2.9:80" } else { SERVER };
        let syn = Segment::syn(1).emit(guest_end(port), target.parse().unwrap());
        lab.send_ip(0, &syn);
        lab.received(0);
    }
    assert_eq!(lab.used(0, "half_open"), 256);
    assert_eq!(lab.world.open_sockets(), 256);
    assert_eq!(lab.dropped(0, "half_open_budget"), 3000 - 256);
    let answer = send_from(&mut lab, 50_000, &Segment::syn(1));
    assert_eq!(flags(&answer), [Flags::SYN | Flags::ACK]);
    lab.advance(Duration::from_secs(140));
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn connections_beyond_the_budget_are_refused_with_a_reset() {
    let mut lab = Lab::new(2);
    lab.world.serve(SERVER, Behaviour::Accept);
    for port in 1..=5000 {
        let answer = send_from(&mut lab, port, &Segment::syn(1));
        let (header, _) = answer[0].tcp().unwrap();
        if port <= 4096 {
            let ours = header.sequence.wrapping_add(1);
            send_from(&mut lab, port, &Segment::new(Flags::ACK, 2, ours));
        } else {
            assert_eq!(header.flags.0, Flags::RST | Flags::ACK);
        }
    }
    assert_eq!(lab.used(0, "tcp_flows"), 4096);
    assert_eq!(lab.dropped(0, "tcp_budget"), 5000 - 4096);
    // The neighbour is not touched by any of this.
    let from = SocketAddr::from(([10, 88, 0, 3], 4000));
    lab.send_ip(1, &Segment::syn(1).emit(from, server_end()));
    assert_eq!(flags(&lab.received(1)), [Flags::SYN | Flags::ACK]);
}

#[test]
fn the_same_ports_serve_again_at_once_after_an_end_in_order() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let mut sequence = 1000u32;
    for round in 0..50usize {
        let answer = send(&mut lab, &Segment::syn(sequence));
        let ours = answer[0].tcp().unwrap().0.sequence.wrapping_add(1);
        let peer = lab.world.newest_connection(SERVER);
        let last =
            Segment::new(Flags::ACK | Flags::FIN, sequence + 1, ours).with(&[round as u8; 10]);
        send(&mut lab, &last);
        assert_eq!(lab.world.peer_receive(peer), [round as u8; 10]);
        lab.world.peer_finish(peer);
        lab.settle();
        lab.received(0);
        send(&mut lab, &Segment::new(Flags::ACK, sequence + 12, ours.wrapping_add(1)));
        assert_eq!(lab.used(0, "tcp_flows"), 0, "round {round}");
        sequence = sequence.wrapping_add(100_000_000);
    }
}

#[test]
fn a_wrong_checksum_is_dropped_where_the_guest_made_one() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let mut packet = Segment::syn(1).emit(guest_end(4000), server_end());
    packet[36] ^= 1;
    lab.send_ip(0, &packet);
    assert!(lab.received(0).is_empty());
    assert_eq!(lab.dropped(0, "csum"), 1);
}

#[test]
fn a_port_that_is_closed_resets_its_connections_on_both_sides() {
    use lichen_netstack::worker::WorkerCommand;
    let (mut lab, _) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.command(WorkerCommand::RemovePort { slot: 0 });
    assert!(lab.world.ending(peer).reset);
    assert!(flags(&lab.received(0)).iter().any(|flags| Flags(*flags).has(Flags::RST)));
}
