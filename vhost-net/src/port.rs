//! The port of a guest whose rings run.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lichen_netstack::counters::{Counters, DropReason};
use lichen_netstack::port::alarm::Alarm;
use lichen_netstack::port::watch::FrameWatch;
use lichen_netstack::port::{Offloads, Port, Receive, Transmit};

use crate::bell;
use crate::memory::Shared;
use crate::queue::error::{RingError, RingErrors};
use crate::queue::from_guest::FromGuest;
use crate::queue::to_guest::{Delivered, ToGuest};

/// Frames, and their bytes, that wait for a guest to post buffers.
const MAX_BACKLOG: usize = 1024;
const MAX_BACKLOG_BYTES: usize = 1 << 20;

/// Why a port that runs can go on no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A ring contradicts itself.
    Ring,
    /// The memory was cut short.
    Memory,
}

/// One ring's descriptors for waking each other.
#[derive(Clone, Debug)]
pub(crate) struct Notifiers {
    /// The guest has put something into the ring.
    pub(crate) kick: Arc<OwnedFd>,
    /// We have; a monitor that polls gives none.
    pub(crate) call: Option<Arc<OwnedFd>>,
}

/// A running pair of rings. A ring error that is only one frame's costs that frame; one that breaks a ring
/// turns the port off, and its session is told.
pub struct VhostPort {
    from_guest: FromGuest,
    to_guest: ToGuest,
    notifiers: [Notifiers; 2],
    offloads: Offloads,
    backlog: VecDeque<Box<[u8]>>,
    backlog_bytes: usize,
    errors: RingErrors,
    /// Errors that the next flush tells.
    untold: u32,
    failed: Option<Failure>,
    alarm: Arc<Alarm<Failure>>,
    // After the rings, whose memory it guards.
    memory: Shared,
}

impl VhostPort {
    pub(crate) fn new(
        (from_guest, to_guest): (FromGuest, ToGuest),
        notifiers: [Notifiers; 2],
        offloads: Offloads,
        memory: Shared,
        alarm: Arc<Alarm<Failure>>,
    ) -> Self {
        Self {
            from_guest,
            to_guest,
            notifiers,
            offloads,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            errors: RingErrors::default(),
            untold: 0,
            failed: None,
            alarm,
            memory,
        }
    }

    /// What becomes readable when the guest has done something; each may be readable from before.
    pub fn kicks(&self) -> [BorrowedFd<'_>; 2] {
        [self.notifiers[0].kick.as_fd(), self.notifiers[1].kick.as_fd()]
    }

    /// The same, to be kept by who ends the watch.
    pub(crate) fn kick_owners(&self) -> [Arc<OwnedFd>; 2] {
        [Arc::clone(&self.notifiers[0].kick), Arc::clone(&self.notifiers[1].kick)]
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

    /// Gives the guest what waits, as far as it goes.
    fn drain(&mut self) {
        while let Some(frame) = self.backlog.front() {
            match self.to_guest.transmit(frame) {
                Ok(Delivered::Full) => return,
                Ok(Delivered::Sent) => {}
                Err(error) => self.note_untold(error),
            }
            if self.failed.is_some() {
                return;
            }
            self.backlog_bytes -= self.backlog.pop_front().map_or(0, |frame| frame.len());
        }
    }

    fn put_by(&mut self, frame: &[u8]) -> Transmit {
        let fits = self.backlog_bytes + frame.len() <= MAX_BACKLOG_BYTES;
        if !fits || self.backlog.len() >= MAX_BACKLOG {
            return Transmit::Full;
        }
        self.backlog_bytes += frame.len();
        self.backlog.push_back(frame.into());
        Transmit::Sent
    }
}

impl Port for VhostPort {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        if !self.backlog.is_empty() {
            // The guest may have kicked because it posted buffers.
            self.drain();
        }
        if self.failed.is_some() {
            return Receive::Empty;
        }
        match self.from_guest.receive(buffer) {
            Ok(Some(len)) => Receive::Frame(len),
            Ok(None) => Receive::Empty,
            Err(error) => {
                self.note(error);
                Receive::Dropped(DropReason::RingError)
            }
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        if self.failed.is_some() {
            return Transmit::Full;
        }
        if !self.backlog.is_empty() {
            self.drain();
            if !self.backlog.is_empty() {
                return self.put_by(frame);
            }
        }
        match self.to_guest.transmit(frame) {
            Ok(Delivered::Sent) => Transmit::Sent,
            Ok(Delivered::Full) => self.put_by(frame),
            Err(error) => {
                self.note(error);
                Transmit::Malformed
            }
        }
    }

    fn has_room(&mut self) -> bool {
        if !self.backlog.is_empty() {
            self.drain();
        }
        self.failed.is_none() && self.backlog.is_empty()
    }

    fn flush(&mut self, counters: &mut Counters) {
        if self.failed.is_some() {
            return self.tell(counters);
        }
        let wanted = [self.to_guest.flush(), self.from_guest.flush()];
        for (wanted, at) in wanted.into_iter().zip(0..) {
            match wanted {
                Ok(true) => {
                    if let Some(call) = &self.notifiers[at].call
                        && bell::ring(call.as_fd()).is_err()
                    {
                        self.note_untold(RingError::Call);
                    }
                }
                Ok(false) => {}
                Err(error) => self.note_untold(error),
            }
        }
        if self.memory.was_cut() {
            self.fail(Failure::Memory);
        }
        self.tell(counters);
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        self.kicks().into_iter().try_for_each(|kick| watch.begin_or_go_on(kick))
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        self.kicks().into_iter().for_each(|kick| watch.end(kick));
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}
