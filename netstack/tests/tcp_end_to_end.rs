//! TCP between a guest with a stack of its own and servers of the simulated host.

use lichen_netstack::command::SourceRule;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::chance::Chance;
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::testing::impair::Impairment;
use smoltcp::socket::tcp::State;

const SERVER: &str = "192.0.2.1:80";
const GOOD: Impairment = Impairment { loss: 0, duplicate: 0, reorder: 0 };
const BAD: Impairment = Impairment { loss: 5, duplicate: 2, reorder: 10 };

fn pattern(len: usize, salt: u64) -> Vec<u8> {
    let mut chance = Chance::new(salt);
    (0..len.div_ceil(8)).flat_map(|_| chance.next_u64().to_le_bytes()).take(len).collect()
}

/// Steps until `done`, and fails after a simulated `seconds`.
fn run(
    lab: &mut Lab,
    guest: &mut TcpGuest,
    seconds: u64,
    mut done: impl FnMut(&mut Lab, &mut TcpGuest) -> bool,
) {
    for _ in 0..seconds * 1000 {
        if done(lab, guest) {
            return;
        }
        guest.step(lab);
    }
    panic!("not done after {seconds} s; the guest is {:?}", guest.state());
}

fn connected(seed: u64, impairment: Impairment) -> (Lab, TcpGuest, u64) {
    connected_as(TcpGuest::new, seed, impairment)
}

fn connected_as(
    guest: fn(&Lab, usize, Impairment, u64) -> TcpGuest,
    seed: u64,
    impairment: Impairment,
) -> (Lab, TcpGuest, u64) {
    let mut lab = Lab::new(1);
    lab.world.serve(SERVER, Behaviour::Accept);
    let mut guest = guest(&lab, 0, impairment, seed);
    guest.connect(&lab, 40_000, SERVER);
    run(&mut lab, &mut guest, 60, |_, guest| guest.state() == State::Established);
    // Under loss the guest's SYN may have been sent, and connected, once only.
    let connections = lab.world.connections(SERVER);
    assert_eq!(connections.len(), 1, "one SYN, however often sent, is one connection");
    (lab, guest, connections[0])
}

/// Sends `out` from the guest and `back` from the server at once; both must arrive unharmed and end.
fn exchange(seed: u64, impairment: Impairment, out: &[u8], back: &[u8]) {
    exchange_on(connected(seed, impairment), seed, out, back);
}

fn exchange_on(connection: (Lab, TcpGuest, u64), seed: u64, out: &[u8], back: &[u8]) {
    let (mut lab, mut guest, peer) = connection;
    let (mut sent, mut answered) = (0, 0);
    let (mut at_server, mut at_guest) = (Vec::new(), Vec::new());
    run(&mut lab, &mut guest, 600, |lab, guest| {
        let socket = guest.socket();
        if sent < out.len() && socket.can_send() {
            sent += socket.send_slice(&out[sent..]).expect("an open socket");
        }
        if at_server.len() == out.len() && guest.state() == State::Established {
            // The guest's stack never repeats a lost FIN after three duplicate ACKs, so the link heals.
            guest.heal();
            guest.socket().close();
        }
        let socket = guest.socket();
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), at_guest.extend_from_slice(bytes))).expect("open");
        }
        if answered < back.len() {
            answered += lab.world.peer_send(peer, &back[answered..]);
        }
        if at_guest.len() == back.len() && at_server.len() == out.len() {
            lab.world.peer_finish(peer);
        }
        at_server.extend(lab.world.peer_receive(peer));
        at_server.len() == out.len()
            && at_guest.len() == back.len()
            && lab.world.ending(peer).finished
            && matches!(guest.state(), State::TimeWait | State::Closed)
    });
    assert!(at_server == out, "seed {seed}: what the server got differs");
    assert!(at_guest == back, "seed {seed}: what the guest got differs");
    // The end takes its course: nothing is left of the flow, and it ended in order.
    run(&mut lab, &mut guest, 300, |lab, _| lab.used(0, "tcp_flows") == 0);
    let ending = lab.world.ending(peer);
    assert!(ending.closed && !ending.reset, "seed {seed}: {ending:?}");
    assert_eq!(lab.used(0, "buffered_bytes"), 0);
    assert_eq!(lab.world.open_sockets(), 0);
}

