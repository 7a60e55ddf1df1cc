//! Guests with several pairs of rings.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use lichen_netstack::command::LinkState;
use lichen_netstack::counters::{Counters, DropReason};
use lichen_netstack::ids::PortId;
use lichen_netstack::port::{MAX_FRAME, Port as _, Receive, Transmit};
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_vhost_net::testing::front_end::messages::{
    ADD_MEM_REG, GET_QUEUE_NUM, REM_MEM_REG, SET_VRING_ENABLE, SET_VRING_NUM, pair, region,
};
use lichen_vhost_net::testing::front_end::rings::{FROM_GUEST, SIZE, TO_GUEST};
use lichen_vhost_net::testing::front_end::{FrontEnd, MEMORY, USER};

use crate::bed::{A, B, Bed, MAC, eventually, frame};

/// A guest that has that many pairs, and uses the first.
fn guest(bed: &Bed, port: PortId, pairs: usize) -> FrontEnd {
    bed.guest_that(port, |guest| guest.have_pairs(pairs))
}

/// The same, and it uses all.
pub(crate) fn guest_that_uses_all(bed: &Bed, port: PortId, pairs: usize) -> FrontEnd {
    let mut guest = guest(bed, port, pairs);
    for ring in 2..2 * pairs {
        guest.enable(ring, 1).unwrap();
    }
    guest
}

/// The `number`th frame of a flow.
pub(crate) fn of_flow(flow: u16, number: u8) -> Vec<u8> {
    let from = SocketAddr::from(([10, 88, 0, 3], 1000 + flow));
    let to = SocketAddr::from(([10, 88, 0, 2], 9));
    ethernet(MAC, MAC, 0x0800, &udp(from, to, &[number]))
}

/// Flow and number of each frame that a guest has been given on a ring, in order. It was given none before.
fn given(guest: &mut FrontEnd, ring: usize) -> Vec<(u16, u8)> {
    let len = of_flow(0, 0).len();
    let used = guest.used(ring);
    let frames = (0..used).map(|number| guest.received_on(ring, number, len));
    let ports = |frame: &[u8]| u16::from_be_bytes([frame[46], frame[47]]);
    frames.map(|frame| (ports(&frame) - 1000, frame[len - 1])).collect()
}

/// Frames that are read from a port, as many as a turn has.
fn receive(bed: &Bed, port: PortId, most: usize) -> Vec<Result<Vec<u8>, DropReason>> {
    bed.with(port, |rings| {
        let mut buffer = vec![0; MAX_FRAME];
        let mut received = Vec::new();
        while received.len() < most {
            match rings.receive(&mut buffer) {
                Receive::Frame(len) => received.push(Ok(buffer[..len].to_vec())),
                Receive::Dropped(reason) => received.push(Err(reason)),
                Receive::Empty | Receive::Gone => break,
            }
        }
        rings.flush(&mut Counters::default());
        received
    })
}

#[test]
fn four_pairs_are_offered_as_eight_rings() {
    let bed = Bed::new();
    let mut guest = guest(&bed, A, 1);
    assert_eq!(guest.ask(GET_QUEUE_NUM, &[]).unwrap(), 8_u64.to_ne_bytes());
}

#[test]
fn a_guest_that_uses_its_first_pair_alone_gets_everything_there() {
    let bed = Bed::new();
    let mut guest = guest(&bed, A, 4);
    (0..4).for_each(|pair| guest.post_on(2 * pair, SIZE));
    let frames: Vec<Vec<u8>> = (0..40).map(|flow| of_flow(flow, 0)).collect();
    assert_eq!(bed.send(A, &frames), [Transmit::Sent; 40]);
    let used: Vec<u16> = (0..4).map(|pair| guest.used(2 * pair)).collect();
    assert_eq!(used, [40, 0, 0, 0]);
}

