//! Frames on their way from one worker to another.
//!
//! For each ordered pair of workers there is one queue. Its sender packs the frames of a batch into a parcel and hands
//! that over whole; the receiver delivers out of the parcel and gives it back, so parcels go round and nothing is
//! allocated while traffic is even. Neither side ever takes a lock or waits: a bounded channel of the standard library,
//! used only by its `try_` methods, is a ring of slots with a stamp each.
//!
//! What is under way is bounded in frames and in bytes, by the sender alone, who counts what it has sent and what
//! came back. A parcel also brings back which of its frames found nobody: they are counted where they came from.
//!
//! A worker that is about to wait says so at its [`Doorbell`]; who hands it something then rings, once.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::frame::vnet_header::VnetHeader;
use crate::ids::PortId;
use crate::switch::directory::Location;

/// Frames under way from one worker to another, at most.
pub const MAX_FRAMES: usize = 1024;
/// And their bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// A parcel that holds as many bytes is handed over before its batch ends.
const PARCEL_BYTES: usize = 128 << 10;
/// Empty parcels that a sender keeps.
const MAX_SPARE: usize = 8;

/// Where a worker is woken that waits.
#[derive(Debug)]
pub struct Doorbell {
    is_waiting: AtomicBool,
    /// An eventfd; none where who drives the worker looks by itself.
    wake: Option<Arc<OwnedFd>>,
}

impl Doorbell {
    /// A bell that makes `wake`, an eventfd, readable.
    pub fn new(wake: Option<Arc<OwnedFd>>) -> Self {
        Self { is_waiting: AtomicBool::new(false), wake }
    }

    /// The worker is about to wait. It has to look once more whether something came, and then may.
    pub fn begin_waiting(&self) {
        self.is_waiting.store(true, Ordering::Relaxed);
        // Between this and the look: either the look finds a parcel, or its sender finds the worker waiting.
        fence(Ordering::SeqCst);
    }

    /// The worker waits no longer.
    pub fn end_waiting(&self) {
        self.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Whether the worker waits and nobody has rung since.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// Something was handed to the worker.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.is_waiting.load(Ordering::Relaxed)
            && self.is_waiting.swap(false, Ordering::Relaxed)
            && let Some(wake) = &self.wake
        {
            // A counter that is full wakes as well.
            let _ = rustix::io::write(&**wake, &1u64.to_ne_bytes());
        }
    }
}

/// A port in a slot of the worker that speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) slot: u16,
    pub(super) port: PortId,
}

/// What of a frame is not in its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heading {
    from: Origin,
    pub(super) to: Location,
    pub(super) vnet: VnetHeader,
    len: usize,
    /// Whether the receiver had nobody to give it to.
    is_lost: bool,
}

/// What became of a frame at its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The port took it, or has counted why not.
    Delivered,
    /// The port is not there, or not that one.
    Lost,
}

/// Frames that are handed over together, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    headings: Vec<Heading>,
    bytes: Vec<u8>,
}

impl Parcel {
    /// Shows each frame to `deliver`, and remembers which found nobody.
    pub(super) fn open(&mut self, mut deliver: impl FnMut(&Heading, &mut [u8]) -> Arrival) {
        let mut rest = self.bytes.as_mut_slice();
        for heading in &mut self.headings {
            let (frame, others) = rest.split_at_mut(heading.len);
            heading.is_lost = deliver(heading, frame) == Arrival::Lost;
            rest = others;
        }
    }
}

/// The queue takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The sender's end of a queue.
struct Outbox {
    parcels: SyncSender<Box<Parcel>>,
    returned: Receiver<Box<Parcel>>,
    bell: Arc<Doorbell>,
    /// What is being filled.
    open: Box<Parcel>,
    #[expect(clippy::vec_box, reason = "parcels travel as boxes")]
    spare: Vec<Box<Parcel>>,
    /// Frames and bytes that have not come back, what is being filled included.
    frames: usize,
    bytes: usize,
    /// Where frames came from that found nobody.
    lost: Vec<Origin>,
}

impl Outbox {
    fn push(
        &mut self,
        from: Origin,
        to: Location,
        vnet: VnetHeader,
        frame: &[u8],
    ) -> Result<(), Full> {
        if !self.has_room(frame.len()) {
            self.take_back();
            if !self.has_room(frame.len()) {
                return Err(Full);
            }
        }
        let len = frame.len();
        self.open.headings.push(Heading { from, to, vnet, len, is_lost: false });
        self.open.bytes.extend_from_slice(frame);
        self.frames += 1;
        self.bytes += len;
        if self.open.bytes.len() >= PARCEL_BYTES {
            self.send();
        }
        Ok(())
    }

