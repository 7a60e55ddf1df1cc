//! A link that loses, repeats and swaps frames, by its seed.

use std::collections::VecDeque;

use super::chance::Chance;

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
