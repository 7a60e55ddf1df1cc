//! Bytes for the guest that go past smoltcp: from the host's socket into a ring of ours, and from there to the port
//! in place, where smoltcp would copy them into a frame.
//!
//! That is for the middle of a long stream, as long as nothing is lost. It begins when smoltcp's own ring is empty,
//! and while bytes are in this one, none are in that. At the first sign of a loss, or of a guest that takes no more,
//! all that is not acknowledged [becomes smoltcp's](Direct::hand_over), which repeats, waits and probes. Only when our
//! end has been sent behind these bytes, smoltcp takes no more, and they are [repeated](Direct::rewind) from here.

use std::time::Duration;

use smoltcp::socket::tcp::Socket;

use crate::time::Instant;

/// Least that the host must give at once for the next to come here. It is the end of a stream, or a small answer,
/// that is less; smoltcp's ring has a page for it already.
const LEAST: usize = 32 << 10;
/// Bytes that go through smoltcp after a loss before this way is tried again.
const REST: usize = 4 << 20;
/// Duplicate acknowledgements that mean a loss (RFC 5681, 3.2).
const DUPLICATES: u8 = 3;
/// How long nothing may move: the least time-out of RFC 6298 is 1 s, which suits no link inside one machine.
const PATIENCE: Duration = Duration::from_millis(200);

/// The ring, and where its bytes stand.
pub(super) struct Direct {
    ring: &'static mut [u8],
    /// Where the first byte lies that the guest has not acknowledged.
    start: usize,
    /// Bytes from there on, sent or not.
    len: usize,
    /// How many of them were sent.
    sent: usize,
    /// How many bytes were acknowledged that smoltcp never saw: its numbers of our bytes are lower by that.
    past: u32,
    /// What the guest takes, from its last acknowledgement on.
    window: u32,
    duplicates: u8,
    /// Since when nothing has moved, while there are bytes.
    still_since: Option<Instant>,
    /// Whether the next bytes are to come here.
    wanted: bool,
    /// Whether the port takes frames in pieces.
    possible: bool,
    /// Bytes that are to go through smoltcp first.
    rest: usize,
    /// How long nothing may move.
    patience: Duration,
    end: OurEnd,
}

/// Whether our end comes behind the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OurEnd {
    /// More bytes may come.
    Open,
    /// It does.
    Wanted,
    /// smoltcp has been told of it.
    Told,
}

/// Where the next bytes for a guest go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Into this ring.
    Direct,
    /// Into smoltcp's.
    Smoltcp,
    /// Nowhere until smoltcp's is empty.
    Wait,
}

/// What an acknowledgement has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Fine,
    Loss,
}

/// An acknowledgement of the guest, in the guest's own numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledgement {
    /// How many bytes it acknowledges that were not before.
    pub(super) advance: u32,
    /// The window that it offers; `None` when it is an old one.
    pub(super) window: Option<u32>,
    /// Whether it says nothing but that.
    pub(super) is_bare: bool,
}

impl Direct {
    /// With that memory, which nobody has used yet.
    pub(super) fn new(ring: &'static mut [u8]) -> Self {
        Self {
            ring,
            start: 0,
            len: 0,
            sent: 0,
            past: 0,
            window: 0,
            duplicates: 0,
            still_since: None,
            wanted: false,
            possible: false,
            rest: 0,
            patience: PATIENCE,
            end: OurEnd::Open,
        }
    }

    /// Forgets everything, for another connection.
    pub(super) fn clear(self) -> Self {
        Self::new(self.ring)
    }

    /// Bytes that the guest has not acknowledged.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// By how much smoltcp's number of our next byte is lower than the guest's.
    pub(super) fn ahead(&self) -> u32 {
        // Our end is behind all of them, also while they are sent again.
        let before = if self.end == OurEnd::Told { self.len } else { self.sent };
        self.past.wrapping_add(u32::try_from(before).expect("a ring is smaller"))
    }

    /// Our end comes behind these bytes.
    pub(super) fn want_end(&mut self) {
        if self.end == OurEnd::Open {
            self.end = OurEnd::Wanted;
        }
    }

    /// Whether it is time to tell smoltcp of our end: all bytes before it were sent, or are its own.
    pub(super) fn take_end(&mut self) -> bool {
        let is_time = self.end == OurEnd::Wanted && self.sent == self.len;
        if is_time {
            self.end = OurEnd::Told;
        }
        is_time
    }

    /// Whether smoltcp has been told of our end, and takes no more bytes.
    pub(super) fn has_ended(&self) -> bool {
        self.end == OurEnd::Told
    }

    /// Turns an acknowledgement of the guest into one of what smoltcp has sent.
    pub(super) fn lower(&self, acknowledgement: u32) -> u32 {
        acknowledgement.wrapping_sub(self.past)
    }

