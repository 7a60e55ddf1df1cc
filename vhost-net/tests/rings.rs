//! The two rings against a driver that keeps the rules, and against one that does not.
#![cfg(target_os = "linux")]

use lichen_netstack::port::{FRONT, Front, MAX_FRAME};
use lichen_vhost_net::queue::error::RingError;
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use lichen_vhost_net::testing::driver::{BUFFERS, Descriptor, Driver, MEMORY, USED};

const SIZE: u16 = 256;

fn features(header: HeaderLayout) -> RingFeatures {
    RingFeatures { header, notices: Notices::EventIndex, tables: Tables::Accepted }
}

fn from_guest(driver: &Driver, header: HeaderLayout) -> FromGuest {
    FromGuest::resume(driver.memory(), driver.layout(), features(header)).expect("a sound ring")
}

fn to_guest(driver: &Driver, header: HeaderLayout) -> ToGuest {
    ToGuest::resume(driver.memory(), driver.layout(), features(header)).expect("a sound ring")
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Offers one bad chain, then a good one that must still pass.
fn assert_refused(chain: &[Descriptor], expected: RingError) {
    let mut driver = Driver::new(SIZE);
    let mut ring = from_guest(&driver, HeaderLayout::Single);
    for (at, &descriptor) in (0..).zip(chain) {
        driver.describe(0, at, descriptor);
    }
    driver.offer(0);
    driver.describe(0, 200, (BUFFERS, 76, 0, 0));
    driver.offer(200);
    let mut buffer = vec![0; MAX_FRAME];
    assert_eq!(ring.receive(&mut buffer), Err(expected), "{chain:x?}");
    assert_eq!(ring.receive(&mut buffer), Ok(Some(76)), "{chain:x?}");
}

#[test]
fn a_frame_split_anywhere_arrives_whole_with_every_header() {
    for header in [HeaderLayout::Legacy, HeaderLayout::Single, HeaderLayout::Mergeable] {
        for split in [1, 5, 11, 12, 40] {
            let mut driver = Driver::new(SIZE);
            let mut ring = from_guest(&driver, header);
            let sent = frame(header.len() + 64);
            driver.write(BUFFERS, &sent);
            driver.describe(0, 0, (BUFFERS, split, 1, 1));
            driver.describe(0, 1, (BUFFERS, 0, 1, 2));
            driver.describe(0, 2, (BUFFERS + u64::from(split), sent.len() as u32 - split, 0, 0));
            driver.offer(0);
            let mut buffer = vec![0xee; MAX_FRAME];
            assert_eq!(ring.receive(&mut buffer), Ok(Some(76)));
            assert_eq!(buffer[..10], sent[..10]);
            assert_eq!(buffer[10..12], [0, 0]);
            assert_eq!(buffer[12..76], sent[header.len()..], "{header:?} split at {split}");
        }
    }
}

/// One buffer is copied another way than several; both ways, and both directions, for every length of its pieces.
#[test]
fn a_frame_of_any_length_in_one_buffer_arrives_as_one_in_two_does() {
    for len in (13..700).chain([1512, 4096, 9000, MAX_FRAME]) {
        let mut driver = Driver::new(SIZE);
        let mut ring = from_guest(&driver, HeaderLayout::Mergeable);
        let sent = frame(len);
        driver.write(BUFFERS, &sent);
        driver.describe(0, 0, (BUFFERS, len as u32, 0, 0));
        driver.describe(0, 1, (BUFFERS, 12, 1, 2));
        driver.describe(0, 2, (BUFFERS + 12, len as u32 - 12, 0, 0));
        let mut arrived = [0, 1].map(|head| {
            driver.offer(head);
            let mut buffer = vec![0xee; MAX_FRAME + 64];
            assert_eq!(ring.receive(&mut buffer), Ok(Some(len)));
            buffer
        });
        assert_eq!(arrived[0], arrived[1], "{len}");
        let [buffer, _] = &mut arrived;
        assert_eq!((&buffer[..10], &buffer[12..len]), (&sent[..10], &sent[12..]), "{len}");
        assert_eq!((&buffer[10..12], buffer[len]), (&[0, 0][..], 0xee), "{len}");

        let mut driver = Driver::new(SIZE);
        let mut ring = to_guest(&driver, HeaderLayout::Mergeable);
        driver.write(BUFFERS, &vec![0xee; len + 1]);
        driver.describe(0, 0, (BUFFERS, len as u32, 2, 0));
        driver.offer(0);
        assert_eq!(ring.transmit(&buffer[..len]), Ok(Delivered::Sent));
        assert_eq!(ring.flush(), Ok(true));
        assert_eq!(driver.take_used(), Some((0, len as u32)));
        let given = driver.read(BUFFERS, len + 1);
        assert_eq!((&given[..10], &given[12..len]), (&sent[..10], &sent[12..]), "{len}");
        assert_eq!((&given[10..12], given[len]), (&[1, 0][..], 0xee), "{len}");
    }
}

/// Passing on without a copy in between comes to the same as receiving and transmitting, where it is possible.
#[test]
fn a_frame_of_any_length_passes_from_guest_to_guest_as_it_would_by_way_of_a_buffer() {
    for len in (13..700).chain([1512, 4096, 9000, MAX_FRAME]) {
        let mut sent = frame(len);
        sent[10..12].fill(0);
        let arrived = [Way::InPlace, Way::ByBuffer].map(|way| {
            let [mut sender, mut receiver] = [Driver::new(SIZE), Driver::new(SIZE)];
            let mut from_guest = from_guest(&sender, HeaderLayout::Mergeable);
            let mut to_guest = to_guest(&receiver, HeaderLayout::Mergeable);
            sender.write(BUFFERS, &sent);
            sender.describe(0, 3, (BUFFERS, len as u32, 0, 0));
            // Where the last look-up ended, nothing has been yet: the first frame shows it.
            for _ in 0..2 {
                sender.offer(3);
                receiver.describe(0, 5, (BUFFERS + 4096, MAX_FRAME as u32 + 1, 2, 0));
                receiver.offer(5);
                receiver.write(BUFFERS + 4096, &vec![0xee; MAX_FRAME + 1]);
                way.carry(&mut from_guest, &mut to_guest);
            }
            let used = [sender.take_used(), receiver.take_used()];
            assert_eq!(used, [Some((3, 0)), Some((5, len as u32))]);
            receiver.read(BUFFERS + 4096, MAX_FRAME + 1)
        });
        assert!(arrived[0] == arrived[1], "{len}");
        let mut expected = sent;
        expected[10..12].copy_from_slice(&[1, 0]);
        assert_eq!(arrived[0][..len], expected);
        assert!(arrived[0][len..].iter().all(|byte| *byte == 0xee), "{len}: nothing behind it");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    InPlace,
    ByBuffer,
}

impl Way {
    /// Carries one frame, the first of which always goes by a buffer.
    fn carry(self, from_guest: &mut FromGuest, to_guest: &mut ToGuest) {
        let mut front = Front::EMPTY;
        let peeked = from_guest.peek(&mut front).filter(|_| self == Self::InPlace);
        let passed = peeked.and_then(|peeked| to_guest.pass(from_guest, peeked, &front));
        if passed.is_none() {
            let mut buffer = vec![0; MAX_FRAME];
            let len = from_guest.receive(&mut buffer).unwrap().expect("a frame waits");
            assert_eq!(to_guest.transmit(&buffer[..len]), Ok(Delivered::Sent));
        }
        from_guest.flush().unwrap();
        to_guest.flush().unwrap();
    }
}

#[test]
fn a_frame_that_was_only_looked_at_is_still_there() {
    let mut driver = Driver::new(SIZE);
    let mut ring = from_guest(&driver, HeaderLayout::Mergeable);
    let sent = frame(1500);
    driver.write(BUFFERS, &sent);
    driver.describe(0, 0, (BUFFERS, 1500, 0, 0));
    (0..2).for_each(|_| driver.offer(0));
    let (mut buffer, mut front) = (vec![0; MAX_FRAME], Front::EMPTY);
    assert_eq!(ring.receive(&mut buffer), Ok(Some(1500)));
    for _ in 0..3 {
        assert!(ring.peek(&mut front).is_some());
        assert_eq!((front.frame_len, front.head().len()), (1500, FRONT));
        assert_eq!(front.head()[12..], sent[12..FRONT]);
    }
    assert_eq!(ring.receive(&mut buffer), Ok(Some(1500)));
    assert!(ring.peek(&mut front).is_none(), "nothing more waits");
    assert_eq!(ring.receive(&mut buffer), Ok(None));
}

#[test]
fn a_frame_behind_an_indirect_table_arrives() {
    let mut driver = Driver::new(SIZE);
    let mut ring = from_guest(&driver, HeaderLayout::Mergeable);
    driver.write(BUFFERS, &frame(112));
    driver.describe(BUFFERS + 0x1000, 0, (BUFFERS, 12, 1, 1));
    driver.describe(BUFFERS + 0x1000, 1, (BUFFERS + 12, 100, 0, 0));
    driver.describe(0, 0, (BUFFERS + 0x1000, 32, 4, 0));
    driver.offer(0);
    let mut buffer = vec![0; MAX_FRAME];
    assert_eq!(ring.receive(&mut buffer), Ok(Some(112)));
    assert_eq!(buffer[12..112], frame(112)[12..]);
}

#[test]
fn a_batch_is_published_at_once_and_calls_once() {
    let mut driver = Driver::new(SIZE);
    let mut ring = from_guest(&driver, HeaderLayout::Single);
    for head in 0..64 {
        driver.describe(0, head, (BUFFERS, 76, 0, 0));
        driver.offer(head);
    }
    let mut buffer = vec![0; MAX_FRAME];
    while ring.receive(&mut buffer) != Ok(None) {}
    assert_eq!(driver.take_used(), None);
    assert_eq!((ring.flush(), ring.flush()), (Ok(true), Ok(false)));
    assert_eq!(std::iter::from_fn(|| driver.take_used()).count(), 64);
    driver.want_call_after(100);
    driver.offer(0);
    assert_eq!(ring.receive(&mut buffer), Ok(Some(76)));
    assert_eq!(ring.flush(), Ok(false));
}

#[test]
fn a_large_frame_is_merged_over_buffers_and_says_how_many() {
    let mut driver = Driver::new(SIZE);
    let mut ring = to_guest(&driver, HeaderLayout::Mergeable);
    let sent = frame(12 + 4000);
    for head in 0..3 {
        assert_eq!(ring.transmit(&sent), Ok(Delivered::Full));
        driver.describe(0, head, (BUFFERS + 1500 * u64::from(head), 1500, 2, 0));
        driver.offer(head);
    }
    assert_eq!(ring.transmit(&sent), Ok(Delivered::Sent));
    assert_eq!(ring.flush(), Ok(true));
    let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
    assert_eq!(used, [(0, 1500), (1, 1500), (2, 1012)]);
    let arrived = driver.read(BUFFERS, sent.len());
    assert_eq!(arrived[10..12], [3, 0]);
    assert_eq!((&arrived[..10], &arrived[12..]), (&sent[..10], &sent[12..]));
}

/// A ring that is polled asks for no kick, and asks before nobody looks any more.
#[test]
fn a_guest_need_not_kick_while_its_ring_is_looked_into_and_is_asked_to_afterwards() {
    for notices in [Notices::EventIndex, Notices::Flags] {
        let mut driver = Driver::new(SIZE);
        let features = RingFeatures { notices, ..features(HeaderLayout::Mergeable) };
        let mut ring =
            FromGuest::resume(driver.memory(), driver.layout(), features).expect("a sound ring");
        driver.describe(0, 0, (BUFFERS, 76, 0, 0));
        let mut buffer = vec![0; MAX_FRAME];
        let flags = |driver: &Driver| driver.read(USED, 2);
        assert_eq!(ring.receive(&mut buffer), Ok(None));
        assert_eq!((driver.kick_wish(), flags(&driver)), (0, vec![0, 0]));

        ring.spare_kicks();
        let spared = u8::from(notices == Notices::Flags);
        for taken in 1..=3 {
            assert!(!ring.is_waiting());
            driver.offer(0);
            assert!(ring.is_waiting());
            assert_eq!(ring.receive(&mut buffer), Ok(Some(76)));
            assert_eq!(ring.receive(&mut buffer), Ok(None));
            let seen = (driver.kick_wish(), flags(&driver));
            assert_eq!(seen, (0, vec![spared, 0]), "{notices:?} after {taken}: nothing is asked");
        }
        assert!(!ring.want_kicks(), "nothing waits");
        let wish = if notices == Notices::EventIndex { 3 } else { 0 };
        assert_eq!((driver.kick_wish(), flags(&driver)), (wish, vec![0, 0]));

        // What comes just before it is asked again is told of, since nobody kicks for it.
        ring.spare_kicks();
        driver.offer(0);
        assert!(ring.want_kicks());
        assert_eq!(ring.receive(&mut buffer), Ok(Some(76)));
        assert_eq!(ring.receive(&mut buffer), Ok(None));
        let wish = if notices == Notices::EventIndex { 4 } else { 0 };
        assert_eq!((driver.kick_wish(), flags(&driver)), (wish, vec![0, 0]));

        // A device that dies while it polls leaves the flag; the next one needs kicks.
        ring.spare_kicks();
        drop(ring);
        let resumed = FromGuest::resume(driver.memory(), driver.layout(), features);
        resumed.expect("a sound ring");
        assert_eq!(flags(&driver), [0, 0]);
    }
}

#[test]
fn a_device_that_comes_back_goes_on_at_the_used_index() {
    let mut driver = Driver::new(SIZE);
    let mut buffer = vec![0; MAX_FRAME];
    driver.describe(0, 0, (BUFFERS, 76, 0, 0));
    driver.offer(0);
    driver.offer(0);
    let mut first = from_guest(&driver, HeaderLayout::Single);
    assert_eq!(first.receive(&mut buffer), Ok(Some(76)));
    first.flush().expect("a sound ring");
    let mut second = from_guest(&driver, HeaderLayout::Single);
    assert_eq!(second.receive(&mut buffer), Ok(Some(76)));
    assert_eq!(second.receive(&mut buffer), Ok(None));
}

#[test]
fn a_bad_chain_costs_its_frame_and_no_other() {
    let buffer = (BUFFERS, 64, 1);
    let (a, l, next) = buffer;
    assert_refused(&[(a, l, next, 0)], RingError::Loop);
    assert_refused(&[(a, l, next, 1), (a, l, next, 0)], RingError::Loop);
    assert_refused(&[(a, l, next, 0xffff)], RingError::Next);
    assert_refused(&[(0xdead_0000_0000, 64, 0, 0)], RingError::Address);
    assert_refused(&[(MEMORY - 8, 72, 0, 0)], RingError::Address);
    assert_refused(&[(u64::MAX - 7, 64, 0, 0)], RingError::Address);
    assert_refused(&[(a, u32::MAX, 0, 0)], RingError::Address);
    assert_refused(&[(a, 0x10_0000, 0, 0)], RingError::Length);
    assert_refused(&[(a, 12, 0, 0)], RingError::Length);
    assert_refused(&[(a, 0, 0, 0)], RingError::Length);
    assert_refused(&[(a, 64, 2, 0)], RingError::Direction);
    assert_refused(&[(a, l, next, 1), (a, 64, 2, 0)], RingError::Direction);
    for (address, len) in [(a, 24), (a, 0), (MEMORY, 32), (a, u32::MAX - 15)] {
        assert_refused(&[(address, len, 4, 0)], RingError::Indirect);
    }
    assert_refused(&[(a, 32, 5, 1), (a, 64, 0, 0)], RingError::Indirect);
}

#[test]
fn a_bad_index_stops_the_queue() {
    let mut buffer = vec![0; MAX_FRAME];
    for index in [5000, 0xffff] {
        let mut driver = Driver::new(SIZE);
        let mut ring = from_guest(&driver, HeaderLayout::Single);
        driver.set_available(index);
        let error = ring.receive(&mut buffer).expect_err("an impossible index");
        assert!(error.stops_queue(), "{error}");
    }
    let mut driver = Driver::new(SIZE);
    let mut ring = from_guest(&driver, HeaderLayout::Single);
    driver.offer(0xffff);
    assert_eq!(ring.receive(&mut buffer), Err(RingError::Head));
}

#[test]
fn a_bad_buffer_towards_the_guest_costs_the_frame_and_the_ring_goes_on() {
    for (descriptor, expected) in [
        ((0xdead_0000_0000, 2048, 2, 0), RingError::Address),
        ((BUFFERS, 2048, 0, 0), RingError::Direction),
        ((BUFFERS, 4, 2, 0), RingError::Length),
        ((BUFFERS, 2048, 3, 0), RingError::Loop),
    ] {
        let mut driver = Driver::new(SIZE);
        let mut ring = to_guest(&driver, HeaderLayout::Mergeable);
        driver.describe(0, 0, descriptor);
        driver.describe(0, 1, (BUFFERS, 2048, 2, 0));
        driver.offer(0);
        driver.offer(1);
        assert_eq!(ring.transmit(&frame(76)), Err(expected));
        assert_eq!(ring.transmit(&frame(76)), Ok(Delivered::Sent));
    }
}
