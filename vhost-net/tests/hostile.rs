//! What a hostile guest can do to its rings: it loses its own frames and is counted, and a second ring beside
//! it passes all of its frames. The rows are those of the attack list that a ring alone can meet.
#![cfg(target_os = "linux")]

use std::net::SocketAddrV4;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lichen_netstack::frame::vnet_header::{VNET_LEN, VnetHeader};
use lichen_netstack::ids::MacAddr;
use lichen_netstack::port::{FRONT, Front, MAX_FRAME};
use lichen_netstack::testing::frames;
use lichen_netstack::wire::headers::{ChecksumState, Headers};
use lichen_vhost_net::queue::error::{RingError, RingErrors};
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::layout::Layout;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use lichen_vhost_net::testing::driver::{BORDER, BUFFERS, Descriptor, Driver, MEMORY};
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 256;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const FEATURES: RingFeatures = RingFeatures {
    header: HeaderLayout::Mergeable,
    notices: Notices::EventIndex,
    tables: Tables::Accepted,
};

/// A guest that keeps the rules, served by the same thread.
struct Innocent {
    driver: Driver,
    ring: FromGuest,
    sent: u8,
}

impl Innocent {
    fn new() -> Self {
        let driver = Driver::new(SIZE);
        let ring = FromGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
        Self { driver, ring, sent: 0 }
    }

    /// Sends 64 frames, each with bytes of its own, and expects every one.
    fn assert_passes(&mut self) {
        for head in 0..64 {
            let at = BUFFERS + 2048 * u64::from(head);
            self.driver.write(at, &[self.sent.wrapping_add(head as u8); 112]);
            self.driver.describe(0, head, (at, 112, 0, 0));
            self.driver.offer(head);
        }
        let mut buffer = vec![0; MAX_FRAME];
        for head in 0..64 {
            assert_eq!(self.ring.receive(&mut buffer), Ok(Some(112)));
            assert_eq!(buffer[VNET_LEN..112], [self.sent.wrapping_add(head); 100]);
        }
        assert_eq!(self.ring.receive(&mut buffer), Ok(None));
        self.ring.flush().expect("a sound ring");
        assert_eq!(std::iter::from_fn(|| self.driver.take_used()).count(), 64);
        self.sent = self.sent.wrapping_add(64);
    }
}

/// A sending guest, and what a port would have seen of it.
struct Sender {
    driver: Driver,
    ring: FromGuest,
    frames: Vec<Vec<u8>>,
    errors: Vec<RingError>,
    counts: RingErrors,
}

impl Sender {
    fn new() -> Self {
        Self::with(Driver::new(SIZE))
    }

    fn with(driver: Driver) -> Self {
        let ring = FromGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
        Self { driver, ring, frames: vec![], errors: vec![], counts: RingErrors::default() }
    }

    /// Writes the chain from entry `first` on and offers it.
    fn offer(&mut self, first: u16, chain: &[Descriptor]) {
        for (at, &descriptor) in (first..).zip(chain) {
            self.driver.describe(0, at, descriptor);
        }
        self.driver.offer(first);
    }

    /// A batch as a port takes it.
    fn serve(&mut self) {
        let mut buffer = vec![0; MAX_FRAME];
        for _ in 0..64 {
            match self.ring.receive(&mut buffer) {
                Ok(None) => break,
                Ok(Some(len)) => self.frames.push(buffer[..len].to_vec()),
                Err(error) => {
                    self.errors.push(error);
                    self.counts.count(error);
                    if error.stops_queue() {
                        return;
                    }
                }
            }
        }
        self.ring.flush().expect("a sound ring");
    }
}

/// Each chain costs exactly its own frame: the good one behind it passes, and so do the innocent's.
fn assert_each_refused(chains: &[&[Descriptor]], expected: RingError) {
    let mut innocent = Innocent::new();
    for chain in chains {
        let mut guest = Sender::new();
        guest.offer(0, chain);
        guest.offer(200, &[(BUFFERS, 76, 0, 0)]);
        guest.serve();
        assert_eq!(guest.errors, [expected], "{chain:x?}");
        assert_eq!(guest.frames.len(), 1, "{chain:x?}");
        let used: Vec<_> = std::iter::from_fn(|| guest.driver.take_used()).collect();
        assert_eq!(used, [(0, 0), (200, 0)], "every buffer goes back: {chain:x?}");
        innocent.assert_passes();
    }
}

