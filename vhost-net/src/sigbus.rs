//! Surviving memory that shrinks: whoever owns the file behind a mapping can cut it short at any moment,
//! and the next access raises SIGBUS.
//!
//! A handler looks the address up among the mappings that are guarded, puts zero pages over that mapping
//! and marks it, so that the access goes on and its port can be closed. Any other SIGBUS ends the process,
//! as it would have without a handler. Sealing files against it is no way out: not every monitor can.

use std::ffi::c_int;
use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be guarded at once: of 1024 ports some four regions each.
const MAX_GUARDED: usize = 4096;
/// Marks a slot that is being filled; no mapping starts there.
const TAKEN: usize = 1;

struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    hit: AtomicBool,
}

static SLOTS: [Slot; MAX_GUARDED] = [const {
    Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), hit: AtomicBool::new(false) }
}; MAX_GUARDED];
/// How many slots were ever in use, so that the handler looks at no more.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A mapping that the handler knows. Dropped before the mapping is.
#[derive(Debug)]
pub(crate) struct Guard(usize);

impl Guard {
    /// Guards `len` bytes from `start`, which must be a mapping of its own.
    pub(crate) fn new(start: *const u8, len: usize) -> io::Result<Self> {
        install()?;
        for (index, slot) in SLOTS.iter().enumerate() {
            let free = slot.start.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed);
            if free.is_ok() {
                slot.hit.store(false, Ordering::Relaxed);
                slot.len.store(len, Ordering::Relaxed);
                slot.start.store(start.addr(), Ordering::Release);
                USED.fetch_max(index + 1, Ordering::Release);
                return Ok(Self(index));
            }
        }
        Err(io::Error::other("too much guest memory is mapped; end some virtual machines"))
    }

    /// Whether the file behind the mapping was cut short.
    pub(crate) fn was_hit(&self) -> bool {
        SLOTS[self.0].hit.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        SLOTS[self.0].start.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    static FAILED: AtomicBool = AtomicBool::new(false);
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one: no flags, no mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle
            as extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void)
            as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is valid, and the handler does only what is safe in one: atomics and mmap.
        let result =
            unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        FAILED.store(result != 0, Ordering::Relaxed);
    });
    if FAILED.load(Ordering::Relaxed) {
        return Err(io::Error::other("the handler for shrinking memory cannot be installed"));
    }
    Ok(())
}

extern "C" fn handle(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let used = USED.load(Ordering::Acquire).min(MAX_GUARDED);
    for slot in &SLOTS[..used] {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if start > TAKEN && address >= start && address - start < len {
            slot.hit.store(true, Ordering::Relaxed);
            // SAFETY: replaces pages of a mapping that is ours alone and whose content is lost anyway.
            let mapped = unsafe {
                libc::mmap(
                    std::ptr::without_provenance_mut(start),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
    }
    // SAFETY: the default action needs no handler; the access is repeated and ends the process.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}
