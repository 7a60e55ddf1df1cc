//! Numbers that an attacker must not guess: query ids and the case of names (0x20).

use std::hash::{DefaultHasher, Hasher};

/// A keyed counter: SipHash of a secret and a number that never repeats.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    seed: u64,
    count: u64,
}

impl Secrets {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.count += 1;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write_u64(self.count);
        hasher.finish()
    }

    pub(crate) fn next_u16(&mut self) -> u16 {
        u16::try_from(self.next_u64() & 0xffff).expect("sixteen bits")
    }

    /// Gives every letter of an encoded name a case of chance. Length bytes are below 64, so no letter.
    pub(crate) fn shuffle_case(&mut self, name: &mut [u8]) {
        let mut bits = 0;
        for (at, byte) in name.iter_mut().enumerate() {
            if at % 64 == 0 {
                bits = self.next_u64();
            }
            if byte.is_ascii_alphabetic() && bits >> (at % 64) & 1 == 1 {
                *byte ^= 0x20;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spread_over_all_sixteen_bits() {
        let mut secrets = Secrets::new(7);
        let ids: std::collections::BTreeSet<u16> = (0..1000).map(|_| secrets.next_u16()).collect();
        assert!(ids.len() > 980, "{} of 1000 ids differ", ids.len());
    }

    #[test]
    fn the_case_of_letters_changes_and_nothing_else() {
        let mut secrets = Secrets::new(1);
        let mut name = *b"\x07example\x03com\x00";
        let mut shapes = std::collections::BTreeSet::new();
        for _ in 0..100 {
            secrets.shuffle_case(&mut name);
            assert!(name.eq_ignore_ascii_case(b"\x07example\x03com\x00"));
            shapes.insert(name);
        }
        assert!(shapes.len() > 50);
    }
}
