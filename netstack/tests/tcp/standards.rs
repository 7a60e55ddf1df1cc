//! What RFC 9293 and those it names ask of the end that the guest talks to.

use std::net::SocketAddr;
use std::time::Duration;

use lichen_netstack::command::SourceRule;
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Received, Segment};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::tcp::{Flags, TcpHeader};

use crate::{SERVER, established, flags, guest_end, send, send_from, server_end};

/// A client of a published port, which the guest could answer.
const CLIENT: &str = "198.51.100.7:5555";

fn header(received: &Received) -> TcpHeader {
    received.tcp().expect("a segment").0
}

/// The data that a guest has received, in the order in which it came.
fn data(received: &[Received]) -> Vec<u8> {
    received.iter().filter_map(Received::tcp).flat_map(|(_, data)| data.to_vec()).collect()
}

#[test]
fn an_acknowledgement_that_fits_no_handshake_is_reset() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let answer = send(&mut lab, &Segment::syn(1000));
    let ours = header(&answer[0]).sequence.wrapping_add(1);
    for wrong in [ours.wrapping_sub(1), ours.wrapping_add(1), ours.wrapping_add(1 << 31)] {
        let answer = send(&mut lab, &Segment::new(Flags::ACK, 1001, wrong));
        let reset = header(answer.last().expect("an answer"));
        assert_eq!((reset.flags.0, reset.sequence), (Flags::RST, wrong));
        assert_eq!(lab.used(0, "half_open"), 1, "the handshake goes on");
    }
    send(&mut lab, &Segment::new(Flags::ACK, 1001, ours));
    assert_eq!((lab.used(0, "tcp_flows"), lab.used(0, "half_open")), (1, 0));
}

#[test]
fn what_lies_outside_of_the_window_is_acknowledged_in_every_state() {
    let outside = |ours| Segment::new(Flags::ACK, 1001 + 50_000_000, ours).with(b"x");
    // While both sides are open, after the guest's end, and after the server's.
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.advance(Duration::from_secs(1));
    assert_eq!(header(&send(&mut lab, &outside(ours))[0]).acknowledgement, 1001);
    send(&mut lab, &Segment::new(Flags::ACK | Flags::FIN, 1001, ours));
    lab.advance(Duration::from_secs(1));
    lab.received(0);
    assert_eq!(header(&send(&mut lab, &outside(ours))[0]).acknowledgement, 1002);
    lab.world.peer_finish(peer);
    lab.settle();
    lab.received(0);
    lab.advance(Duration::from_millis(500));
    let answer = send(&mut lab, &outside(ours));
    assert!(answer.iter().any(|it| header(it).acknowledgement == 1002), "{answer:?}");
    assert!(lab.world.peer_receive(peer).is_empty());
}

#[test]
fn the_window_of_a_syn_is_not_scaled() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let options = vec![2, 4, 5, 0xb4, 3, 3, 7, 0];
    let answer = send(&mut lab, &Segment { options, window: 40, ..Segment::syn(1000) });
    let ours = header(&answer[0]).sequence.wrapping_add(1);
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_send(peer, &[7; 9000]);
    lab.settle();
    assert!(data(&lab.received(0)).is_empty(), "nothing before the handshake has ended");
    // From here on it is: 40 stands for 5120.
    let first = send(&mut lab, &Segment { window: 40, ..Segment::new(Flags::ACK, 1001, ours) });
    assert_eq!(data(&first).len(), 5120);
}

#[test]
fn no_segment_is_longer_than_the_guest_takes() {
    // What is meant where nothing is said (RFC 9293, 3.7.1), and what is said.
    for (options, most) in [(vec![], 536), (vec![2, 4, 2, 0], 512), (vec![2, 4, 5, 0xb4], 1460)] {
        for offloads in [Offloads::None, Offloads::ChecksumAndTcp] {
            let mut lab = Lab::with_offloads(1, offloads);
            lab.world.serve(SERVER, Behaviour::Accept);
            let answer =
                send(&mut lab, &Segment { options: options.clone(), ..Segment::syn(1000) });
            let ours = header(&answer[0]).sequence.wrapping_add(1);
            send(&mut lab, &Segment::new(Flags::ACK, 1001, ours));
            lab.world.peer_send(lab.world.connections(SERVER)[0], &[7; 20_000]);
            lab.settle();
            let got = lab.received(0);
            assert!(data(&got).len() >= 5000);
            for received in &got {
                let whole = received.tcp().expect("a segment").1.len();
                let size = received.vnet.gso.map_or(whole, |gso| usize::from(gso.size));
                assert!(size <= most, "{size} of {most} with {offloads:?}");
            }
        }
    }
}

