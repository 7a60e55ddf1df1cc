//! Ethernet frames in a stream of bytes: four bytes of length, most significant first, then the frame.
//!
//! The form of QEMU's `-netdev stream`, of libkrun and of gvproxy. Both directions without I/O: an
//! [`Inbox`] holds at most [`INBOX`] bytes, an [`Outbox`] at most [`MAX_FRAMES`] frames of
//! [`MAX_BYTES`] together, lengths included.

use std::collections::VecDeque;

use crate::wire::ETHERNET_LEN;

/// Bytes in front of each frame.
pub const LENGTH_LEN: usize = 4;
/// The longest frame that a stream may announce: 65,535 bytes of IP. What is longer than the network's
/// MTU is dropped further on, as on every port.
pub const MAX_LEN: usize = ETHERNET_LEN + 65_535;
/// Frames that wait for the guest to read.
pub const MAX_FRAMES: usize = 1024;
/// Bytes that wait for the guest to read.
pub const MAX_BYTES: usize = 1 << 20;
/// What is held of a guest's stream: a frame of any length, and many usual ones at once.
pub const INBOX: usize = 128 << 10;

/// A length that no frame has; where the next frame begins is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest's monitor announced a frame of {0} bytes, and Ethernet frames have 14 to {MAX_LEN}; it must put \
     the length in front of each frame as four bytes, most significant first (QEMU: -netdev stream), and \
     nothing else"
)]
pub struct BadLength(pub u32);

/// What a guest has sent and nobody has taken yet.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: vec![0; INBOX].into(), start: 0, end: 0 }
    }
}

impl Inbox {
    /// Where more is to be read into; never empty once [`Inbox::take`] has answered `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.bytes[self.end..]
    }

    /// So many bytes of [`Inbox::space`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Takes the next frame, if it is there as a whole.
    pub fn take(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let there = &self.bytes[self.start..self.end];
        let Some((len, rest)) = there.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*len);
        let len = announced as usize;
        if !(ETHERNET_LEN..=MAX_LEN).contains(&len) {
            return Err(BadLength(announced));
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += LENGTH_LEN + len;
        Ok(Some(frame))
    }
}

/// What a guest has not taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
    /// How many bytes were ever written.
    written: u64,
    /// Where each waiting frame ends, counted as `written` is.
    ends: VecDeque<u64>,
}

impl Outbox {
    /// Puts a frame behind the others; false when there is no room for it.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        let len = LENGTH_LEN + frame.len();
        if self.ends.len() >= MAX_FRAMES || self.bytes.len() + len > MAX_BYTES {
            return false;
        }
        let announced = u32::try_from(frame.len()).expect("frames are below 64 KiB");
        self.bytes.extend(&announced.to_be_bytes());
        self.bytes.extend(frame);
        self.ends.push_back(self.written + self.bytes.len() as u64);
        true
    }

    /// What is to be written next; there may be more behind it.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// So many bytes of [`Outbox::front`] were written.
    pub fn wrote(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.written += count as u64;
        while self.ends.front().is_some_and(|end| *end <= self.written) {
            self.ends.pop_front();
        }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Frames that have not been written as a whole.
    pub fn frames(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    /// The frames that come of a stream that arrives in these pieces.
    fn read(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut inbox, mut frames) = (Inbox::default(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let space = inbox.space();
                let count = rest.len().min(space.len());
                space[..count].copy_from_slice(&rest[..count]);
                inbox.filled(count);
                rest = &rest[count..];
                while let Some(frame) = inbox.take().unwrap() {
                    frames.push(frame.to_vec());
                }
            }
        }
        frames
    }

    #[test]
    fn frames_arrive_whole_wherever_their_stream_is_torn() {
        let frames: [&[u8]; 4] = [&[1; 14], &[2; 15], &[3; 60], &[4; 1514]];
        let bytes = stream(&frames);
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(read(&[head, tail]), frames, "torn at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single), frames);
    }

    #[test]
    fn the_longest_frames_pass_and_memory_stays_what_it_was() {
        let long = vec![7; MAX_LEN];
        let frames = [long.as_slice(); 5];
        assert_eq!(read(&[&stream(&frames)]), frames);
        let mut inbox = Inbox::default();
        inbox.space()[..4].copy_from_slice(&u32::try_from(MAX_LEN).unwrap().to_be_bytes());
        inbox.filled(4);
        assert_eq!(inbox.take(), Ok(None));
        assert_eq!(inbox.bytes.len(), INBOX, "half a message takes no more memory");
    }

    #[test]
    fn lengths_that_no_frame_has_are_refused_before_anything_is_read() {
        for len in [0, 13, 65_550, 0x8000_0000, u32::MAX] {
            let mut inbox = Inbox::default();
            inbox.space()[..4].copy_from_slice(&len.to_be_bytes());
            inbox.filled(4);
            assert_eq!(inbox.take(), Err(BadLength(len)));
        }
    }

    #[test]
    fn what_waits_is_bounded_in_frames_and_in_bytes_and_leaves_in_order() {
        let mut small = Outbox::default();
        assert_eq!((0..2000).filter(|_| small.push(&[1; 14])).count(), MAX_FRAMES);
        let mut large = Outbox::default();
        let fits = MAX_BYTES / (1514 + LENGTH_LEN);
        assert_eq!((0..2000).filter(|_| large.push(&[1; 1514])).count(), fits);

        let frames: Vec<Vec<u8>> = (0..200u8).map(|at| vec![at; 14 + usize::from(at)]).collect();
        let (mut outbox, mut written) = (Outbox::default(), Vec::new());
        let mut turn = 0;
        for frame in &frames {
            assert!(outbox.push(frame));
            // A reader that takes less than comes, in pieces that fit no frame.
            turn += 1;
            let count = outbox.front().len().min(turn % 41);
            written.extend_from_slice(&outbox.front()[..count]);
            outbox.wrote(count);
        }
        while outbox.frames() > 0 {
            let count = outbox.front().len().min(997);
            written.extend_from_slice(&outbox.front()[..count]);
            outbox.wrote(count);
        }
        assert!(outbox.is_empty());
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        assert_eq!(written, stream(&frames));
    }
}
