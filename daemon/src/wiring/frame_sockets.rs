//! The thread that waits at the sockets of virtual machines whose monitors hand over whole Ethernet frames.
//! It carries none: it tells who comes and who has gone, and plugs the port of whoever is there.
//!
//! One monitor at a time. At a stream socket another one is hung up on; at a datagram socket, where anybody
//! of the same user can put something, the first that has an address is the peer, and what others send is
//! dropped until it is gone. A monitor may also come by a descriptor that is passed, with which it is connected
//! already; while it is there, what others send to the datagram socket waits.

mod far_end;
mod other_end;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::datapath::Plugged;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::alarm::{Alarm, Ended};
use lichen_netstack::port::unix_datagram::{Peer, UnixDatagramPort};
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::port::watch::FrameWatch;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketAddrUnix, SocketType, recvfrom, sockopt};

use super::attachments::Attached;
use far_end::{FarEnd, Sender, judge};

/// How long a socket rests that could not be accepted from.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the peers of datagram sockets are still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the thread needs of the datapath.
pub trait Plugs: Send + 'static {
    /// Where a port has its descriptors watched; `None` when it has been removed.
    fn watch(&self, port: PortId) -> Option<FrameWatch>;

    /// Changes how a port's frames come, and waits until nobody uses what was there.
    fn exchange(&mut self, port: PortId, io: Attached);

    /// The link has changed.
    fn tell(&mut self, port: PortId, state: LinkState);
}

/// A socket that monitors find by its path.
#[derive(Debug)]
pub enum FrameSocket {
    /// They connect to it.
    Stream(UnixListener),
    /// They send to it.
    Datagram(Arc<OwnedFd>),
}

enum Request {
    Add { port: PortId, socket: FrameSocket },
    Remove { port: PortId },
    Plug { port: PortId, descriptor: OwnedFd, answer: mpsc::Sender<io::Result<Plugged>> },
    Stop,
}

/// A handle on the thread, which ends with it.
#[derive(Debug)]
pub struct FrameSockets {
    requests: mpsc::Sender<Request>,
    wake: Arc<OwnedFd>,
}

