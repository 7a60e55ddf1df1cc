//! Frames that a guest sends.

use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::MAX_FRAME;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::RingFeatures;
use super::chain::{Direction, Part, follow};
use super::error::RingError;
use super::layout::Layout;
use super::ring::Ring;

/// The queue on which a guest's driver sends.
pub struct FromGuest {
    ring: Ring,
    parts: Vec<Part>,
}

impl FromGuest {
    /// Goes on where the used ring ends.
    pub fn resume(
        memory: Arc<GuestMemoryMmap>,
        layout: Layout,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let ring = Ring::resume(memory, layout, features)?;
        Ok(Self { ring, parts: Vec::new() })
    }

    /// Copies the next frame out, behind a header of twelve bytes whose `num_buffers` is zero. `buffer`
    /// holds at least [`MAX_FRAME`] bytes. `None` when nothing waits; the guest kicks when that changes.
    ///
    /// After an error that does not stop the queue, that frame is gone and the next may be received.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RingError> {
        if self.ring.available()? == 0 && self.ring.ask_for_kick(0)? == 0 {
            return Ok(None);
        }
        let head = self.ring.head(0)?;
        let frame = self.copy_out(head, buffer);
        self.ring.give_back(head, 0)?;
        frame.map(Some)
    }

    /// Shows the guest which buffers are free again. True when it wants a call.
    pub fn flush(&mut self) -> Result<bool, RingError> {
        self.ring.publish()
    }

    fn copy_out(&mut self, head: u16, buffer: &mut [u8]) -> Result<usize, RingError> {
        self.parts.clear();
        let Ring { memory, layout, features, .. } = &self.ring;
        let header_len = features.header.len();
        let total =
            follow(memory, layout, features.tables, head, Direction::FromGuest, &mut self.parts)?;
        // Before any copy, so that one chain costs at most one frame's time.
        if total <= header_len || total - header_len > MAX_FRAME - VNET_LEN {
            return Err(RingError::Length);
        }
        let start = VNET_LEN - header_len;
        let mut at = start;
        for part in &self.parts {
            memory
                .read_slice(&mut buffer[at..at + part.len], part.address)
                .map_err(|_| RingError::Address)?;
            at += part.len;
        }
        // A legacy header is two bytes short, at its end.
        buffer.copy_within(start..start + 10, 0);
        buffer[10..VNET_LEN].fill(0);
        Ok(at)
    }
}
