//! The driver's side of one ring in memory of its own. It writes what it is told, valid or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::queue::layout::Layout;

/// Where the buffers begin; the ring lies below.
pub const BUFFERS: u64 = 0x10_0000;
/// Bytes of memory.
pub const MEMORY: u64 = 0x40_0000;
/// Where two regions meet in guest memory, if it has two.
pub const BORDER: u64 = 0x20_0000;
/// Where the ring's descriptors lie.
pub const DESCRIPTORS: u64 = 0;
/// Where its available ring lies.
pub const AVAILABLE: u64 = 0x8000;
/// Where its used ring lies.
pub const USED: u64 = 0xc000;

/// A descriptor as it is written: address, length, flags (1 next, 2 write, 4 indirect), next.
pub type Descriptor = (u64, u32, u16, u16);

/// One ring and its memory.
pub struct Driver {
    memory: Arc<GuestMemoryMmap>,
    size: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    /// An empty ring of `size` descriptors, at most 512.
    pub fn new(size: u16) -> Self {
        Self::in_regions(size, &[(0, MEMORY)])
    }

    /// The same in memory of two regions that touch at [`BORDER`], but lie anywhere in ours.
    pub fn in_two_regions(size: u16) -> Self {
        Self::in_regions(size, &[(0, BORDER), (BORDER, MEMORY - BORDER)])
    }

    fn in_regions(size: u16, regions: &[(u64, u64)]) -> Self {
        let ranges: Vec<_> = regions
            .iter()
            .map(|&(start, len)| {
                (GuestAddress(start), usize::try_from(len).expect("at most four MiB"))
            })
            .collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory for a test");
        Self { memory: Arc::new(memory), size, available: 0, seen: 0 }
    }

    /// The memory, to share with the device.
    pub fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// Where the ring lies.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.memory, self.size, DESCRIPTORS, AVAILABLE, USED).expect("a ring of ours")
    }

    /// Writes entry `at` of the table at `table` (zero is the ring's own).
    pub fn describe(&self, table: u64, at: u16, (address, len, flags, next): Descriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(at), &bytes);
    }

    /// Makes a head available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available & (self.size - 1));
        self.write(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    /// How many heads were made available.
    pub fn offered(&self) -> u16 {
        self.available
    }

    /// Sets the available index to anything.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        let at = GuestAddress(AVAILABLE + 2);
        self.memory.store(index.to_le(), at, Ordering::Release).expect("inside");
    }

    /// Wants a call once the used index passes `index` (EVENT_IDX).
    pub fn want_call_after(&self, index: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    /// After which index the device wants a kick (EVENT_IDX).
    pub fn kick_wish(&self) -> u16 {
        let bytes = self.read(USED + 4 + 8 * u64::from(self.size), 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The next head that came back, and its length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).expect("inside");
        if u16::from_le(index) == self.seen {
            return None;
        }
        let entry = self.read(USED + 4 + 8 * u64::from(self.seen & (self.size - 1)), 8);
        self.seen = self.seen.wrapping_add(1);
        let word =
            |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        Some((word(0), word(4)))
    }

    /// Writes guest memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("inside");
    }

    /// Reads guest memory.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("inside");
        bytes
    }
}
