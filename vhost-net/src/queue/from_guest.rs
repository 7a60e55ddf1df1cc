//! Frames that a guest sends.

use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::MAX_FRAME;
use vm_memory::GuestMemoryMmap;

use super::access::WriteLog;
use super::chain::{Budget, MAX_STEPS, follow};
use super::error::RingError;
use super::layout::Layout;
use super::ring::Ring;
use super::{Direction, HeaderLayout, RingFeatures};

/// The queue on which a guest's driver sends.
pub struct FromGuest {
    ring: Ring,
}

impl FromGuest {
    /// Goes on where the used ring ends.
    pub fn resume(
        memory: Arc<GuestMemoryMmap>,
        layout: Layout,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        Ok(Self { ring: Ring::resume(memory, layout, features)? })
    }

    /// Logs what is written from here on.
    pub(crate) fn log_to(&mut self, log: Option<WriteLog>) {
        self.ring.memory.log_to(log);
    }

    /// Copies the next frame out, behind a header of twelve bytes whose `num_buffers` is zero. `buffer`
    /// holds at least [`MAX_FRAME`] bytes. `None` when nothing waits; the guest kicks when that changes.
    ///
    /// After an error that does not stop the queue, that frame is gone and the next may be received.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RingError> {
        if self.ring.known() == 0 && self.ring.available()? == 0 && self.ring.ask_for_kick(0)? == 0
        {
            return Ok(None);
        }
        self.ring.fetch_ahead(Direction::FromGuest);
        let head = self.ring.head(0)?;
        let frame = match self.copy_out_single(head, buffer) {
            Some(len) => Ok(len),
            None => self.copy_out(head, buffer),
        };
        self.ring.give_back(head, 0);
        frame.map(Some)
    }

    /// Shows the guest which buffers are free again. True when it wants a call.
    pub fn flush(&mut self) -> Result<bool, RingError> {
        Ok(self.ring.publish())
    }

    /// The next available index, where another device would go on (GET_VRING_BASE).
    pub fn progress(&self) -> u16 {
        self.ring.progress()
    }

    /// The frame in one buffer, if it is that simple.
    #[inline(always)]
    fn copy_out_single(&self, head: u16, buffer: &mut [u8]) -> Option<usize> {
        let Ring { memory, features, .. } = &self.ring;
        let single = memory.single(head, Direction::FromGuest)?;
        let len = single.len();
        if features.header == HeaderLayout::Legacy || len <= VNET_LEN || len > MAX_FRAME {
            return None;
        }
        single.copy_to(&mut buffer[..len]);
        clear_num_buffers(buffer);
        Some(len)
    }

    #[inline(never)]
    fn copy_out(&mut self, head: u16, buffer: &mut [u8]) -> Result<usize, RingError> {
        let Ring { memory, features, .. } = &mut self.ring;
        let header_len = features.header.len();
        // Before any copy, so that one chain costs at most one frame's time.
        let mut budget = Budget { steps: MAX_STEPS, bytes: header_len + MAX_FRAME - VNET_LEN };
        memory.clear();
        let total = follow(memory, features.tables, head, Direction::FromGuest, &mut budget)?;
        if total <= header_len {
            return Err(RingError::Length);
        }
        let start = VNET_LEN - header_len;
        memory.copy_out(&mut buffer[start..start + total]);
        if start > 0 {
            // A legacy header is two bytes short, at its end.
            buffer.copy_within(start..VNET_LEN, 0);
        }
        clear_num_buffers(buffer);
        Ok(start + total)
    }
}

/// Most guests leave it at zero: then nothing is written behind the copy, which would make who reads on wait.
#[inline(always)]
fn clear_num_buffers(header: &mut [u8]) {
    if header[10..VNET_LEN] != [0, 0] {
        header[10..VNET_LEN].fill(0);
    }
}
