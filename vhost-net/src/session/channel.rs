//! The connection to a monitor: messages once they are there as a whole, with their descriptors, and answers. Nothing here
//! waits.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use vhost::vhost_user::Error;

use super::Ended;

pub(super) const HEADER_LEN: usize = 12;
/// Descriptors with one message: one for each region of memory.
pub(super) const MAX_DESCRIPTORS: usize = 32;
/// The longest message of the protocol.
pub(super) const MAX_BODY: usize = 4096;
const NEED_REPLY: u32 = 1 << 3;
/// Version 1, and a reply.
const REPLY: u32 = 1 | 1 << 2;

/// The header of a message.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    pub(super) len: usize,
}

/// What a monitor is answered that asks for a word about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Refused,
}

/// A socket.
pub(super) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// The next message's header, once the message is there as a whole.
    pub(super) fn next_header(&self) -> Result<Option<Header>, Ended> {
        let waiting = self.waiting()?;
        if waiting == 0 {
            return match self.peek(&mut [0]) {
                Ok(0) => Err(Ended::Gone),
                Ok(_) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        if waiting < HEADER_LEN {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_LEN];
        if self.peek(&mut bytes)? < HEADER_LEN {
            return Ok(None);
        }
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let len = usize::try_from(word(8)).expect("a u32 fits");
        if len > MAX_BODY {
            return Err(Ended::Trouble(format!("the monitor sent a message of {len} bytes")));
        }
        let header = Header { request: word(0), flags: word(4), len };
        Ok((waiting >= HEADER_LEN + len).then_some(header))
    }

    /// Reads a message that is there as a whole, with the descriptors that came with its header.
    pub(super) fn read_message(&self, header: Header) -> Result<(Vec<u8>, Vec<OwnedFd>), Ended> {
        let mut message = vec![0; HEADER_LEN + header.len];
        let mut descriptors = Vec::new();
        let mut at = 0;
        while at < message.len() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let slices = &mut [IoSliceMut::new(&mut message[at..])];
            let received =
                recvmsg(&self.0, slices, &mut ancillary, flags).map_err(io::Error::from)?;
            let came = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            });
            let came: Vec<OwnedFd> = came.flatten().collect();
            if received.flags.contains(ReturnFlags::CTRUNC) || (at > 0 && !came.is_empty()) {
                let why = "the monitor sent more descriptors than belong to a message";
                return Err(Ended::Trouble(why.to_owned()));
            }
            if received.bytes == 0 {
                return Err(Ended::Gone);
            }
            descriptors.extend(came);
            at += received.bytes;
        }
        Ok((message, descriptors))
    }

    /// Says a word about a message, if it wants one.
    pub(super) fn acknowledge(&self, header: Header, verdict: Verdict) -> Result<(), Ended> {
        if header.flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let mut answer: Vec<u8> =
            [header.request, REPLY, 8].into_iter().flat_map(u32::to_ne_bytes).collect();
        answer.extend(u64::from(verdict == Verdict::Refused).to_ne_bytes());
        self.answer(&answer)
    }

    /// A monitor that does not read its answers is given up.
    pub(super) fn answer(&self, bytes: &[u8]) -> Result<(), Ended> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&self.0, bytes, flags).map_err(io::Error::from)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(Error::PartialMessage.into()),
        }
    }

    /// Bytes that have come.
    pub(super) fn waiting(&self) -> io::Result<usize> {
        let waiting = rustix::io::ioctl_fionread(&self.0)?;
        Ok(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        Ok(rustix::net::recv(&self.0, buffer, flags)?.0)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
