//! Which flow was idle longest, without touching the queue on every packet.
//!
//! Each flow stands in the queue once, with the time it was queued. Whoever takes from the front compares
//! that with when the flow was last active and puts it back if it has been active since.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Instant;

/// Flows by age of their place in the queue.
#[derive(Debug, Default)]
pub struct IdleQueue {
    queue: VecDeque<(Instant, usize)>,
}

impl IdleQueue {
    /// Queues a new flow.
    pub fn push(&mut self, now: Instant, index: usize) {
        self.queue.push_back((now, index));
    }

    /// Takes the flow that was idle longest. `last_active` answers `None` for flows that are gone.
    pub fn pop_oldest(
        &mut self,
        mut last_active: impl FnMut(usize) -> Option<Instant>,
    ) -> Option<usize> {
        // Each round either ends or moves one stale place to the back, at most once each.
        for _ in 0..self.queue.len() {
            let (queued, index) = self.queue.pop_front()?;
            match last_active(index) {
                None => {}
                Some(active) if active > queued => self.queue.push_back((active, index)),
                Some(_) => return Some(index),
            }
        }
        self.queue.pop_front().map(|(_, index)| index)
    }

    /// Takes a flow that was idle for its whole `lifetime`, which `state` answers with its last activity.
    pub fn pop_expired(
        &mut self,
        now: Instant,
        shortest: Duration,
        mut state: impl FnMut(usize) -> Option<(Instant, Duration)>,
    ) -> Option<usize> {
        for _ in 0..self.queue.len() {
            let &(queued, index) = self.queue.front()?;
            if queued + shortest > now {
                return None;
            }
            self.queue.pop_front();
            match state(index) {
                None => {}
                Some((active, lifetime)) if active + lifetime <= now => return Some(index),
                Some(_) => self.queue.push_back((now, index)),
            }
        }
        None
    }

    /// When the front may have expired.
    pub fn poll_timeout(&self, shortest: Duration) -> Option<Instant> {
        self.queue.front().map(|(queued, _)| *queued + shortest)
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
        queue.push(at(0), 0);
        queue.push(at(0), 1);
        let state = |index| Some((at(if index == 0 { 5 } else { 0 }), Duration::from_secs(10)));
        let shortest = Duration::from_secs(10);
        assert_eq!(queue.pop_expired(at(9), shortest, state), None);
        assert_eq!(queue.pop_expired(at(10), shortest, state), Some(1));
        assert_eq!(queue.pop_expired(at(10), shortest, state), None);
        assert_eq!(queue.pop_expired(at(20), shortest, state), Some(0));
    }
}