#[test]
fn bytes_arrive_both_ways_and_the_end_is_in_order() {
    exchange(1, GOOD, &pattern(3_000_000, 1), &pattern(3_000_000, 2));
}

#[test]
fn bytes_arrive_both_ways_over_a_link_that_loses_repeats_and_swaps() {
    for seed in 0..20 {
        exchange(seed, BAD, &pattern(100_000, seed), &pattern(100_000, seed + 1000));
    }
}

#[test]
fn large_segments_arrive_over_a_good_and_a_bad_link_whatever_the_server_takes() {
    for seed in 0..40 {
        let link = if seed % 2 == 0 { GOOD } else { BAD };
        let connection = connected_as(TcpGuest::with_large_segments, seed, link);
        // Less than a segment, so that one is often taken in part; or all at once.
        let capacity = if seed % 4 < 2 { 40_000 } else { 1 << 20 };
        connection.0.world.set_peer_capacity(connection.2, capacity);
        let back = if seed % 3 == 0 { 100_000 } else { 0 };
        exchange_on(connection, seed, &pattern(600_000, seed), &pattern(back, seed + 1000));
    }
}

#[test]
fn a_guest_that_has_finished_still_receives() {
    let (mut lab, mut guest, peer) = connected(3, GOOD);
    guest.socket().send_slice(b"question").unwrap();
    guest.socket().close();
    run(&mut lab, &mut guest, 5, |lab, _| lab.world.ending(peer).finished);
    assert_eq!(lab.world.peer_receive(peer), b"question");
    assert!(!lab.world.ending(peer).closed);
    for _ in 0..30_000 {
        guest.step(&mut lab);
    }
    lab.world.peer_send(peer, b"answer");
    lab.world.peer_finish(peer);
    let mut answer = Vec::new();
    run(&mut lab, &mut guest, 5, |_, guest| {
        let _ = guest.socket().recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes)));
        answer == b"answer"
    });
    run(&mut lab, &mut guest, 5, |lab, _| lab.used(0, "tcp_flows") == 0);
}

#[test]
fn a_server_that_has_finished_still_receives() {
    let (mut lab, mut guest, peer) = connected(4, GOOD);
    lab.world.peer_finish(peer);
    run(&mut lab, &mut guest, 5, |_, guest| guest.state() == State::CloseWait);
    guest.socket().send_slice(b"still here").unwrap();
    let mut got = Vec::new();
    run(&mut lab, &mut guest, 5, |lab, _| {
        got.extend(lab.world.peer_receive(peer));
        got == b"still here"
    });
    assert!(!lab.world.ending(peer).finished);
    guest.socket().close();
    run(&mut lab, &mut guest, 5, |lab, _| lab.used(0, "tcp_flows") == 0);
    assert!(!lab.world.ending(peer).reset);
}

#[test]
fn a_reset_of_the_guest_is_a_reset_outside() {
    let (mut lab, mut guest, peer) = connected(5, GOOD);
    guest.socket().abort();
    run(&mut lab, &mut guest, 5, |lab, _| lab.world.ending(peer).closed);
    assert!(lab.world.ending(peer).reset);
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

#[test]
fn a_reset_of_the_server_is_a_reset_inside() {
    let (mut lab, mut guest, peer) = connected(6, GOOD);
    lab.world.peer_reset(peer);
    run(&mut lab, &mut guest, 5, |_, guest| guest.state() == State::Closed);
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

/// A read of the host's socket stops before an urgent byte, although more is there and nothing more comes.
#[test]
fn an_urgent_byte_of_the_server_holds_nothing_up() {
    let (mut lab, mut guest, peer) = connected(6, GOOD);
    for urgent in [&b"call!"[..], b"!"] {
        lab.world.peer_send_urgent(peer, urgent);
        lab.world.peer_send(peer, b" and go on");
        let mut heard = Vec::new();
        run(&mut lab, &mut guest, 5, |_, guest| {
            let socket = guest.socket();
            if socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes))).expect("open");
            }
            heard == [urgent, b" and go on"].concat()
        });
    }
}

