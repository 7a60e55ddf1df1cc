//! Makes ports of what control hands over: where the datapath meets the kinds of attachment.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use lichen_netstack::command::{Attachment, LinkState, PortSpec};
use lichen_netstack::counters::Counters;
use lichen_netstack::datapath::{Attacher, Plugged};
use lichen_netstack::ids::PortId;
use lichen_netstack::port::recording::{Recorder, Recording};
use lichen_netstack::port::tap::Tap;
use lichen_netstack::port::unix_datagram::UnixDatagramPort;
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::port::watch::FrameWatch;
use lichen_netstack::port::{Front, Gathering, Offloads, Passed, Port, Receive, Transmit};
use lichen_netstack::switch::directory::Location;
use lichen_netstack::worker::WorkerCommand;
use lichen_netstack::worker::event_loop::WorkerHandle;
use lichen_vhost_net::port::VhostPort;
use lichen_vhost_net::service::{Datapath, Service};

use super::frame_sockets::{self, FrameSocket, FrameSockets};

/// The frames of a port, however they come.
pub enum Attached {
    /// Through a tap.
    Tap(Tap),
    /// Through the rings of a virtual machine.
    VhostUser(Box<VhostPort>),
    /// Through a stream, with their lengths.
    UnixStream(Box<UnixStreamPort>),
    /// As datagrams.
    UnixDatagram(Box<UnixDatagramPort>),
    /// However they come, while somebody records them.
    Recorded(Box<Recording<Attached>>),
    /// Not at all, until a guest connects.
    Unplugged,
}

/// Calls a method of whatever the frames come through; without a guest there is `$unplugged`.
macro_rules! each {
    ($attached:expr, $io:ident => $call:expr, $unplugged:expr) => {
        match $attached {
            Attached::Tap($io) => $call,
            Attached::VhostUser($io) => $call,
            Attached::UnixStream($io) => $call,
            Attached::UnixDatagram($io) => $call,
            Attached::Recorded($io) => $call,
            Attached::Unplugged => $unplugged,
        }
    };
}

impl Port for Attached {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        each!(self, io => io.receive(buffer), Receive::Empty)
    }

    #[inline]
    fn peek(&mut self, front: &mut Front) -> bool {
        match self {
            Self::VhostUser(io) => io.peek(front),
            _ => false,
        }
    }

    #[inline]
    fn pass(&mut self, front: &Front, to: &mut Self) -> Passed {
        match (self, to) {
            (Self::VhostUser(io), Self::VhostUser(to)) => io.pass(front, to),
            _ => Passed::No,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        // As on a cable that is not plugged in.
        each!(self, io => io.transmit(frame), Transmit::Full)
    }

    fn gathering(&mut self) -> Option<&mut dyn Gathering> {
        each!(self, io => io.gathering(), None)
    }

    fn has_room(&mut self) -> bool {
        each!(self, io => io.has_room(), false)
    }

    fn flush(&mut self, counters: &mut Counters) {
        each!(self, io => io.flush(counters), {});
        if let Self::Recorded(recording) = self
            && recording.is_over()
        {
            self.take_recorders();
        }
    }

    fn begin_polling(&mut self) -> bool {
        each!(self, io => io.begin_polling(), false)
    }

    fn has_frames(&mut self) -> bool {
        each!(self, io => io.has_frames(), false)
    }

    fn end_polling(&mut self) -> bool {
        each!(self, io => io.end_polling(), false)
    }

    fn record(&mut self, recorder: Box<dyn Recorder>) {
        if !matches!(self, Self::Recorded(_)) {
            let plain = std::mem::replace(self, Self::Unplugged);
            *self = Self::Recorded(Box::new(Recording::new(plain)));
        }
        if let Self::Recorded(recording) = self {
            recording.record(recorder);
        }
    }

    fn take_recorders(&mut self) -> Vec<Box<dyn Recorder>> {
        match std::mem::replace(self, Self::Unplugged) {
            Self::Recorded(mut recording) => {
                let recorders = recording.take_recorders();
                *self = recording.into_port();
                recorders
            }
            plain => {
                *self = plain;
                Vec::new()
            }
        }
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        each!(self, io => io.watch(watch), Ok(()))
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        each!(self, io => io.unwatch(watch), {});
    }

    fn offloads(&self) -> Offloads {
        each!(self, io => io.offloads(), Offloads::ChecksumTcpAndUdp)
    }
}

/// Which slot of which worker each port of a virtual machine is in.
type Places = Arc<Mutex<BTreeMap<PortId, Location>>>;

/// Makes ports, and has their workers watch them.
pub struct Attachments {
    workers: Vec<WorkerHandle<Attached>>,
    /// For monitors that speak vhost-user.
    monitors: Service,
    /// For monitors that hand over frames.
    frames: FrameSockets,
    places: Places,
}

