//! Looking for more work for a while, rather than to sleep at once: who sleeps has to be woken, which takes longer
//! than a short answer does.

use std::time::Duration;

use crate::time::Instant;

/// For how long a worker goes on looking after it has last found something.
#[derive(Clone, Copy, Debug)]
pub(super) struct BusyPoll {
    period: Duration,
    until: Instant,
}

impl BusyPoll {
    /// Nothing for a period of zero, which costs nothing.
    pub(super) fn new(period: Duration) -> Self {
        Self { period, until: Instant::START }
    }

    /// Whether it is ever done.
    pub(super) fn is_on(&self) -> bool {
        !self.period.is_zero()
    }

    /// The worker has found something to do.
    pub(super) fn note_work(&mut self, now: Instant) {
        self.until = now + self.period;
    }

    /// Whether to look again at once.
    pub(super) fn goes_on(&self, now: Instant) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_looks_on_for_its_period_after_each_work_and_no_longer() {
        let at = |micros| Instant::START + Duration::from_micros(micros);
        let mut poll = BusyPoll::new(Duration::from_micros(50));
        assert!(poll.is_on() && !poll.goes_on(at(0)), "nothing was done yet");
        poll.note_work(at(100));
        assert!(poll.goes_on(at(100)) && poll.goes_on(at(149)) && !poll.goes_on(at(150)));
        poll.note_work(at(140));
        assert!(poll.goes_on(at(189)) && !poll.goes_on(at(190)));
    }

    #[test]
    fn without_a_period_it_never_looks_on() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        poll.note_work(Instant::START);
        assert!(!poll.is_on() && !poll.goes_on(Instant::START));
    }
}
