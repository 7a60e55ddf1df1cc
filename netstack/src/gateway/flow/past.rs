//! What of a guest's stream to us went past smoltcp, and what its numbers are then. [`Direct`](super::direct) is the
//! other direction.

use crate::wire::tcp::{Flags, TCP_LEN};

/// Selective acknowledgement (RFC 2018).
const SACK: u8 = 5;

/// Data of the guest that the host has and smoltcp never saw. For smoltcp the bytes before and behind it are
/// neighbours, so its numbers of the guest's bytes are lower than the guest's own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    /// By how much.
    pub(super) len: u32,
    /// The guest's next byte, if we owe it an acknowledgement that smoltcp does not know of.
    pub(super) owed: Option<u32>,
    /// The window field of the last segment that smoltcp saw.
    pub(super) window: u16,
}

impl Past {
    /// Turns smoltcp's numbers of the guest's bytes into the guest's own, in a segment of smoltcp's.
    pub(super) fn translate(&mut self, segment: &mut [u8]) {
        if segment[13] & Flags::ACK == 0 {
            return;
        }
        // It acknowledges all that has come, so nothing is owed.
        self.owed = None;
        if self.len == 0 {
            return;
        }
        raise(&mut segment[8..12], self.len);
        let header_len = usize::from(segment[12] >> 4) * 4;
        let mut options = &mut segment[TCP_LEN..header_len];
        while let [kind, tail @ ..] = options {
            let len = match (*kind, tail.first()) {
                (0, _) | (_, None) => return,
                (1, _) => 1,
                (_, Some(len)) => usize::from(*len).clamp(2, options.len()),
            };
            let (option, rest) = std::mem::take(&mut options).split_at_mut(len);
            if option[0] == SACK {
                option[2..].chunks_exact_mut(4).for_each(|edge| raise(edge, self.len));
            }
            options = rest;
        }
    }
}

/// Adds to a sequence number, as it is written.
pub(super) fn raise(number: &mut [u8], by: u32) {
    let lower = u32::from_be_bytes((&*number).try_into().expect("four bytes"));
    number.copy_from_slice(&lower.wrapping_add(by).to_be_bytes());
}