#[test]
fn a_window_that_shrinks_under_what_is_on_its_way_loses_nothing() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let bytes: Vec<u8> = (0..8000u32).map(|at| (at % 251) as u8).collect();
    lab.world.peer_send(peer, &bytes);
    lab.settle();
    assert_eq!(data(&lab.received(0)), bytes);
    // The guest had room for the first thousand, and has taken its window back.
    let taken = ours.wrapping_add(1000);
    send(&mut lab, &Segment { window: 0, ..Segment::new(Flags::ACK, 1001, taken) });
    lab.advance(Duration::from_secs(5));
    lab.received(0);
    let mut got = bytes[..1000].to_vec();
    let mut answer = send(&mut lab, &Segment::new(Flags::ACK, 1001, taken));
    for _ in 0..50 {
        for (header, payload) in answer.iter().filter_map(Received::tcp) {
            let at = header.sequence.wrapping_sub(ours) as usize;
            if at <= got.len() && at + payload.len() > got.len() {
                got.extend_from_slice(&payload[got.len() - at..]);
            }
        }
        let next = ours.wrapping_add(u32::try_from(got.len()).unwrap());
        send(&mut lab, &Segment::new(Flags::ACK, 1001, next));
        lab.advance(Duration::from_millis(500));
        answer = lab.received(0);
    }
    assert_eq!(got, bytes);
}

#[test]
fn a_window_of_one_byte_is_served_byte_by_byte() {
    let (mut lab, ours) = established();
    let peer = lab.world.connections(SERVER)[0];
    let narrow = |acknowledged: usize| Segment {
        window: 1,
        ..Segment::new(Flags::ACK, 1001, ours.wrapping_add(u32::try_from(acknowledged).unwrap()))
    };
    send(&mut lab, &narrow(0));
    lab.world.peer_send(peer, b"hello");
    lab.settle();
    let mut got = data(&lab.received(0));
    for _ in 0..20 {
        assert!(got.len() <= 5);
        let answer = send(&mut lab, &narrow(got.len()));
        got.extend(data(&answer));
        lab.advance(Duration::from_secs(3));
        // A byte that is sent again because its answer was slow is the same one.
        for (header, payload) in lab.received(0).iter().filter_map(Received::tcp) {
            if header.sequence == ours.wrapping_add(u32::try_from(got.len()).unwrap()) {
                got.extend_from_slice(payload);
            }
        }
    }
    assert_eq!(got, b"hello");
}

/// The moments at which something was sent to the guest during that time, in milliseconds.
fn moments(lab: &mut Lab, seconds: u64) -> Vec<u64> {
    let step = Duration::from_millis(20);
    let mut moments = Vec::new();
    for nth in 0..seconds * 50 {
        lab.advance(step);
        if !data(&lab.received(0)).is_empty() {
            moments.push((nth + 1) * 20);
        }
    }
    moments
}

/// Whether each wait is at least half as long again as the one before, up to the longest of six seconds.
fn is_backing_off(moments: &[u64]) -> bool {
    let waits: Vec<u64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    waits.windows(2).all(|pair| pair[1] * 2 >= pair[0] * 3 || pair[1] >= 5_900)
}

#[test]
fn data_that_nobody_acknowledges_is_sent_again_ever_more_seldom_and_then_given_up() {
    let (mut lab, _) = established();
    let peer = lab.world.connections(SERVER)[0];
    lab.world.peer_send(peer, b"data");
    let moments = moments(&mut lab, 60);
    assert!(moments.len() >= 4, "{moments:?}");
    assert!(moments.len() < 20, "{moments:?}");
    assert!(is_backing_off(&moments), "{moments:?}");
    lab.advance(Duration::from_secs(1000));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert!(lab.world.ending(peer).reset, "the server is told");
}

