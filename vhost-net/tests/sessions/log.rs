//! Monitors that migrate their guest, and want to know what is written to its memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use lichen_netstack::counters::Counters;
use lichen_netstack::port::{Port as _, Transmit};
use lichen_vhost_net::testing::front_end::messages::{
    SET_FEATURES, SET_LOG_BASE, SET_LOG_FD, SET_VRING_ADDR, log,
};
use lichen_vhost_net::testing::front_end::rings::{
    FROM_GUEST, SIZE, TO_GUEST, buffer_address, logged_ring_address, ring_address, used_address,
};
use lichen_vhost_net::testing::front_end::{FEATURES, FrontEnd, LOG_ALL, MEMORY};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::bed::{A, B, Bed, eventually, frame};
use crate::pairs::{guest_that_uses_all, of_flow};

const PAGE: u64 = 4096;
/// Bytes of a log that reaches exactly all of a guest's memory.
const LEN: u64 = MEMORY / PAGE / 8;
/// Where it begins in its file.
const OFFSET: u64 = PAGE;

/// A file with room for a log twice as long, at its offset.
fn file() -> File {
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(OFFSET + 2 * LEN).unwrap();
    file
}

/// The pages that are marked in it; none is from there on.
fn take_marked(file: &File) -> BTreeSet<u64> {
    let mut bytes = vec![0; usize::try_from(OFFSET + 2 * LEN).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    let (before, log) = bytes.split_at(usize::try_from(OFFSET).unwrap());
    assert!(before.iter().all(|byte| *byte == 0), "nothing is written in front of the log");
    let pages = 0..8 * log.len();
    let marked = pages.filter(|page| log[page / 8] & 1 << (page % 8) != 0);
    marked.map(|page| page as u64).collect()
}

/// The pages of so many bytes.
fn pages(address: u64, len: usize) -> BTreeSet<u64> {
    (address / PAGE..=(address + len as u64 - 1) / PAGE).collect()
}

/// A frame of any length with a header of zeros.
fn long_frame(len: usize) -> Vec<u8> {
    [vec![0; 12], vec![0x5a; len - 12]].concat()
}

#[test]
fn exactly_the_pages_that_were_written_are_marked() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = bed.guest(A);
    guest.post(SIZE);
    guest.give_log(&file, LEN, OFFSET).unwrap();
    assert_eq!(bed.send(A, &[frame(0)]), [Transmit::Sent]);
    assert_eq!(take_marked(&file), BTreeSet::new(), "a log is there, and nothing is to be logged");
    assert_eq!(guest.used(TO_GUEST), 1);
    guest.post(1);

    guest.log_writes(&[]).unwrap();
    let mut number = 1;
    // In one buffer, in two that share a page, over many merged ones up to the largest.
    for len in [72, 2048, 2049, 3000, 9000, 12_345, 65_549] {
        let at = buffer_address(TO_GUEST, number);
        assert_eq!(bed.send(A, &[long_frame(len)]), [Transmit::Sent]);
        assert_eq!(take_marked(&file), pages(at, len), "{len} bytes in the buffers from {number}");
        let used = guest.used(TO_GUEST);
        number = (number + used) & (SIZE - 1);
        guest.post(used);
        if usize::from(number) + 33 > usize::from(SIZE) {
            // From the first buffer again, so that frames lie in one piece.
            let rest = SIZE - number;
            assert_eq!(bed.send(A, &vec![frame(0); rest.into()]).len(), usize::from(rest));
            guest.used(TO_GUEST);
            guest.post(rest);
            take_marked(&file);
            number = 0;
        }
    }
    // What the guest sends is only read.
    guest.transmit(&frame(3));
    assert_eq!(bed.receive_all(A), [frame(3)]);
    assert_eq!(take_marked(&file), BTreeSet::new());
}

#[test]
fn marking_ends_when_the_feature_is_taken_back_and_begins_again_with_it() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = bed.guest(A);
    guest.post(SIZE);
    guest.give_log(&file, LEN, OFFSET).unwrap();
    for number in 0..3 {
        guest.log_writes(&[(TO_GUEST, used_address(TO_GUEST))]).unwrap();
        assert_eq!(bed.send(A, &[frame(1)]), [Transmit::Sent]);
        let mut expected = pages(buffer_address(TO_GUEST, 2 * number), frame(1).len());
        expected.extend(pages(used_address(TO_GUEST), 1));
        assert_eq!(take_marked(&file), expected);
        guest.end_log().unwrap();
        assert_eq!(bed.send(A, &[frame(1)]), [Transmit::Sent]);
        assert_eq!(take_marked(&file), BTreeSet::new());
    }
    // Another log takes the place of the first, for the used ring too.
    let other = self::file();
    guest.log_writes(&[]).unwrap();
    guest.give_log(&other, 2 * LEN, OFFSET).unwrap();
    assert_eq!(bed.send(A, &[frame(1)]), [Transmit::Sent]);
    assert_eq!(take_marked(&file), BTreeSet::new());
    let buffer = pages(buffer_address(TO_GUEST, 6), frame(1).len());
    assert_eq!(take_marked(&other), &buffer | &pages(used_address(TO_GUEST), 1));
}

