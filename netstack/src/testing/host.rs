//! A host whose peers are held by the test: servers that accept, refuse or keep silent.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::host::{
    Arrival, Bounce, Datagram, Fragmentation, Host, Listener, Peer, Readiness, Route, Stream, Token,
};
use crate::port::watch::FrameWatch;

/// Bytes that a simulated socket buffers in each direction.
const SOCKET_BUFFER: usize = 256 << 10;

/// The world outside; clones share it.
#[derive(Clone, Debug, Default)]
pub struct World(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<SocketAddr, Behaviour>,
    routes: BTreeMap<IpAddr, Route>,
    streams: BTreeMap<u64, StreamState>,
    datagrams: BTreeMap<u64, DatagramState>,
    ready: VecDeque<(Token, Readiness)>,
    accepting: BTreeMap<u64, VecDeque<(u64, SocketAddr)>>,
    listening: BTreeMap<u64, Token>,
    next: u64,
    echo_forbidden: bool,
    route_questions: usize,
}

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Takes it.
    Accept,
    /// Answers with a reset.
    Refuse,
    /// Answers nothing.
    Ignore,
    /// Cannot be reached.
    Unreachable,
}

/// One TCP connection, seen from the host's peer.
#[derive(Debug, Default)]
struct StreamState {
    to: Option<SocketAddr>,
    token: Option<Token>,
    connected: Option<Behaviour>,
    /// From the datapath to the peer.
    outward: VecDeque<u8>,
    /// From the peer to the datapath.
    inward: VecDeque<u8>,
    /// Where among them the last urgent byte is; a read stops before it.
    urgent: Option<usize>,
    outward_finished: bool,
    inward_finished: bool,
    reset_by_datapath: bool,
    reset_by_peer: bool,
    closed: bool,
    /// Bytes the peer leaves unread.
    capacity: usize,
}

#[derive(Debug)]
struct DatagramState {
    /// The peer; none for a published port.
    to: Option<SocketAddr>,
    token: Option<Token>,
    outward: VecDeque<Sent>,
    /// Calls that sent something.
    calls: usize,
    inward: VecDeque<Inward>,
    bounces: VecDeque<Bounce>,
    fragmentation: Option<Fragmentation>,
    ttl: Option<u8>,
    closed: bool,
}

#[derive(Debug)]
struct Inward {
    bytes: Result<Vec<u8>, io::ErrorKind>,
    segment_size: usize,
    peer: Option<Peer>,
}

/// A datagram that left a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where to, on the socket of a published port.
    pub route: Option<Peer>,
}

/// What became of a connection, as its peer sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The datapath finished its direction in order.
    pub finished: bool,
    /// The datapath reset the connection.
    pub reset: bool,
    /// The datapath closed its socket.
    pub closed: bool,
}

impl World {
    /// Puts a server somewhere.
    pub fn serve(&self, at: &str, behaviour: Behaviour) {
        let at = at.parse().expect("an address and port");
        self.0.borrow_mut().servers.insert(at, behaviour);
    }

    /// Says where the host would send a packet; everywhere else it is `Unicast`.
    pub fn route_to(&self, ip: &str, route: Route) {
        self.0.borrow_mut().routes.insert(ip.parse().expect("an address"), route);
    }

    /// How often the host was asked for a route.
    pub fn route_questions(&self) -> usize {
        self.0.borrow().route_questions
    }

    /// Forbids ping sockets.
    pub fn forbid_echo(&self) {
        self.0.borrow_mut().echo_forbidden = true;
    }

    /// The next readiness that the datapath has not heard of.
    pub fn poll_ready(&self) -> Option<(Token, Readiness)> {
        self.0.borrow_mut().ready.pop_front()
    }

    /// The connections that were made to `at`, oldest first.
    pub fn connections(&self, at: &str) -> Vec<u64> {
        let at = at.parse().expect("an address and port");
        let state = self.0.borrow();
        state.streams.iter().filter(|(_, s)| s.to == Some(at)).map(|(id, _)| *id).collect()
    }

    /// The connection that was made to `at` last.
    pub fn newest_connection(&self, at: &str) -> u64 {
        let at = at.parse().expect("an address and port");
        let state = self.0.borrow();
        let found = state.streams.iter().rev().find(|(_, stream)| stream.to == Some(at));
        *found.expect("a connection").0
    }

    /// Host sockets that are open.
    pub fn open_sockets(&self) -> usize {
        let state = self.0.borrow();
        state.streams.values().filter(|stream| !stream.closed).count()
            + state.datagrams.values().filter(|datagram| !datagram.closed).count()
    }