impl Attachments {
    /// For ports of these workers. Changes of links go to `links`.
    pub fn new(
        workers: Vec<WorkerHandle<Attached>>,
        links: impl FnMut(PortId, LinkState) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let places = Places::default();
        let plugs = Plugs { workers: workers.clone(), places: Arc::clone(&places), links };
        let frames = FrameSockets::start(plugs.clone())?;
        Ok(Self { workers, monitors: Service::start(plugs)?, frames, places })
    }
}

impl Attacher for Attachments {
    type Port = Attached;

    fn open(&mut self, place: Location, queues: Vec<OwnedFd>) -> io::Result<Attached> {
        let mut tap = Tap::new(queues)?;
        let watch = self.workers[usize::from(place.worker)].frame_watch(place.slot);
        if let Err(error) = tap.watch(&watch) {
            // Control holds copies until it is answered.
            tap.unwatch(&watch);
            return Err(error.into());
        }
        Ok(Attached::Tap(tap))
    }

    fn unplugged(&mut self) -> Attached {
        Attached::Unplugged
    }

    fn listen(&mut self, spec: &PortSpec, place: Location, socket: OwnedFd) -> io::Result<()> {
        lock(&self.places).insert(spec.id, place);
        match spec.attachment {
            Attachment::VhostUser => {
                self.monitors.add(spec.id, spec.mac, UnixListener::from(socket));
            }
            Attachment::UnixStream => {
                self.frames.add(spec.id, FrameSocket::Stream(UnixListener::from(socket)));
            }
            Attachment::UnixDatagram => {
                self.frames.add(spec.id, FrameSocket::Datagram(Arc::new(socket)));
            }
            Attachment::Tap { .. } => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }

    fn plug(&mut self, port: PortId, descriptor: OwnedFd) -> io::Result<Plugged> {
        self.frames.plug(port, descriptor)
    }

    fn relocate(&mut self, port: PortId, place: Location, go: impl FnOnce() -> bool) -> bool {
        let mut places = lock(&self.places);
        let has_gone = go();
        if has_gone && let Some(known) = places.get_mut(&port) {
            *known = place;
        }
        has_gone
    }

    fn detach(&mut self, port: PortId) {
        if lock(&self.places).remove(&port).is_some() {
            self.monitors.remove(port);
            self.frames.remove(port);
        }
    }
}

/// Brings the guests of virtual machines to their workers and back.
#[derive(Clone)]
struct Plugs<F> {
    workers: Vec<WorkerHandle<Attached>>,
    places: Places,
    links: F,
}

impl<F> Plugs<F> {
    /// Does something at the worker and slot where a port is, which does not move meanwhile.
    fn at<R>(
        &self,
        port: PortId,
        work: impl FnOnce(&WorkerHandle<Attached>, u16) -> R,
    ) -> Option<R> {
        let places = lock(&self.places);
        let place = places.get(&port)?;
        Some(work(&self.workers[usize::from(place.worker)], place.slot))
    }

    /// Changes how a port's frames come, and waits until the worker has let go of what was there.
    fn exchange(&self, port: PortId, io: Attached) {
        let sent = self.at(port, |worker, slot| {
            let (before, let_go) = mpsc::channel();
            worker.send(WorkerCommand::Plug { slot, port, io, before });
            let_go
        });
        // A worker that has ended has let go of everything.
        drop(sent.map(|let_go| let_go.recv()));
    }
}

impl<F: FnMut(PortId, LinkState) + Send + 'static> Datapath for Plugs<F> {
    fn plug(&mut self, port: PortId, rings: VhostPort) {
        // The worker has their kicks watched when it takes them.
        self.exchange(port, Attached::VhostUser(Box::new(rings)));
    }

    fn unplug(&mut self, port: PortId, kicks: &[BorrowedFd<'_>]) {
        self.exchange(port, Attached::Unplugged);
        // The monitor holds them too, so closing ours would not end the watch. Wherever the port was, also when it has been
        // removed; and only now, since it is watched where it goes.
        for worker in &self.workers {
            kicks.iter().for_each(|kick| worker.unwatch(*kick));
        }
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        (self.links)(port, state);
    }
}

impl<F: FnMut(PortId, LinkState) + Send + 'static> frame_sockets::Plugs for Plugs<F> {
    fn watch(&self, port: PortId) -> Option<FrameWatch> {
        self.at(port, WorkerHandle::frame_watch)
    }

    fn exchange(&mut self, port: PortId, io: Attached) {
        Plugs::exchange(self, port, io);
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        (self.links)(port, state);
    }
}

fn lock(places: &Places) -> MutexGuard<'_, BTreeMap<PortId, Location>> {
    places.lock().expect("nobody panics while holding it")
}
