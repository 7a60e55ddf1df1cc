//! Having the processor fetch what will be needed soon, while it goes on. A hint that never faults, wherever it points.
#![allow(unsafe_code, reason = "the processor's own words for it")]

/// Fetches a line of the cache to be read.
#[cfg(target_arch = "x86_64")]
pub fn to_read(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: fetching never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

/// Fetches a line of the cache to be written, and takes it from the other processors' caches too: else the write would
/// have to ask for that. The compiler's word for it asks for a feature that it does not take for granted; processors
/// without it take this for nothing.
#[cfg(target_arch = "x86_64")]
pub fn to_write(line: *const u8) {
    // SAFETY: fetching never faults and changes nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// Elsewhere stable Rust has no word for it.
#[cfg(not(target_arch = "x86_64"))]
pub fn to_read(_: *const u8) {}

/// Elsewhere stable Rust has no word for it.
#[cfg(not(target_arch = "x86_64"))]
pub fn to_write(_: *const u8) {}
