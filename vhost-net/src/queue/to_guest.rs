//! Frames that a guest is sent.

use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::{Front, MAX_FRAME};
use vm_memory::GuestMemoryMmap;

use super::access::{Single, WriteLog};
use super::chain::{Budget, MAX_STEPS, follow};
use super::error::RingError;
use super::from_guest::{FromGuest, Peeked};
use super::layout::Layout;
use super::ring::Ring;
use super::{Direction, HeaderLayout, RingFeatures};

/// What a frame of any length takes.
const ROOM: usize = MAX_FRAME;

/// The queue on which a guest's driver receives.
pub struct ToGuest {
    ring: Ring,
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
        Ok(Self { ring, heads: Vec::new() })
    }

    /// Logs what is written from here on.
    pub(crate) fn log_to(&mut self, log: Option<WriteLog>) {
        self.ring.memory.log_to(log);
    }

    /// Copies in a frame that starts with a header of twelve bytes.
    ///
    /// After an error that does not stop the queue, the frame is lost and its buffers went back unused.
    pub fn transmit(&mut self, frame: &[u8]) -> Result<Delivered, RingError> {
        self.ring.fetch_ahead(Direction::ToGuest);
        if let Some(head) = self.fill_single(frame)? {
            self.ring.give_back(head, u32::try_from(frame.len()).expect("at most a frame"));
            return Ok(Delivered::Sent);
        }
        self.transmit_over_several(frame)
    }

    /// Copies in the frame that was just peeked at on another ring, and gives both buffers back. `None` if it is not that
    /// simple; then nothing has happened.
    #[inline(always)]
    pub fn pass(&mut self, from: &mut FromGuest, peeked: Peeked, front: &Front) -> Option<()> {
        self.ring.fetch_ahead(Direction::ToGuest);
        let (head, single) = self.next_single(front.frame_len).ok()??;
        let source = from.ring.memory.single_at(peeked.place)?;
        single.fill_from(front, &source);
        let len = u32::try_from(front.frame_len).expect("at most a frame");
        self.ring.give_back(head, len);
        from.ring.give_back(peeked.head, 0);
        Some(())
    }

    /// Copies the frame into the next buffer, if it is that simple. Answers which it was.
    #[inline(always)]
    fn fill_single(&mut self, frame: &[u8]) -> Result<Option<u16>, RingError> {
        Ok(self.next_single(frame.len())?.map(|(head, single)| {
            single.fill(frame);
            head
        }))
    }

    /// The next buffer, if one waits, holds `len` bytes and takes a frame alone.
    #[inline(always)]
    fn next_single(&mut self, len: usize) -> Result<Option<(u16, Single<'_>)>, RingError> {
        let is_waiting = self.ring.known() > 0 || self.ring.available()? > 0;
        if !is_waiting || self.ring.features.header == HeaderLayout::Legacy {
            return Ok(None);
        }
        let head = self.ring.head(0)?;
        let single = self.ring.memory.single(head, Direction::ToGuest);
        Ok(single.filter(|single| single.len() >= len).map(|single| (head, single)))
    }

    #[inline(never)]
    fn transmit_over_several(&mut self, frame: &[u8]) -> Result<Delivered, RingError> {
        let layout = self.ring.features.header;
        let needed = frame.len() - VNET_LEN + layout.len();
        match self.gather(needed) {
            Ok(Delivered::Full) => return Ok(Delivered::Full),
            Ok(Delivered::Sent) => {}
            Err(error) if error.stops_queue() => return Err(error),
            Err(error) => {
                for (head, _) in self.heads.drain(..) {
                    self.ring.give_back(head, 0);
                }
                return Err(error);
            }
        }
        let count = u16::try_from(self.heads.len()).expect("no more heads than the ring's size");
        self.ring.memory.copy_in(frame, layout.len(), count);
        self.ring.memory.log_buffers(needed);
        let mut left = needed;
        for (head, capacity) in self.heads.drain(..) {
            let len = left.min(capacity);
            left -= len;
            self.ring.give_back(head, u32::try_from(len).expect("at most a frame"));
        }
        Ok(Delivered::Sent)
    }

    /// Whether a frame of any length would be [`Delivered::Sent`], as far as can be told cheaply: half of the
    /// ring waits, or 64 KiB do. If not, the guest kicks when it posts more.
    ///
    /// A bad buffer counts as room: only [`ToGuest::transmit`] takes it away and says what is wrong.
    pub fn has_room(&mut self) -> Result<bool, RingError> {
        let half = self.ring.memory.size().div_ceil(2);
        if self.ring.known() >= half || self.ring.available()? >= half {
            return Ok(true);
        }
        match self.gather(ROOM) {
            Ok(Delivered::Full) => Ok(false),
            Ok(Delivered::Sent) => Ok(true),
            Err(error) if error.stops_queue() => Err(error),
            Err(_) => Ok(true),
        }
    }

    /// Shows the guest all frames since the last flush. True when it wants a call.
    pub fn flush(&mut self) -> Result<bool, RingError> {
        Ok(self.ring.publish())
    }

    /// The next available index, where another device would go on (GET_VRING_BASE).
    pub fn progress(&self) -> u16 {
        self.ring.progress()
    }

    /// Collects buffers for `needed` bytes, and their `heads`, without taking them.
    fn gather(&mut self, needed: usize) -> Result<Delivered, RingError> {
        self.heads.clear();
        self.ring.memory.clear();
        let features = self.ring.features;
        let size = usize::from(self.ring.memory.size());
        let mut budget = Budget { steps: MAX_STEPS, bytes: usize::MAX };
        let mut waiting = self.ring.known();
        while self.ring.memory.capacity() < needed {
            let taken =
                u16::try_from(self.heads.len()).expect("no more heads than the ring's size");
            if usize::from(taken) == size {
                return Err(RingError::Length);
            }
            if taken >= waiting {
                waiting = self.ring.available()?;
            }
            if taken >= waiting {
                waiting = self.ring.ask_for_kick(taken)?;
                if taken >= waiting {
                    return Ok(Delivered::Full);
                }
            }
            let head = self.ring.head(taken)?;
            self.heads.push((head, 0));
            let memory = &mut self.ring.memory;
            let len = follow(memory, features.tables, head, Direction::ToGuest, &mut budget)?;
            let is_short = match features.header {
                HeaderLayout::Mergeable => len == 0 || taken == 0 && len < VNET_LEN,
                HeaderLayout::Single | HeaderLayout::Legacy => len < needed,
            };
            if is_short {
                return Err(RingError::Length);
            }
            self.heads.last_mut().expect("just pushed").1 = len;
        }
        Ok(Delivered::Sent)
    }
}
