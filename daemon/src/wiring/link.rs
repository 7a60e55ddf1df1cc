//! The stream between control and datapath: u32 big-endian length, JSON, descriptors with the first byte.
//!
//! Both ends block; each side gives the link a thread of its own. A message that is too long, cut short
//! or not JSON ends the link, never the process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use lichen_netstack::port::tap::MAX_QUEUES;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

/// Longest message in bytes, length field not included.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Most descriptors with one message: those of a tap's queues.
pub const MAX_DESCRIPTORS: usize = MAX_QUEUES as usize;

// Each crate states the limit for itself; what one takes the next must take.
const _: () = assert!(
    lichen_api::MAX_QUEUES <= lichen_workload::MAX_QUEUES
        && lichen_workload::MAX_QUEUES <= MAX_QUEUES
);

/// Why a message could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("the link between control and datapath failed")]
    Io(#[from] io::Error),
    /// The other side announced, or we were asked to send, more than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// We could not put the message into JSON.
    #[error("a message could not be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// One received message, not yet understood.
#[derive(Debug)]
pub struct Message {
    /// JSON text.
    pub body: Vec<u8>,
    /// Descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of the stream.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
}

impl Link {
    /// Takes over a connected, blocking socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// A second handle on the same stream, for a thread that only sends (or only receives).
    pub fn try_clone(&self) -> io::Result<Self> {
        self.stream.try_clone().map(Self::new)
    }

    /// Ends both directions, which wakes a thread that is blocked in [`Link::receive`].
    pub fn close(&self) {
        // Already closed by the other side is as good.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends one message. Not to be called from two threads at once.
    pub fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, message)?;
        let len = bytes.len() - 4;
        if len > MAX_MESSAGE {
            return Err(LinkError::TooLong(len));
        }
        bytes[..4].copy_from_slice(&u32::try_from(len).expect("below 1 MiB").to_be_bytes());

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(LinkError::Io(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let mut sent = 0;
        while sent < bytes.len() {
            match sendmsg(
                self.stream.as_fd(),
                &[IoSlice::new(&bytes[sent..])],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    sent += count;
                    ancillary.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LinkError::Io(error.into())),
            }
        }
        Ok(())
    }

    /// Waits for one message; `None` when the other side has closed between two messages.
    pub fn receive(&self) -> Result<Option<Message>, LinkError> {
        let mut descriptors = Vec::new();
        let mut len = [0; 4];
        if !self.fill(&mut len, &mut descriptors, OnEnd::IsClean)? {
            return Ok(None);
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > MAX_MESSAGE {
            return Err(LinkError::TooLong(len));
        }
        let mut body = vec![0; len];
        self.fill(&mut body, &mut descriptors, OnEnd::IsFailure)?;
        Ok(Some(Message { body, descriptors }))
    }

    /// Fills `buffer` whole. Answers false when the stream ended before its first byte and that is clean.
    fn fill(
        &self,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        on_end: OnEnd,
    ) -> Result<bool, LinkError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let count = match recvmsg(
                self.stream.as_fd(),
                &mut [IoSliceMut::new(&mut buffer[filled..])],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(LinkError::Io(error.into())),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            match (count, on_end) {
                (0, OnEnd::IsClean) if filled == 0 => return Ok(false),
                (0, _) => return Err(LinkError::Io(io::ErrorKind::UnexpectedEof.into())),
                _ => filled += count,
            }
        }
        Ok(true)
    }
}

/// What the end of the stream means at this place.
#[derive(Clone, Copy)]
enum OnEnd {
    IsClean,
    IsFailure,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Link::new(a), b)
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = pair();
        let theirs = Link::new(theirs);
        let null = std::fs::File::open("/dev/null").unwrap();
        ours.send(&serde_json::json!({"x": "y".repeat(100_000)}), &[null.as_fd()]).unwrap();
        ours.send(&1, &[]).unwrap();
        let first = theirs.receive().unwrap().unwrap();
        assert_eq!((first.body.len(), first.descriptors.len()), (100_008, 1));
        let second = theirs.receive().unwrap().unwrap();
        assert_eq!((second.body.as_slice(), second.descriptors.len()), (b"1".as_slice(), 0));
        drop(ours);
        assert!(theirs.receive().unwrap().is_none());
    }

    #[test]
    fn a_message_that_is_too_long_or_cut_ends_the_link() {
        let (ours, mut theirs) = pair();
        theirs.write_all(&[0xff; 4]).unwrap();
        assert!(matches!(ours.receive(), Err(LinkError::TooLong(_))));
        let (ours, mut theirs) = pair();
        theirs.write_all(&[0, 0, 0, 9, b'{']).unwrap();
        drop(theirs);
        assert!(matches!(ours.receive(), Err(LinkError::Io(_))));
    }
}