/// V01, V02.
#[test]
fn chains_that_loop_cost_their_frame() {
    let a = BUFFERS;
    assert_each_refused(
        &[
            &[(a, 64, NEXT, 0)],
            &[(a, 0, NEXT, 0)],
            &[(a, 64, NEXT, 1), (a, 64, NEXT, 0)],
            &[(a, 64, NEXT, 1), (a, 64, NEXT, 2), (a, 64, NEXT, 1)],
        ],
        RingError::Loop,
    );
}

/// V03.
#[test]
fn a_next_beyond_the_ring_costs_its_frame() {
    let a = BUFFERS;
    assert_each_refused(
        &[&[(a, 64, NEXT, 0xffff)], &[(a, 64, NEXT, SIZE)], &[(a, 0, NEXT, SIZE)]],
        RingError::Next,
    );
}

/// V04, V05, V06.
#[test]
fn bytes_outside_of_memory_are_never_sent() {
    assert_each_refused(
        &[
            &[(0xdead_0000_0000, 64, 0, 0)],
            &[(MEMORY, 64, 0, 0)],
            &[(MEMORY - 8, 72, 0, 0)],
            &[(MEMORY - 64, 65, 0, 0)],
            &[(u64::MAX - 7, 64, 0, 0)],
            &[(u64::MAX, 1, 0, 0)],
            &[(BUFFERS, 64, NEXT, 1), (MEMORY - 8, 72, 0, 0)],
        ],
        RingError::Address,
    );
}

/// V05, where the end of a region is not the end of memory.
#[test]
fn a_buffer_over_the_border_of_two_regions_arrives_whole_and_one_over_the_last_does_not() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::with(Driver::in_two_regions(SIZE));
    let sent: Vec<u8> = (0..200).collect();
    guest.driver.write(BORDER - 100, &sent);
    guest.offer(0, &[(BORDER - 100, 200, 0, 0)]);
    guest.offer(1, &[(BORDER - 100, u32::MAX, 0, 0)]);
    guest.offer(2, &[(MEMORY - 100, 101, 0, 0)]);
    guest.offer(3, &[(MEMORY - 100, 100, 0, 0)]);
    guest.offer(4, &[(BUFFERS, 100, 0, 0)]);
    guest.serve();
    assert_eq!(guest.frames[0][VNET_LEN..], sent[VNET_LEN..]);
    assert_eq!(guest.frames.len(), 3);
    assert_eq!(guest.errors, [RingError::Address; 2]);
    innocent.assert_passes();
}

/// V07.
#[test]
fn empty_descriptors_in_a_chain_are_passed_over() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    let (a, nowhere) = (BUFFERS, 0xdead_0000_0000);
    guest.driver.write(a, &[7; 76]);
    guest.offer(0, &[(a, 0, NEXT, 1), (a, 40, NEXT, 2), (nowhere, 0, NEXT, 3), (a, 36, 0, 0)]);
    guest.offer(8, &[(a, 0, 0, 0)]);
    guest.offer(10, &[(a, 0, NEXT, 11), (a, 0, 0, 0)]);
    guest.serve();
    assert_eq!(guest.frames.len(), 1);
    assert_eq!(guest.frames[0][VNET_LEN..], [7; 64]);
    assert_eq!(guest.errors, [RingError::Length; 2]);
    innocent.assert_passes();
}