    fn has_room(&self, len: usize) -> bool {
        self.frames < MAX_FRAMES && self.bytes + len <= MAX_BYTES
    }

    /// Hands over what was packed.
    fn send(&mut self) {
        if self.open.headings.is_empty() {
            return;
        }
        self.take_back();
        let next = self.spare.pop().unwrap_or_default();
        let parcel = std::mem::replace(&mut self.open, next);
        // There is a place for each frame that may be under way. A worker that has ended gives nothing back, so its
        // queue is full from then on.
        let _ = self.parcels.try_send(parcel);
        self.bell.ring();
    }

    fn take_back(&mut self) {
        while let Ok(mut parcel) = self.returned.try_recv() {
            self.frames -= parcel.headings.len();
            self.bytes -= parcel.bytes.len();
            let lost = parcel.headings.iter().filter(|heading| heading.is_lost);
            self.lost.extend(lost.map(|heading| heading.from));
            parcel.headings.clear();
            parcel.bytes.clear();
            if self.spare.len() < MAX_SPARE && parcel.bytes.capacity() <= 2 * PARCEL_BYTES {
                self.spare.push(parcel);
            }
        }
    }
}

/// The receiver's end of a queue.
struct Inbox {
    parcels: Receiver<Box<Parcel>>,
    returned: SyncSender<Box<Parcel>>,
    /// What was looked at and not taken yet.
    next: Option<Box<Parcel>>,
}

impl Inbox {
    fn look(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.parcels.try_recv().ok();
        }
        self.next.is_some()
    }
}

/// What one worker has to the others: a queue to and from each.
pub struct Links {
    number: u16,
    /// By worker; there is none to itself.
    outboxes: Vec<Option<Outbox>>,
    inboxes: Vec<Option<Inbox>>,
    /// Whether a turn has ended before the queues were empty.
    has_more: bool,
}

impl Links {
    /// Those of a worker that is the only one.
    pub fn alone() -> Self {
        Self { number: 0, outboxes: Vec::new(), inboxes: Vec::new(), has_more: false }
    }

    /// Those of as many workers as there are bells, in order.
    pub fn between(bells: &[Arc<Doorbell>]) -> Vec<Self> {
        let numbers = 0..u16::try_from(bells.len()).expect("workers are few");
        let mut all: Vec<Self> = numbers.map(|number| Self { number, ..Self::alone() }).collect();
        for links in &mut all {
            links.outboxes.resize_with(bells.len(), || None);
            links.inboxes.resize_with(bells.len(), || None);
        }
        for from in 0..bells.len() {
            for to in (0..bells.len()).filter(|to| *to != from) {
                let (parcels, arriving) = sync_channel(MAX_FRAMES);
                let (returned, returning) = sync_channel(MAX_FRAMES);
                all[from].outboxes[to] = Some(Outbox {
                    parcels,
                    returned: returning,
                    bell: Arc::clone(&bells[to]),
                    open: Box::default(),
                    spare: Vec::new(),
                    frames: 0,
                    bytes: 0,
                    lost: Vec::new(),
                });
                all[to].inboxes[from] = Some(Inbox { parcels: arriving, returned, next: None });
            }
        }
        all
    }

