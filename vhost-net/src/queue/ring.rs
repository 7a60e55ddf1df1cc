//! The indices of one ring: which heads are available, which are used, and who is told.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::error::RingError;
use super::layout::Layout;
use super::{Notices, RingFeatures};

const NO_INTERRUPT: u16 = 1;

pub(super) struct Ring {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) layout: Layout,
    pub(super) features: RingFeatures,
    next_available: u16,
    used: u16,
    published: u16,
}

impl Ring {
    /// Starts where the used ring ends: heads that an earlier device took and did not use are taken again.
    pub(super) fn resume(
        memory: Arc<GuestMemoryMmap>,
        layout: Layout,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let used = load(&memory, layout.used.unchecked_add(2))?;
        Ok(Self { memory, layout, features, next_available: used, used, published: used })
    }

    /// Heads that wait.
    pub(super) fn available(&self) -> Result<u16, RingError> {
        let index = load(&self.memory, self.layout.available.unchecked_add(2))?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.layout.size { Err(RingError::AvailableIndex) } else { Ok(waiting) }
    }

    /// The head that stands `ahead` behind the next one; it must be available.
    pub(super) fn head(&self, ahead: u16) -> Result<u16, RingError> {
        let slot = self.next_available.wrapping_add(ahead) & (self.layout.size - 1);
        let head =
            load(&self.memory, self.layout.available.unchecked_add(4 + 2 * u64::from(slot)))?;
        if head < self.layout.size { Ok(head) } else { Err(RingError::Head) }
    }

    /// Takes the next head and gives it back with `len` bytes written. The guest sees it when published.
    pub(super) fn give_back(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let slot = self.used & (self.layout.size - 1);
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&head.to_le_bytes());
        entry[4..].copy_from_slice(&len.to_le_bytes());
        self.memory
            .write_slice(&entry, self.layout.used.unchecked_add(4 + 8 * u64::from(slot)))
            .map_err(|_| RingError::Address)?;
        self.used = self.used.wrapping_add(1);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    /// Shows the guest all that was given back. True when it wants a call for that.
    pub(super) fn publish(&mut self) -> Result<bool, RingError> {
        if self.used == self.published {
            return Ok(false);
        }
        let before = self.published;
        store(&self.memory, self.layout.used.unchecked_add(2), self.used)?;
        self.published = self.used;
        // The index must be out before the guest's wish is read (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let size = u64::from(self.layout.size);
        match self.features.notices {
            Notices::Flags => Ok(load(&self.memory, self.layout.available)? & NO_INTERRUPT == 0),
            Notices::EventIndex => {
                let wish = load(&self.memory, self.layout.available.unchecked_add(4 + 2 * size))?;
                let passed = self.used.wrapping_sub(wish).wrapping_sub(1);
                Ok(passed < self.used.wrapping_sub(before))
            }
        }
    }

    /// Asks for a kick once more than `known` heads wait, and returns how many wait after asking.
    pub(super) fn ask_for_kick(&self, known: u16) -> Result<u16, RingError> {
        if self.features.notices == Notices::EventIndex {
            let at = self.layout.used.unchecked_add(4 + 8 * u64::from(self.layout.size));
            store(&self.memory, at, self.next_available.wrapping_add(known))?;
        }
        // The wish must be out before the index is read again, or a kick is lost.
        fence(Ordering::SeqCst);
        self.available()
    }
}

fn load(memory: &GuestMemoryMmap, at: GuestAddress) -> Result<u16, RingError> {
    let value = memory.load(at, Ordering::Acquire).map_err(|_| RingError::Address)?;
    Ok(u16::from_le(value))
}

fn store(memory: &GuestMemoryMmap, at: GuestAddress, value: u16) -> Result<(), RingError> {
    memory.store(value.to_le(), at, Ordering::Release).map_err(|_| RingError::Address)
}
