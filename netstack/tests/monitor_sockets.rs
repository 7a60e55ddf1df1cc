//! Ports over the sockets of monitors that hand over whole frames: a stream and datagrams, with real sockets.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use lichen_netstack::counters::{Counters, DropReason};
use lichen_netstack::frame::vnet_header::{VNET_LEN, VnetHeader};
use lichen_netstack::port::alarm::{Alarm, Ended};
use lichen_netstack::port::framing::{MAX_BYTES, MAX_FRAMES};
use lichen_netstack::port::unix_datagram::{MAX_BACKLOG, Peer, UnixDatagramPort};
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::port::watch::FrameWatch;
use lichen_netstack::port::{MAX_FRAME, Port, Receive, Transmit};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::net::SocketAddrUnix;

/// Who waits for a port's descriptors, and who for its alarm.
struct Bench {
    poller: Arc<OwnedFd>,
    alarm: Arc<Alarm<Ended>>,
    buffer: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        Self {
            poller: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
            alarm: Arc::new(Alarm::new(wake)),
            buffer: vec![0; MAX_FRAME],
        }
    }

    fn stream(&self) -> (UnixStreamPort, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let watch = FrameWatch::new(Arc::clone(&self.poller), 0);
        let ours = Arc::new(OwnedFd::from(ours));
        (UnixStreamPort::new(ours, watch, Arc::clone(&self.alarm)).unwrap(), theirs)
    }

    fn datagrams(&self, place: &Place) -> (UnixDatagramPort, UnixDatagram) {
        let ours = UnixDatagram::bind(place.at("ours")).unwrap();
        let theirs = UnixDatagram::bind(place.at("theirs")).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let watch = FrameWatch::new(Arc::clone(&self.poller), 0);
        let peer = Peer::At(SocketAddrUnix::new(place.at("theirs")).unwrap());
        let ours = Arc::new(OwnedFd::from(ours));
        (UnixDatagramPort::new(ours, peer, watch, Arc::clone(&self.alarm)).unwrap(), theirs)
    }

    fn pair(&self) -> (UnixDatagramPort, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let watch = FrameWatch::new(Arc::clone(&self.poller), 0);
        let ours = Arc::new(OwnedFd::from(ours));
        let port = UnixDatagramPort::new(ours, Peer::Connected, watch, Arc::clone(&self.alarm));
        (port.unwrap(), theirs)
    }

    /// Whether the worker would be woken within that many milliseconds.
    fn is_woken(&self, milliseconds: u32) -> bool {
        let patience = Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        let mut events = Vec::with_capacity(8);
        epoll::wait(&*self.poller, spare_capacity(&mut events), Some(&patience)).unwrap() > 0
    }

    /// The frames that a port has, as a worker's turn takes them.
    fn received(&mut self, port: &mut impl Port) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Receive::Frame(len) = port.receive(&mut self.buffer) {
            assert_eq!(self.buffer[..VNET_LEN], VnetHeader::default().emit());
            frames.push(self.buffer[VNET_LEN..len].to_vec());
        }
        frames
    }
}

/// A directory of a test's own.
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

/// A frame for the guest, virtio-net header in front.
fn to_guest(fill: u8, len: usize) -> Vec<u8> {
    [&VnetHeader::default().emit()[..], &vec![fill; len]].concat()
}

