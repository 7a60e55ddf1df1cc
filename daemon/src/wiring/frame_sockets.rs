//! The thread that waits at the sockets of virtual machines whose monitors hand over whole Ethernet frames.
//! It carries none: it tells who comes and who has gone, and plugs the port of whoever is there.
//!
//! One monitor at a time. At a stream socket another one is hung up on; at a datagram socket, where anybody
//! of the same user can put something, the first that has an address is the peer, and what others send is
//! dropped until it is gone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::alarm::{Alarm, Ended};
use lichen_netstack::port::unix_datagram::UnixDatagramPort;
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::port::watch::FrameWatch;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvfrom,
    socket_with,
};

use super::attachments::Attached;

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

/// By what the guest's end is known to be there.
enum FarEnd {
    Stream(Arc<OwnedFd>),
    Datagram(SocketAddrUnix),
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
            .any(|place| matches!(place.guest, Some(Guest { end: FarEnd::Datagram(_), .. })));
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
        // Datagrams come to the new socket only.
        if matches!(socket, FrameSocket::Datagram(_)) {
            self.end(port, Ended::Gone);
        }
        let before = self.places.remove(&port);
        let (guest, state) =
            before.map_or((None, LinkState::Waiting), |before| (before.guest, before.state));
        let place = Place { socket, guest, state, turned_away: 0, paused: None };
        self.places.insert(port, place);
    }

    fn remove(&mut self, port: PortId) {
        if self.places.remove(&port).is_some_and(|place| place.guest.is_some()) {
            self.plugs.exchange(port, Attached::Unplugged);
        }
    }

    /// Somebody has come to a port's socket.
    fn serve(&mut self, port: PortId) {
        let Some(place) = self.places.get_mut(&port) else { return };
        let begun = match &place.socket {
            FrameSocket::Stream(listener) => match listener.accept() {
                Ok((stream, _)) => {
                    if place.guest.as_ref().is_some_and(|guest| !guest.end.is_there()) {
                        self.end(port, Ended::Gone);
                    }
                    self.begin_stream(port, OwnedFd::from(stream))
                }
                Err(error) => Err(error),
            },
            FrameSocket::Datagram(socket) => {
                let socket = Arc::clone(socket);
                self.begin_datagrams(port, &socket)
            }
        };
        match begun {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // No descriptor is left, most likely: who waits goes on waiting.
                tracing::warn!(%port, %error, "a virtual machine cannot be connected yet");
                if let Some(place) = self.places.get_mut(&port) {
                    place.paused = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
    }

    fn begin_stream(&mut self, port: PortId, stream: OwnedFd) -> io::Result<()> {
        let Some(place) = self.places.get_mut(&port) else { return Ok(()) };
        if place.guest.is_some() {
            place.turned_away += 1;
            if place.turned_away.is_power_of_two() {
                let times = place.turned_away;
                tracing::warn!(%port, times, "a second monitor was turned away");
            }
            return Ok(());
        }
        let Some(watch) = self.plugs.watch(port) else { return Ok(()) };
        let alarm = Arc::new(Alarm::new(Arc::clone(&self.wake)));
        let stream = Arc::new(stream);
        let io = UnixStreamPort::new(Arc::clone(&stream), watch, Arc::clone(&alarm))?;
        self.plug(
            port,
            Attached::UnixStream(Box::new(io)),
            Guest { alarm, end: FarEnd::Stream(stream) },
        );
        Ok(())
    }

    /// Whoever has sent the datagram that waits is the peer, if it can be answered.
    fn begin_datagrams(&mut self, port: PortId, socket: &Arc<OwnedFd>) -> io::Result<()> {
        let look = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let (_, _, sender) = recvfrom(&**socket, &mut [0; 1], look)?;
        let sender = sender.and_then(|sender| SocketAddrUnix::try_from(sender).ok());
        let peer = match sender.map(judge).unwrap_or(Sender::Nameless) {
            Sender::Peer(peer) => peer,
            // Left behind by one that has ended since, most likely.
            Sender::Gone => return discard(socket),
            Sender::Nameless => {
                discard(socket)?;
                let reason = "whoever sends to the socket has bound no address that it can be answered at; bind \
                              an absolute path (QEMU: local.type=unix,local.path=/…)";
                self.tell(port, LinkState::Trouble { reason: reason.to_owned() });
                return Ok(());
            }
        };
        let Some(watch) = self.plugs.watch(port) else { return Ok(()) };
        let alarm = Arc::new(Alarm::new(Arc::clone(&self.wake)));
        let io =
            UnixDatagramPort::new(Arc::clone(socket), peer.clone(), watch, Arc::clone(&alarm))?;
        self.plug(
            port,
            Attached::UnixDatagram(Box::new(io)),
            Guest { alarm, end: FarEnd::Datagram(peer) },
        );
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
        if place.guest.take().is_none() {
            return;
        }
        self.plugs.exchange(port, Attached::Unplugged);
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
        let is_ports = matches!(self.socket, FrameSocket::Datagram(_)) && self.guest.is_some();
        self.paused.is_none() && !is_ports
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

impl FarEnd {
    fn is_there(&self) -> bool {
        match self {
            Self::Stream(stream) => {
                let mut fds = [PollFd::new(&**stream, PollFlags::RDHUP)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().is_empty()
            }
            Self::Datagram(peer) => is_bound(peer),
        }
    }
}

/// Who has sent a datagram, as far as it can be answered.
enum Sender {
    Peer(SocketAddrUnix),
    /// It has an address, which nobody has bound now.
    Gone,
    /// It has none, or one that means something else in our directory.
    Nameless,
}

fn judge(sender: SocketAddrUnix) -> Sender {
    let is_absolute = sender.path_bytes().is_some_and(|path| path.starts_with(b"/"));
    if !is_absolute && sender.abstract_name().is_none() {
        Sender::Nameless
    } else if is_bound(&sender) {
        Sender::Peer(sender)
    } else {
        Sender::Gone
    }
}

fn discard(socket: &OwnedFd) -> io::Result<()> {
    recvfrom(socket, &mut [0; 1], RecvFlags::DONTWAIT)?;
    Ok(())
}

/// Whether a datagram socket has that address now.
fn is_bound(peer: &SocketAddrUnix) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None) {
        // One that is connected itself may not be connected to.
        Ok(probe) => matches!(connect(&probe, peer), Ok(()) | Err(Errno::PERM | Errno::AGAIN)),
        // No descriptor is left: it is looked again.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::PathBuf;
    use std::sync::Mutex;

    use lichen_netstack::counters::Counters;
    use lichen_netstack::port::{MAX_FRAME, Port as _, Receive};
    use rustix::event::epoll;

    use super::*;

    const PORT: PortId = PortId(1);

    /// A worker that does nothing of itself.
    #[derive(Clone)]
    struct Bench {
        poller: Arc<OwnedFd>,
        plugged: Arc<Mutex<Attached>>,
        told: mpsc::Sender<LinkState>,
    }

    impl Plugs for Bench {
        fn watch(&self, _: PortId) -> Option<FrameWatch> {
            Some(FrameWatch::new(Arc::clone(&self.poller), 0))
        }

        fn exchange(&mut self, _: PortId, io: Attached) {
            *self.plugged.lock().unwrap() = io;
        }

        fn tell(&mut self, _: PortId, state: LinkState) {
            let _ = self.told.send(state);
        }
    }

    impl Bench {
        fn start() -> (FrameSockets, Self, mpsc::Receiver<LinkState>) {
            let (told, states) = mpsc::channel();
            let poller = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
            let plugged = Arc::new(Mutex::new(Attached::Unplugged));
            let bench = Self { poller, plugged, told };
            (FrameSockets::start(bench.clone()).unwrap(), bench, states)
        }

        /// What the worker would find in its turn.
        fn receive(&self) -> Receive {
            self.plugged.lock().unwrap().receive(&mut vec![0; MAX_FRAME])
        }

        fn transmit(&self) {
            let mut port = self.plugged.lock().unwrap();
            port.transmit(&[0; 12 + 60]);
            port.flush(&mut Counters::default());
        }
    }

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("lichen-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[track_caller]
    fn next(states: &mpsc::Receiver<LinkState>) -> LinkState {
        states.recv_timeout(Duration::from_secs(5)).expect("the link changes")
    }

    #[test]
    fn one_monitor_at_a_time_is_served_at_a_stream_and_the_next_when_it_has_gone() {
        let (place, (sockets, bench, states)) = (Place::new("stream-place"), Bench::start());
        let path = place.at("db.sock");
        sockets.add(PORT, FrameSocket::Stream(UnixListener::bind(&path).unwrap()));
        let mut first = UnixStream::connect(&path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        let mut second = UnixStream::connect(&path).unwrap();
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it is hung up on");
        first.write_all(&[0, 0, 0, 60]).unwrap();
        first.write_all(&[1; 60]).unwrap();
        assert_eq!(bench.receive(), Receive::Frame(72));

        // The datapath has not even looked yet when the next one comes.
        drop(first);
        let mut third = UnixStream::connect(&path).unwrap();
        assert_eq!((next(&states), next(&states)), (LinkState::Waiting, LinkState::Connected));

        // Framing that is broken is told, ends that connection, and the next one is served.
        third.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert_eq!(bench.receive(), Receive::Empty);
        let LinkState::Trouble { reason } = next(&states) else { panic!("no trouble") };
        assert!(reason.contains("1195725856"), "{reason}");
        assert_eq!(third.read(&mut [0; 1]).unwrap(), 0);
        let _fourth = UnixStream::connect(&path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        sockets.remove(PORT);
        drop(sockets);
    }

    #[test]
    fn a_peer_of_datagrams_stays_until_it_is_gone_and_then_the_next_is_served() {
        let (place, (sockets, bench, states)) = (Place::new("dgram-place"), Bench::start());
        let path = place.at("db.sock");
        let ours = OwnedFd::from(UnixDatagram::bind(&path).unwrap());
        // Of one that has ended before anybody looked nothing is told.
        let ended = UnixDatagram::bind(place.at("ended")).unwrap();
        ended.send_to(&[1; 60], &path).unwrap();
        drop(ended);
        sockets.add(PORT, FrameSocket::Datagram(Arc::new(ours)));

        let nameless = UnixDatagram::unbound().unwrap();
        nameless.send_to(&[1; 60], &path).unwrap();
        let LinkState::Trouble { reason } = next(&states) else { panic!("no trouble") };
        assert!(reason.contains("local.path"), "{reason}");

        let first = UnixDatagram::bind(place.at("first")).unwrap();
        first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        first.send_to(b"VFKT", &path).unwrap();
        first.send_to(&[1; 60], &path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        assert_eq!(bench.receive(), Receive::Frame(72), "the greeting is no frame");
        bench.transmit();
        assert_eq!(first.recv(&mut [0; 100]).unwrap(), 60);

        let second = UnixDatagram::bind(place.at("second")).unwrap();
        second.send_to(&[2; 60], &path).unwrap();
        assert!(matches!(bench.receive(), Receive::Dropped(_)));

        // It goes without a word, and is missed though nothing is sent to it.
        drop(first);
        assert_eq!(next(&states), LinkState::Waiting);
        second.send_to(&[2; 60], &path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        assert_eq!(bench.receive(), Receive::Frame(72));

        // It goes, and what is sent to it tells.
        drop(second);
        bench.transmit();
        assert_eq!(next(&states), LinkState::Waiting);

        // A socket that is bound anew, as by a control that had lost it, is the one from now on.
        let third = UnixDatagram::bind(place.at("third")).unwrap();
        third.send_to(&[3; 60], &path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        std::fs::remove_file(&path).unwrap();
        let anew = OwnedFd::from(UnixDatagram::bind(&path).unwrap());
        sockets.add(PORT, FrameSocket::Datagram(Arc::new(anew)));
        assert_eq!(next(&states), LinkState::Waiting);
        third.send_to(&[3; 60], &path).unwrap();
        assert_eq!(next(&states), LinkState::Connected);
        assert_eq!(bench.receive(), Receive::Frame(72));
    }
}
