//! When a worker that waits has to be woken although nothing happens.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Result;

use crate::time::Instant;
use crate::timer::Timer;

/// A timer that stays set from one wait to the next. A time-out of `epoll_wait` would be set at its begin and taken
/// back at its end, which costs a virtual machine an exit each, twice for every short question and its answer.
#[derive(Debug)]
pub(super) struct WakeUp {
    timer: Timer,
    /// When it will expire, or has, which is not known yet.
    set_to: Option<Instant>,
}

impl WakeUp {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { timer: Timer::new()?, set_to: None })
    }

    /// Wakes the worker at `at` at the latest. It may be woken before, for a time that has been put off since.
    pub(super) fn not_after(&mut self, at: Instant, now: Instant) -> Result<()> {
        if self.set_to.is_none_or(|set_to| at < set_to) {
            self.timer.set(at.since(now))?;
            self.set_to = Some(at);
        }
        Ok(())
    }

    /// The worker has been woken by it.
    pub(super) fn handle_expired(&mut self) {
        self.set_to = None;
    }
}

impl AsFd for WakeUp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn wake_up() -> (WakeUp, Instant) {
        (WakeUp::new().expect("a timer"), Instant::from_micros(5_000_000))
    }

    #[test]
    fn a_later_time_leaves_the_timer_as_it_is_and_a_sooner_one_sets_it() {
        let (mut wake_up, now) = wake_up();
        wake_up.not_after(now + HOUR, now).unwrap();
        wake_up.not_after(now + 2 * HOUR, now).unwrap();
        assert_eq!(wake_up.set_to, Some(now + HOUR));
        wake_up.not_after(now, now).unwrap();
        assert_eq!(wake_up.set_to, Some(now));
        while wake_up.timer.is_running() {
            std::hint::spin_loop();
        }
        assert!(wake_up.timer.take_expired(), "at once");
    }

    #[test]
    fn what_has_expired_is_set_anew_once_that_is_known() {
        let (mut wake_up, now) = wake_up();
        wake_up.not_after(now, now).unwrap();
        wake_up.handle_expired();
        wake_up.not_after(now + HOUR, now).unwrap();
        assert!(wake_up.timer.is_running());
        assert_eq!(wake_up.set_to, Some(now + HOUR));
    }
}
