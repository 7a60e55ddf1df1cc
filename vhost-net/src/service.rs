//! The thread that serves all connections of monitors: it accepts, handles their messages, and hands rings
//! to the datapath. It carries no frame.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::ids::{MacAddr, PortId};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::port::VhostPort;
use crate::session::{Ended, Session};

/// Events taken at once.
const MAX_EVENTS: usize = 64;

/// How long a listener rests that could not be accepted from.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the service needs of the datapath.
pub trait Datapath: Send + 'static {
    /// The rings run: puts the port to work. Its kicks are to be watched, each time anew.
    fn plug(&mut self, port: PortId, rings: VhostPort);

    /// Takes the rings out of use, and ends watching these kicks. When it returns, nobody uses them.
    fn unplug(&mut self, port: PortId, kicks: &[BorrowedFd<'_>]);

    /// The link has changed.
    fn tell(&mut self, port: PortId, state: LinkState);
}

enum Request {
    Add { port: PortId, mac: MacAddr, listener: UnixListener },
    Remove { port: PortId },
    Stop,
}

/// A handle on the thread, which ends with it.
#[derive(Debug)]
pub struct Service {
    requests: mpsc::Sender<Request>,
    wake: Arc<OwnedFd>,
}

impl Service {
    /// Starts the thread.
    pub fn start(datapath: impl Datapath) -> io::Result<Self> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&poller, &*wake, data, epoll::EventFlags::IN)?;
        let (requests, queue) = mpsc::channel();
        let own = Arc::clone(&wake);
        std::thread::Builder::new().name("vhost-user".to_owned()).spawn(move || {
            let mut running = Running { poller, wake: own, datapath, places: BTreeMap::new() };
            if let Err(error) = running.run(&queue) {
                tracing::error!(%error, "virtual machines cannot be served any more");
            }
        })?;
        Ok(Self { requests, wake })
    }

    /// Serves monitors that connect to `listener` as the port's guest, whose Ethernet address that is. Replaces
    /// an earlier listener; a session goes on.
    pub fn add(&self, port: PortId, mac: MacAddr, listener: UnixListener) {
        self.ask(Request::Add { port, mac, listener });
    }

    /// Ends the port's session and closes its listener.
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

impl Drop for Service {
    fn drop(&mut self) {
        self.ask(Request::Stop);
    }
}

/// Epoll data: our own wake-up, or a port's listener or session.
const WAKE: u64 = 0;

fn listener_token(port: PortId) -> u64 {
    u64::from(port.0) << 2 | 1
}

fn session_token(port: PortId) -> u64 {
    u64::from(port.0) << 2 | 2
}

/// One port's socket and who is connected to it.
struct Place {
    mac: MacAddr,
    listener: UnixListener,
    session: Option<Session>,
    state: LinkState,
    /// Monitors that were turned away because one was connected already.
    turned_away: u64,
    /// When to accept again, while the listener is not watched.
    paused: Option<Instant>,
}

struct Running<D> {
    poller: OwnedFd,
    wake: Arc<OwnedFd>,
    datapath: D,
    places: BTreeMap<PortId, Place>,
}

