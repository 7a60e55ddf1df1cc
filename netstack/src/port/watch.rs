//! Letting a worker hear of a port's descriptors.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;

use crate::host::{Token, TokenKind};

/// Where the descriptors of one slot's port are watched, always edge-triggered.
#[derive(Clone, Debug)]
pub struct FrameWatch {
    poller: Arc<OwnedFd>,
    slot: u16,
}

/// What of a descriptor the worker hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    /// That there is something to read.
    Frames,
    /// That too, and that there is room to write.
    FramesAndRoom,
}

impl FrameWatch {
    /// For the port in `slot` of the worker that waits for `poller`, an epoll instance.
    pub fn new(poller: Arc<OwnedFd>, slot: u16) -> Self {
        Self { poller, slot }
    }

    /// From now on the port's frames are looked at whenever `fd` becomes readable.
    pub fn begin(&self, fd: impl AsFd) -> rustix::io::Result<()> {
        epoll::add(&*self.poller, fd, self.data(), flags(Hears::Frames))
    }

    /// Changes what is heard; what is so already is heard at once.
    pub(super) fn change(&self, fd: impl AsFd, hears: Hears) -> rustix::io::Result<()> {
        epoll::modify(&*self.poller, fd, self.data(), flags(hears))
    }

    /// Begins, also where that was begun already. What is readable is heard of at once when it is new.
    pub fn begin_or_go_on(&self, fd: impl AsFd) -> rustix::io::Result<()> {
        match self.begin(fd) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            begun => begun,
        }
    }

    /// Whether the same worker hears of the same slot there.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.poller, &other.poller) && self.slot == other.slot
    }

    /// Ends what [`FrameWatch::begin`] began; a descriptor that others hold too is not forgotten by itself.
    pub fn end(&self, fd: impl AsFd) {
        // One that was never watched is not watched now.
        let _ = epoll::delete(&*self.poller, fd);
    }

    fn data(&self) -> epoll::EventData {
        let token = Token { port: self.slot, kind: TokenKind::Frames, index: 0 };
        epoll::EventData::new_u64(token.to_bits())
    }
}

fn flags(hears: Hears) -> epoll::EventFlags {
    use epoll::EventFlags as Flags;
    match hears {
        Hears::Frames => Flags::IN | Flags::ET,
        Hears::FramesAndRoom => Flags::IN | Flags::OUT | Flags::ET,
    }
}