/// V08.
#[test]
fn more_than_a_frame_is_refused_before_any_copy() {
    let a = BUFFERS;
    let most = MAX_FRAME as u32;
    assert_each_refused(
        &[
            &[(a, most + 1, 0, 0)],
            &[(a, 0x20_0000, 0, 0)],
            &[(a, most, NEXT, 1), (a, 1, 0, 0)],
            &[(a, most, NEXT, 1), (a, 0x20_0000, NEXT, 0)],
        ],
        RingError::Length,
    );
    assert_each_refused(&[&[(a, u32::MAX, 0, 0)]], RingError::Address);
    let mut guest = Sender::new();
    guest.offer(0, &[(a, most, 0, 0)]);
    guest.serve();
    assert_eq!(guest.frames[0].len(), MAX_FRAME);
}

/// V09.
#[test]
fn many_names_for_one_large_buffer_cost_next_to_nothing() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    for at in 0..SIZE {
        let flags = if at + 1 == SIZE { 0 } else { NEXT };
        guest.driver.describe(0, at, (BUFFERS, 0x10_0000, flags, at + 1));
    }
    for _ in 0..64 {
        guest.driver.offer(0);
    }
    let started = Instant::now();
    guest.serve();
    assert!(started.elapsed() < Duration::from_millis(10), "{:?}", started.elapsed());
    assert_eq!(guest.errors, [RingError::Length; 64]);
    innocent.assert_passes();
}

/// V09, with descriptors that hold nothing and so reach no limit of bytes.
#[test]
fn the_longest_chains_of_nothing_cost_little() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    let table = BUFFERS;
    for at in 0..1024 {
        guest.driver.describe(table, at, (0, 0, NEXT, (at + 1) % 1024));
    }
    guest.driver.describe(0, 0, (table, 16 * 1024, INDIRECT, 0));
    for _ in 0..64 {
        guest.driver.offer(0);
    }
    let started = Instant::now();
    guest.serve();
    assert!(started.elapsed() < Duration::from_millis(10), "{:?}", started.elapsed());
    assert_eq!(guest.errors.len(), 64);
    innocent.assert_passes();
}

/// V10.
#[test]
fn a_legal_chain_as_long_as_the_ring_arrives() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    for at in 0..SIZE {
        let address = BUFFERS + 4096 * u64::from(at % 128);
        guest.driver.write(address, &[(at % 128) as u8; 64]);
        let flags = if at + 1 == SIZE { 0 } else { NEXT };
        guest.driver.describe(0, at, (address, 64, flags, at + 1));
    }
    guest.driver.offer(0);
    guest.serve();
    let expected: Vec<u8> = (0..256 * 64).map(|at| (at / 64 % 128) as u8).collect();
    assert_eq!(guest.frames[0][VNET_LEN..], expected[VNET_LEN..]);
    innocent.assert_passes();
}

/// V11.
#[test]
fn a_buffer_of_the_wrong_direction_costs_its_frame() {
    let a = BUFFERS;
    assert_each_refused(
        &[
            &[(a, 64, WRITE, 0)],
            &[(a, 0, WRITE, 0)],
            &[(a, 64, NEXT, 1), (a, 64, WRITE, 0)],
            &[(a, 64, WRITE | NEXT, 1), (a, 64, 0, 0)],
        ],
        RingError::Direction,
    );
}

/// V12.
#[test]
fn a_head_beyond_the_ring_stops_that_queue_only() {
    let mut innocent = Innocent::new();
    for head in [0xffff, SIZE] {
        let mut guest = Sender::new();
        guest.offer(0, &[(BUFFERS, 76, 0, 0)]);
        guest.driver.offer(head);
        guest.serve();
        assert_eq!(guest.frames.len(), 1);
        assert_eq!(guest.errors, [RingError::Head]);
        assert!(RingError::Head.stops_queue());
        innocent.assert_passes();
    }
}

/// V13.
#[test]
fn an_index_that_jumps_stops_that_queue_only() {
    let mut innocent = Innocent::new();
    for index in [5000, 0xffff, SIZE + 1 + 3, 2, 0x8003] {
        let mut guest = Sender::new();
        for _ in 0..3 {
            guest.offer(0, &[(BUFFERS, 76, 0, 0)]);
        }
        guest.serve();
        guest.driver.set_available(index);
        guest.serve();
        assert_eq!(guest.frames.len(), 3, "{index}");
        assert_eq!(guest.errors, [RingError::AvailableIndex], "{index}");
        innocent.assert_passes();
    }
}