impl<D: Datapath> Running<D> {
    fn run(&mut self, queue: &mpsc::Receiver<Request>) -> io::Result<()> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.poller, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let token = event.data.u64();
                let port = PortId(u32::try_from(token >> 2).unwrap_or(u32::MAX));
                match token & 3 {
                    1 => self.accept(port),
                    2 => self.serve(port),
                    _ => {
                        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
                        if self.obey(queue) {
                            return Ok(());
                        }
                        self.hear_alarms();
                    }
                }
            }
            self.end_waits();
            self.end_pauses();
        }
    }

    /// Does what was asked. Answers whether that is to end.
    fn obey(&mut self, queue: &mpsc::Receiver<Request>) -> bool {
        loop {
            match queue.try_recv() {
                Ok(Request::Add { port, mac, listener }) => {
                    if let Err(error) = self.add(port, mac, listener) {
                        let reason = format!("its socket cannot be served: {error}");
                        self.datapath.tell(port, LinkState::Trouble { reason });
                    }
                }
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

    fn add(&mut self, port: PortId, mac: MacAddr, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.watch(&listener, listener_token(port))?;
        match self.places.get_mut(&port) {
            Some(place) => {
                // Others hold copies, so closing ours would not end the watch.
                let _ = epoll::delete(&self.poller, &place.listener);
                place.listener = listener;
                place.mac = mac;
                place.paused = None;
            }
            None => {
                let state = LinkState::Waiting;
                let (session, turned_away, paused) = (None, 0, None);
                let place = Place { mac, listener, session, state, turned_away, paused };
                self.places.insert(port, place);
            }
        }
        self.accept(port);
        Ok(())
    }

    fn remove(&mut self, port: PortId) {
        if let Some(mut place) = self.places.remove(&port) {
            let _ = epoll::delete(&self.poller, &place.listener);
            if let Some(session) = place.session.take() {
                self.close(session);
            }
        }
    }

    fn close(&mut self, mut session: Session) {
        session.unplug(&mut self.datapath);
        let _ = epoll::delete(&self.poller, &session);
    }

    fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.poller, fd, data, epoll::EventFlags::IN | epoll::EventFlags::RDHUP)?)
    }

    fn accept(&mut self, port: PortId) {
        while let Some(place) = self.places.get_mut(&port) {
            match place.listener.accept() {
                Ok((stream, _)) => {
                    // Who was connected may have said its last and gone.
                    self.serve(port);
                    self.begin(port, stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // No descriptor is left, most likely: who waits goes on waiting, and is heard of again
                    // at once for as long as the listener is watched.
                    tracing::warn!(%port, %error, "a monitor cannot be accepted yet");
                    let _ = epoll::delete(&self.poller, &place.listener);
                    place.paused = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Watches the listeners again that have rested.
    fn end_pauses(&mut self) {
        let now = Instant::now();
        let rested =
            self.places.iter().filter(|(_, place)| place.paused.is_some_and(|at| at <= now));
        for port in rested.map(|(port, _)| *port).collect::<Vec<_>>() {
            let place = self.places.get(&port).expect("just found");
            let watched = self.watch(&place.listener, listener_token(port));
            let again = watched.is_err().then(|| now + ACCEPT_PAUSE);
            self.places.get_mut(&port).expect("just found").paused = again;
        }
    }

    fn begin(&mut self, port: PortId, stream: UnixStream) {
        let Some(place) = self.places.get_mut(&port) else { return };
        if place.session.is_some() {
            place.turned_away += 1;
            if place.turned_away.is_power_of_two() {
                let times = place.turned_away;
                tracing::warn!(%port, times, "a second monitor was turned away");
            }
            return;
        }
        let guest = (port, place.mac);
        let begun = Session::new(guest, stream, Arc::clone(&self.wake), Instant::now());
        let watched = begun.and_then(|session| {
            self.watch(&session, session_token(port))?;
            Ok(session)
        });
        match watched {
            Ok(session) => {
                let place = self.places.get_mut(&port).expect("it was there a moment ago");
                place.session = Some(session);
            }
            Err(error) => tracing::warn!(%port, %error, "a monitor cannot be served"),
        }
    }

    fn serve(&mut self, port: PortId) {
        let Some(session) = self.places.get_mut(&port).and_then(|place| place.session.as_mut())
        else {
            return;
        };
        let datapath = &mut self.datapath;
        // What a monitor sends is as little to be trusted as what a guest does.
        let handled =
            catch_unwind(AssertUnwindSafe(|| session.handle_readable(Instant::now(), datapath)));
        match handled {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(state))) => self.tell(port, state),
            Ok(Err(ended)) => self.end(port, ended),
            Err(_) => {
                let why = "a defect in Lichen was met in a message of the monitor".to_owned();
                self.end(port, Ended::Trouble(why));
            }
        }
    }

    /// Ends a session; the monitor may connect again.
    fn end(&mut self, port: PortId, ended: Ended) {
        let session = self.places.get_mut(&port).and_then(|place| place.session.take());
        if let Some(session) = session {
            self.close(session);
        }
        let state = match ended {
            Ended::Trouble(reason) => LinkState::Trouble { reason },
            Ended::Gone => match self.places.get(&port).map(|place| &place.state) {
                // What was wrong stays told until somebody comes again.
                Some(LinkState::Trouble { reason }) => {
                    LinkState::Trouble { reason: reason.clone() }
                }
                _ => LinkState::Waiting,
            },
        };
        self.tell(port, state);
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        if let Some(place) = self.places.get_mut(&port)
            && place.state != state
        {
            place.state = state.clone();
            self.datapath.tell(port, state);
        }
    }

    /// Ends the sessions whose rings have failed.
    fn hear_alarms(&mut self) {
        let failed: Vec<(PortId, Ended)> = self
            .places
            .iter()
            .filter_map(|(port, place)| Some((*port, place.session.as_ref()?.failure()?)))
            .collect();
        failed.into_iter().for_each(|(port, ended)| self.end(port, ended));
    }

    /// Has the sessions judge what they have waited for too long.
    fn end_waits(&mut self) {
        let now = Instant::now();
        let mut judged = Vec::new();
        for (port, place) in &mut self.places {
            let Some(session) = &mut place.session else { continue };
            if session.deadline().is_some_and(|deadline| deadline <= now) {
                judged.push((*port, session.handle_timeout(now)));
            }
        }
        for (port, judgement) in judged {
            match judgement {
                Ok(Some(state)) => self.tell(port, state),
                Ok(None) => {}
                Err(ended) => self.end(port, ended),
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadlines = self.places.values().filter_map(|place| place.session.as_ref()?.deadline());
        let pauses = self.places.values().filter_map(|place| place.paused);
        let left = deadlines.chain(pauses).min()?.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }
}
