//! Memory of a TCP flow's rings: reserved at full size, resident only where it was written.

#![expect(unsafe_code, reason = "maps and trims anonymous memory")]

use std::io;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of one ring: 2^20 − 1. Never a power of two: smoltcp keeps the unscaled window of its SYN and
/// shifts it later, so a guest that fills a power-of-two window before our first ACK would overrun it.
const RING_LEN: usize = (1 << 20) - 1;
const MAPPING_LEN: usize = RINGS * (RING_LEN + 1);
/// What comes from the guest, what smoltcp sends to it, and what we send past smoltcp.
const RINGS: usize = 3;

/// One mapping that holds all rings of a flow.
#[derive(Debug)]
pub(super) struct RingMemory {
    start: NonNull<u8>,
}

// SAFETY: the mapping is plain memory that this value owns; no thread has an affinity to it.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Reserves the memory; no page is resident yet.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(
                null_mut(),
                MAPPING_LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let start = NonNull::new(start.cast()).expect("mmap answers no null pointer");
        Ok(Self { start })
    }

    /// The rings.
    ///
    /// # Safety
    /// To be called once, and the slices must be gone before `self` is.
    pub(super) unsafe fn rings(&self) -> [&'static mut [u8]; RINGS] {
        std::array::from_fn(|index| {
            // SAFETY: the ranges lie in the mapping, do not overlap, are initialised (anonymous memory is
            // zero), and by the contract above no other reference to them exists while they live.
            unsafe {
                let start = self.start.as_ptr().add(index * (RING_LEN + 1));
                std::slice::from_raw_parts_mut(start, RING_LEN)
            }
        })
    }

    /// Gives all pages back; the rings read as zeroes afterwards. Only for rings that hold nothing.
    pub(super) fn trim(&self) {
        // SAFETY: the range is exactly our mapping. Its bytes stay initialised, they only become zero, and
        // rings that hold nothing are never read before they are written.
        let trimmed =
            unsafe { madvise(self.start.as_ptr().cast(), MAPPING_LEN, Advice::LinuxDontNeed) };
        debug_assert!(trimmed.is_ok(), "the mapping is ours");
    }
}

impl Drop for RingMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and, by the contract of `rings`, nothing refers to it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), MAPPING_LEN) };
        debug_assert!(unmapped.is_ok(), "the mapping is ours");
    }
}
