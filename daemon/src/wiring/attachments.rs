//! Makes ports of what control hands over: where the datapath meets the kinds of attachment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use lichen_netstack::command::{Attachment, PortSpec};
use lichen_netstack::datapath::Attacher;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::tap::Tap;
use lichen_netstack::worker::event_loop::WorkerHandle;

/// Taps, watched by the worker.
pub struct Attachments {
    worker: WorkerHandle<Tap>,
}

impl Attachments {
    /// For ports of that worker.
    pub fn new(worker: WorkerHandle<Tap>) -> Self {
        Self { worker }
    }
}

impl Attacher for Attachments {
    type Port = Tap;

    fn attach(&mut self, spec: &PortSpec, slot: u16, descriptor: OwnedFd) -> io::Result<Tap> {
        match spec.attachment {
            Attachment::Tap => {
                let tap = Tap::new(descriptor)?;
                self.worker.watch(tap.as_fd(), slot)?;
                Ok(tap)
            }
            Attachment::VhostUser => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    fn detach(&mut self, _: PortId) {}
}
