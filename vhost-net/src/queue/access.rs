//! The one door to guest memory: pointers into it are made, kept and used here and nowhere else.
//!
//! Each pointer was checked against the region that it points into, and the regions stay mapped as long as
//! the `Arc` beside it lives. The guest writes this memory whenever it likes, so nothing but
//! atomic indices is ever referred to: descriptors are read once and volatile, and buffers are only copied. A
//! frame that changes while it is copied arrives garbled, which is its sender's own affair.
#![allow(unsafe_code, reason = "the pointers into guest memory")]

mod single;
mod written;

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use lichen_netstack::frame::vnet_header::VNET_LEN;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

pub(super) use self::single::{Place, Single};
pub(crate) use self::written::WriteLog;
use super::Direction;
use super::layout::Layout;
use crate::fetch;

pub(super) const DESCRIPTOR_LEN: usize = 16;
/// A line of the processor's cache.
const LINE: usize = 64;
/// Where a virtio-net header says over how many buffers its frame is spread.
const NUM_BUFFERS: usize = 10;

/// One ring's parts, the table that is being read, and the buffers that were collected.
pub(super) struct GuestAccess {
    memory: Arc<GuestMemoryMmap>,
    /// Where the last look-up ended; the next one mostly ends there too.
    last: Region,
    size: u16,
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    /// The table that [`GuestAccess::descriptor`] reads: this many entries from there.
    table: *mut u8,
    entries: u32,
    parts: Vec<Part>,
    capacity: usize,
    log: Option<Box<WriteLog>>,
}

/// A descriptor as it was at the moment of its one read.
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// Bytes that lie in one region.
struct Part {
    host: *mut u8,
    len: usize,
}

#[derive(Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: the pointers lead into mappings that the `Arc` keeps alive and that belong to no thread.
unsafe impl Send for GuestAccess {}

