//! Rings and buffers made of any bytes, served in both directions and with every header.
//!
//! What must hold whatever the bytes are: no panic; no more frames than the ring has heads; a frame is within
//! its bounds; every byte that is delivered comes from guest memory; a full ring takes nothing.

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::MAX_FRAME;

use super::driver::{AVAILABLE, BORDER, BUFFERS, DESCRIPTORS, Driver, MEMORY, USED};
use crate::queue::error::RingErrors;
use crate::queue::from_guest::FromGuest;
use crate::queue::to_guest::{Delivered, ToGuest};
use crate::queue::{HeaderLayout, Notices, RingFeatures, Tables};

const SIZE: u16 = 64;
/// Bytes of `data` that describe one descriptor.
const WORDS: usize = 6;
const PREAMBLE: usize = 8;
/// Guest memory holds this byte nowhere, and our buffer holds no other.
const OURS: u8 = 0xa5;
/// Where indirect tables may lie.
const TABLES: u64 = BUFFERS - 0x1_0000;

/// What came of a ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Frames that it sent.
    pub received: u64,
    /// Frames that it took.
    pub sent: u64,
    /// What was wrong with it.
    pub errors: RingErrors,
}

/// Builds guest memory and a ring of `data`, and serves it as sender and as receiver.
///
/// # Panics
///
/// When one of the promises above is broken.
pub fn ring(data: &[u8]) -> Served {
    let mut served = Served::default();
    let Some((preamble, rest)) = data.split_at_checked(PREAMBLE) else { return served };
    let features = RingFeatures {
        header: [HeaderLayout::Legacy, HeaderLayout::Single, HeaderLayout::Mergeable]
            [usize::from(preamble[0] % 3)],
        notices: [Notices::Flags, Notices::EventIndex][usize::from(preamble[1] % 2)],
        tables: [Tables::Accepted, Tables::Accepted, Tables::Accepted, Tables::Refused]
            [usize::from(preamble[2] % 4)],
    };
    for new in [Driver::new, Driver::in_two_regions] {
        serve_sender(&fill(new(SIZE), preamble, rest), features, &mut served);
        serve_receiver(&fill(new(SIZE), preamble, rest), features, &mut served);
    }
    served
}

/// A fifth of the descriptors goes to the ring, the rest to tables; heads come from the same bytes.
fn fill(mut driver: Driver, preamble: &[u8], rest: &[u8]) -> Driver {
    for (at, bytes) in (0_u16..).zip(rest.chunks_exact(WORDS).take(320)) {
        let descriptor = (
            u64::from_le_bytes(address(bytes[0], bytes[1]).to_le_bytes().map(not_ours)),
            u32::from_le_bytes(length(bytes[2], bytes[3]).to_le_bytes().map(not_ours)),
            u16::from(bytes[4] & 7),
            if bytes[5] == 255 { 0xffff } else { u16::from(bytes[5]) % (SIZE + 1) },
        );
        if at < SIZE {
            driver.describe(DESCRIPTORS, at, descriptor);
        } else {
            driver.describe(TABLES, at - SIZE, descriptor);
        }
    }
    for slot in 0..SIZE {
        let byte = rest.get(usize::from(slot) * 7).copied().unwrap_or(0);
        let head = if byte == 255 { 0xffff } else { u16::from(byte) % SIZE };
        driver.offer(head);
    }
    // Mostly as many as there are, now and then anything.
    let index = match preamble[3] {
        0..200 => u16::from(preamble[3]) % (SIZE + 1),
        200.. => u16::from_le_bytes([preamble[4], preamble[5]].map(not_ours)),
    };
    driver.set_available(index);
    driver.want_call_after(u16::from_le_bytes([preamble[6], preamble[7]].map(not_ours)));
    driver
}

fn not_ours(byte: u8) -> u8 {
    if byte == OURS { OURS - 1 } else { byte }
}

/// In the buffers, in the tables, at the ends of regions, over the ring itself, or nowhere.
fn address(kind: u8, fine: u8) -> u64 {
    let fine = u64::from(fine);
    match kind % 16 {
        0..8 => BUFFERS + 0x4000 * fine,
        8..11 => TABLES + 16 * fine,
        11 => MEMORY - fine,
        12 => BORDER - fine,
        13 => [DESCRIPTORS, AVAILABLE, USED][usize::from(kind) % 3] + fine,
        14 => u64::MAX - fine,
        _ => fine << 56 | fine << 20,
    }
}

fn length(kind: u8, fine: u8) -> u32 {
    let fine = u32::from(fine);
    match kind % 8 {
        0..3 => fine,
        3 => 16 * (fine % 40),
        4 | 5 => 12 * fine,
        6 => 300 * fine,
        _ => [0, 65_535, MAX_FRAME as u32, 0x20_0000, u32::MAX][fine as usize % 5],
    }
}

fn serve_sender(driver: &Driver, features: RingFeatures, served: &mut Served) {
    let layout = driver.layout();
    let mut ring = FromGuest::resume(driver.memory(), layout, features).expect("a sound layout");
    let mut buffer = vec![OURS; MAX_FRAME];
    for taken in 0_u16.. {
        assert!(taken <= SIZE, "more frames than heads");
        match ring.receive(&mut buffer) {
            Ok(None) => break,
            Ok(Some(len)) => {
                served.received += 1;
                assert!(len > VNET_LEN && len <= MAX_FRAME, "a frame of {len} bytes");
                assert_eq!(buffer[10..VNET_LEN], [0, 0]);
                let is_theirs = buffer[..len].iter().all(|byte| *byte != OURS);
                assert!(is_theirs, "a byte that is not the guest's");
                buffer[..len].fill(OURS);
            }
            Err(error) => {
                served.errors.count(error);
                if error.stops_queue() {
                    break;
                }
            }
        }
    }
    let _wants_call = ring.flush().expect("a sound layout");
}

fn serve_receiver(driver: &Driver, features: RingFeatures, served: &mut Served) {
    let layout = driver.layout();
    let mut ring = ToGuest::resume(driver.memory(), layout, features).expect("a sound layout");
    let frames = [vec![OURS; VNET_LEN + 60], vec![OURS; 1526], vec![OURS; MAX_FRAME]];
    for frame in frames.iter().cycle().take(usize::from(SIZE) + 1) {
        let _has_room = ring.has_room();
        let at = ring.progress();
        match ring.transmit(frame) {
            Ok(Delivered::Full) => assert_eq!(ring.progress(), at, "nothing was taken"),
            Ok(Delivered::Sent) => {
                assert_ne!(ring.progress(), at, "buffers were taken");
                served.sent += 1;
            }
            Err(error) => {
                served.errors.count(error);
                if error.stops_queue() {
                    break;
                }
            }
        }
    }
    let _wants_call = ring.flush().expect("a sound layout");
}
