//! Monitors that do not behave, each beside a neighbour that must not notice.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lichen_netstack::counters::Counters;
use lichen_netstack::port::{MAX_FRAME, Port as _};
use lichen_vhost_net::testing::front_end::messages::{
    ADD_MEM_REG, GET_INFLIGHT_FD, GET_VRING_BASE, REM_MEM_REG, SEND_RARP, SET_FEATURES,
    SET_INFLIGHT_FD, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL,
    SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, message, pair, region,
};
use lichen_vhost_net::testing::front_end::rings::{FROM_GUEST, ring_address};
use lichen_vhost_net::testing::front_end::{MEMORY, USER};
use rustix::event::epoll;

use crate::bed::{A, B, Bed, descriptors, eventually, frame, mappings};

#[test]
fn a_message_that_is_none_costs_its_connection_and_no_descriptor() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let null = File::open("/dev/null").unwrap();
    let many: Vec<_> = (0..200).map(|_| null.as_fd()).collect();
    let header = |request: u32, flags: u32, len: u32| -> Vec<u8> {
        [request, flags, len].into_iter().flat_map(u32::to_ne_bytes).collect()
    };
    let before = descriptors();
    let cases: Vec<(&str, Vec<u8>, usize)> = vec![
        ("an enormous length", header(1, 1, 0xffff_fff0), 0),
        ("another version", header(1, 2, 0), 0),
        ("a reply", header(1, 1 | 4, 0), 0),
        ("an unknown request", message(0xdead, &[]), 0),
        ("request zero", message(0, &[]), 0),
        ("letters", vec![b'A'; 64 << 10], 0),
        ("descriptors where none belong", message(1, &[]), 3),
        ("far too many descriptors", message(SET_MEM_TABLE, &pair(1, 0)), 200),
        ("a short body", message(SET_VRING_NUM, &[0; 4]), 0),
        ("a long body", message(SET_VRING_NUM, &[0; 64]), 0),
        ("a table without descriptors", message(SET_MEM_TABLE, &pair(1, 0)), 0),
        ("a region without a descriptor", message(ADD_MEM_REG, &[0; 40]), 0),
        ("a kick without a descriptor", message(SET_VRING_KICK, &0_u64.to_ne_bytes()), 0),
        ("features that were not offered", message(SET_FEATURES, &u64::MAX.to_ne_bytes()), 0),
        ("a ring that is not there", message(SET_VRING_NUM, &pair(2, 64)), 0),
        ("a ring far away", message(SET_VRING_ENABLE, &pair(60_000, 1)), 0),
        ("enabled by three", message(SET_VRING_ENABLE, &pair(0, 3)), 0),
        ("in flight, asked", message(GET_INFLIGHT_FD, &[0xff; 24]), 0),
        ("in flight, given", message(SET_INFLIGHT_FD, &[0xff; 24]), 1),
        ("an announcement that was not agreed on", message(SEND_RARP, &[2; 8]), 0),
        ("the end of a ring that is not there", message(GET_VRING_BASE, &pair(9, 0)), 0),
    ];
    for (what, bytes, fds) in &cases {
        for _ in 0..20 {
            let mut attacker = bed.connect(A);
            // The service may close before everything is written.
            let sent = attacker.send_raw(bytes, &many[..*fds]);
            assert!(attacker.is_closed(), "{what} ({sent:?}): the connection goes on");
        }
    }
    // Descriptors that come with a body make some wait for ever.
    for fds in [1, 3, 200] {
        let mut attacker = bed.connect(A);
        attacker.send_raw(&header(8, 1, 8), &[]).unwrap();
        attacker.send_raw(&pair(0, 64), &many[..fds]).unwrap();
        assert!(attacker.is_closed(), "{fds} descriptors with a body");
    }
    for size in [0, 3, 100, 65_535, 65_536, u32::MAX] {
        let mut attacker = bed.connect(A);
        attacker.send(SET_VRING_NUM, &pair(0, size), &[]).unwrap();
        assert!(attacker.is_closed(), "a ring of {size}");
    }
    bed.exchange(B, &mut neighbour);
    eventually("no descriptor is left", || descriptors() <= before);
    let mut again = bed.guest(A);
    bed.exchange(A, &mut again);
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused_with_a_word() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let files = [
        File::open("/dev/zero").unwrap(),
        File::open("/proc/self/exe").unwrap(),
        File::from(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        File::from(rustix::pipe::pipe().unwrap().1),
        File::from(std::os::fd::OwnedFd::from(UnixStream::pair().unwrap().0)),
    ];
    for file in &files {
        for request in [SET_VRING_KICK, SET_VRING_CALL] {
            let attacker = bed.connect(A);
            attacker.send(request, &0_u64.to_ne_bytes(), &[file.as_fd()]).unwrap();
            bed.assert_costs_its_port_only(attacker, "no eventfd", &mut neighbour);
        }
    }
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let before = (descriptors(), mappings());
    let tables: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("beyond its file", vec![region(0, MEMORY + 4096, USER, 0)]),
        ("an offset beyond its file", vec![region(0, 4096, USER, MEMORY)]),
        ("empty", vec![region(0, 0, USER, 0)]),
        ("wrapping around for the guest", vec![region(u64::MAX - 4095, 8192, USER, 0)]),
        ("wrapping around for the monitor", vec![region(0, 8192, u64::MAX - 4095, 0)]),
        ("an offset that wraps around", vec![region(0, 8192, USER, u64::MAX - 4095)]),
        ("overlapping", vec![region(0, 8192, USER, 0), region(4096, 8192, USER + 8192, 0)]),
        ("everything", vec![region(0, u64::MAX, USER, 0)]),
        ("too many", (0..33).map(|at| region(at * 4096, 4096, USER + at * 4096, 0)).collect()),
    ];
    for (what, regions) in tables {
        let mut attacker = bed.connect(A);
        let mut body = pair(u32::try_from(regions.len()).unwrap(), 0);
        body.extend(regions.concat());
        let file = attacker.file().try_clone().unwrap();
        let fds: Vec<_> = regions.iter().map(|_| file.as_fd()).collect();
        let _ = attacker.send(SET_MEM_TABLE, &body, &fds);
        assert!(attacker.is_closed(), "{what}");
    }
    let mut attacker = bed.connect(A);
    let mut body = vec![0; 8];
    body.extend(region(0, 4096, USER, 0));
    attacker.send(REM_MEM_REG, &body, &[]).unwrap();
    assert!(attacker.is_closed(), "a region to remove that was never added");
    drop(attacker);
    bed.exchange(B, &mut neighbour);
    eventually("nothing is left", || (descriptors(), mappings()) <= before);
}