impl GuestAccess {
    /// `None` if a part of the ring does not lie in one region of this memory.
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, layout: &Layout) -> Option<Self> {
        let entries = usize::from(layout.size);
        let nowhere = Region { start: 0, len: 0, host: ptr::null_mut() };
        let mut access = Self {
            memory,
            last: nowhere,
            size: layout.size,
            descriptors: ptr::null_mut(),
            available: ptr::null_mut(),
            used: ptr::null_mut(),
            table: ptr::null_mut(),
            entries: 0,
            parts: Vec::new(),
            capacity: 0,
            log: None,
        };
        access.descriptors = access.locate(layout.descriptors.0, DESCRIPTOR_LEN * entries)?;
        access.available = access.locate(layout.available.0, 6 + 2 * entries)?;
        access.used = access.locate(layout.used.0, 6 + 8 * entries)?;
        let aligned = access.available.cast::<u16>().is_aligned()
            && access.used.cast::<u32>().is_aligned()
            && layout.size.is_power_of_two();
        aligned.then_some(access)
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The flags of the available ring.
    pub(super) fn available_flags(&self) -> u16 {
        self.index(self.available, 0).load(Ordering::Acquire).to_le()
    }

    /// The flags of the used ring, which are ours to write.
    pub(super) fn used_flags(&self) -> u16 {
        self.index(self.used, 0).load(Ordering::Relaxed).to_le()
    }

    pub(super) fn set_used_flags(&self, flags: u16) {
        self.index(self.used, 0).store(flags.to_le(), Ordering::Release);
        if self.log.is_some() {
            self.log_used(0, 2);
        }
    }

    /// How many heads were ever made available.
    pub(super) fn available_index(&self) -> u16 {
        self.index(self.available, 1).load(Ordering::Acquire).to_le()
    }

    /// The head in the slot of `index`.
    pub(super) fn available_head(&self, index: u16) -> u16 {
        self.index(self.available, 2 + self.slot(index)).load(Ordering::Relaxed).to_le()
    }

    /// After which used index the guest wants a call (EVENT_IDX).
    pub(super) fn call_wish(&self) -> u16 {
        self.index(self.available, 2 + usize::from(self.size)).load(Ordering::Acquire).to_le()
    }

    /// How many heads were ever used.
    pub(super) fn used_index(&self) -> u16 {
        self.index(self.used, 1).load(Ordering::Acquire).to_le()
    }

    /// Shows the guest all used heads before `index`, of which it has seen those before `seen`.
    pub(super) fn set_used_index(&self, seen: u16, index: u16) {
        self.index(self.used, 1).store(index.to_le(), Ordering::Release);
        if self.log.is_some() {
            self.log_entries(seen, index);
        }
    }

    /// After which available index we want a kick (EVENT_IDX).
    pub(super) fn set_kick_wish(&self, index: u16) {
        let at = 2 + 4 * usize::from(self.size);
        self.index(self.used, at).store(index.to_le(), Ordering::Release);
        if self.log.is_some() {
            self.log_used(2 * at, 2);
        }
    }

    /// Writes the used entry in the slot of `index`.
    pub(super) fn set_used(&self, index: u16, head: u16, len: u32) {
        // SAFETY: the used ring holds `size` entries of eight bytes behind its first four, the slot is below
        // `size`, and the ring is aligned to four.
        unsafe {
            let entry = self.used.add(4 + 8 * self.slot(index)).cast::<u32>();
            entry.write_volatile(u32::from(head).to_le());
            entry.add(1).write_volatile(len.to_le());
        }
    }

    /// Reads from the ring's own descriptors on; answers how many there are.
    pub(super) fn open_ring(&mut self) -> u32 {
        (self.table, self.entries) = (self.descriptors, u32::from(self.size));
        self.entries
    }

    /// Reads from another table on. `None` if it does not lie in one region.
    pub(super) fn open_table(&mut self, address: u64, entries: u32) -> Option<()> {
        let host = self.locate(address, DESCRIPTOR_LEN * entries as usize)?;
        (self.table, self.entries) = (host, entries);
        Some(())
    }

    /// Reads an entry of the open table, once: what is judged is what is used.
    pub(super) fn descriptor(&self, at: u32) -> Descriptor {
        let table = self.table;
        assert!(at < self.entries, "an entry of the open table");
        // SAFETY: the table was located with this many entries; words are read where they are aligned.
        let [address, tail] = unsafe {
            let entry = table.add(DESCRIPTOR_LEN * at as usize);
            let words = entry.cast::<[u64; 2]>();
            if words.is_aligned() {
                let first = words.cast::<u64>();
                [first.read_volatile(), first.add(1).read_volatile()]
            } else {
                // Only an indirect table can lie so.
                let bytes = entry.cast::<[u8; DESCRIPTOR_LEN]>().read_volatile();
                words_of(bytes)
            }
        };
        Descriptor::from([address, tail])
    }

    /// Has the processor fetch the start of the buffer at `head`, which another processor touched last and which is
    /// to be `used` soon. A hint: nothing is believed of what the guest may change meanwhile.
    #[inline(always)]
    pub(super) fn fetch_ahead(&self, head: u16, used: Direction) {
        if head >= self.size {
            return;
        }
        // SAFETY: the ring holds `size` descriptors, aligned to sixteen.
        let address = unsafe {
            let descriptor = self.descriptors.add(DESCRIPTOR_LEN * usize::from(head));
            u64::from_le(descriptor.cast::<u64>().read_volatile())
        };
        if self.last.room(address) >= 2 * LINE as u64 {
            let offset = usize::try_from(address - self.last.start).expect("less than a mapping");
            let lines = self.last.host.wrapping_add(offset);
            for line in [lines, lines.wrapping_add(LINE)] {
                match used {
                    Direction::FromGuest => fetch::to_read(line),
                    Direction::ToGuest => fetch::to_write(line),
                }
            }
        }
    }

    /// Forgets the collected buffers.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.capacity = 0;
    }

    /// Bytes in the collected buffers.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Collects a buffer. `None`, and nothing collected, if a byte of it lies outside of guest memory.
    pub(super) fn collect(&mut self, address: u64, len: usize) -> Option<()> {
        if let Some(host) = self.locate(address, len) {
            self.parts.push(Part { host, len });
        } else {
            self.collect_over_borders(address, len)?;
        }
        self.capacity += len;
        Some(())
    }

    /// Copies the collected buffers to the start of `to`, which holds as much.
    pub(super) fn copy_out(&self, to: &mut [u8]) {
        let mut left = to;
        for part in &self.parts {
            let (now, later) = left.split_at_mut(part.len);
            // SAFETY: the part was located and its region is mapped as long as `memory` lives; `now` is as
            // long, is ours alone, and so lies outside of guest memory.
            unsafe { ptr::copy_nonoverlapping(part.host, now.as_mut_ptr(), now.len()) };
            left = later;
        }
    }

    /// Copies a frame to the collected buffers, as far as they reach: `header_len` bytes of its virtio-net
    /// header, with the number of `buffers` if that is part of it, and what follows the header in `frame`.
    pub(super) fn copy_in(&self, frame: &[u8], header_len: usize, buffers: u16) {
        let mut header = [0; VNET_LEN];
        header.copy_from_slice(&frame[..VNET_LEN]);
        header[NUM_BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
        let mut pieces = [&header[..header_len], &frame[VNET_LEN..]];
        for part in &self.parts {
            let mut at = 0;
            for piece in &mut pieces {
                let (now, later) = piece.split_at(piece.len().min(part.len - at));
                // SAFETY: `at` and what is copied end within the part, which was located and whose region is
                // mapped as long as `memory` lives; a slice of ours lies outside of guest memory.
                unsafe { ptr::copy_nonoverlapping(now.as_ptr(), part.host.add(at), now.len()) };
                at += now.len();
                *piece = later;
            }
        }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The index at `at` words of two bytes into the available or the used ring.
    fn index(&self, ring: *mut u8, at: usize) -> &AtomicU16 {
        // SAFETY: every caller stays within the ring as `new` located it: two words, `size` slots of two or
        // eight bytes, one word. Both rings are aligned to two. It is only ever used atomically by us.
        unsafe { AtomicU16::from_ptr(ring.cast::<u16>().add(at)) }
    }

    /// Where `len` bytes (at least one) from `address` lie in our memory, if they lie in one region.
    fn locate(&mut self, address: u64, len: usize) -> Option<*mut u8> {
        if self.last.room(address) < len as u64 {
            let region = self.memory.find_region(GuestAddress(address))?;
            self.last = Region::from(region);
            if self.last.room(address) < len as u64 {
                return None;
            }
        }
        let offset = usize::try_from(address - self.last.start).expect("less than a mapping");
        // SAFETY: there is room for `len` bytes from this offset on, so it lies within the mapping.
        Some(unsafe { self.last.host.add(offset) })
    }

    /// Regions may touch in guest memory and lie far apart in ours.
    #[cold]
    fn collect_over_borders(&mut self, mut address: u64, mut len: usize) -> Option<()> {
        address.checked_add(len as u64)?;
        if !self.memory.check_range(GuestAddress(address), len) {
            return None;
        }
        while len > 0 {
            let host = self.locate(address, 1)?;
            let now = usize::try_from(self.last.room(address)).map_or(len, |room| room.min(len));
            self.parts.push(Part { host, len: now });
            address += now as u64;
            len -= now;
        }
        Some(())
    }
}

#[cold]
fn words_of(bytes: [u8; DESCRIPTOR_LEN]) -> [u64; 2] {
    let (first, second) = bytes.split_at(8);
    [first, second].map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
}

impl From<[u64; 2]> for Descriptor {
    /// From its two words as they lie in memory.
    #[inline(always)]
    fn from([address, tail]: [u64; 2]) -> Self {
        let tail = u64::from_le(tail);
        Self {
            address: u64::from_le(address),
            len: tail as u32,
            flags: (tail >> 32) as u16,
            next: (tail >> 48) as u16,
        }
    }
}

impl Region {
    /// Bytes from `address` to the region's end; zero when it does not lie within.
    fn room(&self, address: u64) -> u64 {
        address.checked_sub(self.start).map_or(0, |offset| self.len.saturating_sub(offset))
    }
}

impl From<&GuestRegionMmap> for Region {
    fn from(region: &GuestRegionMmap) -> Self {
        Self { start: region.start_addr().0, len: region.len(), host: region.as_ptr() }
    }
}
