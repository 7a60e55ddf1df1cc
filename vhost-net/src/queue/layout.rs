//! Where a ring's three parts lie in guest memory.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The longest ring of virtio 1.2, 2.7.
const MAX_SIZE: u16 = 32_768;

/// A ring whose parts are known to lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) size: u16,
    pub(super) descriptors: GuestAddress,
    pub(super) available: GuestAddress,
    pub(super) used: GuestAddress,
}

/// Why a ring was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two from 1 to 32,768.
    #[error("a ring of {0} descriptors is impossible")]
    Size(u16),
    /// A part is not aligned as virtio 1.2, 2.7 demands.
    #[error("a part of the ring is not aligned")]
    Alignment,
    /// A part lies outside of guest memory, or across two of its regions.
    #[error("a part of the ring lies outside of guest memory")]
    Address,
}

impl Layout {
    /// Checks a ring of `size` descriptors whose parts start at these guest addresses.
    pub fn new(
        memory: &GuestMemoryMmap,
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(LayoutError::Size(size));
        }
        let entries = usize::from(size);
        // The event index follows each ring, whether it is agreed on or not.
        for (address, alignment, len) in [
            (descriptors, 16, 16 * entries),
            (available, 2, 6 + 2 * entries),
            (used, 4, 6 + 8 * entries),
        ] {
            if address % alignment != 0 {
                return Err(LayoutError::Alignment);
            }
            if !lies_in_a_region(memory, address, len) {
                return Err(LayoutError::Address);
            }
        }
        Ok(Self {
            size,
            descriptors: GuestAddress(descriptors),
            available: GuestAddress(available),
            used: GuestAddress(used),
        })
    }
}

impl Layout {
    /// Bytes of the used ring.
    pub(crate) fn used_len(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }
}

/// Whether all `len` bytes from `address` are guest memory of one region, so that one pointer reaches them.
fn lies_in_a_region(memory: &GuestMemoryMmap, address: u64, len: usize) -> bool {
    memory.find_region(GuestAddress(address)).is_some_and(|region| {
        let room = region.len() - (address - region.start_addr().0);
        room >= len as u64
    })
}
