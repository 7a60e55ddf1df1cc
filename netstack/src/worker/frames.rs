//! Frames that come from a port or another worker, on their way to where they go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::crossing::{Arrival, Heading, Links, Origin};
use super::slot::{self, Crossing, Slot};
use super::{DEFECT, MAX_PARCELS, Worker};
use crate::counters::DropReason;
use crate::gateway::names::NameService;
use crate::host::{Host, Token, TokenKind};
use crate::port::{Front, Passed, Port, Receive};
use crate::switch::fast_lane::{FastLane, Passage};
use crate::time::Instant;

/// Frames taken from one port in one turn.
const MAX_BATCH: usize = 64;
/// Bytes taken from one port in one turn.
const MAX_BATCH_BYTES: usize = 512 << 10;

/// How a batch of frames ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Nothing waits any more.
    All,
    /// The turn was over first.
    More,
    /// There may be more, but what came is to go on first.
    Question,
    /// No frame will ever come again.
    Gone,
}

impl<P: Port, H: Host, N: NameService> Worker<P, H, N> {
    /// Takes frames from a slot's port, and serves the flows that they touched.
    pub fn handle_frames(&mut self, now: Instant, slot: u16) {
        let token = Token { port: slot, kind: TokenKind::Frames, index: 0 };
        if self.again.contains(&token) {
            // Its turn comes, and one is enough.
            return;
        }
        let mut taken = Taken::More;
        self.contained(slot, |worker| taken = worker.take_turn(now, slot));
        match taken {
            Taken::Gone => self.lose_slot(slot, "its frames come from nowhere any more"),
            Taken::More => self.again.push(token),
            Taken::All | Taken::Question => {}
        }
        self.run_names(now);
        self.flush();
    }

    /// Takes a turn's frames, and serves the flows that they touched. A guest that asks and waits sends one frame at a
    /// time: where it was so last time, its question goes on before another frame is looked for.
    fn take_turn(&mut self, now: Instant, slot: u16) -> Taken {
        let Some(Some(open)) = self.slots.get(usize::from(slot)) else { return Taken::All };
        let (before, pause) = (open.counters.frames_from_guest, open.asks_and_waits);
        let mut taken = self.take_frames(now, slot, pause);
        if taken == Taken::Question {
            self.end_batch(now, slot);
            taken = self.take_frames(now, slot, false);
        }
        if taken != Taken::Gone {
            self.end_batch(now, slot);
        }
        if let Some(Some(open)) = self.slots.get_mut(usize::from(slot)) {
            open.asks_and_waits = open.counters.frames_from_guest == before + 1;
        }
        taken
    }

    /// Takes and handles at most a batch, or up to the first for the gateway, to `pause` there. Who is where does not
    /// change meanwhile, so the network is looked up once.
    fn take_frames(&mut self, now: Instant, slot: u16, pause: bool) -> Taken {
        let Self {
            slots, directory, host, names, received, scratch, events, touched, links, ..
        } = self;
        let Some(Some(open)) = slots.get(usize::from(slot)) else { return Taken::All };
        let network = directory.network(open.spec.network);
        let mut lane = network.map(FastLane::new);
        let mut front = Front::EMPTY;
        let mut bytes = 0;
        for _ in 0..MAX_BATCH {
            if bytes >= MAX_BATCH_BYTES {
                break;
            }
            if let Some(lane) = &mut lane
                && let Some(to) = pass_in_place(slots, (slot, links.number()), lane, &mut front)
            {
                bytes += front.frame_len;
                touch(touched, to);
                continue;
            }
            let Some(Some(open)) = slots.get_mut(usize::from(slot)) else { return Taken::All };
            let len = match open.io.receive(received) {
                Receive::Frame(len) => len,
                Receive::Dropped(reason) => {
                    open.counters.drop(reason);
                    continue;
                }
                Receive::Empty => return Taken::All,
                Receive::Gone => return Taken::Gone,
            };
            bytes += len;
            let (Some(network), Some(lane)) = (network, &mut lane) else { continue };
            let frame = &mut received[..len];
            open.count(len);
            if let Some(event) = open.note_mac(frame) {
                events.push_back(event);
            }
            let short = lane.judge(&open.spec, frame, len);
            if let Some(passage) = short
                && passage.to.worker == links.number()
            {
                // Nothing of this is kept in memory on its way: it is most frames, and some forty nanoseconds.
                match slots.get_mut(usize::from(passage.to.slot)) {
                    Some(Some(receiver)) => {
                        receiver.deliver_whole(frame, passage.checksum);
                        touch(touched, passage.to.slot);
                    }
                    _ => count_drop(slots, slot, DropReason::UnknownUnicast),
                }
                continue;
            }
            let short = short.or_else(|| lane.judge6(&open.spec, open.own(), frame, len));
            let crossing = match short {
                Some(passage) => Some(passage.into()),
                None => {
                    let around =
                        slot::Surroundings { now, host, names, network, directory, scratch };
                    open.handle_frame(around, frame)
                }
            };
            if let Some(crossing) = crossing {
                pass_on(slots, links, touched, slot, (frame, &crossing));
            } else if pause {
                return Taken::Question;
            }
        }
        Taken::More
    }