    /// Whether frames can be sent in pieces from now on.
    pub(super) fn set_possible(&mut self, possible: bool) {
        self.possible = possible;
    }

    /// Where the next bytes go, when smoltcp's ring holds that many.
    pub(super) fn way(&self, in_smoltcp: usize) -> Way {
        if self.len > 0 {
            Way::Direct
        } else if !(self.wanted && self.possible) {
            Way::Smoltcp
        } else if in_smoltcp > 0 {
            Way::Wait
        } else {
            Way::Direct
        }
    }

    /// Notes how much the host has given for smoltcp's ring.
    pub(super) fn note(&mut self, len: usize) {
        if len > 0 {
            self.rest = self.rest.saturating_sub(len);
            self.wanted = len >= LEAST && self.rest == 0;
        }
    }

    /// Whether more fits.
    pub(super) fn has_room(&self) -> bool {
        self.len < self.ring.len()
    }

    /// Room for what comes next: as much as lies together.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.len == 0 {
            self.start = 0;
        }
        let end = self.start + self.len;
        if end < self.ring.len() {
            &mut self.ring[end..]
        } else {
            let end = end - self.ring.len();
            &mut self.ring[end..self.start]
        }
    }

    /// So much of the room was filled.
    pub(super) fn add(&mut self, len: usize) {
        if self.len == 0 && (1..LEAST).contains(&len) {
            self.wanted = false;
        }
        self.len += len;
    }

    /// The next bytes to send: where they begin, behind what is acknowledged, and how many. `most` fit into one
    /// frame, `mss` into one segment.
    pub(super) fn next(&self, most: usize, mss: usize) -> Option<(usize, usize)> {
        let waiting = self.len - self.sent;
        let window = (self.window as usize).saturating_sub(self.sent);
        let len = waiting.min(window).min(most);
        // Whole segments, and a smaller one only where it is the last, or nothing is under way that could bring more
        // room (RFC 1122, 4.2.3.4).
        let len = if len == waiting || len < mss { len } else { len - len % mss };
        let is_silly = len < mss && len < waiting && self.sent > 0;
        (len > 0 && !is_silly).then_some((self.sent, len))
    }

    /// Whether those are the last.
    pub(super) fn is_last(&self, (offset, len): (usize, usize)) -> bool {
        offset + len == self.len
    }

    /// Some of the bytes, as they lie.
    pub(super) fn parts(&self, (offset, len): (usize, usize)) -> [&[u8]; 2] {
        let begin = (self.start + offset) % self.ring.len();
        let first = len.min(self.ring.len() - begin);
        [&self.ring[begin..begin + first], &self.ring[..len - first]]
    }

    /// The next bytes were sent.
    pub(super) fn advance(&mut self, now: Instant, len: usize) {
        self.sent += len;
        self.still_since = Some(now);
    }

    /// Takes an acknowledgement.
    pub(super) fn handle(&mut self, now: Instant, heard: Acknowledgement) -> Sign {
        let before = self.window;
        self.window = heard.window.unwrap_or(before);
        if self.len == 0 {
            return Sign::Fine;
        }
        // Our end counts as one more; and what is sent again may have arrived the first time.
        let advance = (heard.advance as usize).min(self.len);
        if advance > 0 {
            self.start = (self.start + advance) % self.ring.len();
            self.len -= advance;
            self.sent = self.sent.saturating_sub(advance);
            self.past = self.past.wrapping_add(u32::try_from(advance).expect("a ring is smaller"));
            self.duplicates = 0;
            self.patience = PATIENCE;
            self.still_since = (self.len > 0).then_some(now);
        } else if heard.is_bare && heard.window == Some(before) && self.sent > 0 {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates >= DUPLICATES {
                return Sign::Loss;
            }
        }
        Sign::Fine
    }

    /// When [`Direct::is_stuck`] may answer yes, or at once when there is something to send.
    pub(super) fn poll_timeout(&self, now: Instant, mss: usize) -> Option<Instant> {
        if self.next(mss, mss).is_some() {
            return Some(now);
        }
        (self.len > 0).then(|| self.still_since.unwrap_or(now) + self.patience)
    }

    /// Whether nothing has moved for long.
    pub(super) fn is_stuck(&mut self, now: Instant) -> bool {
        self.len > 0 && *self.still_since.get_or_insert(now) + self.patience <= now
    }

    /// Has all bytes sent again, ever more patiently. They were within the window.
    pub(super) fn rewind(&mut self, now: Instant) {
        self.window = self.window.max(u32::try_from(self.len).expect("a ring is smaller"));
        (self.sent, self.duplicates) = (0, 0);
        self.patience *= 2;
        self.still_since = Some(now);
    }

    /// Gives all bytes to smoltcp, whose ring is empty and as large: what was sent is sent again.
    pub(super) fn hand_over(&mut self, socket: &mut Socket<'static>) {
        for part in self.parts((0, self.len)) {
            // It is open: it has not been told of our end.
            let taken = socket.send_slice(part);
            debug_assert_eq!(taken, Ok(part.len()));
        }
        (self.start, self.len, self.sent, self.duplicates) = (0, 0, 0, 0);
        self.still_since = None;
        self.rest = REST;
        self.wanted = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(len: usize) -> Direct {
        let mut direct = Direct::new(vec![0; len].leak());
        direct.window = u32::MAX;
        direct
    }

    fn fill(direct: &mut Direct, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = direct.room();
            let len = room.len().min(rest.len());
            room[..len].copy_from_slice(&rest[..len]);
            direct.add(len);
            rest = &rest[len..];
        }
    }

    fn acknowledges(advance: u32) -> Acknowledgement {
        Acknowledgement { advance, window: Some(u32::MAX), is_bare: true }
    }

    const NOW: Instant = Instant::START;

    #[test]
    fn bytes_come_out_as_they_went_in_across_the_ring_s_end() {
        let mut direct = direct(1000);
        let (mut sent, mut next) = (Vec::new(), 0_u8);
        for round in 0..50 {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().skip(next.into()).take(700).collect();
            next = next.wrapping_add((700 % 256) as u8);
            fill(&mut direct, &bytes);
            while let Some(range) = direct.next(300, 100) {
                sent.extend(direct.parts(range).concat());
                direct.advance(NOW, range.1);
            }
            assert_eq!(direct.len(), 700, "round {round}");
            direct.handle(NOW, acknowledges(700));
            assert!(direct.is_empty());
            assert_eq!(direct.ahead(), 700 * (round + 1));
        }
        assert!(sent.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8));
        assert_eq!(sent.len(), 35_000);
    }

    #[test]
    fn no_more_is_sent_than_the_window_takes_and_no_crumbs() {
        let mut direct = direct(1000);
        direct.window = 250;
        fill(&mut direct, &[7; 900]);
        assert_eq!(direct.next(500, 100), Some((0, 200)), "whole segments");
        direct.advance(NOW, 200);
        assert_eq!(direct.next(500, 100), None, "fifty bytes wait for an acknowledgement");
        direct.handle(NOW, Acknowledgement { window: Some(50), ..acknowledges(200) });
        assert_eq!(direct.next(500, 100), Some((0, 50)), "nothing is under way");
        direct.handle(NOW, Acknowledgement { window: Some(1000), ..acknowledges(0) });
        assert_eq!(direct.next(10_000, 100), Some((0, 700)), "all that waits");
    }

    #[test]
    fn three_duplicates_are_a_loss_and_a_window_update_is_none() {
        let mut direct = direct(1000);
        fill(&mut direct, &[7; 900]);
        direct.advance(NOW, 900);
        for window in [10, 20, 30, 40] {
            let update = Acknowledgement { window: Some(window), ..acknowledges(0) };
            assert_eq!(direct.handle(NOW, update), Sign::Fine);
        }
        let duplicate = Acknowledgement { window: Some(40), ..acknowledges(0) };
        assert_eq!(direct.handle(NOW, duplicate), Sign::Fine);
        let with_data = Acknowledgement { is_bare: false, ..duplicate };
        assert_eq!(direct.handle(NOW, with_data), Sign::Fine);
        assert_eq!(direct.handle(NOW, duplicate), Sign::Fine);
        assert_eq!(direct.handle(NOW, duplicate), Sign::Loss);
    }

    #[test]
    fn behind_our_end_bytes_are_sent_again_from_here() {
        let mut direct = direct(1000);
        fill(&mut direct, &[7; 900]);
        direct.want_end();
        assert!(!direct.take_end(), "nothing was sent yet");
        direct.advance(NOW, 900);
        assert!(direct.take_end() && direct.has_ended() && !direct.take_end());
        direct.handle(NOW, acknowledges(100));
        direct.rewind(NOW);
        assert_eq!(direct.ahead(), 900, "our end stays where it is");
        assert!(!direct.is_stuck(NOW + PATIENCE) && direct.is_stuck(NOW + 2 * PATIENCE));
        assert_eq!(direct.next(10_000, 100), Some((0, 800)));
        direct.handle(NOW, acknowledges(801));
        assert!(direct.is_empty());
        assert_eq!((direct.ahead(), direct.lower(901)), (900, 1), "our end was acknowledged too");
    }

    #[test]
    fn what_does_not_move_is_stuck_but_not_at_once() {
        let mut direct = direct(1000);
        assert!(!direct.is_stuck(NOW + 2 * PATIENCE), "it is empty");
        direct.window = 0;
        fill(&mut direct, &[7; 900]);
        assert!(!direct.is_stuck(NOW));
        assert!(!direct.is_stuck(NOW + PATIENCE / 2));
        assert!(direct.is_stuck(NOW + PATIENCE));
    }
}
