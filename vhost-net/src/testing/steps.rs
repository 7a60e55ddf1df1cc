//! What the rings are measured by, in steps like those of `lichen_netstack::testing::steps`.

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::{Front, MAX_FRAME};
use lichen_netstack::testing::steps::{Kind, Step};

use super::driver::{BUFFERS, Driver};
use crate::queue::from_guest::FromGuest;
use crate::queue::to_guest::{Delivered, ToGuest};
use crate::queue::{HeaderLayout, Notices, RingFeatures, Tables};

/// All of them. A step includes what both drivers do for it.
pub const KINDS: [Kind; 4] = [
    Kind { name: "guest to guest, 64 B", prepare: || from_guest_to_guest(64) },
    Kind { name: "guest to guest, 1400 B", prepare: || from_guest_to_guest(1400) },
    Kind { name: "ring to ring, 64 B", prepare: || from_ring_to_ring(64) },
    Kind { name: "ring to ring, 1400 B", prepare: || from_ring_to_ring(1400) },
];

const SIZE: u16 = 256;
const FEATURES: RingFeatures = RingFeatures {
    header: HeaderLayout::Mergeable,
    notices: Notices::EventIndex,
    tables: Tables::Accepted,
};
/// The flag of a descriptor whose buffer is ours to write.
const WRITE: u16 = 2;
const BUFFER_LEN: u32 = 1536;

/// One frame out of one ring, through a buffer, and into another, both of which the guest then sees.
fn from_ring_to_ring(frame_len: usize) -> Step {
    let mut buffer = vec![0; MAX_FRAME];
    carried(frame_len, move |from_guest, to_guest| by_buffer(&mut buffer, from_guest, to_guest))
}

fn by_buffer(buffer: &mut [u8], from_guest: &mut FromGuest, to_guest: &mut ToGuest) {
    let len = from_guest.receive(buffer).expect("a sound ring").expect("a frame waits");
    assert_eq!(to_guest.transmit(&buffer[..len]), Ok(Delivered::Sent));
}

/// The same without the buffer, but for its front.
fn from_guest_to_guest(frame_len: usize) -> Step {
    let mut front = Front::EMPTY;
    carried(frame_len, move |from_guest, to_guest| {
        let peeked = from_guest.peek(&mut front).expect("a frame waits");
        to_guest.pass(from_guest, peeked, &front).expect("a buffer waits");
    })
}

fn carried(
    frame_len: usize,
    mut carry: impl FnMut(&mut FromGuest, &mut ToGuest) + 'static,
) -> Step {
    let [mut sender, mut receiver] = [Driver::new(SIZE), Driver::new(SIZE)];
    let len = u32::try_from(VNET_LEN + frame_len).expect("a frame");
    sender.describe(0, 0, (BUFFERS, len, 0, 0));
    receiver.describe(0, 0, (BUFFERS, BUFFER_LEN, WRITE, 0));
    let from_guest = FromGuest::resume(sender.memory(), sender.layout(), FEATURES);
    let to_guest = ToGuest::resume(receiver.memory(), receiver.layout(), FEATURES);
    let mut from_guest = from_guest.expect("a sound ring");
    let mut to_guest = to_guest.expect("a sound ring");
    let mut step = move |carry: &mut dyn FnMut(&mut FromGuest, &mut ToGuest)| {
        sender.offer(0);
        receiver.offer(0);
        carry(&mut from_guest, &mut to_guest);
        from_guest.flush().expect("a sound ring");
        to_guest.flush().expect("a sound ring");
        assert!(sender.take_used().is_some() && receiver.take_used().is_some());
    };
    // The first look at each ring's buffers finds where they lie, and goes by a buffer.
    let mut buffer = vec![0; MAX_FRAME];
    step(&mut |from_guest, to_guest| by_buffer(&mut buffer, from_guest, to_guest));
    Box::new(move || step(&mut carry))
}
