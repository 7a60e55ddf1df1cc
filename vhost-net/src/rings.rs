//! A port's rings, each with what belongs to it.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lichen_netstack::port::{Front, Transmit};

use crate::bell;
use crate::queue::error::RingError;
use crate::queue::from_guest::{FromGuest, Peeked};
use crate::queue::to_guest::{Delivered, ToGuest};

/// One ring's descriptors for waking each other.
#[derive(Clone, Debug)]
pub(crate) struct Notifiers {
    /// The guest has put something into the ring.
    pub(crate) kick: Arc<OwnedFd>,
    /// We have; a monitor that polls gives none.
    pub(crate) call: Option<Arc<OwnedFd>>,
}

impl Notifiers {
    pub(crate) fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Wakes the guest, if it wants to be.
    fn call(&self, wanted: Result<bool, RingError>) -> Result<(), RingError> {
        match (&self.call, wanted?) {
            (Some(call), true) => bell::ring(call.as_fd()).map_err(|_| RingError::Call),
            _ => Ok(()),
        }
    }
}

/// What becomes of frames on a ring that has been started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// They are carried.
    Enabled,
    /// They are taken and dropped: the guest has the ring, and does not use it.
    Disabled,
}

/// A ring on which the guest sends.
pub(crate) struct Sending {
    pub(crate) ring: FromGuest,
    pub(crate) notifiers: Notifiers,
    pub(crate) served: Served,
}

impl Sending {
    /// Makes known what was taken.
    pub(crate) fn flush(&mut self) -> Result<(), RingError> {
        self.notifiers.call(self.ring.flush())
    }
}

/// Most frames, and bytes of them, that wait for a guest to post buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// A ring on which the guest receives, and what waits for its buffers.
pub(crate) struct Receiving {
    ring: ToGuest,
    pub(crate) notifiers: Notifiers,
    backlog: VecDeque<Box<[u8]>>,
    backlog_bytes: usize,
}

impl Receiving {
    pub(crate) fn new(ring: ToGuest, notifiers: Notifiers) -> Self {
        Self { ring, notifiers, backlog: VecDeque::new(), backlog_bytes: 0 }
    }

    /// Whether frames wait, and the next one has to wait behind them.
    #[inline(always)]
    pub(crate) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Gives the guest what waits, as far as it goes. After an error that does not stop the ring that frame is
    /// lost, and this goes on when it is called again.
    pub(crate) fn drain(&mut self) -> Result<(), RingError> {
        while let Some(frame) = self.backlog.front() {
            let delivered = self.ring.transmit(frame);
            match delivered {
                Ok(Delivered::Full) => return Ok(()),
                Err(error) if error.stops_queue() => return Err(error),
                _ => {}
            }
            self.backlog_bytes -= self.backlog.pop_front().map_or(0, |frame| frame.len());
            delivered?;
        }
        Ok(())
    }

    /// Hands a frame to the guest, unless others wait already.
    #[inline(always)]
    pub(crate) fn transmit(&mut self, frame: &[u8]) -> Result<Delivered, RingError> {
        if self.is_behind() {
            return Ok(Delivered::Full);
        }
        self.ring.transmit(frame)
    }

    /// Copies in the frame that was just peeked at, unless others wait already; `None` if it is not that simple.
    #[inline(always)]
    pub(crate) fn pass(
        &mut self,
        from: &mut FromGuest,
        peeked: Peeked,
        front: &Front,
    ) -> Option<()> {
        if self.is_behind() { None } else { self.ring.pass(from, peeked, front) }
    }

    /// Has a frame wait, where there is room for that.
    pub(crate) fn wait(&mut self, frame: &[u8], room: Room) -> Transmit {
        let fits = self.backlog_bytes + frame.len() <= room.bytes;
        if !fits || self.backlog.len() >= room.frames {
            return Transmit::Full;
        }
        self.backlog_bytes += frame.len();
        self.backlog.push_back(frame.into());
        Transmit::Sent
    }

    /// Makes known what was given.
    pub(crate) fn flush(&mut self) -> Result<(), RingError> {
        self.notifiers.call(self.ring.flush())
    }
}
