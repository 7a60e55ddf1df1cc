//! The guest's driver on all rings of its monitor. It writes what it is told, valid or not.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes as _, GuestAddress};

use super::messages::pair;
use super::{FrontEnd, USER};

/// Descriptors of each ring.
pub const SIZE: u16 = 64;
/// Bytes of each buffer.
const BUFFER: u64 = 2048;
/// Where a ring's available and used ring lie, from its own start.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;

/// The first ring to the guest, and the first from it; those of the next pair are two further.
pub const TO_GUEST: usize = 0;
/// See [`TO_GUEST`].
pub const FROM_GUEST: usize = 1;

impl FrontEnd {
    /// Sends a frame, virtio-net header in front, and kicks.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.transmit_on(FROM_GUEST, frame);
    }

    /// The same on any ring.
    pub fn transmit_on(&mut self, ring: usize, frame: &[u8]) {
        let slot = self.available[ring] & (SIZE - 1);
        let buffer = buffer_address(ring, slot);
        self.write(buffer, frame);
        self.offer(ring, slot, buffer, u32::try_from(frame.len()).expect("a frame"), 0);
    }

    /// Gives the device room for `count` frames, and kicks.
    pub fn post(&mut self, count: u16) {
        self.post_on(TO_GUEST, count);
    }

    /// The same on any ring.
    pub fn post_on(&mut self, ring: usize, count: u16) {
        for _ in 0..count {
            let slot = self.available[ring] & (SIZE - 1);
            let buffer = buffer_address(ring, slot);
            let len = u32::try_from(BUFFER).expect("2048");
            self.offer(ring, slot, buffer, len, 2);
        }
    }

    /// How often the device was given room for a frame.
    pub fn posted(&self) -> u16 {
        self.available[TO_GUEST]
    }

    /// Makes one descriptor available, and kicks.
    pub fn offer(&mut self, ring: usize, slot: u16, address: u64, len: u32, flags: u16) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend_from_slice(&len.to_le_bytes());
        descriptor.extend_from_slice(&flags.to_le_bytes());
        descriptor.extend_from_slice(&[0; 2]);
        self.write(start(ring) + 16 * u64::from(slot), &descriptor);
        let at = start(ring) + AVAILABLE + 4 + 2 * u64::from(self.available[ring] & (SIZE - 1));
        self.write(at, &slot.to_le_bytes());
        self.set_available(ring, self.available[ring].wrapping_add(1));
    }

    /// Sets an available index to anything, and kicks.
    pub fn set_available(&mut self, ring: usize, index: u16) {
        self.available[ring] = index;
        let at = GuestAddress(start(ring) + AVAILABLE + 2);
        self.memory.store(index.to_le(), at, Ordering::Release).expect("inside");
        let _ = rustix::io::write(&*self.kicks[ring], &1u64.to_ne_bytes());
    }

    /// How many descriptors of a ring came back since this was asked last.
    pub fn used(&mut self, ring: usize) -> u16 {
        let at = GuestAddress(start(ring) + USED + 2);
        let index: u16 = self.memory.load(at, Ordering::Acquire).expect("inside");
        let new = u16::from_le(index).wrapping_sub(self.seen[ring]);
        self.seen[ring] = u16::from_le(index);
        new
    }

    /// The frame in the buffer that was posted `number`th.
    pub fn received(&self, number: u16, len: usize) -> Vec<u8> {
        self.received_on(TO_GUEST, number, len)
    }

    /// The same on any ring.
    pub fn received_on(&self, ring: usize, number: u16, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        let at = buffer_address(ring, number);
        self.memory.read_slice(&mut frame, GuestAddress(at)).expect("inside");
        frame
    }

    /// How often the device has called for a ring since this was asked last.
    pub fn calls(&self, ring: usize) -> u64 {
        let mut count = [0; 8];
        rustix::io::ioctl_fionbio(&*self.calls[ring], true).expect("an eventfd");
        match rustix::io::read(&*self.calls[ring], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Wants to be called for the next descriptor that comes back.
    pub fn want_call(&self, ring: usize) {
        let wish = start(ring) + AVAILABLE + 4 + 2 * u64::from(SIZE);
        self.write(wish, &self.seen[ring].to_le_bytes());
    }

    /// Makes a ring's call as full as a writer can make it, and has the next writer wait: the flag is shared by
    /// all who have the descriptor.
    pub fn fill_call(&self, ring: usize) {
        let most = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&*self.calls[ring], &most).expect("it was empty");
        rustix::io::ioctl_fionbio(&*self.calls[ring], false).expect("an eventfd");
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("inside");
    }
}

/// Where the buffer lies that is posted `number`th on a ring.
pub fn buffer_address(ring: usize, number: u16) -> u64 {
    buffers(ring) + u64::from(number & (SIZE - 1)) * BUFFER
}

/// Where a ring's used ring lies.
pub fn used_address(ring: usize) -> u64 {
    start(ring) + USED
}

/// The body of `SET_VRING_ADDR` for a ring where it belongs.
pub fn ring_address(ring: u32) -> Vec<u8> {
    let start = USER + start(usize::try_from(ring & 7).expect("three bits"));
    let mut body = pair(ring, 0);
    for address in [start, start + USED, start + AVAILABLE, 0] {
        body.extend_from_slice(&address.to_ne_bytes());
    }
    body
}

/// The same for a ring whose used ring is to be logged as if it lay at `log`.
pub fn logged_ring_address(ring: u32, log: u64) -> Vec<u8> {
    let mut body = ring_address(ring);
    body[4] = 1;
    body[32..].copy_from_slice(&log.to_ne_bytes());
    body
}

/// Where a ring's descriptors lie.
fn start(ring: usize) -> u64 {
    0x1_0000 * (ring as u64 + 1)
}

/// Where its buffers begin: the first of those to the guest at one MiB, of those from it at two.
fn buffers(ring: usize) -> u64 {
    let (pair, direction) = (ring as u64 / 2, ring as u64 % 2);
    0x10_0000 * (direction + 1) + u64::from(SIZE) * BUFFER * pair
}
