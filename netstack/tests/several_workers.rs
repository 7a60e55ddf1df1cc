//! Guests on different workers: the same as on one, and what may happen to a frame between two.

use std::net::SocketAddr;

use lichen_netstack::command::{PortStatistics, SourceRule};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Segment, echo_request, ethernet, udp};
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::testing::wire::Wire;
use lichen_netstack::worker::WorkerCommand;
use lichen_netstack::worker::crossing::{MAX_BYTES, MAX_FRAMES};
use smoltcp::socket::tcp::State;

const GUESTS: usize = 4;

fn end(lab: &Lab, guest: usize, port: u16) -> SocketAddr {
    (lab.spec(guest).address, port).into()
}

fn frame(lab: &Lab, from: usize, to: usize, packet: &[u8]) -> Vec<u8> {
    ethernet(lab.spec(from).mac, lab.spec(to).mac, 0x0800, packet)
}

fn datagram(lab: &Lab, from: usize, to: usize, payload: &[u8]) -> Vec<u8> {
    frame(lab, from, to, &udp(end(lab, from, 1000), end(lab, to, 2000), payload))
}

/// A segment that stands for three, its checksum left to be completed.
fn large_segment(lab: &Lab, from: usize, to: usize) -> Vec<u8> {
    let packet =
        Segment::new(0x18, 1, 1).with(&[7; 3 * 1448]).emit(end(lab, from, 1), end(lab, to, 2));
    let mut frame = frame(lab, from, to, &packet);
    frame[..VNET_LEN].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    frame
}

/// What each guest has received, and what was counted of each, after all have spoken with all.
fn everybody_speaks(workers: usize) -> Vec<(Vec<Vec<u8>>, PortStatistics)> {
    let mut lab = Lab::with_workers(workers, 3, Offloads::ChecksumAndTcp);
    lab.add_guest(1, 88, 5, Offloads::None);
    for from in 0..GUESTS {
        for to in (0..GUESTS).filter(|to| *to != from) {
            for size in [0, 1, 100, 1400] {
                lab.send(from, datagram(&lab, from, to, &vec![from as u8; size]));
            }
            let (ours, theirs) = (lab.spec(from).address, lab.spec(to).address);
            lab.send(from, frame(&lab, from, to, &echo_request(ours, theirs, 1, b"ping")));
            lab.send(from, large_segment(&lab, from, to));
            // Somebody else's address, and nobody's.
            let forged = udp(end(&lab, to, 1), end(&lab, to, 2), b"forged");
            lab.send(from, frame(&lab, from, to, &forged));
        }
        let mut to_nobody = datagram(&lab, from, (from + 1) % GUESTS, b"nobody");
        to_nobody[VNET_LEN + 5] = 99;
        lab.send(from, to_nobody);
    }
    let received = |lab: &Lab, guest: usize| {
        let wire = lab.wire(guest).clone();
        std::iter::from_fn(move || wire.take()).collect()
    };
    (0..GUESTS).map(|guest| (received(&lab, guest), lab.statistics(guest))).collect()
}

#[test]
fn one_two_and_four_workers_give_the_same_results() {
    let one = everybody_speaks(1);
    assert!(one.iter().all(|(frames, _)| frames.len() >= 3 * 6), "everybody heard everybody");
    assert_eq!(one[0].1.drops["unknown_unicast"], 1);
    assert_eq!(one, everybody_speaks(2));
    assert_eq!(one, everybody_speaks(4));
}

#[test]
fn a_published_port_and_names_work_on_every_worker() {
    for workers in [1, 2, 4] {
        let mut lab = Lab::with_workers(workers, 4, Offloads::ChecksumAndTcp);
        for guest in 0..GUESTS {
            let target = 8000 + guest as u16;
            let listener = lab.publish_port(guest, target, SourceRule::Gateway);
            let good = Impairment { loss: 0, duplicate: 0, reorder: 0 };
            let mut server = TcpGuest::new(&lab, guest, good, 1);
            server.listen(target);
            let client = lab.world.connect_to(listener, "127.0.0.1:5000");
            lab.settle();
            for _ in 0..10 {
                server.step(&mut lab);
            }
            assert_eq!(server.state(), State::Established, "guest {guest} of {workers} workers");
            lab.world.peer_send(client, b"hello");
            for _ in 0..10 {
                server.step(&mut lab);
            }
            let heard = server.socket().recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
            assert_eq!(heard, b"hello");

            // The lab's name service answers with the question.
            let gateway: SocketAddr = "10.88.0.1:53".parse().unwrap();
            lab.send_ip(
                guest,
                &udp(end(&lab, guest, 3000), gateway, b"a question of twelve bytes"),
            );
            let answers = lab.received(guest);
            let answer = answers.iter().find_map(|it| it.udp().map(<[u8]>::to_vec));
            assert_eq!(answer.as_deref(), Some(&b"a question of twelve bytes"[..]));
        }
    }
}

