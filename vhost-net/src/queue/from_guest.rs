//! Frames that a guest sends.

use std::sync::Arc;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::port::{Front, MAX_FRAME};
use vm_memory::GuestMemoryMmap;

use super::access::{Place, Single, WriteLog};
use super::chain::{Budget, MAX_STEPS, follow};
use super::error::RingError;
use super::layout::Layout;
use super::ring::Ring;
use super::{Direction, HeaderLayout, RingFeatures};

/// The queue on which a guest's driver sends.
pub struct FromGuest {
    pub(super) ring: Ring,
    kicks: Kicks,
}

/// Whether the guest tells of its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kicks {
    /// By a kick, once it has been found that nothing waits.
    Wanted,
    /// It need not: its ring is looked into again and again.
    Spared,
}

/// A frame that was looked at and not taken: what was judged is what is passed on, whatever the guest writes meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Peeked {
    pub(super) head: u16,
    pub(super) place: Place,
}

impl FromGuest {
    /// Goes on where the used ring ends.
    pub fn resume(
        memory: Arc<GuestMemoryMmap>,
        layout: Layout,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        Ok(Self { ring: Ring::resume(memory, layout, features)?, kicks: Kicks::Wanted })
    }

    /// Logs what is written from here on.
    pub(crate) fn log_to(&mut self, log: Option<WriteLog>) {
        self.ring.memory.log_to(log);
    }

    /// Copies the next frame out, behind a header of twelve bytes whose `num_buffers` is zero. `buffer`
    /// holds at least [`MAX_FRAME`] bytes. `None` when nothing waits; the guest kicks when that changes, unless it is
    /// [spared](FromGuest::spare_kicks) that.
    ///
    /// After an error that does not stop the queue, that frame is gone and the next may be received.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RingError> {
        if self.ring.known() == 0 && self.ring.available()? == 0 {
            let is_watched = self.kicks == Kicks::Wanted;
            if !is_watched || self.ring.ask_for_kick(0)? == 0 {
                return Ok(None);
            }
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

    /// Copies the beginning of the next frame, as [`FromGuest::receive`] would, if the frame lies in one buffer.
    #[inline(always)]
    pub fn peek(&mut self, front: &mut Front) -> Option<Peeked> {
        if self.ring.known() == 0 && self.ring.available().unwrap_or(0) == 0 {
            return None;
        }
        self.ring.fetch_ahead(Direction::FromGuest);
        let head = self.ring.head(0).ok()?;
        let single = self.single(head)?;
        single.show(front);
        clear_num_buffers(&mut front.bytes);
        Some(Peeked { head, place: single.place() })
    }

    /// Whether a frame waits, or an error that receiving would tell.
    pub fn is_waiting(&mut self) -> bool {
        self.ring.known() > 0 || self.ring.available() != Ok(0)
    }

    /// From now on somebody [looks](FromGuest::is_waiting), so the guest need not kick.
    pub fn spare_kicks(&mut self) {
        if self.kicks == Kicks::Wanted {
            self.kicks = Kicks::Spared;
            self.ring.spare_kicks();
        }
    }

    /// Has the guest kick again. True if something waits already, of which it has not told.
    pub fn want_kicks(&mut self) -> bool {
        self.kicks = Kicks::Wanted;
        self.ring.want_kicks();
        self.ring.known() > 0 || self.ring.ask_for_kick(0) != Ok(0)
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
        let single = self.single(head)?;
        let len = single.len();
        single.copy_to(&mut buffer[..len]);
        clear_num_buffers(buffer);
        Some(len)
    }

    /// The one buffer that holds a whole frame.
    #[inline(always)]
    fn single(&self, head: u16) -> Option<Single<'_>> {
        let Ring { memory, features, .. } = &self.ring;
        let single = memory.single(head, Direction::FromGuest)?;
        let is_frame = VNET_LEN < single.len() && single.len() <= MAX_FRAME;
        (is_frame && features.header != HeaderLayout::Legacy).then_some(single)
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
