//! Messages between a role and the process that started it: u32 length, JSON, descriptors with the
//! first byte, over a socket pair.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tap::MAX_QUEUES;

/// A command line may have 2 MiB, and a byte of it takes up to four characters.
const LONGEST: usize = 16 << 20;
/// Standard input, output and error, or the queues of a tap.
const MOST_DESCRIPTORS: usize = 4;
const _: () = assert!(MAX_QUEUES as usize <= MOST_DESCRIPTORS);

/// One end of the socket pair.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Sends one message whole.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        (&self.0).write_all(&bytes[sent..])
    }

    /// The next message; `None` when the other end is gone.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut length = [0; 4];
        let mut descriptors = Vec::new();
        let first = self.receive_first(&mut length, &mut descriptors)?;
        if first == 0 {
            return Ok(None);
        }
        (&self.0).read_exact(&mut length[first..])?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::Error::other("message too long"));
        }
        let mut body = vec![0; length];
        (&self.0).read_exact(&mut body)?;
        Ok(Some((serde_json::from_slice(&body)?, descriptors)))
    }

    fn receive_first(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        match received {
            Ok(message) => {
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        descriptors.extend(rights);
                    }
                }
                Ok(message.bytes)
            }
            // The other process died with something of ours unread.
            Err(rustix::io::Errno::CONNRESET) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_longer_than_the_socket_buffer_arrives_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let long = "x".repeat(1 << 20);
        let sent = long.clone();
        let sender = std::thread::spawn(move || {
            let null = std::fs::File::open("/dev/null").unwrap();
            Channel::new(ours).send(&sent, &[null.as_fd(), null.as_fd()]).unwrap();
        });

        let (message, descriptors) = Channel::new(theirs).receive::<String>().unwrap().unwrap();

        sender.join().unwrap();
        assert_eq!(message, long);
        assert_eq!(descriptors.len(), 2);
    }

    #[test]
    fn the_end_of_the_other_process_is_the_end_of_the_messages() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Channel::new(ours).receive::<String>().unwrap().is_none());
    }

    #[test]
    fn an_absurd_length_is_refused_before_memory_is_taken_for_it() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(Channel::new(theirs).receive::<String>().is_err());
    }
}
