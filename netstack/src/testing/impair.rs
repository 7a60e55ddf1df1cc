//! A link that loses, repeats and swaps frames, by its seed.

use std::collections::VecDeque;

/// A small generator (splitmix64): the same seed, the same link.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// A generator with that seed.
    pub fn new(seed: u64) -> Self {
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
}

/// How bad a link is, in percent of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Frames that vanish.
    pub loss: u64,
    /// Frames that arrive twice.
    pub duplicate: u64,
    /// Frames that are overtaken by those behind them.
    pub reorder: u64,
}

/// What has become of the frames of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Frames that came.
    pub frames: u64,
    /// Those that vanished.
    pub lost: u64,
    /// Those that went on twice.
    pub duplicated: u64,
    /// Those that were held back.
    pub reordered: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct ImpairedLink {
    impairment: Impairment,
    chance: Chance,
    held: VecDeque<Vec<u8>>,
    fates: Fates,
}

impl ImpairedLink {
    /// A link with that seed.
    pub fn new(impairment: Impairment, seed: u64) -> Self {
        let (chance, held) = (Chance::new(seed), VecDeque::new());
        Self { impairment, chance, held, fates: Fates::default() }
    }

    /// What has become of its frames so far.
    pub fn fates(&self) -> Fates {
        self.fates
    }

    /// Whether frames are held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Changes how bad the link is.
    pub fn set(&mut self, impairment: Impairment) {
        self.impairment = impairment;
    }

    /// Sends a frame; answers what arrives now.
    pub fn send(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        let mut arriving = Vec::new();
        self.fates.frames += 1;
        if self.chance.is(self.impairment.loss) {
            self.fates.lost += 1;
            return arriving;
        }
        if self.chance.is(self.impairment.reorder) {
            self.fates.reordered += 1;
            self.held.push_back(frame);
            return arriving;
        }
        if self.chance.is(self.impairment.duplicate) {
            self.fates.duplicated += 1;
            arriving.push(frame.clone());
        }
        arriving.push(frame);
        arriving.extend(self.held.drain(..));
        arriving
    }

    /// Lets go what was held back.
    pub fn release(&mut self) -> Vec<Vec<u8>> {
        self.held.drain(..).collect()
    }
}