#[test]
fn a_server_that_reads_nothing_stops_the_guest_and_loses_nothing() {
    let (mut lab, mut guest, peer) = connected(7, GOOD);
    lab.world.set_peer_capacity(peer, 1000);
    let out = pattern(3_000_000, 7);
    let mut sent = 0;
    for _ in 0..20_000 {
        if guest.socket().can_send() {
            sent += guest.socket().send_slice(&out[sent..]).unwrap();
        }
        guest.step(&mut lab);
    }
    assert!(sent < 2_000_000, "{sent} bytes were taken for a server that reads nothing");
    lab.world.set_peer_capacity(peer, 100_000);
    let mut got = Vec::new();
    run(&mut lab, &mut guest, 120, |lab, guest| {
        if sent < out.len() && guest.socket().can_send() {
            sent += guest.socket().send_slice(&out[sent..]).unwrap();
        }
        got.extend(lab.world.peer_receive(peer));
        got.len() == out.len()
    });
    assert!(got == out);
}

#[test]
fn a_guest_that_reads_nothing_stops_the_server_and_loses_nothing() {
    let (mut lab, mut guest, peer) = connected(8, GOOD);
    let back = pattern(3_000_000, 8);
    let mut answered = 0;
    for _ in 0..20_000 {
        answered += lab.world.peer_send(peer, &back[answered..]);
        guest.step(&mut lab);
    }
    assert!(answered < 2_000_000, "{answered} bytes were taken for a guest that reads nothing");
    let mut got = Vec::new();
    run(&mut lab, &mut guest, 120, |lab, guest| {
        answered += lab.world.peer_send(peer, &back[answered..]);
        while guest.socket().can_recv() {
            guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        got.len() == back.len()
    });
    assert!(got == back);
}

#[test]
fn a_published_port_reaches_the_guest_with_the_clients_address() {
    let mut lab = Lab::new(1);
    let mut guest = TcpGuest::new(&lab, 0, GOOD, 9);
    guest.listen(80);
    let listener = lab.publish_port(0, 80, SourceRule::Client);
    let client = lab.world.connect_to(listener, "198.51.100.7:5555");
    lab.world.peer_send(client, b"hello");
    let mut got = Vec::new();
    run(&mut lab, &mut guest, 5, |_, guest| {
        let _ = guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)));
        got == b"hello"
    });
    let remote = guest.socket().remote_endpoint().unwrap();
    assert_eq!(remote.to_string(), "198.51.100.7:5555");
    guest.socket().close();
    lab.world.peer_finish(client);
    run(&mut lab, &mut guest, 5, |lab, _| lab.used(0, "tcp_flows") == 0);
    assert!(!lab.world.ending(client).reset);
}

#[test]
fn a_client_that_the_guest_could_not_answer_is_shown_as_the_gateway() {
    let clients = ["127.0.0.1:5555", "169.254.3.3:5555", "10.88.0.77:5555", "0.0.0.0:5555"];
    let rules = [SourceRule::Client; 4].into_iter().zip(clients);
    for (rule, client) in rules.chain([(SourceRule::Gateway, "198.51.100.7:5555")]) {
        let mut lab = Lab::new(1);
        let mut guest = TcpGuest::new(&lab, 0, GOOD, 10);
        guest.listen(80);
        let listener = lab.publish_port(0, 80, rule);
        lab.world.connect_to(listener, client);
        run(&mut lab, &mut guest, 5, |_, guest| guest.state() == State::Established);
        let remote = guest.socket().remote_endpoint().unwrap();
        assert_eq!(remote.addr.to_string(), "10.88.0.1", "{client}");
    }
}

#[test]
fn a_published_port_that_nothing_listens_on_resets_its_client() {
    let mut lab = Lab::new(1);
    let mut guest = TcpGuest::new(&lab, 0, GOOD, 11);
    let listener = lab.publish_port(0, 81, SourceRule::Client);
    let client = lab.world.connect_to(listener, "127.0.0.1:5555");
    run(&mut lab, &mut guest, 5, |lab, _| lab.world.ending(client).reset);
    assert_eq!(lab.used(0, "tcp_flows"), 0);
}

/// Sends `back` from the server in one long stream, and ends it; answers how many frames came in pieces.
fn stream_back(
    (mut lab, mut guest, peer): (Lab, TcpGuest, u64),
    back: &[u8],
    mut meanwhile: impl FnMut(&mut Lab, &mut TcpGuest, usize),
) -> usize {
    let (mut answered, mut got) = (0, Vec::new());
    run(&mut lab, &mut guest, 600, |lab, guest| {
        answered += lab.world.peer_send(peer, &back[answered..]);
        if answered == back.len() {
            // The end is told while bytes are under way.
            lab.world.peer_finish(peer);
        }
        while guest.socket().can_recv() {
            guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).expect("open");
        }
        meanwhile(lab, guest, got.len());
        got.len() == back.len() && guest.state() == State::CloseWait
    });
    assert!(got == back, "what the guest got differs");
    guest.socket().close();
    run(&mut lab, &mut guest, 300, |lab, _| lab.used(0, "tcp_flows") == 0);
    assert!(!lab.world.ending(peer).reset);
    assert_eq!(lab.used(0, "buffered_bytes"), 0);
    lab.wire(0).gathered()
}