    /// Lets the peer of a connection send; answers how much was taken.
    pub fn peer_send(&self, id: u64, bytes: &[u8]) -> usize {
        self.change(id, |stream| {
            let room = SOCKET_BUFFER.saturating_sub(stream.inward.len());
            let len = bytes.len().min(room);
            stream.inward.extend(&bytes[..len]);
            len
        })
    }

    /// Lets the peer of a connection send, the last byte as an urgent one.
    pub fn peer_send_urgent(&self, id: u64, bytes: &[u8]) {
        self.change(id, |stream| {
            stream.inward.extend(bytes);
            stream.urgent = Some(stream.inward.len() - 1);
        });
    }

    /// Lets the peer finish its direction.
    pub fn peer_finish(&self, id: u64) {
        self.change(id, |stream| stream.inward_finished = true);
    }

    /// Lets the peer reset the connection.
    pub fn peer_reset(&self, id: u64) {
        self.change(id, |stream| stream.reset_by_peer = true);
    }

    /// Takes what the peer of a connection has received.
    pub fn peer_receive(&self, id: u64) -> Vec<u8> {
        self.change(id, |stream| std::mem::take(&mut stream.outward).into())
    }

    /// Changes how much the peer leaves unread before its window is full.
    pub fn set_peer_capacity(&self, id: u64, capacity: usize) {
        self.change(id, |stream| stream.capacity = capacity);
    }

    /// What became of a connection.
    pub fn ending(&self, id: u64) -> Ending {
        let state = self.0.borrow();
        let stream = &state.streams[&id];
        Ending {
            finished: stream.outward_finished,
            reset: stream.reset_by_datapath,
            closed: stream.closed,
        }
    }

    /// A listener of the host, as control would hand it over.
    pub fn listen(&self) -> SimListener {
        let mut state = self.0.borrow_mut();
        state.next += 1;
        let id = state.next;
        state.accepting.insert(id, VecDeque::new());
        SimListener { id, world: self.clone() }
    }

    /// A client connects to a listener; answers the connection.
    pub fn connect_to(&self, listener: u64, client: &str) -> u64 {
        let client = client.parse().expect("an address and port");
        let mut state = self.0.borrow_mut();
        state.next += 1;
        let id = state.next;
        let stream = StreamState {
            connected: Some(Behaviour::Accept),
            capacity: SOCKET_BUFFER,
            ..StreamState::default()
        };
        state.streams.insert(id, stream);
        state.accepting.get_mut(&listener).expect("a listener").push_back((id, client));
        if let Some(token) = state.listening.get(&listener).copied() {
            state.ready.push_back((token, Readiness::READ));
        }
        id
    }

    /// The datagram sockets that speak with `to`.
    pub fn datagram_sockets(&self, to: &str) -> Vec<u64> {
        let to = to.parse().expect("an address and port");
        let state = self.0.borrow();
        let speaks = |datagram: &DatagramState| datagram.to == Some(to) && !datagram.closed;
        state.datagrams.iter().filter(|(_, d)| speaks(d)).map(|(id, _)| *id).collect()
    }

    /// Takes the datagrams that were sent on a socket.
    pub fn datagrams_sent(&self, id: u64) -> Vec<Vec<u8>> {
        self.sent(id).into_iter().map(|sent| sent.bytes).collect()
    }

    /// The same, with where they went.
    pub fn sent(&self, id: u64) -> Vec<Sent> {
        self.with_datagram(id, |datagram| datagram.outward.drain(..).collect())
    }

    /// How many calls have sent something on a socket.
    pub fn send_calls(&self, id: u64) -> usize {
        self.with_datagram(id, |datagram| datagram.calls)
    }

    /// What was last said of the time to live on a socket.
    pub fn ttl(&self, id: u64) -> Option<u8> {
        self.with_datagram(id, |datagram| datagram.ttl)
    }

    /// The socket of a published UDP port, as control would hand it over.
    pub fn bind(&self) -> SimDatagram {
        self.open_datagram(None, None)
    }

    /// Clients of a published port send, in datagrams of `segment_size` bytes.
    pub fn client_sends(&self, id: u64, peer: Peer, bytes: &[u8], segment_size: usize) {
        let bytes = Ok(bytes.to_vec());
        self.arrive(id, Inward { bytes, segment_size, peer: Some(peer) });
    }

    /// An ICMP error comes back to a socket.
    pub fn bounce(&self, id: u64, bounce: Bounce) {
        self.with_datagram(id, |datagram| datagram.bounces.push_back(bounce));
        self.signal(id);
    }

