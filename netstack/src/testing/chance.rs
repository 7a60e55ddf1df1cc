//! What is by chance in a test, and the same each time.

/// A small generator (splitmix64): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// A generator with that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One whose seed `LICHEN_SEED` says, if anybody does. It is printed, so that a failure can be repeated.
    pub fn seeded() -> Self {
        let seed = std::env::var("LICHEN_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(0x1a9e);
        println!("LICHEN_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `percent` of 100 cases.
    pub fn is(&mut self, percent: u64) -> bool {
        self.next_u64() % 100 < percent
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_u64() % bound as u64).expect("below a usize")
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.next_u64().to_le_bytes()[0]
    }

    /// A message with up to eight bytes changed and the end cut off somewhere, rather late than early.
    pub fn mutate(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            bytes[at] = self.byte();
        }
        bytes.truncate(self.below(bytes.len() + 1).max(self.below(bytes.len() + 1)));
        bytes
    }
}
