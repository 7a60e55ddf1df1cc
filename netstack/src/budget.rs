//! Rates that are bounded: a token bucket, and one for each network that clients come from.

use std::hash::BuildHasher;
use std::net::IpAddr;

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

/// Buckets of a [`SourceLimit`].
const SOURCES: usize = 256;

/// A rate for each network that clients come from: a /24 of IPv4, a /64 of IPv6. Networks whose hashes
/// are alike share a bucket, so it never grows; the hash is seeded, so that nobody can choose with whom.
#[derive(Debug)]
pub struct SourceLimit {
    buckets: Vec<TokenBucket>,
    fresh: TokenBucket,
    hasher: std::hash::RandomState,
}

impl SourceLimit {
    /// Allows each network `rate` things a second, sustained, and `burst` at once.
    pub fn new(rate: u32, burst: u32) -> Self {
        let fresh = TokenBucket::new(rate, burst);
        Self { buckets: Vec::new(), fresh, hasher: std::hash::RandomState::default() }
    }

    /// Takes one of what the network of `source` may have; false when there is none.
    pub fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        if self.buckets.is_empty() {
            self.buckets = vec![self.fresh; SOURCES];
        }
        let prefix = match source {
            IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        let bucket = self.hasher.hash_one(prefix) % SOURCES as u64;
        let bucket = usize::try_from(bucket).expect("there are 256");
        self.buckets[bucket].take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_a_rate_of_its_own() {
        let mut limit = SourceLimit::new(10, 3);
        let taken = |limit: &mut SourceLimit, network: u8| {
            let hosts = (0..100).map(|host| IpAddr::from([192, 0, network, host]));
            hosts.filter(|host| limit.take(Instant::from_micros(1), *host)).count()
        };
        assert_eq!(taken(&mut limit, 0), 3);
        assert_eq!(taken(&mut limit, 0), 0);
        // Some share a bucket, most do not.
        let all: usize = (1..=100).map(|network| taken(&mut limit, network)).sum();
        assert!((150..=300).contains(&all), "{all}");
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let taken = |bucket: &mut TokenBucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, Instant::from_micros(0)), 3);
        assert_eq!(taken(&mut bucket, Instant::from_micros(200_000)), 2);
        assert_eq!(taken(&mut bucket, Instant::from_micros(60_000_000)), 3);
    }
}