#[test]
fn probes_of_a_closed_window_come_ever_more_seldom() {
    let (mut lab, ours) = established();
    send(&mut lab, &Segment { window: 0, ..Segment::new(Flags::ACK, 1001, ours) });
    lab.world.peer_send(lab.world.connections(SERVER)[0], b"data");
    let moments = moments(&mut lab, 60);
    assert!(moments.len() >= 3, "{moments:?}");
    assert!(is_backing_off(&moments), "{moments:?}");
    let answer = send(&mut lab, &Segment::new(Flags::ACK, 1001, ours));
    lab.advance(Duration::from_secs(60));
    let got = [data(&answer), data(&lab.received(0))].concat();
    assert!(got.windows(4).any(|part| part == b"data") || got.starts_with(b"data"), "{got:?}");
}

/// A connection to a published port whose SYN has reached the guest: lab, client, that SYN.
fn reached() -> (Lab, u64, TcpHeader) {
    let mut lab = Lab::new(1);
    let listener = lab.publish_port(0, 80, SourceRule::Client);
    let client = lab.world.connect_to(listener, CLIENT);
    lab.settle();
    let syn = header(&lab.received(0)[0]);
    assert_eq!(syn.flags.0, Flags::SYN);
    (lab, client, syn)
}

fn answer_client(lab: &mut Lab, segment: &Segment) -> Vec<Received> {
    let guest = SocketAddr::from(([10, 88, 0, 2], 80));
    lab.send_ip(0, &segment.emit(guest, CLIENT.parse().unwrap()));
    lab.received(0)
}

