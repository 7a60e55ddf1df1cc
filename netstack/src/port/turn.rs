//! Whose turn it is among the queues on which a guest sends.

/// The queue that frames are taken from now, and for how many more while others may wait.
#[derive(Debug)]
pub struct Turn {
    queue: usize,
    left: u32,
}

impl Turn {
    /// Frames in a row from one queue while others may wait. Few enough that all have their share of a worker's
    /// batch, and enough that looking into empty ones costs little.
    pub const FRAMES: u32 = 16;

    /// The first queue's.
    pub fn first() -> Self {
        Self { queue: 0, left: Self::FRAMES }
    }

    /// The queue, of `queues`, that the next frame is taken from.
    #[inline(always)]
    pub fn queue(&mut self, queues: usize) -> usize {
        if self.left == 0 {
            self.pass_on(queues);
        }
        self.queue
    }

    /// A frame was taken.
    #[inline(always)]
    pub fn count(&mut self) {
        self.left -= 1;
    }

    /// Nothing more waits there: the next one has its turn.
    #[inline]
    pub fn pass_on(&mut self, queues: usize) {
        let next = self.queue + 1;
        self.queue = if next < queues { next } else { 0 };
        self.left = Self::FRAMES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_its_frames_before_the_next_one() {
        let mut turn = Turn::first();
        for queue in [0, 1, 2, 0] {
            for _ in 0..Turn::FRAMES {
                assert_eq!(turn.queue(3), queue);
                turn.count();
            }
        }
    }

    #[test]
    fn an_empty_queue_gives_its_turn_away_and_the_next_one_has_a_whole_one() {
        let mut turn = Turn::first();
        assert_eq!(turn.queue(2), 0);
        turn.count();
        turn.pass_on(2);
        for _ in 0..Turn::FRAMES {
            assert_eq!(turn.queue(2), 1);
            turn.count();
        }
        assert_eq!(turn.queue(2), 0);
    }

    #[test]
    fn one_queue_has_every_turn() {
        let mut turn = Turn::first();
        for _ in 0..3 * Turn::FRAMES {
            assert_eq!(turn.queue(1), 0);
            turn.count();
        }
    }
}