    /// What was last said of fragmentation on a socket.
    pub fn fragmentation(&self, id: u64) -> Option<Fragmentation> {
        self.with_datagram(id, |datagram| datagram.fragmentation)
    }

    /// Lets the peer of a datagram socket answer, or an error come back.
    pub fn datagram_reply(&self, id: u64, reply: Result<Vec<u8>, io::ErrorKind>) {
        let segment_size = reply.as_ref().map_or(0, Vec::len);
        self.arrive(id, Inward { bytes: reply, segment_size, peer: None });
    }

    /// Lets the peer of a datagram socket answer with several of one size, put together by the host.
    pub fn datagram_train(&self, id: u64, bytes: &[u8], segment_size: usize) {
        self.arrive(id, Inward { bytes: Ok(bytes.to_vec()), segment_size, peer: None });
    }

    fn arrive(&self, id: u64, inward: Inward) {
        self.with_datagram(id, |datagram| datagram.inward.push_back(inward));
        self.signal(id);
    }

    fn signal(&self, id: u64) {
        if let Some(token) = self.with_datagram(id, |datagram| datagram.token) {
            self.0.borrow_mut().ready.push_back((token, Readiness::READ));
        }
    }

    fn with_datagram<R>(&self, id: u64, work: impl FnOnce(&mut DatagramState) -> R) -> R {
        let mut state = self.0.borrow_mut();
        work(state.datagrams.get_mut(&id).expect("sockets are never forgotten"))
    }

    /// Does something to a connection as its peer, and lets the datapath know.
    fn change<R>(&self, id: u64, work: impl FnOnce(&mut StreamState) -> R) -> R {
        let mut state = self.0.borrow_mut();
        let stream = state.streams.get_mut(&id).expect("a connection");
        let result = work(stream);
        if let (Some(token), false) = (stream.token, stream.closed) {
            let beyond_data =
                stream.inward_finished || stream.reset_by_peer || stream.urgent.is_some();
            state.ready.push_back((token, Readiness { beyond_data, ..Readiness::BOTH }));
        }
        result
    }

    fn with<R>(&self, id: u64, work: impl FnOnce(&mut StreamState) -> R) -> R {
        work(self.0.borrow_mut().streams.get_mut(&id).expect("streams are never forgotten"))
    }

    fn open_datagram(&self, to: Option<SocketAddr>, token: Option<Token>) -> SimDatagram {
        let mut state = self.0.borrow_mut();
        state.next += 1;
        let id = state.next;
        let datagram = DatagramState {
            to,
            token,
            outward: VecDeque::new(),
            calls: 0,
            inward: VecDeque::new(),
            bounces: VecDeque::new(),
            fragmentation: None,
            ttl: None,
            closed: false,
        };
        state.datagrams.insert(id, datagram);
        SimDatagram { id, world: self.clone() }
    }
}

impl Host for World {
    type Stream = SimStream;
    type Datagram = SimDatagram;
    type Listener = SimListener;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<SimStream> {
        let mut state = self.0.borrow_mut();
        let behaviour = state.servers.get(&to).copied().unwrap_or(Behaviour::Refuse);
        if behaviour == Behaviour::Unreachable {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        state.next += 1;
        let id = state.next;
        let stream = StreamState {
            to: Some(to),
            token: Some(token),
            connected: Some(behaviour),
            capacity: SOCKET_BUFFER,
            ..StreamState::default()
        };
        state.streams.insert(id, stream);
        if behaviour != Behaviour::Ignore {
            state.ready.push_back((token, Readiness::WRITE));
        }
        Ok(SimStream { id, world: self.clone() })
    }

    fn open_udp(&mut self, to: SocketAddr, token: Token) -> io::Result<SimDatagram> {
        Ok(self.open_datagram(Some(to), Some(token)))
    }

    fn open_echo(&mut self, to: IpAddr, token: Token) -> io::Result<SimDatagram> {
        if self.0.borrow().echo_forbidden {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.open_datagram(Some(SocketAddr::from((to, 0))), Some(token)))
    }

    fn watch_listener(&mut self, listener: &SimListener, token: Token) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.listening.insert(listener.id, token);
        state.ready.push_back((token, Readiness::READ));
        Ok(())
    }

    fn watch_datagram(&mut self, socket: &SimDatagram, token: Token) -> io::Result<()> {
        socket.with(|datagram| datagram.token = Some(token));
        // What came before anybody listened is told at once.
        self.signal(socket.id);
        Ok(())
    }

    fn watch_stream(&mut self, stream: &SimStream, token: Token) -> io::Result<()> {
        self.with(stream.id, |state| state.token = Some(token));
        self.0.borrow_mut().ready.push_back((token, Readiness::BOTH));
        Ok(())
    }