#[test]
fn only_a_reset_that_acknowledges_our_syn_refuses_a_client() {
    let (mut lab, client, syn) = reached();
    let refusal = |number| Segment::new(Flags::RST | Flags::ACK, 0, number);
    for wrong in [syn.sequence, syn.sequence.wrapping_add(2), 0x1234_5678] {
        answer_client(&mut lab, &refusal(wrong));
        assert!(!lab.world.ending(client).reset, "{wrong}");
    }
    answer_client(&mut lab, &Segment::new(Flags::RST, 0, 0));
    assert!(!lab.world.ending(client).reset);
    answer_client(&mut lab, &refusal(syn.sequence.wrapping_add(1)));
    assert!(lab.world.ending(client).reset);
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

#[test]
fn a_syn_that_is_answered_for_another_is_reset_and_the_connection_is_made() {
    let (mut lab, client, syn) = reached();
    let stray = syn.sequence.wrapping_add(500);
    let answer = answer_client(
        &mut lab,
        &Segment { acknowledgement: stray, flags: Flags::SYN | Flags::ACK, ..Segment::syn(90) },
    );
    assert!(answer.iter().map(header).any(|it| it.flags.0 == Flags::RST && it.sequence == stray));
    let ours = syn.sequence.wrapping_add(1);
    let right =
        Segment { acknowledgement: ours, flags: Flags::SYN | Flags::ACK, ..Segment::syn(7) };
    answer_client(&mut lab, &right);
    answer_client(&mut lab, &Segment::new(Flags::ACK, 8, ours).with(b"hello"));
    assert_eq!(lab.world.peer_receive(client), b"hello");
}

#[test]
fn both_sides_may_open_at_once() {
    let (mut lab, client, syn) = reached();
    let ours = syn.sequence.wrapping_add(1);
    let answer = answer_client(&mut lab, &Segment::syn(7));
    let both = header(answer.last().expect("an answer"));
    assert_eq!((both.flags.0, both.sequence), (Flags::SYN | Flags::ACK, syn.sequence));
    assert_eq!(both.acknowledgement, 8);
    answer_client(&mut lab, &Segment::new(Flags::ACK, 8, ours).with(b"hello"));
    assert_eq!(lab.world.peer_receive(client), b"hello");
}

#[test]
fn data_and_a_cookie_in_a_syn_are_not_lost_and_not_doubled() {
    let cookie = vec![2, 4, 5, 0xb4, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
    for options in [vec![2, 4, 5, 0xb4], cookie] {
        let mut lab = Lab::new(1);
        lab.world.serve(SERVER, Behaviour::Accept);
        let syn = Segment { options, ..Segment::syn(1000) }.with(b"early");
        let answer = header(&send(&mut lab, &syn)[0]);
        assert!(answer.flags.has(Flags::SYN | Flags::ACK));
        // What is not acknowledged is the guest's to send again.
        let known = answer.acknowledgement.wrapping_sub(1001) as usize;
        assert!(known == 0 || known == 5, "{known}");
        let ours = answer.sequence.wrapping_add(1);
        let rest = Segment::new(Flags::ACK, 1001 + known as u32, ours).with(&b"early"[known..]);
        send(&mut lab, &rest);
        lab.settle();
        assert_eq!(lab.world.peer_receive(lab.world.connections(SERVER)[0]), b"early");
    }
}

/// Blocks that are reversed, that wrap, that lie before or behind everything, and more than fit.
#[test]
fn selective_acknowledgements_that_cannot_be_harm_nobody() {
    let block = |first: u32, last: u32| [first.to_be_bytes(), last.to_be_bytes()].concat();
    for port in 1..=300 {
        let mut lab = Lab::new(1);
        lab.world.serve(SERVER, Behaviour::Accept);
        let options = vec![2, 4, 5, 0xb4, 4, 2, 1, 1];
        let answer = send_from(&mut lab, port, &Segment { options, ..Segment::syn(1000) });
        let ours = header(&answer[0]).sequence.wrapping_add(1);
        send_from(&mut lab, port, &Segment::new(Flags::ACK, 1001, ours));
        let peer = lab.world.connections(SERVER)[0];
        lab.world.peer_send(peer, &[7; 9000]);
        lab.settle();
        lab.received(0);
        let at = |distance: u32| ours.wrapping_add(distance);
        for (left, right) in [
            (at(4000), at(1000)),
            (at(u32::MAX - 100), at(100)),
            (at(1 << 31), at((1 << 31) + 1)),
            (0, u32::MAX),
            (u32::MAX, 0),
            (at(9000), at(100_000)),
        ] {
            let mut options = vec![1, 1, 5, 10];
            options.extend(block(left, right));
            let duplicate = Segment { options, ..Segment::new(Flags::ACK, 1001, ours) };
            for _ in 0..4 {
                send_from(&mut lab, port, &duplicate);
            }
        }
        send_from(&mut lab, port, &Segment::new(Flags::ACK, 1001, at(9000)).with(b"fine"));
        assert_eq!(lab.world.peer_receive(peer), b"fine");
    }
}

#[test]
fn seventy_thousand_connections_in_a_row_begin_anew_each_time() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    for nth in 0..70_000u32 {
        let port = (nth % 65_535) as u16 + 1;
        // A number of its own for each, and ever a larger one.
        let first = nth.wrapping_mul(60_000);
        let answer = header(&send_from(&mut lab, port, &Segment::syn(first))[0]);
        assert!(answer.flags.has(Flags::SYN | Flags::ACK), "connection {nth}");
        let ours = answer.sequence.wrapping_add(1);
        let next = first.wrapping_add(1);
        let told = nth.to_be_bytes();
        let end = Segment::new(Flags::ACK | Flags::FIN, next, ours).with(&told);
        lab.send_ip(0, &end.emit(guest_end(port), server_end()));
        let peer = lab.world.newest_connection(SERVER);
        assert_eq!(lab.world.peer_receive(peer), told, "connection {nth}");
        lab.world.peer_finish(peer);
        lab.settle();
        lab.received(0);
        let last = Segment::new(Flags::ACK, next.wrapping_add(5), ours.wrapping_add(1));
        assert!(!flags(&send_from(&mut lab, port, &last)).contains(&Flags::RST));
    }
    lab.advance(Duration::from_secs(120));
    assert_eq!(lab.used(0, "tcp_flows"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn a_slow_reader_costs_a_hundred_others_nothing() {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let mut flows = Vec::new();
    for port in 1..=101 {
        let answer = send_from(&mut lab, port, &Segment::syn(1000));
        let ours = header(&answer[0]).sequence.wrapping_add(1);
        send_from(&mut lab, port, &Segment::new(Flags::ACK, 1001, ours));
        flows.push((port, lab.world.newest_connection(SERVER), ours));
    }
    let (slow, fast) = flows.split_first().expect("flows");
    lab.world.set_peer_capacity(slow.1, 0);
    let burst = [7; 1400];
    for round in 0..60u32 {
        for (port, _, ours) in &flows {
            let segment = Segment::new(Flags::ACK, 1001 + round * 1400, *ours).with(&burst);
            lab.send_ip(0, &segment.emit(guest_end(*port), server_end()));
        }
        lab.received(0);
        for (port, peer, _) in fast {
            assert_eq!(lab.world.peer_receive(*peer).len(), 1400, "port {port} in round {round}");
        }
    }
}