#[test]
fn a_ring_that_runs_cannot_be_moved() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let elsewhere = [pair(1, 0), ring_address(3)[8..].to_vec()].concat();
    let moves =
        [(SET_VRING_NUM, pair(0, 128)), (SET_VRING_BASE, pair(1, 7)), (SET_VRING_ADDR, elsewhere)];
    for (request, body) in moves {
        let attacker = bed.guest(A);
        attacker.send(request, &body, &[]).unwrap();
        bed.assert_costs_its_port_only(attacker, "moves a ring that runs", &mut neighbour);
    }
}

#[test]
fn a_ring_outside_of_memory_is_told() {
    let bed = Bed::new();
    let mut attacker = bed.connect(A);
    attacker.set_memory().unwrap();
    for ring in [0_usize, 1] {
        attacker.set_up_ring(ring).unwrap();
        let index = u32::try_from(ring).unwrap();
        attacker.send(SET_VRING_ENABLE, &pair(index, 1), &[]).unwrap();
    }
    attacker.barrier().unwrap();
    drop(attacker);
    let mut attacker = bed.connect(A);
    attacker.set_memory().unwrap();
    let mut body = pair(0, 0);
    for address in [USER + MEMORY - 64, USER + MEMORY - 64, USER + MEMORY - 64, 0] {
        body.extend_from_slice(&address.to_ne_bytes());
    }
    attacker.send(SET_VRING_NUM, &pair(0, 64), &[]).unwrap();
    attacker.send(SET_VRING_ADDR, &body, &[]).unwrap();
    attacker.set_up_ring(1).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    attacker.send(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[event.as_fd()]).unwrap();
    for ring in [0, 1] {
        attacker.send(SET_VRING_ENABLE, &pair(ring, 1), &[]).unwrap();
    }
    assert!(attacker.is_closed());
    bed.wait_for_trouble(A, "ring");
}

