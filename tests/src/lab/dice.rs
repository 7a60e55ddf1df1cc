//! Randomness that can be had again.

use std::time::Duration;

/// Names the seed, for a run that is to be repeated.
const SEED: &str = "LICHEN_LAB_SEED";

/// Numbers of a seed that is printed.
pub(crate) struct Dice(u64);

impl Dice {
    /// Of the seed that the environment names, else of one that differs from run to run.
    pub(crate) fn new() -> Self {
        let named = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
        let own = u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15;
        let seed = named.unwrap_or(own);
        println!("   {SEED}={seed}");
        // xorshift64 stays at zero.
        Self(seed.max(1))
    }

    /// One of 0 to `count` - 1.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        // xorshift64, whose low bits are its weaker ones.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % count
    }

    /// A pause shorter than that.
    pub(crate) fn pause(&mut self, limit: Duration) -> Duration {
        let limit = u64::try_from(limit.as_micros()).expect("short pauses");
        Duration::from_micros(self.below(limit))
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let count = u64::try_from(from.len()).expect("few");
        from[usize::try_from(self.below(count)).expect("one of them")]
    }
}