fn on_stream(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

#[test]
fn frames_cross_a_stream_both_ways_however_it_is_torn() {
    let mut bench = Bench::new();
    let (mut port, mut guest) = bench.stream();
    let bytes = [on_stream(&[1; 60]), on_stream(&[2; 1514])].concat();
    for at in 0..bytes.len() {
        guest.write_all(&bytes[..at]).unwrap();
        let mut frames = bench.received(&mut port);
        guest.write_all(&bytes[at..]).unwrap();
        frames.extend(bench.received(&mut port));
        assert_eq!(frames, [vec![1; 60], vec![2; 1514]], "torn at {at}");
    }
    for fill in 0..100 {
        assert_eq!(port.transmit(&to_guest(fill, 1514)), Transmit::Sent);
    }
    port.flush(&mut Counters::default());
    for fill in 0..100 {
        let mut frame = vec![0; 4 + 1514];
        guest.read_exact(&mut frame).unwrap();
        assert_eq!(frame, on_stream(&[fill; 1514]));
    }
    assert_eq!(bench.alarm.raised(), None);
}

#[test]
fn a_length_that_no_frame_has_ends_the_stream_and_says_why() {
    for len in [0u32, 13, 65_550, u32::MAX] {
        let mut bench = Bench::new();
        let (mut port, mut guest) = bench.stream();
        guest.write_all(&on_stream(&[1; 60])).unwrap();
        guest.write_all(&len.to_be_bytes()).unwrap();
        guest.write_all(&[0; 1000]).unwrap();
        assert_eq!(bench.received(&mut port), [vec![1; 60]], "what came before is good");
        let Some(Ended::Trouble(reason)) = bench.alarm.raised() else { panic!("no alarm") };
        assert!(reason.contains(&len.to_string()) && reason.contains("-netdev stream"), "{reason}");
        assert_eq!(port.transmit(&to_guest(1, 60)), Transmit::Full);
        assert!(!port.has_room());
    }
}

#[test]
fn a_guest_that_hangs_up_ends_its_port_also_in_the_middle_of_a_frame() {
    for said in [&b""[..], &[0, 0], &[0, 0, 0, 60, 1, 2, 3]] {
        let mut bench = Bench::new();
        let (mut port, mut guest) = bench.stream();
        assert_eq!(port.transmit(&to_guest(1, 60)), Transmit::Sent);
        guest.write_all(said).unwrap();
        drop(guest);
        assert!(bench.is_woken(1000));
        assert!(bench.received(&mut port).is_empty());
        assert_eq!(bench.alarm.raised(), Some(Ended::Gone));
        assert_eq!(lost(&mut port), 1, "what it did not read is counted");
    }
}

#[test]
fn what_a_slow_reader_leaves_is_bounded_and_goes_on_when_it_reads() {
    let bench = Bench::new();
    let (mut port, mut guest) = bench.stream();
    let mut sent = 0u32;
    while port.transmit(&to_guest(7, 1000)) == Transmit::Sent {
        sent += 1;
        port.flush(&mut Counters::default());
        assert!(sent < 4 * u32::try_from(MAX_FRAMES).unwrap(), "there is a bound");
    }
    assert!(!port.has_room());
    // The kernel holds some, the port no more than its cap.
    assert!(usize::try_from(sent).unwrap() >= MAX_BYTES / 1004);
    assert!(!bench.is_woken(20), "nobody spins while it does not read");
    let mut buffer = vec![0; MAX_FRAME];
    let mut read = 0;
    let mut frame = vec![0; 1004];
    while read < sent {
        guest.read_exact(&mut frame).unwrap();
        assert_eq!(frame[..4], 1000u32.to_be_bytes());
        read += 1;
        while bench.is_woken(0) {
            assert_eq!(port.receive(&mut buffer), Receive::Empty);
        }
    }
    assert!(port.has_room());
    assert_eq!((lost(&mut port), bench.alarm.raised()), (0, None));
    assert!(!bench.is_woken(20), "and nobody is woken for room that nobody waits for");
}

#[test]
fn datagrams_are_frames_both_ways_and_the_greeting_is_none() {
    let (mut bench, place) = (Bench::new(), Place::new("datagrams"));
    let (mut port, guest) = bench.datagrams(&place);
    guest.connect(place.at("ours")).unwrap();
    guest.send(b"VFKT").unwrap();
    guest.send(&[1; 60]).unwrap();
    assert!(bench.is_woken(1000));
    guest.send(&[2; 1514]).unwrap();
    // Once; a second one is as good as any runt, which is counted further on.
    guest.send(b"VFKT").unwrap();
    assert_eq!(bench.received(&mut port), [vec![1; 60], vec![2; 1514], b"VFKT".to_vec()]);
    assert_eq!(port.transmit(&to_guest(3, 1514)), Transmit::Sent);
    let mut buffer = [0; 2000];
    assert_eq!(guest.recv(&mut buffer).unwrap(), 1514);
    assert_eq!(buffer[..1514], [3; 1514]);
}

#[test]
fn datagrams_of_strangers_are_dropped_with_their_reason() {
    let (mut bench, place) = (Bench::new(), Place::new("strangers"));
    let (mut port, guest) = bench.datagrams(&place);
    let second = UnixDatagram::bind(place.at("second")).unwrap();
    let nameless = UnixDatagram::unbound().unwrap();
    second.send_to(&[9; 60], place.at("ours")).unwrap();
    nameless.send_to(&[9; 60], place.at("ours")).unwrap();
    guest.send_to(&[1; 60], place.at("ours")).unwrap();
    let stranger = Receive::Dropped(DropReason::Stranger);
    assert_eq!(port.receive(&mut bench.buffer), stranger);
    assert_eq!(port.receive(&mut bench.buffer), stranger);
    assert_eq!(bench.received(&mut port), [vec![1; 60]]);
    assert_eq!(bench.alarm.raised(), None);
}

#[test]
fn a_pair_of_datagram_sockets_has_no_strangers_and_its_end_is_noticed() {
    let mut bench = Bench::new();
    let (mut port, guest) = bench.pair();
    guest.send(b"VFKT").unwrap();
    guest.send(&[1; 60]).unwrap();
    assert!(bench.is_woken(1000));
    assert_eq!(bench.received(&mut port), [vec![1; 60]]);
    assert_eq!(port.transmit(&to_guest(2, 1514)), Transmit::Sent);
    let mut buffer = [0; 2000];
    assert_eq!(guest.recv(&mut buffer).unwrap(), 1514);
    assert_eq!(buffer[..1514], [2; 1514]);

    // What it does not read waits, here as well, and comes in order.
    let mut sent = 0u32;
    while port.has_room() {
        let fill = u8::try_from(sent % 256).unwrap();
        assert_eq!(port.transmit(&to_guest(fill, 100)), Transmit::Sent);
        sent += 1;
    }
    let mut got = 0u32;
    while got < sent {
        while let Ok(len) = guest.recv(&mut buffer) {
            assert_eq!((len, u32::from(buffer[0])), (100, got % 256));
            got += 1;
        }
        if got < sent {
            assert!(bench.is_woken(1000), "the timer comes");
            assert!(bench.received(&mut port).is_empty());
        }
    }
    assert_eq!((lost(&mut port), bench.alarm.raised()), (0, None));

    drop(guest);
    assert!(bench.received(&mut port).is_empty(), "the kernel tells nobody");
    assert_eq!(port.transmit(&to_guest(1, 60)), Transmit::Full);
    assert_eq!(bench.alarm.raised(), Some(Ended::Gone));
}

#[test]
fn datagrams_that_do_not_fit_wait_in_order_and_are_sent_by_a_timer() {
    let (mut bench, place) = (Bench::new(), Place::new("waiting"));
    let (mut port, guest) = bench.datagrams(&place);
    for fill in 0..200 {
        assert_eq!(port.transmit(&to_guest(fill, 100)), Transmit::Sent);
    }
    assert!(!port.has_room(), "a datagram socket takes a few only");
    let (mut got, mut buffer) = (Vec::new(), [0; 200]);
    while got.len() < 200 {
        while let Ok(len) = guest.recv(&mut buffer) {
            assert_eq!(len, 100);
            got.push(buffer[0]);
        }
        if got.len() < 200 {
            assert!(bench.is_woken(1000), "the timer comes");
            assert!(bench.received(&mut port).is_empty());
        }
    }
    assert_eq!(got, (0..200).collect::<Vec<u8>>());
    bench.received(&mut port);
    assert!(port.has_room());
    assert_eq!(lost(&mut port), 0);
}

#[test]
fn a_monitor_that_reads_nothing_costs_a_bounded_backlog_and_few_wakes() {
    let (mut bench, place) = (Bench::new(), Place::new("deaf"));
    let (mut port, _guest) = bench.datagrams(&place);
    let taken = (0..2000).filter(|_| port.transmit(&to_guest(1, 100)) == Transmit::Sent).count();
    assert!((MAX_BACKLOG..MAX_BACKLOG + 600).contains(&taken), "{taken}");
    let mut wakes = 0;
    let mut given_up = 0;
    while given_up == 0 {
        assert!(bench.is_woken(900), "the timer comes until it is given up");
        wakes += 1;
        assert!(bench.received(&mut port).is_empty());
        given_up = lost(&mut port);
    }
    assert!(wakes <= 120, "{wakes}");
    assert_eq!(given_up, MAX_BACKLOG as u64, "all that waited is counted");
    assert!(!bench.is_woken(50), "and then there is silence");
}

#[test]
fn a_peer_that_is_gone_is_noticed_by_the_next_datagram() {
    let (bench, place) = (Bench::new(), Place::new("gone"));
    let (mut port, guest) = bench.datagrams(&place);
    drop(guest);
    assert_eq!(port.transmit(&to_guest(1, 60)), Transmit::Full);
    assert_eq!(bench.alarm.raised(), Some(Ended::Gone));
    assert!(!port.has_room());
}

#[test]
fn a_port_that_is_dropped_is_watched_no_longer_though_others_hold_its_socket() {
    let (bench, place) = (Bench::new(), Place::new("dropped"));
    let (port, guest) = bench.datagrams(&place);
    drop(port);
    let copy = UnixDatagram::bind(place.at("other")).unwrap();
    let socket = Arc::new(OwnedFd::from(copy));
    let watch = FrameWatch::new(Arc::clone(&bench.poller), 0);
    let peer = Peer::At(SocketAddrUnix::new(place.at("theirs")).unwrap());
    let port = UnixDatagramPort::new(Arc::clone(&socket), peer, watch, Arc::clone(&bench.alarm));
    drop(port.unwrap());
    guest.send_to(&[1; 60], place.at("other")).unwrap();
    assert!(!bench.is_woken(20));
    drop(socket);
}

/// How many frames that were taken have been lost, since that was last asked.
fn lost(port: &mut impl Port) -> u64 {
    let mut counters = Counters::default();
    port.flush(&mut counters);
    counters.dropped(DropReason::ToGuestFull)
}
