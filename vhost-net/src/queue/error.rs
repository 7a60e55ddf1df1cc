//! What a guest can do wrong with a ring, and how often it did.

/// A ring that contradicts itself or its memory. Each is the guest's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More descriptors than the ring or the table holds.
    #[error("a descriptor chain loops")]
    Loop,
    /// `next` beyond the ring or the table.
    #[error("a descriptor's next lies beyond its table")]
    Next,
    /// Bytes outside of guest memory.
    #[error("an address lies outside of guest memory")]
    Address,
    /// A buffer to be read where one to be written is due, or the reverse.
    #[error("a buffer has the wrong direction")]
    Direction,
    /// More heads than the ring holds: the queue's state is unknown from here on.
    #[error("the available index jumped by more than the ring holds")]
    AvailableIndex,
    /// A table nested, unasked for, empty, too long or of a broken size.
    #[error("an indirect table is malformed")]
    Indirect,
    /// A frame shorter than its header or longer than any frame, or a buffer too short for one.
    #[error("a chain's length fits no frame")]
    Length,
    /// The eventfd that wakes the guest cannot be signalled.
    #[error("the guest cannot be called")]
    Call,
    /// A head beyond the ring: the queue's state is unknown from here on.
    #[error("the ring's head names no descriptor")]
    Head,
}

impl RingError {
    /// Whether the queue must stop until it is set up anew; else only this frame is lost.
    pub fn stops_queue(self) -> bool {
        matches!(self, Self::AvailableIndex | Self::Head)
    }
}

/// How often each [`RingError`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the variants of RingError")]
pub struct RingErrors {
    pub looped: u64,
    pub next: u64,
    pub address: u64,
    pub direction: u64,
    pub available_index: u64,
    pub indirect: u64,
    pub length: u64,
    pub head: u64,
    pub call: u64,
}

impl RingErrors {
    /// Counts one.
    pub fn count(&mut self, error: RingError) {
        let count = match error {
            RingError::Loop => &mut self.looped,
            RingError::Next => &mut self.next,
            RingError::Address => &mut self.address,
            RingError::Direction => &mut self.direction,
            RingError::AvailableIndex => &mut self.available_index,
            RingError::Indirect => &mut self.indirect,
            RingError::Length => &mut self.length,
            RingError::Head => &mut self.head,
            RingError::Call => &mut self.call,
        };
        *count = count.saturating_add(1);
    }
}
