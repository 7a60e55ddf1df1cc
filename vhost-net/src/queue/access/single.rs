//! The short way of nearly every frame: one buffer, described by one descriptor of the ring itself.
//!
//! What is found here is what the long way would collect, without the lists and bounds that chains and tables
//! need. What it does not know goes the long way, which also says what is wrong with it.

use std::marker::PhantomData;
use std::ptr;

use lichen_netstack::port::{FRONT, Front};

use super::{DESCRIPTOR_LEN, Descriptor, Direction, GuestAccess, NUM_BUFFERS};
use crate::queue::chain::{INDIRECT, NEXT, WRITE};

/// A buffer that was located, as long as nobody forgets the memory.
pub(in crate::queue) struct Single<'a> {
    host: *mut u8,
    place: Place,
    memory: PhantomData<&'a GuestAccess>,
}

/// Where a buffer lies in guest memory, to be found again.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Place {
    address: u64,
    len: usize,
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
        Some(self.single_in_last(Place { address: found.address, len: found.len as usize }))
    }

    /// A buffer that was found before, if it lies where the last look-up ended.
    #[inline(always)]
    pub(in crate::queue) fn single_at(&self, place: Place) -> Option<Single<'_>> {
        let is_there = self.last.room(place.address) >= (place.len as u64).max(1);
        is_there.then(|| self.single_in_last(place))
    }

    /// The buffer at a place that was found to lie where the last look-up ended.
    #[inline(always)]
    fn single_in_last(&self, place: Place) -> Single<'_> {
        let host = self.last.host.wrapping_add((place.address - self.last.start) as usize);
        Single { host, place, memory: PhantomData }
    }
}

impl Single<'_> {
    /// Where it lies.
    pub(in crate::queue) fn place(&self) -> Place {
        self.place
    }

    /// Bytes in it.
    pub(in crate::queue) fn len(&self) -> usize {
        self.place.len
    }

    /// Copies all of it to `to`, which is as long.
    #[inline(always)]
    pub(in crate::queue) fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len(), "as long as the buffer");
        // SAFETY: the buffer was located, and its region is mapped as long as the memory lives; `to` is as long, is
        // ours alone, and so lies outside of guest memory.
        unsafe { copy(self.host, to.as_mut_ptr(), self.len()) };
    }

    /// Copies the beginning of the frame in it to `front`.
    #[inline(always)]
    pub(in crate::queue) fn show(&self, front: &mut Front) {
        // SAFETY: as above; `front` has room for FRONT bytes.
        unsafe { copy_front(self.host, front.bytes.as_mut_ptr(), self.len()) };
        front.frame_len = self.len();
    }

    /// Copies a frame from another guest's buffer, except its `front`, which was judged; it fits, and has this as its
    /// one buffer.
    #[inline(always)]
    pub(in crate::queue) fn fill_from(&self, front: &Front, from: &Single<'_>) {
        let len = from.len();
        assert!(len == front.frame_len && (NUM_BUFFERS + 2..=self.len()).contains(&len), "it fits");
        // SAFETY: both buffers were located, their regions are mapped as long as their memories live, and both hold
        // `len` bytes. `front` has FRONT bytes and is ours alone. Of what lies in guest memory nobody knows whether the
        // two are apart.
        unsafe {
            copy_front(front.bytes.as_ptr(), self.host, len);
            if len > FRONT {
                ptr::copy(from.host.add(FRONT), self.host.add(FRONT), len - FRONT);
            }
            self.host.add(NUM_BUFFERS).cast::<u16>().write_unaligned(1_u16.to_le());
        }
    }

    /// Copies a frame in, which fits, and says in its virtio-net header that this is its one buffer.
    #[inline(always)]
    pub(in crate::queue) fn fill(&self, frame: &[u8]) {
        assert!((NUM_BUFFERS + 2..=self.len()).contains(&frame.len()), "a frame that fits");
        // SAFETY: as above; the number lies within the frame.
        unsafe {
            copy(frame.as_ptr(), self.host, frame.len());
            self.host.add(NUM_BUFFERS).cast::<u16>().write_unaligned(1_u16.to_le());
        }
    }
}

/// Copies the first [`FRONT`] bytes of `len`, or all.
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy_front(from: *const u8, to: *mut u8, len: usize) {
    if len >= FRONT {
        // SAFETY: as the caller says.
        unsafe { copy_piece::<FRONT>(from, to, 0) }
    } else {
        // SAFETY: as the caller says.
        unsafe { copy_short(from, to, len) }
    }
}

/// Copies a frame; one that is not short by the C library, for which the processor is faster.
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len >= FRONT {
        // SAFETY: as the caller says.
        return unsafe { ptr::copy_nonoverlapping(from, to, len) };
    }
    // SAFETY: as the caller says.
    unsafe { copy_short(from, to, len) };
}

/// Copies less than [`FRONT`] bytes in pieces that lie equally in each copy: who reads headers right after they were
/// copied, or copies them on, need not wait until the processor has written them (a load is served from a store before it
/// only if that wrote all of it).
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy_short(from: *const u8, to: *mut u8, len: usize) {
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
    copy_pieces!(64 32 16 8 4 2 1);
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