#[test]
fn a_used_ring_is_marked_where_the_monitor_wants_it_and_only_if_it_does() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = bed.guest(A);
    guest.post(SIZE);
    // The log is longer than the guest's memory, and rings may be logged there. Ten entries of this one lie on
    // the first of two pages.
    guest.give_log(&file, 2 * LEN, OFFSET).unwrap();
    let (first, second) = (MEMORY + 2 * PAGE, MEMORY + 3 * PAGE);
    let from_guest = MEMORY + 9 * PAGE;
    guest.log_writes(&[(TO_GUEST, second - 4 - 8 * 10), (FROM_GUEST, from_guest)]).unwrap();
    let frames = vec![frame(1); 10];
    assert_eq!(bed.send(A, &frames), [Transmit::Sent; 10]);
    let in_buffers = |from: u16, count: u16| -> BTreeSet<u64> {
        let each = |number| pages(buffer_address(TO_GUEST, number), frame(1).len());
        (from..from + count).flat_map(each).collect()
    };
    assert_eq!(take_marked(&file), &in_buffers(0, 10) | &pages(first, 1));
    // The index is on the first, the entry on the second.
    assert_eq!(bed.send(A, &frames[..1]), [Transmit::Sent]);
    assert_eq!(take_marked(&file), &in_buffers(10, 1) | &pages(first, 2 * PAGE as usize));
    // A batch that goes on at the ring's start.
    assert_eq!(bed.send(A, &vec![frame(1); 53]), [Transmit::Sent; 53]);
    guest.used(TO_GUEST);
    guest.post(SIZE);
    take_marked(&file);
    assert_eq!(bed.send(A, &frames[..2]), [Transmit::Sent; 2]);
    assert_eq!(take_marked(&file), &in_buffers(0, 2) | &pages(first, 1));

    guest.transmit(&frame(3));
    assert_eq!(bed.receive_all(A), [frame(3)]);
    assert_eq!(take_marked(&file), pages(from_guest, 1));

    guest.send(SET_VRING_ADDR, &ring_address(1), &[]).unwrap();
    guest.barrier().unwrap();
    guest.transmit(&frame(4));
    assert_eq!(bed.receive_all(A), [frame(4)]);
    assert_eq!(take_marked(&file), BTreeSet::new());
}

#[test]
fn the_pages_of_all_pairs_are_marked() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = guest_that_uses_all(&bed, A, 2);
    [0, 2].into_iter().for_each(|ring| guest.post_on(ring, SIZE));
    guest.give_log(&file, LEN, OFFSET).unwrap();
    guest.log_writes(&[(0, used_address(0)), (2, used_address(2))]).unwrap();
    let frames: Vec<_> = (0..20).map(|flow| of_flow(flow, 0)).collect();
    assert_eq!(bed.send(A, &frames), [Transmit::Sent; 20]);
    let mut expected = BTreeSet::new();
    for ring in [0, 2] {
        let used = guest.used(ring);
        assert!(used > 0, "flows spread");
        expected.extend(pages(used_address(ring), 1));
        for number in 0..used {
            expected.extend(pages(buffer_address(ring, number), frames[0].len()));
        }
    }
    assert_eq!(take_marked(&file), expected);
}

#[test]
fn a_monitor_that_wants_to_hear_of_marks_is_told_once_a_turn() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = bed.guest(A);
    guest.post(SIZE);
    let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let heard = |call: &OwnedFd| {
        let mut count = [0; 8];
        rustix::io::read(call, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    };
    guest.send(SET_LOG_FD, &[], &[call.as_fd()]).unwrap();
    guest.give_log(&file, LEN, OFFSET).unwrap();
    assert_eq!(heard(&call), 1, "when it was handed over");
    bed.send(A, &[frame(1)]);
    assert_eq!(heard(&call), 0, "nothing is logged");
    guest.log_writes(&[]).unwrap();
    bed.send(A, &vec![frame(1); 10]);
    assert_eq!(heard(&call), 1);
    bed.send(A, &[]);
    assert_eq!(heard(&call), 0);
}

