//! Telling what was written to guest memory, where somebody wants to know.

use std::sync::Arc;

use vm_memory::GuestMemoryBackend as _;

use super::{GuestAccess, Region};
use crate::log::DirtyLog;

/// Where it is told what was written.
pub(crate) struct WriteLog {
    pub(crate) log: Arc<DirtyLog>,
    /// Where the used ring counts as written from, if it is to be logged at all (`VHOST_VRING_F_LOG`).
    pub(crate) used: Option<u64>,
}

impl GuestAccess {
    /// Logs what is written from here on. It must reach all of this memory, and all of the used ring.
    pub(in crate::queue) fn log_to(&mut self, log: Option<WriteLog>) {
        self.log = log.map(Box::new);
    }

    /// Logs the first `len` bytes of the collected buffers, which have been written.
    pub(in crate::queue) fn log_buffers(&self, len: usize) {
        if let Some(log) = &self.log {
            self.mark_buffers(&log.log, len);
        }
    }

    #[cold]
    fn mark_buffers(&self, log: &DirtyLog, mut len: usize) {
        for part in &self.parts {
            let now = part.len.min(len);
            let address = self.guest_address(part.host).expect("a part was located");
            log.mark(address, now);
            len -= now;
        }
    }

    /// Where the guest sees what we see there.
    fn guest_address(&self, host: *mut u8) -> Option<u64> {
        self.memory.iter().map(Region::from).find_map(|region| {
            let offset = host.addr().checked_sub(region.host.addr())? as u64;
            (offset < region.len).then(|| region.start + offset)
        })
    }

    /// Logs the used entries from the slot of `seen` up to that of `index`, and the index itself.
    #[cold]
    pub(super) fn log_entries(&self, seen: u16, index: u16) {
        // A guest that offers heads before they came back has more used at once than the ring holds.
        let (first, count) = (self.slot(seen), index.wrapping_sub(seen).min(self.size));
        let count = usize::from(count);
        let to_end = count.min(usize::from(self.size) - first);
        self.log_used(4 + 8 * first, 8 * to_end);
        self.log_used(4, 8 * (count - to_end));
        self.log_used(2, 2);
    }

    /// Logs `len` bytes that were written to the used ring, `at` bytes into it.
    #[cold]
    pub(super) fn log_used(&self, at: usize, len: usize) {
        if let Some(writes) = &self.log
            && let Some(used) = writes.used
        {
            writes.log.mark(used + at as u64, len);
        }
    }
}