/// V14.
#[test]
fn a_malformed_indirect_table_costs_its_frame() {
    let a = BUFFERS;
    let table = |address, len| [(address, len, INDIRECT, 0)];
    assert_each_refused(
        &[
            &table(a, 24),
            &table(a, 15),
            &table(a, 0),
            &table(MEMORY, 32),
            &table(MEMORY - 16, 32),
            &table(u64::MAX - 15, 16),
            &table(u64::MAX - 7, 32),
            &table(a, u32::MAX - 15),
            &table(a, 16 * 1025),
        ],
        RingError::Indirect,
    );
}

/// V15.
#[test]
fn tables_in_tables_and_loops_in_tables_cost_their_frame() {
    let mut innocent = Innocent::new();
    let (a, table) = (BUFFERS, BUFFERS + 0x1000);
    for (entries, expected) in [
        ([(table, 32, INDIRECT, 0), (a, 64, 0, 0)], RingError::Indirect),
        ([(a, 64, NEXT, 1), (table, 32, INDIRECT, 0)], RingError::Indirect),
        ([(a, 64, NEXT, 0), (a, 64, 0, 0)], RingError::Loop),
        ([(a, 64, NEXT, 1), (a, 64, NEXT, 0)], RingError::Loop),
        ([(a, 64, NEXT, 2), (a, 64, 0, 0)], RingError::Next),
    ] {
        let mut guest = Sender::new();
        guest.driver.describe(table, 0, entries[0]);
        guest.driver.describe(table, 1, entries[1]);
        guest.offer(0, &[(table, 32, INDIRECT, 0)]);
        guest.offer(200, &[(a, 76, 0, 0)]);
        guest.serve();
        assert_eq!(guest.errors, [expected], "{entries:x?}");
        assert_eq!(guest.frames.len(), 1);
        innocent.assert_passes();
    }
    let (indirect_and_next, tail) = ((table, 32, INDIRECT | NEXT, 1), (a, 64, 0, 0));
    assert_each_refused(&[&[indirect_and_next, tail]], RingError::Indirect);
}

/// V17. The ring carries the header as it is; the datapath's first step refuses it.
#[test]
fn a_header_that_contradicts_its_frame_is_carried_and_then_refused() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    let from: SocketAddrV4 = "10.88.0.2:9".parse().expect("an address");
    let to: SocketAddrV4 = "10.88.0.3:9".parse().expect("an address");
    let (ours, theirs) = (MacAddr::for_ipv4(*from.ip()), MacAddr::for_ipv4(*to.ip()));
    let frame =
        frames::ethernet(ours, theirs, 0x0800, &frames::udp(from.into(), to.into(), &[1; 64]));
    let frame = &frame[VNET_LEN..];
    let f = 0xff;
    let headers: [[u8; VNET_LEN]; 5] = [
        [0, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, f, f, 0, 0, f, f, 6, 0, 0, 0],
        [1, 0, f, f, 0, 0, 34, 0, f, f, 0, 0],
        [1, 5, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0],
        [0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ];
    for (head, header) in (0..).zip(headers) {
        let at = BUFFERS + 2048 * u64::from(head);
        guest.driver.write(at, &[&header[..], frame].concat());
        guest.offer(head, &[(at, (VNET_LEN + frame.len()) as u32, 0, 0)]);
    }
    guest.serve();
    assert_eq!(guest.errors, []);
    assert_eq!(guest.frames.len(), headers.len());
    let parsed = Headers::parse(frame, ChecksumState::Partial).expect("a sound frame");
    for (received, header) in guest.frames.iter().zip(headers) {
        let (start, rest) = received.split_at(VNET_LEN);
        assert_eq!((start, rest), (&header[..], frame));
        let verdict =
            VnetHeader::parse(&header).and_then(|header| header.check(&parsed, frame.len(), 1500));
        assert!(verdict.is_err(), "{header:?}");
    }
    innocent.assert_passes();
}

