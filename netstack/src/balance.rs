//! When a port goes to another worker: the work is not even, and would be more so afterwards.
//!
//! Each worker tells once a second how busy it was and what its ports have carried. One that was busy for most of that
//! second gives its busiest port to the least busy one, if that has much less to do. A port that makes nearly all of a
//! worker's work stays: it would only take its trouble along. After each move it is waited until its effect shows.

use crate::ids::PortId;

/// Of a thousand: from here on a worker has too much to do.
const BUSY: u16 = 700;
/// And so much less must another have.
const LESS: u16 = 400;
/// Reports of busy workers that are passed over after a move.
const REST: u8 = 3;

/// What a worker has done in its last second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How much of it was work, of a thousand.
    pub busy: u16,
    /// Frames that each port has taken and given.
    pub frames: Vec<(PortId, u64)>,
}

/// What was told last, by worker.
#[derive(Clone, Debug)]
pub struct Balance {
    busy: Vec<u16>,
    rest: u8,
}

impl Balance {
    /// Of so many workers, which have nothing to do.
    pub fn new(workers: usize) -> Self {
        Self { busy: vec![0; workers], rest: 0 }
    }

    /// A worker tells. Answers which of its ports should go, and to which worker.
    pub fn handle_load(&mut self, worker: u16, load: &Load) -> Option<(PortId, u16)> {
        *self.busy.get_mut(usize::from(worker))? = load.busy;
        if load.busy < BUSY {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        let others = self.busy.iter().zip(0u16..).filter(|(_, other)| *other != worker);
        let (least, to) = others.min()?;
        if least + LESS > load.busy {
            return None;
        }
        let (port, frames) = load.frames.iter().max_by_key(|(_, frames)| *frames)?;
        let all: u64 = load.frames.iter().map(|(_, frames)| frames).sum();
        if *frames == 0 || *frames > all / 4 * 3 {
            return None;
        }
        self.rest = REST;
        Some((*port, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: u16, frames: &[u64]) -> Load {
        let frames = (1..).map(PortId).zip(frames.iter().copied()).collect();
        Load { busy, frames }
    }

    #[test]
    fn the_busiest_port_of_a_busy_worker_goes_to_the_least_busy_one() {
        let mut balance = Balance::new(3);
        assert_eq!(balance.handle_load(0, &load(500, &[5])), None);
        assert_eq!(balance.handle_load(1, &load(100, &[5])), None);
        assert_eq!(balance.handle_load(2, &load(950, &[40, 60, 1])), Some((PortId(2), 1)));
    }

    #[test]
    fn nothing_moves_while_a_worker_keeps_up_or_all_are_as_busy() {
        let mut balance = Balance::new(2);
        assert_eq!(balance.handle_load(0, &load(699, &[50, 50])), None);
        assert_eq!(balance.handle_load(1, &load(650, &[50, 50])), None);
        assert_eq!(balance.handle_load(0, &load(1000, &[50, 50])), None);
        assert_eq!(Balance::new(1).handle_load(0, &load(1000, &[50, 50])), None);
    }

    #[test]
    fn a_port_that_makes_nearly_all_of_the_work_stays_where_it_is() {
        let mut balance = Balance::new(2);
        assert_eq!(balance.handle_load(0, &load(1000, &[100])), None);
        assert_eq!(balance.handle_load(0, &load(1000, &[80, 20])), None);
        assert_eq!(balance.handle_load(0, &load(1000, &[])), None);
        assert_eq!(balance.handle_load(0, &load(1000, &[0, 0])), None);
    }

    #[test]
    fn after_a_move_its_effect_is_waited_for() {
        let mut balance = Balance::new(2);
        let told = load(1000, &[50, 50]);
        assert!(balance.handle_load(0, &told).is_some());
        for _ in 0..REST {
            assert_eq!(balance.handle_load(0, &told), None);
        }
        assert!(balance.handle_load(0, &told).is_some());
    }
}
