//! Datagrams of one sender and size that a socket of the host has brought, one after another in a buffer.

use crate::host::Arrival;
use crate::wire::udp::MAX_PAYLOAD;

/// Datagrams at the beginning of a buffer; all but the last have one size. Together they are no longer than
/// the longest may be, since they may go to the guest as one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Train {
    len: usize,
    size: usize,
    /// There is one, which may have no bytes.
    begun: bool,
}

impl Train {
    /// Where the next is received; at least 65,535 bytes of a buffer that has twice as many.
    pub(super) fn room<'a>(&self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        &mut buffer[self.len..]
    }

    /// Adds what was received into the [room](Train::room); false when the train must go first.
    pub(super) fn add(&mut self, arrival: &Arrival) -> bool {
        if !self.begun {
            *self = Self { len: arrival.len, size: arrival.segment_size, begun: true };
            return true;
        }
        let last_was_whole = self.size > 0 && self.len.is_multiple_of(self.size);
        let is_alike = arrival.segment_size == self.size
            || arrival.len == arrival.segment_size && arrival.len < self.size;
        let fits =
            last_was_whole && is_alike && arrival.len > 0 && self.len + arrival.len <= MAX_PAYLOAD;
        if fits {
            self.len += arrival.len;
        }
        fits
    }

    /// Begins anew with what did not fit.
    pub(super) fn restart(&mut self, buffer: &mut [u8], arrival: &Arrival) {
        buffer.copy_within(self.len..self.len + arrival.len, 0);
        *self = Self::default();
        self.add(arrival);
    }

    /// The datagrams and the size of each but the last, if there are any.
    pub(super) fn datagrams<'a>(&self, buffer: &'a [u8]) -> Option<(&'a [u8], usize)> {
        self.begun.then(|| (&buffer[..self.len], self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(len: usize, segment_size: usize) -> Arrival {
        Arrival { len, segment_size, peer: None }
    }

    #[test]
    fn datagrams_of_one_size_join_and_a_short_one_is_the_last() {
        let mut train = Train::default();
        assert!(train.add(&arrival(300, 100)));
        assert!(train.add(&arrival(100, 100)));
        assert!(!train.add(&arrival(200, 200)), "larger ones");
        assert!(!train.add(&arrival(0, 0)), "an empty one");
        assert!(!train.add(&arrival(150, 80)), "several of another size");
        assert!(train.add(&arrival(40, 40)));
        assert!(!train.add(&arrival(100, 100)), "after a short one");
        assert_eq!(
            train.datagrams(&[0; 1000]).map(|(bytes, size)| (bytes.len(), size)),
            Some((440, 100))
        );
    }

    #[test]
    fn what_does_not_fit_begins_the_next() {
        let mut buffer = [0; 8];
        let mut train = Train::default();
        buffer[..3].copy_from_slice(b"abc");
        assert!(train.add(&arrival(3, 3)));
        train.room(&mut buffer)[..4].copy_from_slice(b"wxyz");
        assert!(!train.add(&arrival(4, 4)));
        assert_eq!(train.datagrams(&buffer), Some((&b"abc"[..], 3)));
        train.restart(&mut buffer, &arrival(4, 4));
        assert_eq!(train.datagrams(&buffer), Some((&b"wxyz"[..], 4)));
    }

    #[test]
    fn a_train_is_never_longer_than_a_packet() {
        let mut train = Train::default();
        let joined = (0..100).take_while(|_| train.add(&arrival(1472, 1472))).count();
        assert_eq!(joined, 44);
    }
}
