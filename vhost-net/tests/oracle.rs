//! The same chains, served by the crate `virtio-queue` and by us: the same frames, the same used entries, the
//! same bytes in guest memory, and a call at the same moments. Only chains that keep the rules: what is done
//! with others is our own choice.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::MAX_FRAME;
use lichen_netstack::testing::chance::Chance;
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use lichen_vhost_net::testing::driver::{AVAILABLE, BUFFERS, DESCRIPTORS, Driver, MEMORY, USED};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

const SIZE: u16 = 512;
const ROUNDS: u64 = 400;
const WRITE: u16 = 2;
/// Bytes of the longest table here, and of a table for each head.
const TABLE: u64 = 0x200;
const TABLES: usize = TABLE as usize * SIZE as usize;
const HEADERS: [HeaderLayout; 3] =
    [HeaderLayout::Legacy, HeaderLayout::Single, HeaderLayout::Mergeable];

fn features(header: HeaderLayout) -> RingFeatures {
    RingFeatures { header, notices: Notices::EventIndex, tables: Tables::Accepted }
}

/// Frames out of the oracle's ring, as they lie in guest memory.
fn oracle_receives(queue: &mut Queue, memory: &Arc<GuestMemoryMmap>) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    while let Some(chain) = queue.pop_descriptor_chain(Arc::clone(memory)) {
        let head = chain.head_index();
        let mut frame = vec![];
        chain.reader(memory).expect("valid").read_to_end(&mut frame).expect("valid");
        queue.add_used(&**memory, head, 0).expect("valid");
        frames.push(frame);
    }
    frames
}

/// A frame into the oracle's ring, with a header of `header_len` bytes in front.
fn oracle_transmits(
    queue: &mut Queue,
    memory: &Arc<GuestMemoryMmap>,
    frame: &[u8],
    header_len: usize,
) {
    let needed = frame.len() - VNET_LEN + header_len;
    let (mut chains, mut capacity) = (vec![], 0);
    while capacity < needed {
        let chain = queue.pop_descriptor_chain(Arc::clone(memory)).expect("enough buffers");
        capacity += chain.clone().writer(memory).expect("valid").available_bytes();
        chains.push(chain);
    }
    let mut bytes = frame[..10].to_vec();
    bytes.extend_from_slice(&(chains.len() as u16).to_le_bytes()[..header_len - 10]);
    bytes.extend_from_slice(&frame[VNET_LEN..]);
    let mut left = &bytes[..];
    for chain in chains {
        let head = chain.head_index();
        let mut writer = chain.writer(memory).expect("valid");
        let (now, later) = left.split_at(left.len().min(writer.available_bytes()));
        writer.write_all(now).expect("valid");
        queue.add_used(&**memory, head, now.len() as u32).expect("valid");
        left = later;
    }
}