#[test]
fn flows_spread_over_the_rings_in_use_and_none_overtakes_itself() {
    let bed = Bed::new();
    for pairs in [2, 4] {
        let mut guest = guest_that_uses_all(&bed, A, pairs);
        (0..pairs).for_each(|pair| guest.post_on(2 * pair, SIZE));
        let frames: Vec<Vec<u8>> =
            (0..3).flat_map(|number| (0..20).map(move |flow| of_flow(flow, number))).collect();
        assert_eq!(bed.send(A, &frames), [Transmit::Sent; 60]);
        let mut all = Vec::new();
        for pair in 0..pairs {
            let here = given(&mut guest, 2 * pair);
            assert!(!here.is_empty(), "ring {} of {pairs} pairs", 2 * pair);
            for (flow, _) in &here {
                let numbers = here.iter().filter(|(it, _)| it == flow).map(|(_, number)| *number);
                assert!(numbers.eq(0..3), "flow {flow} is all here, in order: {here:?}");
            }
            all.extend(here);
        }
        assert_eq!(all.len(), 60);
        drop(guest);
        bed.wait_for(A, |state| *state == LinkState::Waiting);
    }
}

#[test]
fn frames_of_all_rings_are_taken_and_a_busy_one_leaves_the_others_their_turn() {
    let bed = Bed::new();
    for pairs in [2, 4_usize] {
        let mut guest = guest_that_uses_all(&bed, A, pairs);
        // The first has far more than its share.
        for ring in 0..pairs {
            let frames = if ring == 0 { 64 } else { 16 };
            for _ in 0..frames {
                guest.transmit_on(2 * ring + FROM_GUEST, &frame(ring as u16));
            }
        }
        // What one turn of a worker takes at most, and the rest.
        let begun = receive(&bed, A, 16 * pairs);
        let of = |ring: usize| begun.iter().filter(|it| **it == Ok(frame(ring as u16))).count();
        let shares: Vec<usize> = (0..pairs).map(of).collect();
        assert_eq!(shares, vec![16; pairs]);
        let rest = receive(&bed, A, 1000);
        assert_eq!(rest, vec![Ok(frame(0)); 48]);
        for ring in 0..pairs {
            let sent = if ring == 0 { 64 } else { 16 };
            assert_eq!(guest.used(2 * ring + FROM_GUEST), sent);
        }
        drop(guest);
        bed.wait_for(A, |state| *state == LinkState::Waiting);
    }
}

#[test]
fn a_pair_that_is_switched_off_amid_traffic_is_given_nothing_and_what_it_sends_is_dropped() {
    let bed = Bed::new();
    let mut guest = guest_that_uses_all(&bed, A, 2);
    let (to, from) = (TO_GUEST + 2, FROM_GUEST + 2);
    guest.post_on(TO_GUEST, SIZE);
    guest.post_on(to, SIZE);
    let frames: Vec<Vec<u8>> = (0..20).map(|flow| of_flow(flow, 0)).collect();
    bed.send(A, &frames);
    let before = (guest.used(TO_GUEST), guest.used(to));
    assert!(before.0 > 0 && before.1 > 0 && before.0 + before.1 == 20, "{before:?}");

    guest.transmit_on(from, &frame(1));
    guest.enable(to, 0).unwrap();
    guest.enable(from, 0).unwrap();
    guest.transmit_on(from, &frame(2));
    guest.transmit(&frame(3));
    let received = receive(&bed, A, 1000);
    let dropped = received.iter().filter(|it| **it == Err(DropReason::RingDisabled)).count();
    assert_eq!(dropped, 2, "{received:?}");
    assert!(received.contains(&Ok(frame(3))) && received.len() == 3, "{received:?}");
    assert_eq!(guest.used(from), 2, "their buffers come back");
    bed.send(A, &frames);
    assert_eq!((guest.used(TO_GUEST), guest.used(to)), (20, 0));

    guest.enable(from, 1).unwrap();
    guest.enable(to, 1).unwrap();
    guest.transmit_on(from, &frame(4));
    assert_eq!(receive(&bed, A, 1000), [Ok(frame(4))]);
    bed.send(A, &frames);
    assert_eq!((guest.used(TO_GUEST), guest.used(to)), before);

    // The first may rest as well, as long as one of each kind is left.
    guest.enable(TO_GUEST, 0).unwrap();
    bed.send(A, &frames);
    assert_eq!((guest.used(TO_GUEST), guest.used(to)), (0, 20));
    guest.enable(to, 0).unwrap();
    bed.wait_for(A, |state| *state == LinkState::Waiting);
    eventually("the rings rest", || !bed.is_plugged(A));
}