/// V18.
#[test]
fn a_frame_needs_more_than_a_header_however_the_header_is_cut() {
    let a = BUFFERS;
    assert_each_refused(
        &[&[(a, 1, 0, 0)], &[(a, 5, 0, 0)], &[(a, 12, 0, 0)], &[(a, 6, NEXT, 1), (a, 6, 0, 0)]],
        RingError::Length,
    );
    let mut guest = Sender::new();
    let sent: Vec<u8> = (0..76).collect();
    guest.driver.write(a, &sent);
    let mut chain: Vec<Descriptor> =
        (0..12).map(|at| (a + u64::from(at), 1, NEXT, at + 1)).collect();
    chain.push((a + 12, 64, 0, 0));
    guest.offer(0, &chain);
    guest.serve();
    assert_eq!(guest.frames[0][..10], sent[..10]);
    assert_eq!(guest.frames[0][VNET_LEN..], sent[VNET_LEN..]);
}

/// V19.
#[test]
fn a_bad_buffer_towards_the_guest_costs_one_frame_and_none_is_seen_in_part() {
    let mut innocent = Innocent::new();
    let frame: Vec<u8> = (0..212).map(|at| at as u8).collect();
    for (chain, expected) in [
        ([(0xdead_0000_0000, 2048, WRITE, 0); 2], RingError::Address),
        ([(BUFFERS, 64, WRITE | NEXT, 1), (MEMORY - 8, 2048, WRITE, 0)], RingError::Address),
        ([(BUFFERS, 2048, 0, 0); 2], RingError::Direction),
        ([(BUFFERS, 4, WRITE, 0); 2], RingError::Length),
        ([(BUFFERS, 64, WRITE | NEXT, 0); 2], RingError::Loop),
    ] {
        let mut driver = Driver::new(SIZE);
        let (memory, layout) = (driver.memory(), driver.layout());
        let mut ring = ToGuest::resume(memory, layout, FEATURES).expect("sound");
        driver.describe(0, 0, chain[0]);
        driver.describe(0, 1, chain[1]);
        driver.describe(0, 8, (BUFFERS + 0x1000, 2048, WRITE, 0));
        driver.offer(0);
        driver.offer(8);
        assert_eq!(ring.transmit(&frame), Err(expected));
        assert_eq!(driver.read(BUFFERS, 2048), [0; 2048], "nothing is written");
        assert_eq!(ring.transmit(&frame), Ok(Delivered::Sent));
        ring.flush().expect("a sound ring");
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
        assert_eq!(used, [(0, 0), (8, 212)]);
        innocent.assert_passes();
    }
}

/// V19, with as many tiny buffers as the ring holds.
#[test]
fn tiny_buffers_are_merged_or_refused_but_never_searched_without_end() {
    let mut innocent = Innocent::new();
    let mut driver = Driver::new(SIZE);
    let mut ring = ToGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
    driver.describe(0, 0, (BUFFERS, 12, WRITE, 0));
    for head in 1..SIZE {
        driver.describe(0, head, (BUFFERS + 16 * u64::from(head), 4, WRITE, 0));
    }
    for head in 0..SIZE {
        driver.offer(head);
    }
    assert_eq!(ring.transmit(&[5; VNET_LEN + 4 * 255 + 1]), Err(RingError::Length));
    for head in 0..SIZE {
        driver.offer(head);
    }
    assert_eq!(ring.transmit(&[5; VNET_LEN + 4 * 255]), Ok(Delivered::Sent));
    innocent.assert_passes();
}