impl FrameSockets {
    /// Starts the thread.
    pub fn start(plugs: impl Plugs) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (requests, queue) = mpsc::channel();
        let own = Arc::clone(&wake);
        std::thread::Builder::new().name("frame-sockets".to_owned()).spawn(move || {
            let places = BTreeMap::new();
            let mut running = Running { wake: own, plugs, places, look: Instant::now() };
            if let Err(error) = running.run(&queue) {
                tracing::error!(%error, "sockets of virtual machines cannot be served any more");
            }
        })?;
        Ok(Self { requests, wake })
    }

    /// Serves who comes to `socket` as the port's guest. Replaces an earlier socket; a monitor that is
    /// connected to a stream stays.
    pub fn add(&self, port: PortId, socket: FrameSocket) {
        self.ask(Request::Add { port, socket });
    }

    /// Ends the port's guest and lets go of its socket.
    pub fn remove(&self, port: PortId) {
        self.ask(Request::Remove { port });
    }

    /// Serves whose monitor holds the other end of `descriptor`, a connected unix socket of the port's kind, as the
    /// port's guest, unless it has one. Waits until that is so.
    pub fn plug(&self, port: PortId, descriptor: OwnedFd) -> io::Result<Plugged> {
        let (answer, answered) = mpsc::channel();
        self.ask(Request::Plug { port, descriptor, answer });
        // A thread that has ended has said why.
        answered.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn ask(&self, request: Request) {
        // A thread that has ended has said why.
        if self.requests.send(request).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for FrameSockets {
    fn drop(&mut self) {
        self.ask(Request::Stop);
    }
}

/// One port's socket and who is there.
struct Place {
    socket: FrameSocket,
    guest: Option<Guest>,
    state: LinkState,
    /// Monitors that were hung up on because one was connected already.
    turned_away: u64,
    /// When to look at the socket again, which is not watched until then.
    paused: Option<Instant>,
}

struct Guest {
    alarm: Arc<Alarm<Ended>>,
    end: FarEnd,
}

struct Running<P> {
    wake: Arc<OwnedFd>,
    plugs: P,
    places: BTreeMap<PortId, Place>,
    /// When it is looked next who is still there.
    look: Instant,
}

impl<P: Plugs> Running<P> {
    fn run(&mut self, queue: &mpsc::Receiver<Request>) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
            if self.obey(queue) {
                return Ok(());
            }
            self.hear_alarms();
            if self.look <= Instant::now() {
                self.look_for_the_silent();
                self.look = Instant::now() + LOOK_EVERY;
            }
            ready.into_iter().for_each(|port| self.serve(port));
        }
    }

    /// Waits until something is to be done; answers whose sockets are ready.
    fn wait(&mut self) -> io::Result<Vec<PortId>> {
        let now = Instant::now();
        for place in self.places.values_mut() {
            place.paused = place.paused.filter(|until| *until > now);
        }
        let watched: Vec<(PortId, BorrowedFd<'_>)> = self
            .places
            .iter()
            .filter(|(_, place)| place.is_watched())
            .map(|(port, place)| (*port, place.socket.as_fd()))
            .collect();
        let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        fds.extend(watched.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let timeout = self.timeout(now);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = watched.iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((port, _), _)| *port).collect())
    }

    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let pauses = self.places.values().filter_map(|place| place.paused);
        let looks = self
            .places
            .values()
            .any(|place| place.guest.as_ref().is_some_and(|guest| guest.end.goes_silently()));
        let left = pauses.chain(looks.then_some(self.look)).min()?.saturating_duration_since(now);
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Does what was asked. Answers whether that is to end.
    fn obey(&mut self, queue: &mpsc::Receiver<Request>) -> bool {
        loop {
            match queue.try_recv() {
                Ok(Request::Add { port, socket }) => self.add(port, socket),
                Ok(Request::Remove { port }) => self.remove(port),
                Ok(Request::Plug { port, descriptor, answer }) => {
                    // Who does not wait any more has no use for it.
                    let _ = answer.send(self.plug_passed(port, descriptor));
                }
                Ok(Request::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    let ports: Vec<PortId> = self.places.keys().copied().collect();
                    ports.into_iter().for_each(|port| self.remove(port));
                    return true;
                }
                Err(mpsc::TryRecvError::Empty) => return false,
            }
        }
    }

    fn add(&mut self, port: PortId, socket: FrameSocket) {
        if let FrameSocket::Stream(listener) = &socket
            && let Err(error) = listener.set_nonblocking(true)
        {
            let reason = format!("its socket cannot be served: {error}");
            return self.plugs.tell(port, LinkState::Trouble { reason });
        }
        // Those of a guest that has an address come to the new socket only.
        let guest = self.places.get(&port).and_then(|place| place.guest.as_ref());
        if guest.is_some_and(|guest| matches!(guest.end, FarEnd::Address(_))) {
            self.end(port, Ended::Gone);
        }
        let before = self.places.remove(&port);
        let (guest, state) =
            before.map_or((None, LinkState::Waiting), |before| (before.guest, before.state));
        let place = Place { socket, guest, state, turned_away: 0, paused: None };
        self.places.insert(port, place);
    }

    fn remove(&mut self, port: PortId) {
        if let Some(guest) = self.places.remove(&port).and_then(|place| place.guest) {
            self.plugs.exchange(port, Attached::Unplugged);
            guest.end.hang_up();
        }
    }

    /// Serves a monitor that is connected already.
    fn plug_passed(&mut self, port: PortId, descriptor: OwnedFd) -> io::Result<Plugged> {
        // Who has just ended is in nobody's way.
        self.hear_alarms();
        let place = self.places.get(&port).ok_or(io::ErrorKind::NotFound)?;
        if place.guest.as_ref().is_some_and(|guest| guest.end.is_there()) {
            return Ok(Plugged::Busy);
        }
        let wanted = match place.socket {
            FrameSocket::Stream(_) => SocketType::STREAM,
            FrameSocket::Datagram(_) => SocketType::DGRAM,
        };
        if sockopt::socket_type(&descriptor)? != wanted {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.end(port, Ended::Gone);
        let descriptor = Arc::new(descriptor);
        if wanted == SocketType::STREAM {
            self.begin_stream(port, descriptor)?;
        } else {
            let end = FarEnd::Pair(Arc::clone(&descriptor));
            self.begin_datagrams(port, descriptor, Peer::Connected, end)?;
        }
        Ok(Plugged::Yes)
    }

    /// Somebody has come to a port's socket.
    fn serve(&mut self, port: PortId) {
        // A guest may have been plugged in since.
        let Some(place) = self.places.get(&port).filter(|place| place.is_watched()) else { return };
        let begun = match &place.socket {
            FrameSocket::Stream(listener) => match listener.accept() {
                Ok((stream, _)) => {
                    if place.guest.as_ref().is_some_and(|guest| !guest.end.is_there()) {
                        self.end(port, Ended::Gone);
                    }
                    self.welcome(port, OwnedFd::from(stream))
                }
                Err(error) => Err(error),
            },
            FrameSocket::Datagram(socket) => {
                let socket = Arc::clone(socket);
                self.hear_out(port, &socket)
            }
        };
        match begun {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The port has been removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // No descriptor is left, most likely: who waits goes on waiting.
                tracing::warn!(%port, %error, "a virtual machine cannot be connected yet");
                if let Some(place) = self.places.get_mut(&port) {
                    place.paused = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Serves a monitor that has connected, unless another is there.
    fn welcome(&mut self, port: PortId, stream: OwnedFd) -> io::Result<()> {
        let Some(place) = self.places.get_mut(&port) else { return Ok(()) };
        if place.guest.is_none() {
            return self.begin_stream(port, Arc::new(stream));
        }
        place.turned_away += 1;
        if place.turned_away.is_power_of_two() {
            let times = place.turned_away;
            tracing::warn!(%port, times, "a second monitor was turned away");
        }
        Ok(())
    }

    fn begin_stream(&mut self, port: PortId, stream: Arc<OwnedFd>) -> io::Result<()> {
        let watch = self.plugs.watch(port).ok_or(io::ErrorKind::NotFound)?;
        let alarm = Arc::new(Alarm::new(Arc::clone(&self.wake)));
        let io = UnixStreamPort::new(Arc::clone(&stream), watch, Arc::clone(&alarm))?;
        let guest = Guest { alarm, end: FarEnd::Stream(stream) };
        self.plug(port, Attached::UnixStream(Box::new(io)), guest);
        Ok(())
    }

    /// Whoever has sent the datagram that waits is the peer, if it can be answered.
    fn hear_out(&mut self, port: PortId, socket: &Arc<OwnedFd>) -> io::Result<()> {
        let look = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let (_, _, sender) = recvfrom(&**socket, &mut [0; 1], look)?;
        let sender = sender.and_then(|sender| SocketAddrUnix::try_from(sender).ok());
        match sender.map(judge).unwrap_or(Sender::Nameless) {
            Sender::Peer(address) => {
                let (peer, end) = (Peer::At(address.clone()), FarEnd::Address(address));
                self.begin_datagrams(port, Arc::clone(socket), peer, end)
            }
            // Left behind by one that has ended since, most likely.
            Sender::Gone => discard(socket),
            Sender::Nameless => {
                discard(socket)?;
                let reason = "whoever sends to the socket has bound no address that it can be answered at; bind \
                              an absolute path (QEMU: local.type=unix,local.path=/…)";
                self.tell(port, LinkState::Trouble { reason: reason.to_owned() });
                Ok(())
            }
        }
    }

    fn begin_datagrams(
        &mut self,
        port: PortId,
        socket: Arc<OwnedFd>,
        peer: Peer,
        end: FarEnd,
    ) -> io::Result<()> {
        let watch = self.plugs.watch(port).ok_or(io::ErrorKind::NotFound)?;
        let alarm = Arc::new(Alarm::new(Arc::clone(&self.wake)));
        let io = UnixDatagramPort::new(socket, peer, watch, Arc::clone(&alarm))?;
        self.plug(port, Attached::UnixDatagram(Box::new(io)), Guest { alarm, end });
        Ok(())
    }

    fn plug(&mut self, port: PortId, io: Attached, guest: Guest) {
        self.plugs.exchange(port, io);
        if let Some(place) = self.places.get_mut(&port) {
            place.guest = Some(guest);
        }
        self.tell(port, LinkState::Connected);
    }

    /// Ends the guests whose ports can go on no longer.
    fn hear_alarms(&mut self) {
        let ended: Vec<(PortId, Ended)> = self
            .places
            .iter()
            .filter_map(|(port, place)| Some((*port, place.guest.as_ref()?.alarm.raised()?)))
            .collect();
        ended.into_iter().for_each(|(port, why)| self.end(port, why));
    }

    /// Ends the guests that have gone without a word.
    fn look_for_the_silent(&mut self) {
        let gone: Vec<PortId> = self
            .places
            .iter()
            .filter(|(_, place)| place.guest.as_ref().is_some_and(|guest| !guest.end.is_there()))
            .map(|(port, _)| *port)
            .collect();
        gone.into_iter().for_each(|port| self.end(port, Ended::Gone));
    }

    /// Ends a port's guest; another may come.
    fn end(&mut self, port: PortId, why: Ended) {
        let Some(place) = self.places.get_mut(&port) else { return };
        let Some(guest) = place.guest.take() else { return };
        self.plugs.exchange(port, Attached::Unplugged);
        guest.end.hang_up();
        let state = match why {
            Ended::Gone => LinkState::Waiting,
            Ended::Trouble(reason) => LinkState::Trouble { reason },
        };
        self.tell(port, state);
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        if let Some(place) = self.places.get_mut(&port)
            && place.state != state
        {
            place.state = state.clone();
            self.plugs.tell(port, state);
        }
    }
}

impl Place {
    /// Whether something that comes to the socket is this thread's business.
    fn is_watched(&self) -> bool {
        // The port reads it, or it waits until the guest that was passed has gone.
        let is_taken = matches!(self.socket, FrameSocket::Datagram(_)) && self.guest.is_some();
        self.paused.is_none() && !is_taken
    }
}

impl FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(listener) => listener.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
        }
    }
}

fn discard(socket: &OwnedFd) -> io::Result<()> {
    recvfrom(socket, &mut [0; 1], RecvFlags::DONTWAIT)?;
    Ok(())
}

#[cfg(test)]
mod tests;