    /// Which worker's they are.
    #[inline]
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.inboxes.len().max(1)
    }

    /// Whether the last turn has left something.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Packs a frame for another worker.
    pub(super) fn push(
        &mut self,
        from: Origin,
        to: Location,
        vnet: VnetHeader,
        frame: &[u8],
    ) -> Result<(), Full> {
        match self.outboxes.get_mut(usize::from(to.worker)) {
            Some(Some(outbox)) => outbox.push(from, to, vnet, frame),
            _ => Err(Full),
        }
    }

    /// Hands over all that was packed.
    pub(super) fn send(&mut self) {
        self.outboxes.iter_mut().flatten().for_each(Outbox::send);
    }

    /// Takes back what was delivered. Answers where frames came from that found nobody.
    pub(super) fn take_back(&mut self) -> impl Iterator<Item = Origin> {
        self.outboxes.iter_mut().flatten().flat_map(|outbox| {
            outbox.take_back();
            outbox.lost.drain(..)
        })
    }

    /// Whether something has come. To be asked after [`Doorbell::begin_waiting`].
    pub(super) fn look(&mut self) -> bool {
        self.has_more = self.inboxes.iter_mut().flatten().fold(false, |any, it| it.look() | any);
        self.has_more
    }

    /// The next parcel of a worker.
    pub(super) fn take(&mut self, worker: usize) -> Option<Box<Parcel>> {
        let inbox = self.inboxes.get_mut(worker)?.as_mut()?;
        inbox.look();
        inbox.next.take()
    }

    /// Gives a parcel back to who sent it.
    pub(super) fn give_back(&mut self, worker: usize, parcel: Box<Parcel>) {
        if let Some(Some(inbox)) = self.inboxes.get_mut(worker) {
            // As many places as on the way here. A worker that has ended wants nothing back.
            let _ = inbox.returned.try_send(parcel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Origin = Origin { slot: 0, port: PortId(1) };
    const TO: Location = Location { worker: 1, slot: 1, port: PortId(2) };

    fn pair() -> (Vec<Arc<Doorbell>>, Links, Links) {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(None))).collect();
        let mut all = Links::between(&bells).into_iter();
        let (first, second) = (all.next().unwrap(), all.next().unwrap());
        (bells, first, second)
    }

    fn push(links: &mut Links, frame: &[u8]) -> Result<(), Full> {
        links.push(FROM, TO, VnetHeader::default(), frame)
    }

    /// Takes everything; answers the frames.
    fn drain(links: &mut Links) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(mut parcel) = links.take(0) {
            parcel.open(|_, frame| {
                frames.push(frame.to_vec());
                Arrival::Delivered
            });
            links.give_back(0, parcel);
        }
        frames
    }

    #[test]
    fn frames_arrive_whole_and_in_order_a_batch_at_a_time() {
        let (_, mut sender, mut receiver) = pair();
        for batch in 0..10u8 {
            let frames: Vec<_> = (0..20).map(|at| vec![batch; 60 + 70 * at]).collect();
            frames.iter().for_each(|frame| push(&mut sender, frame).unwrap());
            assert!(drain(&mut receiver).is_empty(), "nothing was handed over yet");
            sender.send();
            assert_eq!(drain(&mut receiver), frames);
        }
        assert!(sender.outboxes[1].as_ref().unwrap().spare.len() <= 1, "parcels go round");
    }

    #[test]
    fn what_is_under_way_is_bounded_in_frames_and_in_bytes() {
        let (_, mut sender, mut receiver) = pair();
        for (len, room) in [(60, MAX_FRAMES), (65_536, MAX_BYTES / 65_536)] {
            let taken = (0..).take_while(|_| push(&mut sender, &vec![7; len]).is_ok()).count();
            assert_eq!(taken, room);
            sender.send();
            assert_eq!(push(&mut sender, &[7; 60]), Err(Full));
            assert_eq!(drain(&mut receiver).len(), room);
            assert_eq!(push(&mut sender, &[7; 60]), Ok(()), "there is room once it was delivered");
            sender.send();
            assert_eq!(drain(&mut receiver).len(), 1);
        }
        sender.take_back().for_each(drop);
        let outbox = sender.outboxes[1].as_ref().unwrap();
        assert_eq!((outbox.frames, outbox.bytes), (0, 0));
        assert!(outbox.spare.len() <= MAX_SPARE);
    }

    #[test]
    fn a_frame_that_found_nobody_is_told_where_it_came_from() {
        let (_, mut sender, mut receiver) = pair();
        (0..3).for_each(|_| push(&mut sender, &[1; 60]).unwrap());
        sender.send();
        let mut parcel = receiver.take(0).unwrap();
        let mut count = 0;
        parcel.open(|_, _| {
            count += 1;
            if count == 2 { Arrival::Lost } else { Arrival::Delivered }
        });
        receiver.give_back(0, parcel);
        assert_eq!(sender.take_back().collect::<Vec<_>>(), [FROM]);
        assert_eq!(sender.take_back().count(), 0);
    }

    #[test]
    fn who_waits_is_rung_once_and_who_does_not_never() {
        let (bells, mut sender, mut receiver) = pair();
        push(&mut sender, &[1; 60]).unwrap();
        sender.send();
        assert!(!bells[1].is_waiting());
        drain(&mut receiver);
        bells[1].begin_waiting();
        assert!(!receiver.look());
        push(&mut sender, &[1; 60]).unwrap();
        assert!(bells[1].is_waiting(), "not for each frame");
        sender.send();
        assert!(!bells[1].is_waiting(), "for the batch");
        assert!(receiver.look());
    }

    #[test]
    fn a_worker_that_has_ended_holds_nobody_up() {
        let (_, mut sender, receiver) = pair();
        drop(receiver);
        for _ in 0..3 * MAX_FRAMES {
            let _ = push(&mut sender, &[1; 60]);
            sender.send();
        }
        assert_eq!(push(&mut sender, &[1; 60]), Err(Full));
    }
}
