use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Mutex;

use lichen_netstack::counters::Counters;
use lichen_netstack::port::{MAX_FRAME, Port as _, Receive};
use rustix::event::epoll;

use super::*;
use crate::scratch::Scratch;

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

#[track_caller]
fn next(states: &mpsc::Receiver<LinkState>) -> LinkState {
    states.recv_timeout(Duration::from_secs(5)).expect("the link changes")
}

#[test]
fn one_monitor_at_a_time_is_served_at_a_stream_and_the_next_when_it_has_gone() {
    let (place, (sockets, bench, states)) = (Scratch::new("stream-place"), Bench::start());
    let path = place.path().join("db.sock");
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
    let (place, (sockets, bench, states)) = (Scratch::new("dgram-place"), Bench::start());
    let path = place.path().join("db.sock");
    let ours = OwnedFd::from(UnixDatagram::bind(&path).unwrap());
    // Of one that has ended before anybody looked nothing is told.
    let ended = UnixDatagram::bind(place.path().join("ended")).unwrap();
    ended.send_to(&[1; 60], &path).unwrap();
    drop(ended);
    sockets.add(PORT, FrameSocket::Datagram(Arc::new(ours)));

    let nameless = UnixDatagram::unbound().unwrap();
    nameless.send_to(&[1; 60], &path).unwrap();
    let LinkState::Trouble { reason } = next(&states) else { panic!("no trouble") };
    assert!(reason.contains("local.path"), "{reason}");

    let first = UnixDatagram::bind(place.path().join("first")).unwrap();
    first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    first.send_to(b"VFKT", &path).unwrap();
    first.send_to(&[1; 60], &path).unwrap();
    assert_eq!(next(&states), LinkState::Connected);
    assert_eq!(bench.receive(), Receive::Frame(72), "the greeting is no frame");
    bench.transmit();
    assert_eq!(first.recv(&mut [0; 100]).unwrap(), 60);

    let second = UnixDatagram::bind(place.path().join("second")).unwrap();
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
    let third = UnixDatagram::bind(place.path().join("third")).unwrap();
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

/// Our end of a pair of sockets, and the monitor's.
fn streams() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (ours.into(), theirs)
}

fn datagrams() -> (OwnedFd, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (ours.into(), theirs)
}

#[test]
fn a_stream_that_is_passed_is_served_like_one_that_came_and_is_followed_by_another() {
    let (place, (sockets, bench, states)) = (Scratch::new("stream-passed"), Bench::start());
    let path = place.path().join("db.sock");
    sockets.add(PORT, FrameSocket::Stream(UnixListener::bind(&path).unwrap()));
    let (ours, mut first) = streams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    assert_eq!(next(&states), LinkState::Connected);
    first.write_all(&[0, 0, 0, 60]).unwrap();
    first.write_all(&[1; 60]).unwrap();
    assert_eq!(bench.receive(), Receive::Frame(72));
    bench.transmit();
    first.read_exact(&mut [0; 64]).unwrap();

    // One at a time, however the second one comes.
    let (ours, mut second) = streams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Busy);
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it is let go of");
    let mut third = UnixStream::connect(&path).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0, "it is hung up on");

    // The datapath has not even looked yet when the next one is passed.
    drop(first);
    let (ours, mut fourth) = streams();
    let held = ours.try_clone().unwrap();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    assert_eq!((next(&states), next(&states)), (LinkState::Waiting, LinkState::Connected));

    // Broken framing ends it, also while who passed it holds a copy; whoever comes to the path is next.
    fourth.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(bench.receive(), Receive::Empty);
    assert!(matches!(next(&states), LinkState::Trouble { .. }));
    assert_eq!(fourth.read(&mut [0; 1]).unwrap(), 0, "it sees the end");
    drop(held);
    let fifth = UnixStream::connect(&path).unwrap();
    assert_eq!(next(&states), LinkState::Connected);
    let (ours, _sixth) = streams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Busy);
    drop(fifth);
    let (ours, mut seventh) = streams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    sockets.remove(PORT);
    assert_eq!(seventh.read(&mut [0; 1]).unwrap(), 0, "its place is gone");
}

#[test]
fn datagrams_that_are_passed_are_served_until_their_end_is_closed_and_the_path_waits() {
    let (place, (sockets, bench, states)) = (Scratch::new("dgram-passed"), Bench::start());
    let path = place.path().join("db.sock");
    let bound = Arc::new(OwnedFd::from(UnixDatagram::bind(&path).unwrap()));
    sockets.add(PORT, FrameSocket::Datagram(Arc::clone(&bound)));
    let (ours, first) = datagrams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    assert_eq!(next(&states), LinkState::Connected);
    first.send(b"VFKT").unwrap();
    first.send(&[1; 60]).unwrap();
    assert_eq!(bench.receive(), Receive::Frame(72), "the greeting is no frame");
    bench.transmit();
    assert_eq!(first.recv(&mut [0; 100]).unwrap(), 60);

    // Who sends to the path is not heard meanwhile, and does not disturb.
    let other = UnixDatagram::bind(place.path().join("other")).unwrap();
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    other.send_to(&[2; 70], &path).unwrap();
    assert_eq!(bench.receive(), Receive::Empty);
    let (ours, _second) = datagrams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Busy);
    // A socket that is bound anew is for whoever comes later.
    sockets.add(PORT, FrameSocket::Datagram(bound));
    first.send(&[1; 60]).unwrap();
    assert_eq!(bench.receive(), Receive::Frame(72));

    // It goes without a word; whoever has waited is next.
    drop(first);
    assert_eq!((next(&states), next(&states)), (LinkState::Waiting, LinkState::Connected));
    assert_eq!(bench.receive(), Receive::Frame(82));
    drop(other);
    assert_eq!(next(&states), LinkState::Waiting);

    // Nobody has looked yet when the next one is passed.
    let (ours, third) = datagrams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    drop(third);
    let (ours, fourth) = datagrams();
    assert_eq!(sockets.plug(PORT, ours).unwrap(), Plugged::Yes);
    fourth.send(&[4; 60]).unwrap();
    assert_eq!(bench.receive(), Receive::Frame(72));
    sockets.remove(PORT);
    drop(sockets);
}

#[test]
fn a_descriptor_of_another_kind_or_for_no_place_is_not_put_to_use() {
    let (place, (sockets, bench, states)) = (Scratch::new("passed-wrong"), Bench::start());
    let kind = |result: io::Result<Plugged>| result.unwrap_err().kind();
    assert_eq!(kind(sockets.plug(PORT, streams().0)), io::ErrorKind::NotFound);
    let listener = UnixListener::bind(place.path().join("db.sock")).unwrap();
    sockets.add(PORT, FrameSocket::Stream(listener));
    assert_eq!(kind(sockets.plug(PORT, datagrams().0)), io::ErrorKind::InvalidInput);
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(sockets.plug(PORT, null).is_err());
    assert!(states.try_recv().is_err(), "nothing has changed");
    assert_eq!(bench.receive(), Receive::Empty);
    assert_eq!(sockets.plug(PORT, streams().0).unwrap(), Plugged::Yes);
}