/// V20. The backlog belongs to the port; the ring says at little cost that it is full, and asks for a kick.
#[test]
fn a_ring_that_is_never_refilled_says_so_each_time_and_holds_nobody_up() {
    let mut innocent = Innocent::new();
    let mut driver = Driver::new(SIZE);
    let mut ring = ToGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
    driver.describe(0, 0, (BUFFERS, 1000, WRITE, 0));
    driver.offer(0);
    let frame = vec![3; 1512];
    for round in 0..100_000 {
        assert_eq!(ring.transmit(&frame), Ok(Delivered::Full));
        if round % 10_000 == 0 {
            innocent.assert_passes();
        }
    }
    assert_eq!((ring.has_room(), driver.kick_wish(), ring.progress()), (Ok(false), 1, 0));
    driver.offer(0);
    assert_eq!(ring.transmit(&frame), Ok(Delivered::Sent));
    assert_eq!(ring.progress(), 2);
}

/// What is judged is what is used, however fast the guest changes its mind.
#[test]
fn a_guest_that_rewrites_descriptors_while_they_are_read_gains_nothing() {
    let mut innocent = Innocent::new();
    let mut guest = Sender::new();
    guest.driver.write(BUFFERS, &[7; 2048]);
    let memory = guest.driver.memory();
    let (stop, started) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            started.wait();
            let [short, long] = [76_u64, u64::from(u32::MAX)];
            for turn in (0_usize..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let address = [BUFFERS, u64::MAX - 7, BUFFERS, MEMORY - 8][turn % 4];
                let tail = [short, short, long, long | 4 << 32, 76 | 1 << 32][turn % 5];
                memory.store(address, GuestAddress(0), Ordering::Relaxed).expect("inside");
                memory.store(tail, GuestAddress(8), Ordering::Relaxed).expect("inside");
            }
        });
        started.wait();
        for _ in 0..2000 {
            for _ in 0..64 {
                guest.driver.offer(0);
            }
            guest.serve();
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} frames, {:?}", guest.frames.len(), guest.counts);
    assert_eq!(guest.frames.len() + guest.errors.len(), 2000 * 64);
    for frame in &guest.frames {
        // The chain may have come back to its first descriptor, to find it changed.
        assert!(frame.len().is_multiple_of(76), "{}", frame.len());
        assert!(frame[VNET_LEN..].iter().all(|byte| *byte == 7));
    }
    innocent.assert_passes();
}

/// What was judged is what arrives: the front as it was, and of the rest no more and no less than was shown.
#[test]
fn a_guest_that_rewrites_a_frame_between_its_judgement_and_its_copy_changes_its_payload_at_most() {
    let mut guest = Sender::new();
    let mut receiver = Driver::new(SIZE);
    let mut to_guest =
        ToGuest::resume(receiver.memory(), receiver.layout(), FEATURES).expect("a sound ring");
    guest.driver.write(BUFFERS, &[7; 2048]);
    for (before, after) in [((BUFFERS, 600), (BUFFERS, 2048)), ((BUFFERS, 600), (u64::MAX, 13))] {
        guest.offer(0, &[(before.0, before.1, 0, 0)]);
        guest.serve();
        guest.driver.write(BUFFERS, &[7; 600]);
        guest.driver.offer(0);
        // The first look at a ring's buffers finds where they lie.
        let mut front = Front::EMPTY;
        let peeked = guest.ring.peek(&mut front).expect("one buffer");
        guest.driver.write(BUFFERS, &[9; 600]);
        guest.driver.describe(0, 0, (after.0, after.1, NEXT | INDIRECT, 0));
        receiver.describe(0, 0, (BUFFERS, 1536, WRITE, 0));
        receiver.offer(0);
        if to_guest.pass(&mut guest.ring, peeked, &front).is_none() {
            // The receiver's buffers have not been looked at before.
            assert_eq!(to_guest.transmit(&[5; 100]), Ok(Delivered::Sent));
            receiver.offer(0);
            to_guest.pass(&mut guest.ring, peeked, &front).expect("nothing is in the way");
        }
        guest.ring.flush().expect("a sound ring");
        to_guest.flush().expect("a sound ring");
        let used = std::iter::from_fn(|| receiver.take_used()).last();
        assert_eq!(used, Some((0, 600)));
        let arrived = receiver.read(BUFFERS, 600);
        assert!(arrived[VNET_LEN..FRONT].iter().all(|byte| *byte == 7));
        assert!(arrived[FRONT..].iter().all(|byte| *byte == 9));
    }
}