fn queue() -> Queue {
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

#[test]
fn frames_from_the_guest_are_those_that_the_oracle_reads() {
    for header in HEADERS {
        let mut chance = Chance::new(0x5eed_0001);
        let (mut ours, mut theirs) = (Driver::new(SIZE), Driver::new(SIZE));
        let noise: Vec<u8> = (0..MEMORY - BUFFERS).map(|_| chance.byte()).collect();
        ours.write(BUFFERS, &noise);
        theirs.write(BUFFERS, &noise);
        let mut ring =
            FromGuest::resume(ours.memory(), ours.layout(), features(header)).expect("sound");
        let (memory, mut queue) = (theirs.memory(), queue());
        let mut buffer = vec![0; MAX_FRAME];
        let mut frames = 0;
        for round in 0..ROUNDS {
            let mut next = 0;
            for _ in 0..=chance.below(20) {
                let len = header.len() + 1 + length(&mut chance);
                let chain = Chain::random(&mut chance, len, 0);
                chain.offer(&mut ours, next);
                next = chain.offer(&mut theirs, next);
            }
            let wish = (ours.offered().wrapping_sub(chance.below(8) as u16)).wrapping_sub(1);
            ours.want_call_after(wish);
            theirs.want_call_after(wish);
            for expected in oracle_receives(&mut queue, &memory) {
                let len = ring.receive(&mut buffer).expect("valid").expect("as many frames");
                assert_eq!(buffer[..10], expected[..10], "{header:?}, round {round}");
                assert_eq!(
                    buffer[VNET_LEN..len],
                    expected[header.len()..],
                    "{header:?}, round {round}"
                );
                frames += 1;
            }
            assert_eq!(ring.receive(&mut buffer), Ok(None));
            let call = queue.needs_notification(&*memory).expect("valid");
            assert_eq!(ring.flush(), Ok(call), "{header:?}, round {round}");
            assert_same_used(&mut ours, &mut theirs);
        }
        assert!(frames > ROUNDS, "{frames}");
    }
}

#[test]
fn frames_to_the_guest_lie_where_the_oracle_puts_them() {
    for header in HEADERS {
        let mut chance = Chance::new(0x5eed_0002);
        let (mut ours, mut theirs) = (Driver::new(SIZE), Driver::new(SIZE));
        let mut ring =
            ToGuest::resume(ours.memory(), ours.layout(), features(header)).expect("sound");
        let (memory, mut queue) = (theirs.memory(), queue());
        for round in 0..ROUNDS {
            for _ in 0..=chance.below(8) {
                let mut next = 0;
                let frame: Vec<u8> =
                    (0..VNET_LEN + 1 + length(&mut chance)).map(|_| chance.byte()).collect();
                let mut room = 0;
                while room < frame.len() {
                    let len = match header {
                        HeaderLayout::Mergeable => (VNET_LEN + length(&mut chance)).max(2048),
                        HeaderLayout::Single | HeaderLayout::Legacy => frame.len(),
                    };
                    let chain = Chain::random(&mut chance, len, WRITE);
                    chain.offer(&mut ours, next);
                    next = chain.offer(&mut theirs, next);
                    room += len;
                }
                assert_eq!(ring.transmit(&frame), Ok(Delivered::Sent), "{header:?}, round {round}");
                oracle_transmits(&mut queue, &memory, &frame, header.len());
            }
            let wish = (ours.offered().wrapping_sub(chance.below(8) as u16)).wrapping_sub(1);
            ours.want_call_after(wish);
            theirs.want_call_after(wish);
            let call = queue.needs_notification(&*memory).expect("valid");
            assert_eq!(ring.flush(), Ok(call), "{header:?}, round {round}");
            assert_same_used(&mut ours, &mut theirs);
            if round % 40 == 0 {
                let len = (MEMORY - BUFFERS) as usize;
                let is_same = ours.read(BUFFERS, len) == theirs.read(BUFFERS, len);
                assert!(is_same, "{header:?}, round {round}");
            }
        }
    }
}

fn assert_same_used(ours: &mut Driver, theirs: &mut Driver) {
    let expected: Vec<_> = std::iter::from_fn(|| theirs.take_used()).collect();
    let used: Vec<_> = std::iter::from_fn(|| ours.take_used()).collect();
    assert_eq!(used, expected);
}

/// One chain, to be written the same to two rings.
struct Chain {
    parts: Vec<(u64, u32)>,
    flags: u16,
    is_indirect: bool,
}

impl Chain {
    fn random(chance: &mut Chance, len: usize, flags: u16) -> Self {
        let mut parts = vec![];
        let mut left = len;
        while left > 0 {
            let now = match chance.below(3) {
                0 if parts.len() < 16 => 1 + chance.below(left.min(64)),
                1 if parts.len() < 16 => 1 + chance.below(left),
                _ => left,
            };
            let room = (MEMORY - BUFFERS) as usize - TABLES - now;
            parts.push((BUFFERS + chance.below(room) as u64, now as u32));
            left -= now;
        }
        Self { parts, flags, is_indirect: chance.below(3) > 0 }
    }

    /// Writes it from entry `at` on and offers it; answers the next free entry.
    fn offer(&self, driver: &mut Driver, at: u16) -> u16 {
        let count = self.parts.len() as u16;
        // Above all buffers, so that no frame is written over a table. It takes one entry of the ring.
        let is_indirect = self.is_indirect || at + count > SIZE / 2;
        let table = is_indirect.then(|| MEMORY - TABLES as u64 + TABLE * u64::from(at));
        let (start, first) = table.map_or((DESCRIPTORS, at), |table| (table, 0));
        for (step, &(address, len)) in (0..).zip(&self.parts) {
            let (next, flags) =
                if step + 1 < count { (first + step + 1, self.flags | 1) } else { (0, self.flags) };
            driver.describe(start, first + step, (address, len, flags, next));
        }
        if let Some(table) = table {
            driver.describe(DESCRIPTORS, at, (table, 16 * u32::from(count), 4, 0));
        }
        driver.offer(at);
        at + table.map_or(count, |_| 1)
    }
}

/// Mostly short, now and then as long as frames get.
fn length(chance: &mut Chance) -> usize {
    match chance.below(8) {
        0..4 => chance.below(100),
        4..7 => chance.below(1514),
        _ => chance.below(MAX_FRAME - VNET_LEN),
    }
}
