//! A buffer that frames are copied through, placed so that no copy is a slow one.
//!
//! Many processors copy in bulk several times slower where the target lies a few bytes further into its page than the
//! source into its own: they take what they are to read next for what they have just written (measured: 35 µs rather
//! than 5 for 64 KiB from ring to ring, 1.5 GB/s rather than 9 from a socket). What guests and kernels hand over mostly
//! begins where a page does, and so does a large allocation, but for the allocator's own sixteen bytes.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;
/// How far into its page the buffer begins: more than the headers that stand before what is copied in bulk, and far
/// from the next page.
const OFFSET: usize = 512;

/// Bytes that begin half a KiB behind the start of a page.
#[derive(Debug)]
pub struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Staging {
    /// `len` bytes, zero.
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE].into_boxed_slice();
        let start = (OFFSET + PAGE - bytes.as_ptr().addr() % PAGE) % PAGE;
        Self { bytes, start, len }
    }
}

impl Deref for Staging {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Staging {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_length_begins_half_a_kibibyte_into_a_page_and_is_all_there() {
        for len in [0, 1, 4095, 4096, 65_561, 131_122] {
            // Others lie between, so that allocations differ.
            let between = vec![1_u8; len / 3 + 7];
            let mut buffer = Staging::new(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % PAGE), (len, OFFSET));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7) && between[0] == 1);
        }
    }
}