#[test]
fn a_pair_that_is_stopped_leaves_the_other_at_work() {
    let bed = Bed::new();
    let mut guest = guest_that_uses_all(&bed, A, 2);
    guest.transmit_on(FROM_GUEST + 2, &frame(1));
    assert_eq!(receive(&bed, A, 1000), [Ok(frame(1))]);
    assert_eq!(guest.stop_ring(TO_GUEST + 2).unwrap(), 0);
    assert_eq!(guest.stop_ring(FROM_GUEST + 2).unwrap(), 1);
    bed.exchange(A, &mut guest);
    guest.set_up_ring(TO_GUEST + 2).unwrap();
    guest.set_up_ring(FROM_GUEST + 2).unwrap();
    guest.barrier().unwrap();
    guest.transmit_on(FROM_GUEST + 2, &frame(2));
    assert_eq!(receive(&bed, A, 1000), [Ok(frame(2))]);
}

#[test]
fn what_waits_for_one_ring_leaves_the_others_theirs() {
    let bed = Bed::new();
    let mut guest = guest_that_uses_all(&bed, A, 2);
    // Nothing is posted to the second, to which some of these go.
    guest.post(SIZE);
    let frames: Vec<Vec<u8>> = (0..20).map(|flow| of_flow(flow, 0)).collect();
    assert_eq!(bed.send(A, &frames), [Transmit::Sent; 20]);
    let first = guest.used(TO_GUEST);
    assert!(0 < first && first < 20);
    assert!(!bed.with(A, |rings| rings.has_room()));
    let waiting = (0..20).find(|flow| {
        bed.send(A, &[of_flow(*flow, 1)]);
        guest.used(TO_GUEST) == 0
    });
    let behind = vec![of_flow(waiting.expect("one that waits"), 2); 1024];
    let sent = bed.send(A, &behind);
    let kept = sent.iter().filter(|it| **it == Transmit::Sent).count();
    assert_eq!(kept + usize::from(20 - first) + 1, 512, "half of what may wait");
    // The first goes on all the same.
    let other = (0..20).find(|flow| {
        bed.send(A, &[of_flow(*flow, 3)]);
        guest.used(TO_GUEST) == 1
    });
    assert!(other.is_some());
    let mut came = 0;
    while came < 512 {
        guest.post_on(TO_GUEST + 2, SIZE);
        assert!(bed.receive_all(A).is_empty());
        let new = guest.used(TO_GUEST + 2);
        assert!(new > 0, "{came}");
        came += new;
    }
    assert!(bed.with(A, |rings| rings.has_room()));
}

#[test]
fn a_guest_that_was_cut_off_comes_again_with_as_many_pairs_or_others() {
    let bed = Bed::new();
    for pairs in [4, 2, 1, 4] {
        let mut guest = guest_that_uses_all(&bed, A, pairs);
        for ring in 0..pairs {
            guest.transmit_on(2 * ring + FROM_GUEST, &frame(ring as u16));
        }
        let received = receive(&bed, A, 1000);
        assert_eq!(received, (0..pairs).map(|ring| Ok(frame(ring as u16))).collect::<Vec<_>>());
        bed.with(A, |rings| assert_eq!(rings.kicks().count(), 2 * pairs));
        drop(guest);
        bed.wait_for(A, |state| *state == LinkState::Waiting);
    }
    let mut guest = bed.connect(A);
    guest.have_pairs(4);
    guest.set_up_like_cloud_hypervisor().unwrap();
    bed.wait_for(A, |state| *state == LinkState::Connected);
    guest.transmit_on(FROM_GUEST + 6, &frame(7));
    assert_eq!(receive(&bed, A, 1000), [Ok(frame(7))]);
}

