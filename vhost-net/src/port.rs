//! The port of a guest whose rings run.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use lichen_netstack::counters::{Counters, DropReason};
use lichen_netstack::port::alarm::Alarm;
use lichen_netstack::port::steering;
use lichen_netstack::port::turn::Turn;
use lichen_netstack::port::watch::FrameWatch;
use lichen_netstack::port::{Front, Offloads, Passed, Port, Receive, Transmit};

use crate::log::Logging;
use crate::memory::Shared;
use crate::queue::error::{RingError, RingErrors};
use crate::queue::from_guest::Peeked;
use crate::queue::to_guest::Delivered;
use crate::rings::{Receiving, Room, Sending, Served};

/// Frames, and their bytes, that wait for a guest to post buffers, on all rings together.
const MAX_BACKLOG: usize = 1024;
const MAX_BACKLOG_BYTES: usize = 1 << 20;

/// Why a port that runs can go on no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A ring contradicts itself.
    Ring,
    /// The memory was cut short.
    Memory,
    /// The log of written pages was.
    Log,
}

/// A guest's running rings: at least one in each direction. A ring error that is only one frame's costs that
/// frame; one that breaks a ring turns the port off, and its session is told.
pub struct VhostPort {
    from_guest: Vec<Sending>,
    turn: Turn,
    /// The frame that was shown last, of the queue whose turn it is.
    peeked: Option<Peeked>,
    to_guest: Vec<Receiving>,
    /// Whether frames may wait for buffers of some ring.
    is_behind: bool,
    room: Room,
    offloads: Offloads,
    errors: RingErrors,
    /// Errors that the next flush tells.
    untold: u32,
    failed: Option<Failure>,
    alarm: Arc<Alarm<Failure>>,
    // After the rings, whose memory it guards.
    memory: Shared,
    /// Where writes are logged, while they are.
    logging: Option<Logging>,
}

impl VhostPort {
    pub(crate) fn new(
        (from_guest, to_guest): (Vec<Sending>, Vec<Receiving>),
        offloads: Offloads,
        (memory, logging): (Shared, Option<Logging>),
        alarm: Arc<Alarm<Failure>>,
    ) -> Self {
        assert!(!from_guest.is_empty() && !to_guest.is_empty(), "one in each direction runs");
        // An equal share, so that a ring that the guest neglects leaves the others theirs.
        let rings = to_guest.len();
        let room = Room { frames: MAX_BACKLOG / rings, bytes: MAX_BACKLOG_BYTES / rings };
        Self {
            from_guest,
            turn: Turn::first(),
            peeked: None,
            to_guest,
            is_behind: false,
            room,
            offloads,
            errors: RingErrors::default(),
            untold: 0,
            failed: None,
            alarm,
            memory,
            logging,
        }
    }

    /// What becomes readable when the guest has done something; each may be readable from before.
    pub fn kicks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let to_guest = self.to_guest.iter().map(|ring| ring.notifiers.kick());
        to_guest.chain(self.from_guest.iter().map(|ring| ring.notifiers.kick()))
    }

    /// The same, to be kept by who ends the watch.
    pub(crate) fn kick_owners(&self) -> Vec<Arc<OwnedFd>> {
        let to_guest = self.to_guest.iter().map(|ring| &ring.notifiers);
        let all = to_guest.chain(self.from_guest.iter().map(|ring| &ring.notifiers));
        all.map(|notifiers| Arc::clone(&notifiers.kick)).collect()
    }

    /// What went wrong with the rings, by kind.
    pub fn errors(&self) -> RingErrors {
        self.errors
    }

    /// Counts an error; one that breaks the ring turns the port off.
    fn note(&mut self, error: RingError) {
        self.errors.count(error);
        if error.stops_queue() {
            self.fail(Failure::Ring);
        }
    }

    /// Counts an error that no answer to the datapath tells.
    fn note_untold(&mut self, error: RingError) {
        self.untold += 1;
        self.note(error);
    }

    fn tell(&mut self, counters: &mut Counters) {
        for _ in 0..std::mem::take(&mut self.untold) {
            counters.drop(DropReason::RingError);
        }
    }

    fn fail(&mut self, failure: Failure) {
        if self.failed.is_none() {
            self.failed = Some(failure);
            self.alarm.raise(failure);
        }
    }

    /// Gives the guest what waits for buffers of one ring, as far as it goes.
    #[inline(never)]
    fn drain(&mut self, ring: usize) {
        while self.failed.is_none() && self.to_guest[ring].is_behind() {
            match self.to_guest[ring].drain() {
                Ok(()) => break,
                Err(error) => self.note_untold(error),
            }
        }
        self.is_behind = self.to_guest.iter().any(Receiving::is_behind);
    }

    #[inline(always)]
    fn drain_all(&mut self) {
        if self.is_behind {
            (0..self.to_guest.len()).for_each(|ring| self.drain(ring));
        }
    }
}

