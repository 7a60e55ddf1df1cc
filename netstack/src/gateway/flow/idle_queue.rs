//! Which flow was idle longest, without touching the queue on every packet; as well, which one ends first, where
//! the times are those of the end.
//!
//! Each flow stands in the queue once, with the time it was active when it was queued. Whoever takes the
//! first compares that with when the flow was last active, and puts it back at its true place if it has
//! been active since. So the first whose time is true was idle longest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Instant;

/// Flows by the time they were last known to be active.
#[derive(Debug, Default)]
pub struct IdleQueue {
    places: BinaryHeap<Reverse<(Instant, usize)>>,
    looked_at: u64,
}

impl IdleQueue {
    /// Queues a flow that is active now.
    pub fn push(&mut self, now: Instant, index: usize) {
        self.places.push(Reverse((now, index)));
    }

    /// Begins anew with these flows.
    pub fn refill(&mut self, flows: impl Iterator<Item = (Instant, usize)>) {
        self.places = flows.map(Reverse).collect();
    }

    /// Places that were looked at so far.
    pub fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// Places in the queue, those of flows that are gone included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no place.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Takes the flow that was idle longest. `last_active` answers `None` for flows that are gone.
    pub fn pop_oldest(
        &mut self,
        last_active: impl FnMut(usize) -> Option<Instant>,
    ) -> Option<usize> {
        self.pop_until(None, last_active)
    }

    /// Takes a flow whose time has come, if there is one, where the times are those of the end.
    pub fn pop_expired(
        &mut self,
        now: Instant,
        end: impl FnMut(usize) -> Option<Instant>,
    ) -> Option<usize> {
        self.pop_until(Some(now), end)
    }

    /// When the time of the first may have come.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.places.peek().map(|Reverse((end, _))| *end)
    }

    fn pop_until(
        &mut self,
        latest: Option<Instant>,
        mut last_active: impl FnMut(usize) -> Option<Instant>,
    ) -> Option<usize> {
        loop {
            let Reverse((queued, index)) = *self.places.peek()?;
            if latest.is_some_and(|latest| queued > latest) {
                return None;
            }
            self.places.pop();
            self.looked_at += 1;
            match last_active(index) {
                None => {}
                Some(active) if active > queued => self.places.push(Reverse((active, index))),
                Some(_) => return Some(index),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn the_flow_that_was_idle_longest_goes_first() {
        let mut queue = IdleQueue::default();
        let active = [at(9), at(2), at(3)];
        for index in 0..3 {
            queue.push(at(index), usize::try_from(index).unwrap());
        }
        let mut order = Vec::new();
        while let Some(index) = queue.pop_oldest(|index| active.get(index).copied()) {
            order.push(index);
        }
        assert_eq!(order, [1, 2, 0]);
    }

    #[test]
    fn only_flows_that_were_idle_for_their_lifetime_expire() {
        let mut queue = IdleQueue::default();
        // Both were active at 0 and live for 10; the first was active again at 5.
        queue.push(at(10), 0);
        queue.push(at(10), 1);
        let end = |index| Some(at(if index == 0 { 15 } else { 10 }));
        assert_eq!(queue.pop_expired(at(9), end), None);
        assert_eq!(queue.pop_expired(at(10), end), Some(1));
        assert_eq!(queue.pop_expired(at(10), end), None);
        assert_eq!(queue.pop_expired(at(15), end), Some(0));
    }
}
