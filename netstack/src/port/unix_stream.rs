//! A connected unix stream socket with a length in front of each frame (see [`framing`](super::framing)).
//!
//! There is no virtio-net header: every frame is complete in both directions. What the guest does not read
//! waits, up to the bounds of an [`Outbox`]; the worker hears when there is room again. A stream whose
//! framing is broken, or whose other end is closed, raises the port's alarm and is not touched any more.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::alarm::{Alarm, Ended};
use super::framing::{Inbox, Outbox};
use super::watch::{FrameWatch, Hears};
use super::{Offloads, Port, Receive, Transmit};
use crate::counters::Counters;
use crate::frame::vnet_header::{VNET_LEN, VnetHeader};

/// Bytes that are written at once where a turn has so many.
const WRITE_SIZE: usize = 64 << 10;

/// A guest that is connected.
#[derive(Debug)]
pub struct UnixStreamPort {
    stream: Arc<OwnedFd>,
    watch: FrameWatch,
    alarm: Arc<Alarm<Ended>>,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
    /// Frames that were taken and will never arrive, since that was last asked for.
    lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What is written goes out.
    Open,
    /// The socket took no more; the worker hears when it does.
    Blocked,
    /// The alarm is raised.
    Ended,
}

impl UnixStreamPort {
    /// Takes over a connected socket, and has it watched.
    pub fn new(
        stream: Arc<OwnedFd>,
        watch: FrameWatch,
        alarm: Arc<Alarm<Ended>>,
    ) -> rustix::io::Result<Self> {
        watch.begin(&*stream)?;
        Ok(Self {
            stream,
            watch,
            alarm,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            state: State::Open,
            lost: 0,
        })
    }

    fn end(&mut self, why: Ended) {
        self.state = State::Ended;
        self.lost += self.outbox.frames() as u64;
        self.outbox = Outbox::default();
        self.alarm.raise(why);
    }

    /// Writes what waits, as far as it goes.
    fn drain(&mut self) {
        while self.state != State::Ended && !self.outbox.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&*self.stream, self.outbox.front(), flags) {
                Ok(count) => self.outbox.wrote(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                    return self.set(State::Blocked);
                }
                Err(_) => return self.end(Ended::Gone),
            }
        }
        if self.state == State::Blocked {
            self.set(State::Open);
        }
    }

    fn set(&mut self, state: State) {
        if self.state == state {
            return;
        }
        self.state = state;
        let hears = match state {
            State::Blocked => Hears::FramesAndRoom,
            State::Open | State::Ended => Hears::Frames,
        };
        if let Err(error) = self.watch.change(&*self.stream, hears) {
            let why = format!("its socket cannot be watched ({error}); connect it again");
            self.end(Ended::Trouble(why));
        }
    }
}

impl Drop for UnixStreamPort {
    fn drop(&mut self) {
        self.watch.end(&*self.stream);
    }
}

impl Port for UnixStreamPort {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        while self.state != State::Ended {
            match self.inbox.take() {
                Ok(Some(frame)) => {
                    let len = VNET_LEN + frame.len();
                    buffer[..VNET_LEN].copy_from_slice(&VnetHeader::default().emit());
                    buffer[VNET_LEN..len].copy_from_slice(frame);
                    return Receive::Frame(len);
                }
                Ok(None) => {}
                Err(error) => {
                    self.end(Ended::Trouble(error.to_string()));
                    break;
                }
            }
            if self.state == State::Blocked {
                self.drain();
            }
            match recv(&*self.stream, self.inbox.space(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => self.end(Ended::Gone),
                Ok((_, count)) => self.inbox.filled(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.end(Ended::Gone),
            }
        }
        Receive::Empty
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        if self.state == State::Ended || !self.outbox.push(&frame[VNET_LEN..]) {
            return Transmit::Full;
        }
        if self.state == State::Open && self.outbox.len() >= WRITE_SIZE {
            self.drain();
        }
        Transmit::Sent
    }

    fn has_room(&mut self) -> bool {
        self.state == State::Open
    }

    fn flush(&mut self, counters: &mut Counters) {
        if self.state == State::Open {
            self.drain();
        }
        counters.lose(std::mem::take(&mut self.lost));
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        if !watch.is_same(&self.watch) {
            self.watch.end(&*self.stream);
            self.watch = watch.clone();
        }
        self.watch.begin_or_go_on(&*self.stream)?;
        match self.state {
            State::Blocked => self.watch.change(&*self.stream, Hears::FramesAndRoom),
            State::Open | State::Ended => Ok(()),
        }
    }

    fn unwatch(&mut self, _: &FrameWatch) {
        self.watch.end(&*self.stream);
    }

    fn offloads(&self) -> Offloads {
        Offloads::None
    }
}
