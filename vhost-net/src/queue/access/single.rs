//! The short way of nearly every frame: one buffer, described by one descriptor of the ring itself.
//!
//! What is found here is what the long way would collect, without the lists and bounds that chains and tables
//! need. What it does not know goes the long way, which also says what is wrong with it.

use std::marker::PhantomData;
use std::ptr;

use super::{DESCRIPTOR_LEN, Descriptor, Direction, GuestAccess, NUM_BUFFERS};
use crate::queue::chain::{INDIRECT, NEXT, WRITE};

/// Frames from here on are copied by the C library, for which the processor is faster.
const SHORT: usize = 512;

/// A buffer that was located, as long as nobody forgets the memory.
pub(in crate::queue) struct Single<'a> {
    host: *mut u8,
    len: usize,
    memory: PhantomData<&'a GuestAccess>,
}

impl GuestAccess {
    /// The one buffer of the chain at `head`, if it lies where the last look-up ended.
    #[inline(always)]
    pub(in crate::queue) fn single(&self, head: u16, used: Direction) -> Option<Single<'_>> {
        if head >= self.size || self.log.is_some() {
            return None;
        }
        // SAFETY: the ring holds `size` descriptors, aligned to sixteen.
        let words = unsafe {
            let first = self.descriptors.add(DESCRIPTOR_LEN * usize::from(head)).cast::<u64>();
            [first.read_volatile(), first.add(1).read_volatile()]
        };
        let found = Descriptor::from(words);
        let expected = if used == Direction::ToGuest { WRITE } else { 0 };
        // One without bytes is nowhere.
        let needed = u64::from(found.len).max(1);
        if found.flags & (NEXT | WRITE | INDIRECT) != expected
            || self.last.room(found.address) < needed
        {
            return None;
        }
        let host = self.last.host.wrapping_add((found.address - self.last.start) as usize);
        Some(Single { host, len: found.len as usize, memory: PhantomData })
    }
}

impl Single<'_> {
    /// Bytes in it.
    pub(in crate::queue) fn len(&self) -> usize {
        self.len
    }

    /// Copies all of it to `to`, which is as long.
    #[inline(always)]
    pub(in crate::queue) fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len, "as long as the buffer");
        // SAFETY: the buffer was located, and its region is mapped as long as the memory lives; `to` is as long, is
        // ours alone, and so lies outside of guest memory.
        unsafe { copy(self.host, to.as_mut_ptr(), self.len) };
    }

    /// Copies a frame in, which fits, and says in its virtio-net header that this is its one buffer.
    #[inline(always)]
    pub(in crate::queue) fn fill(&self, frame: &[u8]) {
        assert!((NUM_BUFFERS + 2..=self.len).contains(&frame.len()), "a frame that fits");
        // SAFETY: as above; the number lies within the frame.
        unsafe {
            copy(frame.as_ptr(), self.host, frame.len());
            self.host.add(NUM_BUFFERS).cast::<u16>().write_unaligned(1_u16.to_le());
        }
    }
}

/// Copies a short frame in pieces that lie equally in each copy: who reads headers right after they were copied, or
/// copies them on, need not wait until the processor has written them (a load is served from a store before it only
/// if that wrote all of it).
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len >= SHORT {
        // SAFETY: as the caller says.
        return unsafe { ptr::copy_nonoverlapping(from, to, len) };
    }
    let mut at = 0;
    // Not a loop, of which the compiler would make a call.
    macro_rules! copy_pieces {
        ($($size:literal)*) => {$(
            if len & $size != 0 {
                // SAFETY: `len` is the sum of the sizes whose bits are set.
                unsafe { copy_piece::<$size>(from, to, at) };
                at += $size;
            }
        )*};
    }
    copy_pieces!(256 128 64 32 16 8 4 2 1);
    debug_assert_eq!(at, len);
}

/// # Safety
/// As [`ptr::copy_nonoverlapping`], for `SIZE` bytes `at` bytes into both.
#[inline(always)]
unsafe fn copy_piece<const SIZE: usize>(from: *const u8, to: *mut u8, at: usize) {
    // SAFETY: as the caller says.
    unsafe {
        let piece = from.add(at).cast::<[u8; SIZE]>().read_unaligned();
        to.add(at).cast::<[u8; SIZE]>().write_unaligned(piece);
    }
}
