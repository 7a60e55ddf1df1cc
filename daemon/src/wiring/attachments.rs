//! Makes ports of what control hands over: where the datapath meets the kinds of attachment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use lichen_netstack::command::PortSpec;
use lichen_netstack::datapath::Attacher;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::tap::Tap;
use lichen_netstack::port::{Offloads, Port, Receive, Transmit};
use lichen_netstack::worker::event_loop::WorkerHandle;

/// The frames of a port, however they come.
pub enum Attached {
    /// Through a tap.
    Tap(Tap),
    /// Not at all, until a guest connects.
    Unplugged,
}

impl Port for Attached {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        match self {
            Self::Tap(tap) => tap.receive(buffer),
            Self::Unplugged => Receive::Empty,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        match self {
            Self::Tap(tap) => tap.transmit(frame),
            // As on a cable that is not plugged in.
            Self::Unplugged => Transmit::Full,
        }
    }

    fn has_room(&mut self) -> bool {
        match self {
            Self::Tap(tap) => tap.has_room(),
            Self::Unplugged => false,
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Tap(tap) => tap.flush(),
            Self::Unplugged => {}
        }
    }

    fn offloads(&self) -> Offloads {
        match self {
            Self::Tap(tap) => tap.offloads(),
            Self::Unplugged => Offloads::ChecksumTcpAndUdp,
        }
    }
}

/// Makes ports, and has the worker watch them.
pub struct Attachments {
    worker: WorkerHandle<Attached>,
}

impl Attachments {
    /// For ports of that worker.
    pub fn new(worker: WorkerHandle<Attached>) -> Self {
        Self { worker }
    }
}

impl Attacher for Attachments {
    type Port = Attached;

    fn open(&mut self, slot: u16, frames: OwnedFd) -> io::Result<Attached> {
        let tap = Tap::new(frames)?;
        self.worker.watch(tap.as_fd(), slot)?;
        Ok(Attached::Tap(tap))
    }

    fn unplugged(&mut self) -> Attached {
        Attached::Unplugged
    }

    fn listen(&mut self, _: &PortSpec, _: u16, _: OwnedFd) -> io::Result<()> {
        Err(io::Error::other("virtual machines cannot connect yet"))
    }

    fn detach(&mut self, _: PortId) {}
}
