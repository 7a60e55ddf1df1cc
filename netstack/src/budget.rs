//! Rates that are bounded: a token bucket.

use crate::time::Instant;

/// Allows `rate` things a second, sustained, and `burst` at once.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: u32,
    burst: u32,
    /// Millionths of a token.
    level: u64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: u32, burst: u32) -> Self {
        let level = u64::from(burst) * 1_000_000;
        Self { rate, burst, level, filled: Instant::START }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.micros().saturating_sub(self.filled.micros());
        self.filled = self.filled.max(now);
        let full = u64::from(self.burst) * 1_000_000;
        self.level =
            self.level.saturating_add(elapsed.saturating_mul(u64::from(self.rate))).min(full);
        match self.level.checked_sub(1_000_000) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let taken = |bucket: &mut TokenBucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, Instant::from_micros(0)), 3);
        assert_eq!(taken(&mut bucket, Instant::from_micros(200_000)), 2);
        assert_eq!(taken(&mut bucket, Instant::from_micros(60_000_000)), 3);
    }
}
