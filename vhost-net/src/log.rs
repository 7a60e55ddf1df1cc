//! The log of written pages (dirty log): while a guest is migrated its monitor wants to know what we write to its
//! memory, and shares a bitmap with a bit for each page of 4096 bytes (vhost-user, "Migration").
//!
//! A bit is set after what it stands for was written: who clears it and then copies the page has either the
//! new bytes or the bit again.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vm_memory::{MmapRegion, VolatileMemory as _};

use crate::bell;
use crate::mapping::{self, MapError};
use crate::sigbus::Guard;

/// Bytes that one bit stands for.
const PAGE: u64 = 0x1000;
/// Bytes of the longest log: for 32 TiB of memory.
const MAX_LEN: u64 = 1 << 30;

/// Why a log was refused; the monitor's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("the log of written pages is longer than 1 GiB")]
    TooLong,
    #[error("the log of written pages {0}")]
    Map(#[from] MapError),
    #[error("the log of written pages is too short for the guest's memory")]
    TooShort,
    #[error("the log of written pages is too short for where a ring is to be logged")]
    RingOutside,
}

/// A bitmap in memory that the monitor shares.
pub(crate) struct DirtyLog {
    // Before the mapping: a guard must not outlive what it guards.
    guard: Guard,
    mapping: MmapRegion,
    /// Whether a bit was set since the monitor was told.
    has_news: AtomicBool,
}

impl DirtyLog {
    /// Maps `len` bytes from `offset` on, which must be a multiple of the processor's pages.
    pub(crate) fn map(file: File, offset: u64, len: u64) -> Result<Self, LogError> {
        if len > MAX_LEN {
            return Err(LogError::TooLong);
        }
        let (guard, mapping) = mapping::map(file, offset, len)?;
        Ok(Self { guard, mapping, has_news: AtomicBool::new(false) })
    }

    /// Whether it has a bit for the page of this address.
    pub(crate) fn reaches(&self, address: u64) -> bool {
        address / PAGE / 8 < self.mapping.size() as u64
    }

    /// Marks the pages of the `len` bytes from `address` on, which have been written and which it reaches.
    pub(crate) fn mark(&self, address: u64, len: usize) {
        let Some(more) = len.checked_sub(1) else { return };
        for page in address / PAGE..=address.saturating_add(more as u64) / PAGE {
            let at = usize::try_from(page / 8).unwrap_or(usize::MAX);
            let byte = self.mapping.get_atomic_ref::<AtomicU8>(at);
            byte.expect("it was checked to reach").fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
        self.has_news.store(true, Ordering::Relaxed);
    }

    /// Whether the file behind it was cut short: its content is lost.
    pub(crate) fn was_cut(&self) -> bool {
        self.guard.was_hit()
    }
}

/// A log in use, and who is to hear of it.
#[derive(Clone)]
pub(crate) struct Logging {
    pub(crate) log: Arc<DirtyLog>,
    /// Signalled when something was marked, where the monitor wants that (`SET_LOG_FD`).
    pub(crate) call: Option<Arc<OwnedFd>>,
}

impl Logging {
    /// Tells the monitor that something was marked, once for all of it.
    pub(crate) fn flush(&self) {
        if self.log.has_news.swap(false, Ordering::Relaxed)
            && let Some(call) = &self.call
        {
            // The monitor reads the log by itself too; one that cannot be called has it all the same.
            let _ = bell::ring(call.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file(len: u64) -> File {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("a file"));
        file.set_len(len).expect("it is empty");
        file
    }

    #[test]
    fn exactly_the_pages_of_what_was_written_are_marked() {
        for (address, len, expected) in [
            (0, 1, [1, 0, 0]),
            (4095, 1, [1, 0, 0]),
            (4095, 2, [3, 0, 0]),
            (4096, 4096, [2, 0, 0]),
            (7 * 4096 + 100, 4096, [0x80, 1, 0]),
            (0x8000, 0x8000, [0, 0xff, 0]),
            (23 * 4096, 4096, [0, 0, 0x80]),
            (4096, 0, [0, 0, 0]),
        ] {
            let file = file(8192);
            let log = DirtyLog::map(file.try_clone().unwrap(), 4096, 3).unwrap();
            log.mark(address, len);
            let mut marked = [0; 3];
            file.read_exact_at(&mut marked, 4096).unwrap();
            assert_eq!(marked, expected, "{len} bytes from {address:#x}");
        }
    }

    #[test]
    fn marks_are_added_to_those_that_are_there() {
        let file = file(4096);
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, 8).unwrap();
        log.mark(0, 1);
        file.write_all_at(&[0x40], 0).unwrap();
        log.mark(4096, 1);
        let mut marked = [0];
        file.read_exact_at(&mut marked, 0).unwrap();
        assert_eq!(marked, [0x42]);
    }

    #[test]
    fn a_log_reaches_as_far_as_its_bits() {
        let log = DirtyLog::map(file(4096), 0, 3).unwrap();
        assert!(log.reaches(24 * 4096 - 1) && !log.reaches(24 * 4096) && !log.reaches(u64::MAX));
    }

    #[test]
    fn a_log_that_cannot_be_is_refused_by_name() {
        let map = |offset, len| DirtyLog::map(file(8192), offset, len).err().expect("refused");
        for (offset, len, expected) in [
            (4096, u64::MAX, "is longer than 1 GiB"),
            (0, MAX_LEN + 1, "is longer than 1 GiB"),
            (0, 0, "is empty or wraps around"),
            (u64::MAX, 2, "is empty or wraps around"),
            (0, 8193, "goes beyond its file"),
            (8192, 1, "goes beyond its file"),
            (4096, 4097, "goes beyond its file"),
            (1 << 40, 64, "goes beyond its file"),
            (1, 64, "cannot be mapped: "),
        ] {
            let why = map(offset, len).to_string();
            let words = why.strip_prefix("the log of written pages ").expect("what it is about");
            assert!(words.starts_with(expected), "{len} bytes from {offset}: {why}");
        }
    }
}
