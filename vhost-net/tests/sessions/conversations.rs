//! Monitors that behave.

use lichen_netstack::command::LinkState;
use lichen_netstack::ids::MacAddr;
use lichen_netstack::port::{Offloads, Port, Transmit};
use lichen_vhost_net::testing::front_end::messages::SEND_RARP;
use lichen_vhost_net::testing::front_end::rings::{FROM_GUEST, SIZE, TO_GUEST};
use lichen_vhost_net::testing::front_end::{WITH_TSO, WITH_USO};

use crate::bed::{A, B, Bed, MAC, eventually, frame};

#[test]
fn frames_pass_both_ways_after_the_messages_of_qemu() {
    let bed = Bed::new();
    let mut guest = bed.guest(A);
    for _ in 0..20 {
        bed.exchange(A, &mut guest);
    }
    assert_eq!(bed.with(A, |rings| rings.offloads()), Offloads::Checksum);
}

#[test]
fn a_driver_is_given_whole_what_it_has_agreed_to_take_so() {
    let bed = Bed::new();
    for (features, expected) in [
        (WITH_USO, Offloads::ChecksumTcpAndUdp),
        (WITH_TSO, Offloads::ChecksumAndTcp),
        // Without GUEST_CSUM neither means anything.
        (WITH_USO & !2, Offloads::None),
    ] {
        let guest = bed.guest_with(A, features);
        assert_eq!(bed.with(A, |rings| rings.offloads()), expected);
        drop(guest);
        bed.wait_for(A, |state| *state == LinkState::Waiting);
    }
}

#[test]
fn frames_pass_both_ways_after_the_messages_of_cloud_hypervisor() {
    let bed = Bed::new();
    let mut guest = bed.connect(A);
    guest.set_up_like_cloud_hypervisor().unwrap();
    bed.wait_for(A, |state| *state == LinkState::Connected);
    bed.exchange(A, &mut guest);
}

#[test]
fn one_batch_is_one_call_in_each_direction() {
    let bed = Bed::new();
    let mut guest = bed.guest(A);
    // Each was rung once when it was handed over.
    assert_eq!((guest.calls(TO_GUEST), guest.calls(FROM_GUEST)), (1, 1));
    bed.exchange(A, &mut guest);
    let calls = (guest.calls(TO_GUEST), guest.calls(FROM_GUEST));
    assert_eq!(calls, (1, 1));
}

#[test]
fn a_guest_that_is_announced_under_its_own_address_is_welcome_and_under_another_not() {
    let bed = Bed::new();
    let mut guest = bed.guest(A);
    let announcement = |mac: MacAddr| -> Vec<u8> { mac.0.into_iter().chain([0; 2]).collect() };
    let own = announcement(MAC);
    assert_eq!(guest.ask_whether_done(SEND_RARP, &own).unwrap(), 0);
    for other in [MacAddr([0; 6]), MacAddr([0xff; 6]), MacAddr([2, 0x4c, 10, 88, 0, 3])] {
        assert_eq!(guest.ask_whether_done(SEND_RARP, &announcement(other)).unwrap(), 1);
    }
    // Who does not ask is not answered, and the rings run on meanwhile.
    guest.send(SEND_RARP, &own, &[]).unwrap();
    assert!(bed.is_plugged(A));
    bed.exchange(A, &mut guest);
    assert_eq!(bed.state(A), LinkState::Connected);
}

#[test]
fn a_guest_that_restarts_its_rings_goes_on_where_it_was() {
    let bed = Bed::new();
    let mut guest = bed.guest(A);
    bed.exchange(A, &mut guest);
    assert_eq!(guest.stop_ring(TO_GUEST).unwrap(), 10);
    bed.wait_for(A, |state| *state == LinkState::Waiting);
    assert!(!bed.is_plugged(A), "a stopped ring is used by nobody");
    assert_eq!(guest.stop_ring(FROM_GUEST).unwrap(), 10);
    for ring in [TO_GUEST, FROM_GUEST] {
        guest.set_up_ring(ring).unwrap();
    }
    guest.barrier().unwrap();
    bed.wait_for(A, |state| *state == LinkState::Connected);
    bed.exchange(A, &mut guest);
}

#[test]
fn a_monitor_that_was_cut_off_connects_again_and_a_second_one_is_turned_away() {
    let bed = Bed::new();
    let mut guest = bed.guest(A);
    let mut second = bed.connect(A);
    assert!(second.is_closed(), "one at a time");
    bed.exchange(A, &mut guest);
    drop(guest);
    bed.wait_for(A, |state| *state == LinkState::Waiting);
    let mut again = bed.guest(A);
    bed.exchange(A, &mut again);
}

#[test]
fn frames_wait_for_a_guest_without_buffers_and_the_rest_is_turned_away() {
    let bed = Bed::new();
    let (mut guest, mut neighbour) = (bed.guest(A), bed.guest(B));
    let frames: Vec<Vec<u8>> = (0..1200).map(|_| frame(1)).collect();
    let sent = bed.send(A, &frames);
    let kept = sent.iter().filter(|it| **it == Transmit::Sent).count();
    assert_eq!(kept, 1024);
    assert!(sent[1024..].iter().all(|it| *it == Transmit::Full));
    assert!(!bed.with(A, |rings| rings.has_room()));
    bed.exchange(B, &mut neighbour);
    let mut came = 0;
    while came < kept {
        guest.post(SIZE);
        assert!(bed.receive_all(A).is_empty());
        let new = usize::from(guest.used(TO_GUEST));
        assert!(new > 0, "{came} of {kept}");
        came += new;
    }
    assert!(bed.with(A, |rings| rings.has_room()));
}

#[test]
fn memory_that_nobody_wrote_to_is_told_as_not_shared() {
    let bed = Bed::new();
    let mut guest = bed.connect(A);
    {
        use vm_memory::{Bytes as _, GuestAddress};
        guest.memory().write_slice(&[0; 6], GuestAddress(0)).unwrap();
    }
    guest.set_up_like_qemu().unwrap();
    bed.wait_for_trouble(A, "share=on");
    // The monitor is not cut off for it: its guest runs.
    guest.barrier().unwrap();
    eventually("the rings are not used", || !bed.is_plugged(A));
}