#[test]
fn memory_that_is_cut_short_closes_its_port_only() {
    let bed = Bed::new();
    let (mut attacker, mut neighbour) = (bed.guest(A), bed.guest(B));
    attacker.transmit(&frame(1));
    attacker.post(4);
    rustix::fs::ftruncate(attacker.file(), 0).unwrap();
    // In one go: the rings rest as soon as it is noticed.
    bed.with(A, |rings| {
        let mut buffer = vec![0; MAX_FRAME];
        rings.receive(&mut buffer);
        rings.transmit(&frame(2));
        rings.flush(&mut Counters::default());
    });
    bed.assert_costs_its_port_only(attacker, "cut short", &mut neighbour);
    let mut again = bed.guest(A);
    bed.exchange(A, &mut again);
}

#[test]
fn a_ring_that_is_broken_closes_its_port_only() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    for index in [5000, 0xffff] {
        let mut attacker = bed.guest(A);
        attacker.set_available(FROM_GUEST, index);
        assert!(bed.receive_all(A).is_empty());
        bed.assert_costs_its_port_only(attacker, "broken a ring", &mut neighbour);
    }
}

#[test]
fn memory_may_be_replaced_ten_thousand_times_under_traffic() {
    let bed = Bed::new();
    let (mut guest, mut neighbour) = (bed.guest(A), bed.guest(B));
    let before = mappings();
    for number in 0..10_000_u16 {
        guest.transmit(&frame(number));
        guest.set_memory().unwrap();
        if number % 16 == 0 {
            guest.barrier().unwrap();
            bed.receive_all(A);
        }
    }
    guest.barrier().unwrap();
    bed.receive_all(A);
    assert!(mappings() <= before, "{} mappings instead of {before}", mappings());
    bed.exchange(B, &mut neighbour);
}

#[test]
fn a_connection_that_ends_at_any_step_leaves_nothing_behind() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    let before = (descriptors(), mappings());
    for round in 0..1000 {
        let mut guest = bed.connect(A);
        match round % 12 {
            0 => {}
            1 => drop(guest.ask(1, &[])),
            2 => drop(guest.ask(15, &[])),
            3 => drop(guest.set_memory()),
            4 => drop(guest.set_up_ring(0)),
            5 => drop(guest.set_up_ring(1)),
            6 => drop(guest.send(SET_VRING_ENABLE, &pair(0, 1), &[])),
            7 => drop(guest.send_raw(&message(8, &pair(0, 64))[..7], &[])),
            8 => drop(guest.send_raw(&message(8, &pair(0, 64))[..15], &[])),
            9 => drop(guest.set_up_like_cloud_hypervisor()),
            _ => drop(guest.set_up_like_qemu()),
        }
        drop(guest);
    }
    bed.exchange(B, &mut neighbour);
    eventually("nothing is left", || (descriptors(), mappings()) <= before);
    let mut again = bed.guest(A);
    bed.exchange(A, &mut again);
}

#[test]
fn whoever_connects_and_says_nothing_or_half_is_ended_after_five_seconds() {
    let bed = Bed::new();
    let mut neighbour = bed.guest(B);
    for half in [&[][..], &message(8, &pair(0, 64))[..15]] {
        let begun = Instant::now();
        let mut idle = bed.connect(A);
        idle.send_raw(half, &[]).unwrap();
        // Hundreds more are turned away meanwhile.
        for _ in 0..250 {
            assert!(bed.connect(A).is_closed());
        }
        assert!(idle.is_closed());
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(4), "{took:?}");
        bed.wait_for_trouble(A, "did not speak vhost-user");
    }
    bed.exchange(B, &mut neighbour);
    // A guest that is set up may be silent for as long as it likes.
    let mut guest = bed.guest(A);
    std::thread::sleep(Duration::from_secs(6));
    bed.exchange(A, &mut guest);
}