#[test]
fn what_a_port_may_have_of_the_descriptors_does_not_depend_on_its_worker() {
    let flows = |workers: usize| {
        let mut lab = Lab::with_workers(workers, 4, Offloads::ChecksumAndTcp);
        for peer in 0..4096u16 {
            let to = SocketAddr::from(([192, 0, 2, 1], 1 + peer));
            lab.send_ip(0, &udp(end(&lab, 0, 1000), to, b"one flow each"));
        }
        lab.used(0, "udp_flows")
    };
    assert_eq!(flows(1), 3000, "12,000 among four");
    assert_eq!([flows(2), flows(4)], [3000, 3000]);
}

/// Guest 0 is on one worker, guest 1 on the other.
fn pair() -> Lab {
    Lab::with_workers(2, 2, Offloads::ChecksumAndTcp)
}

/// Guest 0 sends, and its worker hands over; the other has not looked yet.
fn send_and_stop(lab: &mut Lab, frames: Vec<Vec<u8>>) {
    frames.into_iter().for_each(|frame| lab.wire(0).send(frame));
    while lab.wire(0).is_readable() {
        lab.handle_frames(0);
        lab.take_turn(0);
    }
}

#[test]
fn a_port_that_is_removed_while_frames_are_on_their_way_loses_them_and_they_are_counted() {
    let mut lab = pair();
    let frame = datagram(&lab, 0, 1, b"too late");
    send_and_stop(&mut lab, vec![frame; 10]);
    lab.command(WorkerCommand::RemovePort { slot: 1 });
    lab.settle();
    assert_eq!(lab.dropped(0, "crossing_lost"), 10);
    assert!(lab.received(1).is_empty());
}

#[test]
fn what_is_on_its_way_to_a_slot_never_reaches_its_next_tenant() {
    let mut lab = pair();
    let frame = datagram(&lab, 0, 1, b"for the one before");
    send_and_stop(&mut lab, vec![frame; 10]);
    lab.command(WorkerCommand::RemovePort { slot: 1 });
    let mut spec = lab.spec(1).clone();
    spec.id = PortId(99);
    let next = Wire::new(Offloads::ChecksumAndTcp, 1024);
    lab.command(WorkerCommand::SetPort { slot: 1, spec, io: Some(next.clone()) });
    lab.settle();
    assert_eq!(next.take(), None);
    assert_eq!(lab.dropped(0, "crossing_lost"), 10);
}

#[test]
fn what_does_not_fit_between_two_workers_is_counted_at_its_sender() {
    for (size, room) in [(18, MAX_FRAMES), (1400, MAX_FRAMES), (4344, MAX_BYTES / (4344 + 66))] {
        let mut lab = pair();
        lab.wire(1).set_room(2 * MAX_FRAMES);
        let frame = match size {
            4344 => large_segment(&lab, 0, 1),
            size => datagram(&lab, 0, 1, &vec![1; size]),
        };
        send_and_stop(&mut lab, vec![frame.clone(); room + 100]);
        lab.settle();
        assert_eq!(lab.dropped(0, "crossing_full"), 100, "frames of {size}");
        assert_eq!(lab.received(1).len(), room);
        // Once they are delivered there is room again.
        lab.send(0, frame);
        assert_eq!(lab.received(1).len(), 1);
        assert_eq!(lab.dropped(0, "crossing_full"), 100);
    }
}

#[test]
fn a_panic_while_a_frame_of_another_worker_is_delivered_closes_the_receiver_alone() {
    let mut lab = Lab::with_workers(2, 4, Offloads::ChecksumAndTcp);
    lab.wire(1).sabotage_writes();
    lab.send(0, datagram(&lab, 0, 1, b"trouble"));
    lab.send(0, datagram(&lab, 0, 3, b"fine"));
    lab.send(2, datagram(&lab, 2, 0, b"fine"));
    assert_eq!(lab.received(3).len(), 1, "beside it on its worker");
    assert_eq!(lab.received(0).len(), 1);
    assert_eq!(lab.statistics(1), PortStatistics::default(), "it is gone");
}
