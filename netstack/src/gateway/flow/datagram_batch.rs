//! Datagrams of one flow that wait for the end of the batch, to leave in one system call.

use crate::wire::udp::MAX_PAYLOAD;

/// Datagrams that the kernel takes at once; together they may be as long as the longest.
const MAX_DATAGRAMS: usize = 64;

/// Datagrams of one flow and, but for the last, of one size.
#[derive(Debug, Default)]
pub(super) struct Batch {
    flow: usize,
    size: usize,
    count: usize,
    bytes: Vec<u8>,
}

impl Batch {
    /// Whose datagrams wait, if any do.
    pub(super) fn flow(&self) -> Option<usize> {
        (self.count > 0).then_some(self.flow)
    }

    /// Adds a datagram; false when what waits must go first.
    pub(super) fn add(&mut self, flow: usize, payload: &[u8]) -> bool {
        if self.count == 0 {
            (self.flow, self.size) = (flow, payload.len());
        } else {
            let last_was_short = self.bytes.len() < self.count * self.size;
            let fits = self.flow == flow
                && !last_was_short
                && !payload.is_empty()
                && payload.len() <= self.size
                && self.count < MAX_DATAGRAMS
                && self.bytes.len() + payload.len() <= MAX_PAYLOAD;
            if !fits {
                return false;
            }
        }
        self.count += 1;
        self.bytes.extend_from_slice(payload);
        true
    }

    /// What waits, and the size of each where it is more than one.
    pub(super) fn waiting(&self) -> (&[u8], Option<usize>) {
        (&self.bytes, (self.count > 1).then_some(self.size))
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_datagrams_of_one_flow_and_size_wait_together() {
        let mut batch = Batch::default();
        assert!(batch.add(1, &[0; 10]));
        assert!(batch.add(1, &[0; 10]));
        assert!(!batch.add(2, &[0; 10]), "another flow");
        assert!(!batch.add(1, &[0; 11]), "a larger one");
        assert!(!batch.add(1, &[]), "an empty one has no place in a row");
        assert!(batch.add(1, &[0; 3]), "the last may be shorter");
        assert!(!batch.add(1, &[0; 3]), "and then it was the last");
        batch.clear();
        assert!(batch.add(2, &[]));
        assert!(!batch.add(2, &[]));
    }

    #[test]
    fn no_more_waits_than_the_kernel_takes_at_once() {
        let mut batch = Batch::default();
        assert_eq!((0..100).filter(|_| batch.add(1, &[0; 8])).count(), 64);
        batch.clear();
        assert_eq!((0..100).filter(|_| batch.add(1, &[0; 1472])).count(), 44);
    }
}