    fn unwatch_stream(&mut self, stream: &SimStream) {
        self.with(stream.id, |state| state.token = None);
    }

    fn unwatch_datagram(&mut self, socket: &SimDatagram) {
        socket.with(|datagram| datagram.token = None);
    }

    fn unwatch_listener(&mut self, listener: &SimListener) {
        self.0.borrow_mut().listening.remove(&listener.id);
    }

    fn frame_watch(&self, _: u16) -> Option<FrameWatch> {
        None
    }

    fn route(&mut self, to: IpAddr) -> Route {
        let mut state = self.0.borrow_mut();
        state.route_questions += 1;
        state.routes.get(&to).copied().unwrap_or(Route::Unicast)
    }
}

/// A simulated TCP connection, the datapath's end.
#[derive(Debug)]
pub struct SimStream {
    id: u64,
    world: World,
}

impl Stream for SimStream {
    fn connected(&mut self) -> io::Result<()> {
        match self.world.with(self.id, |stream| stream.connected) {
            Some(Behaviour::Accept) => Ok(()),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.world.with(self.id, |stream| {
            if stream.reset_by_peer {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let mark = stream.urgent.filter(|at| *at > 0);
            let len = buffer.len().min(mark.unwrap_or(stream.inward.len()));
            stream.inward.read_exact(&mut buffer[..len])?;
            stream.urgent = mark.map(|at| at - len);
            match len {
                0 if stream.inward_finished => Ok(0),
                0 => Err(io::ErrorKind::WouldBlock.into()),
                len => Ok(len),
            }
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.world.with(self.id, |stream| {
            if stream.reset_by_peer {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let room = stream.capacity.saturating_sub(stream.outward.len());
            match bytes.len().min(room) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                len => {
                    stream.outward.extend(&bytes[..len]);
                    Ok(len)
                }
            }
        })
    }

    fn finish(&mut self) {
        self.world.with(self.id, |stream| stream.outward_finished = true);
    }

    fn reset(self) {
        self.world.with(self.id, |stream| stream.reset_by_datapath = true);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.with(self.id, |stream| stream.closed = true);
    }
}

/// A simulated datagram socket, the datapath's end.
#[derive(Debug)]
pub struct SimDatagram {
    /// Names it in what the [`World`] is asked.
    pub id: u64,
    world: World,
}

impl SimDatagram {
    fn with<R>(&self, work: impl FnOnce(&mut DatagramState) -> R) -> R {
        self.world.with_datagram(self.id, work)
    }
}

impl Datagram for SimDatagram {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Arrival> {
        // A call fails for as long as errors wait.
        let next = match self.with(|it| it.bounces.is_empty().then(|| it.inward.pop_front())) {
            Some(next) => next.ok_or(io::ErrorKind::WouldBlock)?,
            None => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        let Inward { bytes, segment_size, peer } = next;
        let bytes = bytes?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(Arrival { len: bytes.len(), segment_size, peer })
    }

    fn send(
        &mut self,
        bytes: &[u8],
        segment_size: Option<usize>,
        route: Option<Peer>,
    ) -> io::Result<()> {
        self.with(|datagram| {
            datagram.calls += 1;
            let size = segment_size.unwrap_or(bytes.len()).max(1);
            let pieces = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(size).collect() };
            let sent = pieces.into_iter().map(|piece| Sent { bytes: piece.to_vec(), route });
            datagram.outward.extend(sent);
        });
        Ok(())
    }

    fn set_fragmentation(&mut self, fragmentation: Fragmentation) {
        self.with(|datagram| datagram.fragmentation = Some(fragmentation));
    }

    fn set_ttl(&mut self, ttl: u8) {
        self.with(|datagram| datagram.ttl = Some(ttl));
    }

    fn take_bounce(&mut self, _quote: &mut [u8]) -> Option<Bounce> {
        self.with(|datagram| datagram.bounces.pop_front())
    }
}

impl Drop for SimDatagram {
    fn drop(&mut self) {
        self.with(|datagram| datagram.closed = true);
    }
}

/// A simulated listener, the datapath's end.
#[derive(Debug)]
pub struct SimListener {
    /// Names it in [`World::connect_to`].
    pub id: u64,
    world: World,
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn accept(&mut self) -> io::Result<(SimStream, SocketAddr)> {
        let next =
            self.world.0.borrow_mut().accepting.get_mut(&self.id).and_then(VecDeque::pop_front);
        match next {
            Some((id, client)) => Ok((SimStream { id, world: self.world.clone() }, client)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
