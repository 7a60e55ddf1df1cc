//! A link with a delay, a rate and a queue, which may also be bad: one direction, as frames in and frames out.
//!
//! It knows no clock. The end-to-end lab drives it between two real namespaces, and the [`ImpairedLink`] in
//! it is the one of the simulated guests, so one seed chooses the same frames in both.

use std::collections::VecDeque;
use std::time::Duration;

use super::impair::{Fates, ImpairedLink, Impairment};
use crate::time::Instant;

/// How long a frame is held back that nobody comes to overtake.
const HELD: Duration = Duration::from_millis(100);

/// How a link treats its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// What goes wrong.
    pub impairment: Impairment,
    /// How long every frame is on its way.
    pub delay: Duration,
    /// Bytes a second; `None` is as many as come.
    pub rate: Option<u64>,
    /// Frames on their way at once. One more is lost, as at the tail of a queue.
    pub room: usize,
}

impl Default for Shaping {
    /// A good link without a delay.
    fn default() -> Self {
        Self { impairment: Impairment::default(), delay: Duration::ZERO, rate: None, room: 20_000 }
    }
}

/// What a link has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shaped {
    /// What chance did.
    pub fates: Fates,
    /// Frames for which there was no room.
    pub overflowed: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Shaper {
    shaping: Shaping,
    link: ImpairedLink,
    /// Frames on their way, with when they arrive, which never falls.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// When the last byte of what was sent so far has left.
    free: Instant,
    /// When what is held back goes on its way.
    release: Option<Instant>,
    overflowed: u64,
}

impl Shaper {
    /// A link of that kind with that seed.
    pub fn new(shaping: Shaping, seed: u64) -> Self {
        Self {
            shaping,
            link: ImpairedLink::new(shaping.impairment, seed),
            queue: VecDeque::new(),
            free: Instant::START,
            release: None,
            overflowed: 0,
        }
    }

    /// Takes a frame, which chance may meddle with.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let arriving = self.link.send(frame.to_vec());
        arriving.into_iter().for_each(|frame| self.enqueue(now, frame));
        self.release =
            if self.link.is_holding() { self.release.or(Some(now + HELD)) } else { None };
    }

    /// Takes a frame of the link's own upkeep, which is delayed like every other and left alone otherwise: it
    /// would make what a seed says depend on how long neighbours are remembered.
    pub fn handle_upkeep(&mut self, now: Instant, frame: &[u8]) {
        self.enqueue(now, frame.to_vec());
    }

    /// The next frame that has arrived.
    pub fn poll_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.release.is_some_and(|at| at <= now) {
            self.release = None;
            self.link.release().into_iter().for_each(|frame| self.enqueue(now, frame));
        }
        let (arrives, _) = self.queue.front()?;
        if *arrives > now { None } else { self.queue.pop_front().map(|(_, frame)| frame) }
    }

    /// When [`Shaper::poll_frame`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queue.front().map(|(arrives, _)| *arrives).into_iter().chain(self.release).min()
    }

    /// What it has done so far.
    pub fn shaped(&self) -> Shaped {
        Shaped { fates: self.link.fates(), overflowed: self.overflowed }
    }

    fn enqueue(&mut self, now: Instant, frame: Vec<u8>) {
        if self.queue.len() >= self.shaping.room {
            self.overflowed += 1;
            return;
        }
        if let Some(rate) = self.shaping.rate {
            let micros = (frame.len() as u64 * 1_000_000).div_ceil(rate.max(1));
            self.free = self.free.max(now) + Duration::from_micros(micros);
        } else {
            self.free = now;
        }
        self.queue.push_back((self.free + self.shaping.delay, frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    fn arrived(shaper: &mut Shaper, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| shaper.poll_frame(now)).map(|frame| frame[0]).collect()
    }

    #[test]
    fn a_frame_arrives_after_the_delay_and_not_before() {
        let shaping = Shaping { delay: Duration::from_millis(20), ..Shaping::default() };
        let mut shaper = Shaper::new(shaping, 1);
        shaper.handle_frame(at(0), &[1]);
        shaper.handle_upkeep(at(5), &[2]);
        assert_eq!(shaper.poll_timeout(), Some(at(20)));
        assert_eq!(arrived(&mut shaper, at(19)), []);
        assert_eq!(arrived(&mut shaper, at(20)), [1]);
        assert_eq!(arrived(&mut shaper, at(25)), [2]);
        assert_eq!(shaper.poll_timeout(), None);
    }

    #[test]
    fn frames_follow_each_other_at_the_rate_and_an_idle_link_saves_nothing_up() {
        let shaping = Shaping { rate: Some(100_000), ..Shaping::default() };
        let mut shaper = Shaper::new(shaping, 1);
        for number in 0..3 {
            shaper.handle_frame(at(1000), &[number; 1000]);
        }
        assert_eq!(arrived(&mut shaper, at(1009)), []);
        assert_eq!(arrived(&mut shaper, at(1010)), [0]);
        assert_eq!(arrived(&mut shaper, at(1030)), [1, 2]);
        shaper.handle_frame(at(5000), &[3; 1000]);
        assert_eq!(shaper.poll_timeout(), Some(at(5010)));
    }

    #[test]
    fn without_room_a_frame_is_lost_and_counted() {
        let shaping = Shaping { delay: Duration::from_millis(1), room: 2, ..Shaping::default() };
        let mut shaper = Shaper::new(shaping, 1);
        (0..5).for_each(|number| shaper.handle_frame(at(0), &[number]));
        assert_eq!(arrived(&mut shaper, at(1)), [0, 1]);
        assert_eq!(shaper.shaped().overflowed, 3);
    }

    #[test]
    fn chance_chooses_the_same_frames_as_on_the_links_of_simulated_guests() {
        let impairment = Impairment { loss: 10, duplicate: 10, reorder: 10 };
        let mut shaper = Shaper::new(Shaping { impairment, ..Shaping::default() }, 7);
        let mut link = ImpairedLink::new(impairment, 7);
        let mut expected = Vec::new();
        for number in 0..200 {
            shaper.handle_frame(at(0), &[number]);
            expected.extend(link.send(vec![number]).into_iter().map(|frame| frame[0]));
        }
        expected.extend(link.release().into_iter().map(|frame| frame[0]));
        let mut seen = arrived(&mut shaper, at(0));
        seen.extend(arrived(&mut shaper, at(0) + HELD));
        assert_eq!(seen, expected);
        let fates = shaper.shaped().fates;
        assert_eq!(fates, link.fates());
        assert!(fates.lost > 0 && fates.duplicated > 0 && fates.reordered > 0, "{fates:?}");
    }

    #[test]
    fn a_frame_that_nobody_overtakes_is_not_held_for_ever() {
        let impairment = Impairment { reorder: 100, ..Impairment::default() };
        let mut shaper = Shaper::new(Shaping { impairment, ..Shaping::default() }, 1);
        shaper.handle_frame(at(0), &[1]);
        assert_eq!(shaper.poll_timeout(), Some(at(0) + HELD));
        assert_eq!(arrived(&mut shaper, at(0) + HELD), [1]);
    }
}