impl Port for VhostPort {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        // The guest may have kicked because it posted buffers.
        self.drain_all();
        if self.failed.is_some() {
            return Receive::Empty;
        }
        let rings = self.from_guest.len();
        for _ in 0..rings {
            let ring = &mut self.from_guest[self.turn.queue(rings)];
            match ring.ring.receive(buffer) {
                Ok(None) => self.turn.pass_on(rings),
                Ok(Some(len)) => {
                    self.turn.count();
                    return match ring.served {
                        Served::Enabled => Receive::Frame(len),
                        Served::Disabled => Receive::Dropped(DropReason::RingDisabled),
                    };
                }
                Err(error) => {
                    self.turn.count();
                    self.note(error);
                    return Receive::Dropped(DropReason::RingError);
                }
            }
        }
        Receive::Empty
    }

    #[inline(always)]
    fn peek(&mut self, front: &mut Front) -> bool {
        self.peeked = None;
        if self.is_behind || self.failed.is_some() {
            return false;
        }
        // Another queue's turn comes when this one is found empty by who receives.
        let ring = self.turn.queue(self.from_guest.len());
        if self.from_guest[ring].served == Served::Enabled {
            self.peeked = self.from_guest[ring].ring.peek(front);
        }
        self.peeked.is_some()
    }

    #[inline(never)]
    fn pass(&mut self, front: &Front, to: &mut Self) -> Passed {
        let Some(peeked) = self.peeked.take().filter(|_| to.failed.is_none()) else {
            return Passed::No;
        };
        let ring = self.turn.queue(self.from_guest.len());
        let from = &mut self.from_guest[ring].ring;
        let queue = steering::queue_of(front.head(), to.to_guest.len());
        match to.to_guest[queue].pass(from, peeked, front) {
            Some(()) => {
                self.turn.count();
                Passed::Sent
            }
            None => Passed::No,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        let ring = steering::queue_of(frame, self.to_guest.len());
        if self.is_behind {
            self.drain(ring);
        }
        if self.failed.is_some() {
            return Transmit::Full;
        }
        let ring = &mut self.to_guest[ring];
        match ring.transmit(frame) {
            Ok(Delivered::Sent) => Transmit::Sent,
            Ok(Delivered::Full) => {
                self.is_behind = true;
                ring.wait(frame, self.room)
            }
            Err(error) => {
                self.note(error);
                Transmit::Malformed
            }
        }
    }

    /// Nobody says yet for which ring: so it is asked of all.
    fn has_room(&mut self) -> bool {
        self.drain_all();
        self.failed.is_none() && !self.is_behind
    }

    fn flush(&mut self, counters: &mut Counters) {
        if self.failed.is_some() {
            return self.tell(counters);
        }
        for ring in 0..self.to_guest.len() {
            if let Err(error) = self.to_guest[ring].flush() {
                self.note_untold(error);
            }
        }
        for ring in 0..self.from_guest.len() {
            if let Err(error) = self.from_guest[ring].flush() {
                self.note_untold(error);
            }
        }
        if self.memory.was_cut() {
            self.fail(Failure::Memory);
        }
        if let Some(logging) = &self.logging {
            logging.flush();
            if logging.log.was_cut() {
                self.fail(Failure::Log);
            }
        }
        self.tell(counters);
    }

    fn begin_polling(&mut self) -> bool {
        self.from_guest.iter_mut().for_each(|ring| ring.ring.spare_kicks());
        true
    }

    fn has_frames(&mut self) -> bool {
        self.failed.is_none() && self.from_guest.iter_mut().any(|ring| ring.ring.is_waiting())
    }

    fn end_polling(&mut self) -> bool {
        let mut is_waiting = false;
        for ring in &mut self.from_guest {
            is_waiting |= ring.ring.want_kicks();
        }
        is_waiting && self.failed.is_none()
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        self.kicks().try_for_each(|kick| watch.begin_or_go_on(kick))
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        self.kicks().for_each(|kick| watch.end(kick));
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}