#[test]
fn a_log_that_cannot_be_costs_its_port_only_and_is_told() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let (file, zero) = (file(), File::open("/dev/zero").unwrap());
    let (none, one, two) = ([], [file.as_fd()], [file.as_fd(); 2]);
    let other = [zero.as_fd()];
    let base = |len, offset| (SET_LOG_BASE, log(len, offset));
    let cases = [
        ("message that was refused", base(0, OFFSET), &one[..]),
        ("message that was refused", base(LEN, u64::MAX - 64), &one[..]),
        ("message that was refused", base(u64::MAX, OFFSET), &one[..]),
        ("longer than 1 GiB", base(1 << 31, OFFSET), &one[..]),
        ("beyond its file", base(2 * LEN + 1, OFFSET), &one[..]),
        ("beyond its file", base(LEN, OFFSET << 20), &one[..]),
        ("cannot be mapped", base(LEN, 1), &one[..]),
        ("without its file", base(LEN, OFFSET), &none[..]),
        ("without its file", base(LEN, OFFSET), &two[..]),
        ("no descriptor to be told by", (SET_LOG_FD, vec![]), &none[..]),
        ("no eventfd", (SET_LOG_FD, vec![]), &other[..]),
    ];
    for (words, (request, body), fds) in cases {
        let attacker = bed.guest(A);
        attacker.send(request, &body, fds).unwrap();
        bed.assert_costs_its_port_only(attacker, words, &mut neighbour);
    }
}

#[test]
fn a_log_that_is_too_short_costs_its_port_only_and_is_told() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let file = file();
    let begin = |len| -> FrontEnd {
        let mut attacker = bed.guest(A);
        attacker.give_log(&file, len, OFFSET).unwrap();
        attacker
    };
    let attacker = begin(LEN - 1);
    attacker.send(SET_FEATURES, &(FEATURES | LOG_ALL).to_ne_bytes(), &[]).unwrap();
    let words = "too short for the guest's memory";
    bed.assert_costs_its_port_only(attacker, words, &mut neighbour);
    // The last byte of a used ring of 64 is the 518th.
    for at in [MEMORY - 517, MEMORY, u64::MAX - 516, u64::MAX] {
        let mut attacker = begin(LEN);
        attacker.log_writes(&[(TO_GUEST, MEMORY - 518)]).unwrap();
        attacker.send(SET_VRING_ADDR, &logged_ring_address(0, at), &[]).unwrap();
        let words = "too short for where a ring";
        bed.assert_costs_its_port_only(attacker, words, &mut neighbour);
    }
}

#[test]
fn a_log_that_is_cut_short_closes_its_port_only() {
    let (bed, file) = (Bed::new(), file());
    let (mut attacker, mut neighbour) = (bed.guest(A), bed.guest(B));
    attacker.post(4);
    attacker.give_log(&file, LEN, OFFSET).unwrap();
    attacker.log_writes(&[(TO_GUEST, used_address(TO_GUEST))]).unwrap();
    file.set_len(0).unwrap();
    // In one go: the rings rest as soon as it is noticed.
    bed.with(A, |rings| {
        rings.transmit(&frame(2));
        rings.flush(&mut Counters::default());
    });
    let words = "log of written pages was cut short";
    bed.assert_costs_its_port_only(attacker, words, &mut neighbour);
    let mut again = bed.guest(A);
    bed.exchange(A, &mut again);
}

#[test]
fn a_guest_that_offers_a_head_again_before_it_came_back_has_nothing_marked_beyond_its_ring() {
    let (bed, file) = (Bed::new(), file());
    let mut attacker = bed.guest(A);
    attacker.give_log(&file, LEN, OFFSET).unwrap();
    // The used ring ends where the log does.
    attacker.log_writes(&[(TO_GUEST, MEMORY - 518)]).unwrap();
    bed.with(A, |rings| {
        for _ in 0..4 {
            attacker.post(SIZE);
            (0..SIZE).for_each(|_| assert_eq!(rings.transmit(&frame(1)), Transmit::Sent));
        }
        rings.flush(&mut Counters::default());
    });
    let mut expected = pages(buffer_address(TO_GUEST, 0), 2048 * usize::from(SIZE));
    expected.extend(pages(MEMORY - 518, 518));
    assert_eq!(take_marked(&file), expected);
}

#[test]
fn the_mapping_of_a_log_goes_with_its_successor_and_its_session() {
    let (bed, file) = (Bed::new(), file());
    let mut guest = bed.guest(A);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("memfd:log")).count()
    };
    guest.log_writes(&[]).unwrap();
    for _ in 0..1000 {
        guest.give_log(&file, LEN, OFFSET).unwrap();
    }
    assert_eq!(mapped(), 1);
    drop(guest);
    eventually("nothing is mapped", || mapped() == 0);
}
