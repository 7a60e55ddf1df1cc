//! Makes ports of what control hands over: where the datapath meets the kinds of attachment.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use lichen_netstack::command::{LinkState, PortSpec};
use lichen_netstack::datapath::Attacher;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::tap::Tap;
use lichen_netstack::port::{Offloads, Port, Receive, Transmit};
use lichen_netstack::worker::WorkerCommand;
use lichen_netstack::worker::event_loop::WorkerHandle;
use lichen_vhost_net::port::VhostPort;
use lichen_vhost_net::service::{Datapath, Service};

/// The frames of a port, however they come.
pub enum Attached {
    /// Through a tap.
    Tap(Tap),
    /// Through the rings of a virtual machine.
    VhostUser(Box<VhostPort>),
    /// Not at all, until a guest connects.
    Unplugged,
}

impl Port for Attached {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        match self {
            Self::Tap(tap) => tap.receive(buffer),
            Self::VhostUser(rings) => rings.receive(buffer),
            Self::Unplugged => Receive::Empty,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        match self {
            Self::Tap(tap) => tap.transmit(frame),
            Self::VhostUser(rings) => rings.transmit(frame),
            // As on a cable that is not plugged in.
            Self::Unplugged => Transmit::Full,
        }
    }

    fn has_room(&mut self) -> bool {
        match self {
            Self::Tap(tap) => tap.has_room(),
            Self::VhostUser(rings) => rings.has_room(),
            Self::Unplugged => false,
        }
    }

    fn flush(&mut self) -> u32 {
        match self {
            Self::Tap(tap) => tap.flush(),
            Self::VhostUser(rings) => rings.flush(),
            Self::Unplugged => 0,
        }
    }

    fn offloads(&self) -> Offloads {
        match self {
            Self::Tap(tap) => tap.offloads(),
            Self::VhostUser(rings) => rings.offloads(),
            Self::Unplugged => Offloads::ChecksumTcpAndUdp,
        }
    }
}

/// Which slot each port of a virtual machine is in.
type Slots = Arc<Mutex<BTreeMap<PortId, u16>>>;

/// Makes ports, and has the worker watch them.
pub struct Attachments {
    worker: WorkerHandle<Attached>,
    monitors: Service,
    slots: Slots,
}

impl Attachments {
    /// For ports of that worker. Changes of links go to `links`.
    pub fn new(
        worker: WorkerHandle<Attached>,
        links: impl FnMut(PortId, LinkState) + Send + 'static,
    ) -> io::Result<Self> {
        let slots = Slots::default();
        let plugs = Plugs { worker: worker.clone(), slots: Arc::clone(&slots), links };
        Ok(Self { worker, monitors: Service::start(plugs)?, slots })
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

    fn listen(&mut self, spec: &PortSpec, slot: u16, socket: OwnedFd) -> io::Result<()> {
        lock(&self.slots).insert(spec.id, slot);
        self.monitors.add(spec.id, UnixListener::from(socket));
        Ok(())
    }

    fn detach(&mut self, port: PortId) {
        if lock(&self.slots).remove(&port).is_some() {
            self.monitors.remove(port);
        }
    }
}

/// Brings the rings of virtual machines to the worker and back.
struct Plugs<F> {
    worker: WorkerHandle<Attached>,
    slots: Slots,
    links: F,
}

impl<F> Plugs<F> {
    /// Changes how a port's frames come, and waits until the worker has let go of what was there.
    fn exchange(&self, port: PortId, io: Attached) {
        let Some(slot) = lock(&self.slots).get(&port).copied() else { return };
        let (before, let_go) = mpsc::channel();
        self.worker.send(WorkerCommand::Plug { slot, port, io, before });
        // A worker that has ended has let go of everything.
        drop(let_go.recv());
    }
}

impl<F: FnMut(PortId, LinkState) + Send + 'static> Datapath for Plugs<F> {
    fn plug(&mut self, port: PortId, rings: VhostPort) {
        let Some(slot) = lock(&self.slots).get(&port).copied() else { return };
        for kick in rings.kicks() {
            if let Err(error) = self.worker.watch(kick, slot) {
                tracing::error!(%port, %error, "a guest's kicks cannot be watched");
            }
        }
        self.exchange(port, Attached::VhostUser(Box::new(rings)));
    }

    fn unplug(&mut self, port: PortId, kicks: [BorrowedFd<'_>; 2]) {
        // The monitor holds them too, so closing ours would not end the watch.
        kicks.into_iter().for_each(|kick| self.worker.unwatch(kick));
        self.exchange(port, Attached::Unplugged);
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        (self.links)(port, state);
    }
}

fn lock(slots: &Slots) -> MutexGuard<'_, BTreeMap<PortId, u16>> {
    slots.lock().expect("nobody panics while holding it")
}