#[test]
fn a_region_that_is_added_for_each_pair_is_there_until_each_has_removed_it() {
    let bed = Bed::new();
    let mut guest = bed.connect(A);
    guest.have_pairs(2);
    guest.set_up_like_cloud_hypervisor().unwrap();
    let file = guest.file().try_clone().unwrap();
    let body = [vec![0; 8], region(0, MEMORY, USER, 0)].concat();
    guest.send(ADD_MEM_REG, &body, &[file.as_fd()]).unwrap();
    guest.barrier().unwrap();
    bed.exchange(A, &mut guest);
    guest.send(REM_MEM_REG, &body, &[]).unwrap();
    guest.barrier().unwrap();
    bed.exchange(A, &mut guest);
    guest.send(REM_MEM_REG, &body, &[]).unwrap();
    guest.barrier().unwrap();
    assert!(!bed.is_plugged(A), "its memory is gone");
    guest.send(REM_MEM_REG, &body, &[]).unwrap();
    assert!(guest.is_closed(), "once more than it was added");
    bed.wait_for_trouble(A, "not there to be removed");

    // The same place in another file is another region.
    let mut guest = bed.connect(A);
    guest.set_up_like_cloud_hypervisor().unwrap();
    let other = bed.connect(B);
    guest.send(ADD_MEM_REG, &body, &[other.file().as_fd()]).unwrap();
    assert!(guest.is_closed());
    bed.wait_for_trouble(A, "overlap");
}

#[test]
fn a_ring_of_several_that_is_broken_closes_its_port_only() {
    let bed = Bed::new();
    let mut neighbour = guest(&bed, B, 2);
    for ring in [TO_GUEST + 2, FROM_GUEST + 2] {
        let mut attacker = guest_that_uses_all(&bed, A, 2);
        attacker.set_available(ring, 5000);
        // In one go: the rings rest as soon as it is noticed.
        match ring % 2 {
            0 => drop(bed.send(A, &(0..20).map(|flow| of_flow(flow, 0)).collect::<Vec<_>>())),
            _ => drop(receive(&bed, A, 1000)),
        }
        bed.assert_costs_its_port_only(attacker, "broken a ring", &mut neighbour);
    }
}

#[test]
fn rings_that_are_not_there_are_refused_with_what_to_do_and_those_without_memory_wait() {
    let bed = Bed::new();
    let mut neighbour = guest(&bed, B, 1);
    for (request, body) in [(SET_VRING_NUM, pair(8, 64)), (SET_VRING_ENABLE, pair(255, 1))] {
        let attacker = guest_that_uses_all(&bed, A, 4);
        attacker.send(request, &body, &[]).unwrap();
        bed.assert_costs_its_port_only(attacker, "at most 4 queue pairs", &mut neighbour);
    }
    // Switched on without ever having been set up.
    let mut guest = guest(&bed, A, 1);
    for ring in 2..8 {
        guest.enable(ring, 1).unwrap();
    }
    bed.exchange(A, &mut guest);
    bed.with(A, |rings| assert_eq!(rings.kicks().count(), 2));
    drop(guest);
    // Without MQ there are two rings.
    bed.wait_for(A, |state| *state == LinkState::Waiting);
    let mut old = bed.connect(A);
    old.send(SET_VRING_NUM, &pair(2, 64), &[]).unwrap();
    assert!(old.is_closed());
    bed.wait_for_trouble(A, "of a device that has 2");
}
