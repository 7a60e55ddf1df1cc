//! Frames that a guest is sent.

use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::chain::{Direction, Part, follow};
use super::error::RingError;
use super::layout::Layout;
use super::ring::Ring;
use super::{HeaderLayout, RingFeatures};

/// The queue on which a guest's driver receives.
pub struct ToGuest {
    ring: Ring,
    parts: Vec<Part>,
    /// The head of each buffer of one frame, and how many bytes it holds.
    heads: Vec<(u16, usize)>,
}

/// What handing a frame to the ring came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It is in the guest's memory; the guest sees it at the next flush.
    Sent,
    /// There are too few buffers; nothing was taken, and the guest kicks when it posts more.
    Full,
}

impl ToGuest {
    /// Goes on where the used ring ends.
    pub fn resume(
        memory: Arc<GuestMemoryMmap>,
        layout: Layout,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let ring = Ring::resume(memory, layout, features)?;
        Ok(Self { ring, parts: Vec::new(), heads: Vec::new() })
    }

    /// Copies in a frame that starts with a header of twelve bytes.
    ///
    /// After an error that does not stop the queue, the frame is lost and its buffers went back unused.
    pub fn transmit(&mut self, frame: &[u8]) -> Result<Delivered, RingError> {
        let layout = self.ring.features.header;
        let needed = frame.len() - VNET_LEN + layout.len();
        match self.gather(needed) {
            Ok(Delivered::Full) => return Ok(Delivered::Full),
            Ok(Delivered::Sent) => {}
            Err(error) if error.stops_queue() => return Err(error),
            Err(error) => return self.refuse(error),
        }
        let count = u16::try_from(self.heads.len()).expect("no more heads than the ring's size");
        let mut header = [0; VNET_LEN];
        header.copy_from_slice(&frame[..VNET_LEN]);
        header[10..].copy_from_slice(&count.to_le_bytes());
        if self.scatter(&header[..layout.len()], &frame[VNET_LEN..]).is_err() {
            return self.refuse(RingError::Address);
        }
        let mut left = needed;
        for &(head, capacity) in &self.heads {
            let len = left.min(capacity);
            left -= len;
            self.ring.give_back(head, u32::try_from(len).expect("at most a frame"))?;
        }
        Ok(Delivered::Sent)
    }

    /// Shows the guest all frames since the last flush. True when it wants a call.
    pub fn flush(&mut self) -> Result<bool, RingError> {
        self.ring.publish()
    }

    /// Collects buffers for `needed` bytes into `parts` and `heads`, without taking them.
    fn gather(&mut self, needed: usize) -> Result<Delivered, RingError> {
        self.parts.clear();
        self.heads.clear();
        let mut capacity = 0;
        let mut waiting = self.ring.available()?;
        let Ring { memory, layout, features, .. } = &self.ring;
        while capacity < needed {
            let taken =
                u16::try_from(self.heads.len()).expect("no more heads than the ring's size");
            if taken == waiting {
                waiting = self.ring.ask_for_kick(taken)?;
                if taken >= waiting {
                    return Ok(Delivered::Full);
                }
            }
            let head = self.ring.head(taken)?;
            self.heads.push((head, 0));
            let parts = &mut self.parts;
            let len = follow(memory, layout, features.tables, head, Direction::ToGuest, parts)?;
            let is_first = self.heads.len() == 1;
            if len == 0 || (is_first && len < features.header.len()) {
                return Err(RingError::Length);
            }
            let single = features.header != HeaderLayout::Mergeable;
            if single && len < needed
                || self.heads.len() == usize::from(layout.size) && capacity + len < needed
            {
                return Err(RingError::Length);
            }
            self.heads.last_mut().expect("just pushed").1 = len;
            capacity += len;
        }
        Ok(Delivered::Sent)
    }

    fn scatter(&self, header: &[u8], body: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
        let mut left = [header, body];
        for part in &self.parts {
            let (mut address, mut room) = (part.address.0, part.len);
            for piece in &mut left {
                let (now, later) = piece.split_at(room.min(piece.len()));
                if !now.is_empty() {
                    self.ring.memory.write_slice(now, vm_memory::GuestAddress(address))?;
                }
                address += now.len() as u64;
                room -= now.len();
                *piece = later;
            }
        }
        Ok(())
    }

    /// Gives the gathered buffers back unused.
    fn refuse(&mut self, error: RingError) -> Result<Delivered, RingError> {
        for &(head, _) in &self.heads {
            self.ring.give_back(head, 0)?;
        }
        Err(error)
    }
}
