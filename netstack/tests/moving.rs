//! A port that goes to another worker, with its flows, sockets and counters.

use lichen_netstack::command::SourceRule;
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::testing::names;
use smoltcp::socket::tcp::State;

const GOOD: Impairment = Impairment { loss: 0, duplicate: 0, reorder: 0 };

fn lab(guests: u8) -> Lab {
    Lab::with_workers(2, guests, Offloads::ChecksumAndTcp)
}

fn datagram(lab: &Lab, from: usize, to: usize) -> Vec<u8> {
    let (a, b) = (lab.spec(from), lab.spec(to));
    let packet = udp((a.address, 1000).into(), (b.address, 2000).into(), b"hello neighbour");
    ethernet(a.mac, b.mac, 0x0800, &packet)
}

#[test]
fn a_connection_goes_on_while_its_port_moves_to_and_fro_and_every_byte_arrives() {
    let mut lab = lab(2);
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    let mut guest = TcpGuest::new(&lab, 0, GOOD, 1);
    guest.connect(&lab, 40_000, "192.0.2.1:80");
    for _ in 0..5 {
        guest.step(&mut lab);
    }
    let peer = lab.world.connections("192.0.2.1:80")[0];
    let pattern = |len: usize| (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    let (to_send, to_receive) = (pattern(300_000), pattern(400_000));
    let (mut sent, mut offered) = (0, 0);
    let (mut heard_outside, mut heard_inside) = (Vec::new(), Vec::new());
    for round in 0..20_000 {
        let socket = guest.socket();
        if sent < to_send.len() && socket.can_send() {
            sent += socket.send_slice(&to_send[sent..]).unwrap();
        }
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), heard_inside.extend_from_slice(bytes))).unwrap();
        }
        offered += lab.world.peer_send(peer, &to_receive[offered..]);
        guest.step(&mut lab);
        heard_outside.extend(lab.world.peer_receive(peer));
        if round % 3 == 0 {
            assert!(lab.move_to(0, 1 - round / 3 % 2), "it may go");
        }
        if heard_outside.len() == to_send.len() && heard_inside.len() == to_receive.len() {
            break;
        }
    }
    assert!(heard_outside == to_send && heard_inside == to_receive);
    lab.world.peer_finish(peer);
    for _ in 0..5 {
        guest.step(&mut lab);
    }
    assert_eq!(guest.state(), State::CloseWait);
}

#[test]
fn a_published_port_is_served_where_its_port_has_gone() {
    let mut lab = lab(2);
    let listener = lab.publish_port(0, 8000, SourceRule::Gateway);
    let mut server = TcpGuest::new(&lab, 0, GOOD, 1);
    server.listen(8000);
    // One that waits already, and is told to nobody but the next worker.
    lab.world.connect_to(listener, "127.0.0.1:5000");
    assert!(lab.move_to(0, 1));
    for _ in 0..5 {
        server.step(&mut lab);
    }
    assert_eq!(server.state(), State::Established);
    let udp_socket = lab.publish_udp(1, 9000, SourceRule::Gateway);
    assert!(lab.move_to(1, 0));
    let client =
        lichen_netstack::host::Peer { address: "127.0.0.1:5001".parse().unwrap(), local: None };
    lab.world.client_sends(udp_socket, client, b"question", 8);
    lab.settle();
    assert_eq!(lab.received(1).iter().find_map(|it| it.udp()), Some(&b"question"[..]));
}

#[test]
fn datagrams_of_a_flow_come_back_after_a_move_and_counters_go_on() {
    let mut lab = lab(2);
    let to = "192.0.2.9:7".parse().unwrap();
    let from = (lab.spec(0).address, 1000).into();
    lab.send_ip(0, &udp(from, to, b"out"));
    let socket = lab.world.datagram_sockets("192.0.2.9:7")[0];
    let before = lab.statistics(0);
    // An answer that has come and was told to the old worker, which did not look.
    assert!(lab.move_to(0, 1));
    lab.world.datagram_reply(socket, Ok(b"back".to_vec()));
    lab.settle();
    assert_eq!(lab.received(0).iter().find_map(|it| it.udp()), Some(&b"back"[..]));
    let after = lab.statistics(0);
    assert_eq!(after.frames_from_guest, before.frames_from_guest);
    assert_eq!(after.frames_to_guest, before.frames_to_guest + 1);
    assert_eq!(after.budgets["udp_flows"].used, 1);
    assert_eq!(lab.world.open_sockets(), 1);
}

/// The answer would come to a worker that has the port no longer.
#[test]
fn a_port_stays_while_a_name_that_it_asked_for_is_under_way() {
    let mut lab = lab(2);
    let (guest, gateway) = (lab.spec(0).address, lab.networks()[0].gateway);
    lab.send_ip(0, &udp((guest, 5000).into(), (gateway, 53).into(), names::SLOW));
    assert!(!lab.move_to(0, 1), "it has a question there");
    lab.advance(names::DELAY);
    assert_eq!(lab.received(0).iter().find_map(|it| it.udp()), Some(names::SLOW));
    assert!(lab.move_to(0, 1), "it is answered");
}

#[test]
fn neighbours_reach_a_port_where_it_has_gone_and_what_was_on_its_way_is_counted() {
    let mut lab = lab(4);
    for worker in [1, 0, 1] {
        assert!(lab.move_to(0, worker));
        for neighbour in 1..4 {
            lab.send(neighbour, datagram(&lab, neighbour, 0));
            lab.send(0, datagram(&lab, 0, neighbour));
            assert_eq!(lab.received(0).len(), 1);
            assert_eq!(lab.received(neighbour).len(), 1);
        }
    }
    // Guest 0 is on worker 1, guest 2 on worker 0: ten frames are between them when guest 0 goes.
    let frame = datagram(&lab, 2, 0);
    for _ in 0..10 {
        lab.wire(2).send(frame.clone());
    }
    lab.handle_frames(2);
    lab.take_turn(2);
    assert!(lab.move_to(0, 0));
    lab.settle();
    assert_eq!(lab.dropped(2, "crossing_lost"), 10);
    assert!(lab.received(0).is_empty());
    lab.send(2, frame);
    assert_eq!(lab.received(0).len(), 1);
}
