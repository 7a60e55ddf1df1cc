//! The indices of one ring: which heads are available, which are used, and who is told.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestMemoryMmap;

use super::access::GuestAccess;
use super::error::RingError;
use super::layout::Layout;
use super::{Direction, Notices, RingFeatures};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
/// How many frames ahead a buffer is fetched.
const AHEAD: u16 = 8;

pub(super) struct Ring {
    pub(super) memory: GuestAccess,
    pub(super) features: RingFeatures,
    /// The available index as it was read last; it is read again once those heads are taken.
    seen: u16,
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
        let memory = GuestAccess::new(memory, &layout).ok_or(RingError::Address)?;
        let used = memory.used_index();
        if memory.used_flags() != 0 {
            // An earlier device that polled may have left it so.
            memory.set_used_flags(0);
        }
        Ok(Self { memory, features, seen: used, next_available: used, used, published: used })
    }

    /// The index of the next head to be taken.
    pub(super) fn progress(&self) -> u16 {
        self.next_available
    }

    /// Heads that are known to wait.
    pub(super) fn known(&self) -> u16 {
        self.seen.wrapping_sub(self.next_available)
    }

    /// Heads that wait now.
    pub(super) fn available(&mut self) -> Result<u16, RingError> {
        let index = self.memory.available_index();
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.memory.size() {
            return Err(RingError::AvailableIndex);
        }
        self.seen = index;
        Ok(waiting)
    }

    /// The head that stands `ahead` behind the next one; it must be available.
    #[inline(always)]
    pub(super) fn head(&self, ahead: u16) -> Result<u16, RingError> {
        let head = self.memory.available_head(self.next_available.wrapping_add(ahead));
        if head < self.memory.size() { Ok(head) } else { Err(RingError::Head) }
    }

    /// Has the buffer fetched that is `used` a few frames from now, if it is known to wait.
    #[inline(always)]
    pub(super) fn fetch_ahead(&self, used: Direction) {
        if self.known() > AHEAD {
            let head = self.memory.available_head(self.next_available.wrapping_add(AHEAD));
            self.memory.fetch_ahead(head, used);
        }
    }

    /// Takes the next head and gives it back with `len` bytes written. The guest sees it when published.
    #[inline(always)]
    pub(super) fn give_back(&mut self, head: u16, len: u32) {
        self.memory.set_used(self.used, head, len);
        self.used = self.used.wrapping_add(1);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the guest all that was given back. True when it wants a call for that.
    pub(super) fn publish(&mut self) -> bool {
        if self.used == self.published {
            return false;
        }
        let before = self.published;
        self.memory.set_used_index(before, self.used);
        self.published = self.used;
        // The index must be out before the guest's wish is read (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        match self.features.notices {
            Notices::Flags => self.memory.available_flags() & NO_INTERRUPT == 0,
            Notices::EventIndex => {
                let passed = self.used.wrapping_sub(self.memory.call_wish()).wrapping_sub(1);
                passed < self.used.wrapping_sub(before)
            }
        }
    }

    /// Lets the guest know that it need not kick. By an event index that is as well done by leaving the wish behind, which
    /// the guest passes once in 65,536 heads.
    pub(super) fn spare_kicks(&self) {
        if self.features.notices == Notices::Flags {
            self.memory.set_used_flags(NO_NOTIFY);
        }
    }

    /// Takes that back, as far as a flag says it: the event index is said when [a kick is asked for](Ring::ask_for_kick).
    pub(super) fn want_kicks(&self) {
        if self.features.notices == Notices::Flags {
            self.memory.set_used_flags(0);
        }
    }

    /// Asks for a kick once more than `known` heads wait, and returns how many wait after asking.
    pub(super) fn ask_for_kick(&mut self, known: u16) -> Result<u16, RingError> {
        if self.features.notices == Notices::EventIndex {
            self.memory.set_kick_wish(self.next_available.wrapping_add(known));
        }
        // The wish must be out before the index is read again, or a kick is lost.
        fence(Ordering::SeqCst);
        self.available()
    }
}