    /// Takes what other workers have sent to ports of this one.
    pub fn handle_crossings(&mut self) {
        for worker in 0..self.links.workers() {
            for _ in 0..MAX_PARCELS {
                let Some(mut parcel) = self.links.take(worker) else { break };
                parcel.open(|heading, frame| self.deliver(heading, frame));
                self.links.give_back(worker, parcel);
            }
        }
        self.links.look();
        self.count_lost();
        self.flush();
    }

    /// Whether something has come from another worker. To be asked before waiting, after
    /// [`begin_waiting`](super::crossing::Doorbell::begin_waiting).
    pub fn has_crossings(&mut self) -> bool {
        self.links.look()
    }

    fn deliver(&mut self, heading: &Heading, frame: &mut [u8]) -> Arrival {
        let slot = heading.to.slot;
        let delivered = match self.slots.get_mut(usize::from(slot)) {
            Some(Some(open)) if open.spec.id == heading.to.port => {
                catch_unwind(AssertUnwindSafe(|| open.deliver(frame, &heading.vnet, None)))
            }
            _ => return Arrival::Lost,
        };
        match delivered {
            Ok(()) => self.touch(slot),
            Err(_) => self.lose_slot(slot, DEFECT),
        }
        Arrival::Delivered
    }

    /// Counts the frames that have found nobody at another worker, unless their own port has gone meanwhile too.
    pub(super) fn count_lost(&mut self) {
        for from in self.links.take_back() {
            if let Some(Some(open)) = self.slots.get_mut(usize::from(from.slot))
                && open.spec.id == from.port
            {
                open.counters.drop(DropReason::CrossingLost);
            }
        }
    }
}

/// Something is done for a slot's guest, which it is told of by the next flush.
#[inline(always)]
pub(super) fn touch(touched: &mut Vec<u16>, slot: u16) {
    if touched.last() != Some(&slot) {
        touched.push(slot);
    }
}

/// Has the next frame of a slot's port copied from guest to guest, where both have it in memory and it goes to a
/// neighbour of the same worker; answers to which slot. Otherwise nothing has happened.
#[inline(always)]
fn pass_in_place<P: Port, H: Host>(
    slots: &mut [Option<Slot<P, H>>],
    (slot, worker): (u16, u16),
    lane: &mut FastLane<'_>,
    front: &mut Front,
) -> Option<u16> {
    let open = slots.get_mut(usize::from(slot))?.as_mut()?;
    if !open.io.peek(front) {
        return None;
    }
    // Each family by itself: nothing of the way of IPv4 is kept in memory, where it would be waited for.
    match lane.judge(&open.spec, front.head(), front.frame_len) {
        Some(passage) => hand_over(slots, (slot, worker), passage, front),
        None => pass_in_place6(slots, (slot, worker), lane, front),
    }
}

#[inline(never)]
fn pass_in_place6<P: Port, H: Host>(
    slots: &mut [Option<Slot<P, H>>],
    (slot, worker): (u16, u16),
    lane: &mut FastLane<'_>,
    front: &Front,
) -> Option<u16> {
    let open = slots.get(usize::from(slot))?.as_ref()?;
    let passage = lane.judge6(&open.spec, open.own(), front.head(), front.frame_len)?;
    hand_over(slots, (slot, worker), passage, front)
}

#[inline(always)]
fn hand_over<P: Port, H: Host>(
    slots: &mut [Option<Slot<P, H>>],
    (slot, worker): (u16, u16),
    Passage { to, checksum }: Passage,
    front: &Front,
) -> Option<u16> {
    if to.worker != worker {
        return None;
    }
    // A neighbour is never the port itself.
    let both = slots.get_disjoint_mut([usize::from(slot), usize::from(to.slot)]);
    let Ok([Some(open), Some(receiver)]) = both else { return None };
    (open.pass(front, receiver, checksum) == Passed::Sent).then_some(to.slot)
}

/// Brings a frame of a slot's port to another port, here or at another worker.
// Never inlined: the short way of most frames is beside it.
#[inline(never)]
fn pass_on<P: Port, H: Host>(
    slots: &mut [Option<Slot<P, H>>],
    links: &mut Links,
    touched: &mut Vec<u16>,
    slot: u16,
    (frame, crossing): (&mut [u8], &Crossing),
) {
    let to = crossing.to.slot;
    if crossing.to.worker == links.number() {
        match slots.get_mut(usize::from(to)) {
            Some(Some(receiver)) => {
                receiver.deliver(frame, &crossing.vnet, crossing.headers.as_ref());
                touch(touched, to);
            }
            _ => count_drop(slots, slot, DropReason::UnknownUnicast),
        }
    } else if let Some(Some(open)) = slots.get(usize::from(slot)) {
        let from = Origin { slot, port: open.spec.id };
        if links.push(from, crossing.to, crossing.vnet, frame).is_err() {
            count_drop(slots, slot, DropReason::CrossingFull);
        }
    }
}

#[cold]
fn count_drop<P: Port, H: Host>(slots: &mut [Option<Slot<P, H>>], slot: u16, reason: DropReason) {
    if let Some(Some(open)) = slots.get_mut(usize::from(slot)) {
        open.counters.drop(reason);
    }
}
