//! A hundred thousand flows: all alive, none in another's way, and nothing left of them afterwards.
//!
//! That a packet costs the same beside many flows is asserted by counting what was done, never by time.

use std::net::SocketAddr;
use std::time::Duration;

use lichen_netstack::gateway::flow::{Work, tcp, udp as udp_flows};
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Segment, udp};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::tcp::Flags;

const SERVER: &str = "192.0.2.1:80";
const TELLER: &str = "192.0.2.1:9";
const GUESTS: usize = 13;
/// All that a port takes of each kind.
const FLOWS: u16 = 4096;
const FIRST_PORT: u16 = 1024;
const SEQUENCE: u32 = 1000;

fn end(guest: usize, nth: u16) -> SocketAddr {
    let host = u8::try_from(guest).unwrap() + 2;
    SocketAddr::from(([10, 88, 0, host], FIRST_PORT + nth))
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn lab(guests: usize) -> Lab {
    let lab = Lab::with_descriptors(u8::try_from(guests).unwrap(), 200_000);
    lab.world.serve(SERVER, Behaviour::Accept);
    lab
}

/// Opens a TCP flow from the guest; answers what it has to acknowledge from then on.
fn open_tcp(lab: &mut Lab, guest: usize, nth: u16) -> u32 {
    let (from, to) = (end(guest, nth), at(SERVER));
    lab.send_ip(guest, &Segment::syn(SEQUENCE).emit(from, to));
    let answer = lab.received(guest).iter().find_map(|frame| frame.tcp().map(|(tcp, _)| tcp));
    let answer = answer.expect("an answer to the SYN");
    assert!(answer.flags.has(Flags::SYN) && answer.flags.has(Flags::ACK), "{answer:?}");
    let next = answer.sequence.wrapping_add(1);
    lab.send_ip(guest, &Segment::new(Flags::ACK, SEQUENCE + 1, next).emit(from, to));
    next
}

fn send_tcp(lab: &mut Lab, guest: usize, nth: u16, next: u32, data: &[u8]) {
    let segment = Segment::new(Flags::ACK | Flags::PSH, SEQUENCE + 1, next).with(data);
    lab.send_ip(guest, &segment.emit(end(guest, nth), at(SERVER)));
}

fn reset(lab: &mut Lab, guest: usize, nth: u16) {
    let segment = Segment::new(Flags::RST, SEQUENCE + 1, 0);
    lab.send_ip(guest, &segment.emit(end(guest, nth), at(SERVER)));
}

fn send_udp(lab: &mut Lab, guest: usize, nth: u16, data: &[u8]) {
    lab.send_ip(guest, &udp(end(guest, nth), at(TELLER), data));
}

/// What a segment and a datagram on flows that have not been used for a while cost, and the second of each at once.
fn cost_of_packets(lab: &mut Lab, guest: usize, nth: u16, next: u32) -> (u64, u64) {
    lab.advance(Duration::from_secs(5));
    let before = lab.work(guest);
    send_tcp(lab, guest, nth, next, b"data");
    send_udp(lab, guest, nth, b"data");
    let Work { served, timers, .. } = lab.work(guest);
    (served - before.served, timers - before.timers)
}

#[test]
fn a_hundred_thousand_flows_live_side_by_side_and_leave_nothing() {
    let mut lone = lab(1);
    let next = open_tcp(&mut lone, 0, 7);
    send_udp(&mut lone, 0, 7, b"x");
    let cost_alone = cost_of_packets(&mut lone, 0, 7, next);

    let mut lab = lab(GUESTS);
    let mut acknowledged = vec![Vec::new(); GUESTS];
    for nth in 0..FLOWS {
        for (guest, acknowledged) in acknowledged.iter_mut().enumerate() {
            acknowledged.push(open_tcp(&mut lab, guest, nth));
            send_udp(&mut lab, guest, nth, b"x");
        }
    }
    let all = 2 * GUESTS * usize::from(FLOWS);
    assert!(all >= 100_000);
    assert_eq!(lab.world.open_sockets(), all);
    for guest in 0..GUESTS {
        let used = |lab: &mut Lab, budget| lab.used(guest, budget);
        assert_eq!(used(&mut lab, "tcp_flows"), tcp::MAX_FLOWS as u64);
        assert_eq!(used(&mut lab, "udp_flows"), udp_flows::MAX_FLOWS as u64);
        assert_eq!((used(&mut lab, "half_open"), used(&mut lab, "buffered_bytes")), (0, 0));
    }

    // One more of each is one too many, at that port.
    lab.send_ip(0, &Segment::syn(1).emit(end(0, FLOWS), at(SERVER)));
    send_udp(&mut lab, 0, FLOWS, b"x");
    assert_eq!((lab.dropped(0, "tcp_budget"), lab.dropped(0, "udp_budget")), (1, 1));
    assert_eq!((lab.dropped(1, "tcp_budget"), lab.dropped(1, "udp_budget")), (0, 0));
    assert_eq!(lab.world.open_sockets(), all);

    // A packet costs what it costs alone, and no other port anything.
    let others: Vec<Work> = (1..GUESTS).map(|guest| lab.work(guest)).collect();
    let next = acknowledged[0][7];
    let cost = cost_of_packets(&mut lab, 0, 7, next);
    assert_eq!(cost, cost_alone);
    let unmoved: Vec<u64> = (1..GUESTS).map(|guest| lab.work(guest).served).collect();
    assert_eq!(unmoved, others.iter().map(|work| work.served).collect::<Vec<u64>>());

    // All are alive: of the oldest and the newest, every 16th and the one that was just used.
    let peers = lab.world.connections(SERVER);
    let mut heard = 0;
    for (guest, acknowledged) in acknowledged.iter().enumerate() {
        for nth in (0..FLOWS).step_by(16) {
            send_tcp(&mut lab, guest, nth, acknowledged[usize::from(nth)], b"alive");
            heard += 1;
        }
    }
    let said = peers.iter().filter(|peer| lab.world.peer_receive(**peer) == b"alive").count();
    assert_eq!(said, heard);

    // Idle they want nothing, but that the pages of what was used rest.
    lab.advance(Duration::from_secs(5));
    let before: Vec<Work> = (0..GUESTS).map(|guest| lab.work(guest)).collect();
    lab.advance(Duration::from_secs(60));
    for (guest, before) in before.iter().enumerate() {
        assert_eq!(lab.work(guest).served, before.served, "guest {guest}");
    }

    for guest in 0..GUESTS {
        (0..FLOWS).for_each(|nth| reset_after(&mut lab, guest, nth));
    }
    lab.advance(Duration::from_secs(301));
    assert_eq!(lab.world.open_sockets(), 0);
    for guest in 0..GUESTS {
        for budget in ["tcp_flows", "udp_flows", "half_open", "buffered_bytes"] {
            assert_eq!(lab.used(guest, budget), 0, "guest {guest}: {budget}");
        }
    }
}

/// Resets a flow that may have sent four or five bytes since it was opened.
fn reset_after(lab: &mut Lab, guest: usize, nth: u16) {
    for sent in [0, 4, 5] {
        let segment = Segment::new(Flags::RST, SEQUENCE + 1 + sent, 0);
        lab.send_ip(guest, &segment.emit(end(guest, nth), at(SERVER)));
    }
}

#[test]
fn short_connections_leave_no_deadlines_behind() {
    let mut lab = lab(1);
    // A few that stay, whose deadlines must outlive the others'.
    let mut kept = Vec::new();
    for nth in 0..100 {
        kept.push(open_tcp(&mut lab, 0, nth));
    }
    for round in 0..20_000_u16 {
        let nth = 100 + round % 1000;
        open_tcp(&mut lab, 0, nth);
        reset(&mut lab, 0, nth);
    }
    assert_eq!(lab.used(0, "tcp_flows"), 100);
    let queued = lab.work(0).queued;
    assert!(queued <= 2000, "{queued} deadlines for 100 flows");
    // One whose guest falls silent amid its end is still given up in time.
    let fin = Segment::new(Flags::FIN | Flags::ACK, SEQUENCE + 1, kept[0]);
    lab.send_ip(0, &fin.emit(end(0, 0), at(SERVER)));
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_finish(peer);
    lab.settle();
    lab.advance(Duration::from_secs(130));
    assert_eq!(lab.used(0, "tcp_flows"), 99);
}