/// Two guests may share memory, or one may name the same bytes for both of its rings.
#[test]
fn a_frame_that_passes_into_itself_harms_nobody_else() {
    let mut innocent = Innocent::new();
    for apart in [0_u64, 1, 64, 127, 128, 700] {
        let mut guest = Sender::new();
        let [descriptors, available, used] = [0x2_0000, 0x2_8000, 0x2_c000];
        let memory = guest.driver.memory();
        let layout = Layout::new(&memory, SIZE, descriptors, available, used).expect("inside");
        let mut to_guest = ToGuest::resume(memory, layout, FEATURES).expect("a sound ring");
        guest.driver.describe(descriptors, 0, (BUFFERS + apart, 1536, WRITE, 0));
        guest.driver.write(available + 2, &2_u16.to_le_bytes());
        // The first look at each ring's buffers finds where they lie.
        assert_eq!(to_guest.transmit(&[5; 100]), Ok(Delivered::Sent));
        guest.offer(0, &[(BUFFERS, 1400, 0, 0)]);
        guest.serve();
        guest.driver.offer(0);
        let bytes: Vec<u8> = (0..1400_u16).map(|at| (at % 251) as u8).collect();
        guest.driver.write(BUFFERS, &bytes);
        let mut front = Front::EMPTY;
        let peeked = guest.ring.peek(&mut front).expect("one buffer");
        assert_eq!(to_guest.pass(&mut guest.ring, peeked, &front), Some(()));
        // Its front is written before the rest is read, which is then what stands there.
        let arrived = guest.driver.read(BUFFERS + apart, FRONT);
        assert_eq!(arrived[VNET_LEN..], bytes[VNET_LEN..FRONT], "{apart}");
        guest.ring.flush().expect("a sound ring");
        to_guest.flush().expect("a sound ring");
    }
    innocent.assert_passes();
}

#[test]
fn there_is_room_when_half_of_the_ring_or_the_longest_frame_waits() {
    let mut driver = Driver::new(SIZE);
    let mut ring = ToGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
    assert_eq!((ring.has_room(), driver.kick_wish()), (Ok(false), 0));
    driver.describe(0, 0, (BUFFERS, 1526, WRITE, 0));
    for waiting in 1..=43 {
        driver.offer(0);
        assert_eq!(ring.has_room(), Ok(waiting == 43), "{waiting} buffers");
    }
    let mut driver = Driver::new(SIZE);
    let mut ring = ToGuest::resume(driver.memory(), driver.layout(), FEATURES).expect("sound");
    driver.describe(0, 0, (BUFFERS, 12, WRITE, 0));
    for waiting in 1..=SIZE / 2 {
        driver.offer(0);
        assert_eq!(ring.has_room(), Ok(waiting == SIZE / 2), "{waiting} buffers");
    }
}

#[test]
fn every_kind_of_error_has_a_count_of_its_own() {
    let (a, mut counts) = (BUFFERS, RingErrors::default());
    let mut guest = Sender::new();
    for (head, descriptor) in [
        (0, (a, 64, NEXT, 0)),
        (1, (a, 64, NEXT, SIZE)),
        (2, (MEMORY, 64, 0, 0)),
        (3, (a, 64, WRITE, 0)),
        (4, (a, 24, INDIRECT, 0)),
        (5, (a, 12, 0, 0)),
    ] {
        guest.offer(head, &[descriptor]);
    }
    guest.driver.offer(SIZE);
    guest.serve();
    let mut other = Sender::new();
    other.driver.set_available(5000);
    other.serve();
    for &error in guest.errors.iter().chain(&other.errors) {
        counts.count(error);
    }
    let one = RingErrors {
        looped: 1,
        next: 1,
        address: 1,
        direction: 1,
        available_index: 1,
        indirect: 1,
        length: 1,
        head: 1,
        call: 0,
    };
    assert_eq!(counts, one);
    assert_eq!(guest.counts, RingErrors { available_index: 0, ..one });
}