#[test]
fn a_long_stream_goes_to_the_guest_in_pieces_over_both_families() {
    let back = pattern(4_000_000, 21);
    for guest in [TcpGuest::new, TcpGuest::with_large_segments] {
        let gathered = stream_back(connected_as(guest, 21, GOOD), &back, |_, _, _| {});
        assert!(gathered > 30, "{gathered}");
    }
}

#[test]
fn a_long_stream_survives_a_link_that_loses_repeats_and_swaps() {
    let mut gathered = 0;
    for seed in 0..30 {
        let rare = Impairment { loss: 1, duplicate: 1, reorder: 1 };
        let link = if seed % 2 == 0 { rare } else { BAD };
        let back = pattern(1_500_000, seed);
        gathered += stream_back(connected(seed, link), &back, |_, guest, got| {
            if got == back.len() {
                // The guest's stack never repeats a lost FIN.
                guest.heal();
            }
        });
    }
    assert!(gathered > 300, "{gathered}");
}

#[test]
fn a_long_stream_goes_on_when_its_port_takes_whole_frames_only() {
    let back = pattern(3_000_000, 22);
    let mut whole_from = None;
    stream_back(connected(22, GOOD), &back, |lab, _, got| {
        if got > 1_000_000 && whole_from.is_none() {
            lab.wire(0).take_whole();
            whole_from = Some(lab.wire(0).gathered());
        }
        assert!(whole_from.is_none_or(|count| count == lab.wire(0).gathered()));
    });
    assert!(whole_from.is_some_and(|count| count > 0), "{whole_from:?}");
}

/// The window is shut for longer than the stream past smoltcp waits, and opens by an update that is lost.
#[test]
fn a_long_stream_survives_a_guest_that_stops_reading_in_its_middle() {
    let (mut lab, mut guest, peer) = connected(23, GOOD);
    let back = pattern(3_000_000, 23);
    let (mut answered, mut got) = (0, Vec::new());
    for round in 0..4 {
        run(&mut lab, &mut guest, 60, |lab, guest| {
            answered += lab.world.peer_send(peer, &back[answered..]);
            while guest.socket().can_recv() {
                guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            got.len() >= (round + 1) * back.len() / 4
        });
        for _ in 0..2_000 {
            answered += lab.world.peer_send(peer, &back[answered..]);
            guest.step(&mut lab);
        }
        // What opens the window again is lost: the gateway must probe.
        while guest.socket().can_recv() {
            guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        guest.set_link(Impairment { loss: 100, ..GOOD });
        guest.step(&mut lab);
        guest.heal();
    }
    run(&mut lab, &mut guest, 60, |_, guest| {
        while guest.socket().can_recv() {
            guest.socket().recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        got.len() == back.len()
    });
    assert!(got == back);
}

#[test]
fn a_reset_amid_a_long_stream_is_passed_on_both_ways() {
    for of_the_guest in [true, false] {
        let (mut lab, mut guest, peer) = connected(24, GOOD);
        let back = pattern(3_000_000, 24);
        let (mut answered, mut got) = (0, 0);
        run(&mut lab, &mut guest, 60, |lab, guest| {
            answered += lab.world.peer_send(peer, &back[answered..]);
            while guest.socket().can_recv() {
                got += guest.socket().recv(|bytes| (bytes.len(), bytes.len())).unwrap();
            }
            got > 1_500_000
        });
        assert!(lab.wire(0).gathered() > 0);
        if of_the_guest {
            guest.socket().abort();
            run(&mut lab, &mut guest, 5, |lab, _| lab.world.ending(peer).closed);
            assert!(lab.world.ending(peer).reset);
        } else {
            lab.world.peer_reset(peer);
            run(&mut lab, &mut guest, 5, |_, guest| guest.state() == State::Closed);
        }
        assert_eq!(lab.used(0, "tcp_flows"), 0);
    }
}
