//! A whole datapath, two workers on threads of their own, with guests whose sockets were passed to it.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lichen_daemon::wiring::attachments::{Attached, Attachments};
use lichen_netstack::command::{Attachment, Command, LinkState, PortSpec};
use lichen_netstack::datapath::{CommandError, Datapath};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::PortId;
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::worker::event_loop::WorkerLoop;

const PATIENCE: Duration = Duration::from_secs(30);
const STREAM: PortId = PortId(1);
const DGRAM: PortId = PortId(2);
const RINGS: PortId = PortId(3);

struct Bed {
    datapath: Datapath<Attachments>,
    workers: Vec<thread::JoinHandle<std::io::Result<()>>>,
    links: mpsc::Receiver<(PortId, LinkState)>,
}

fn spec(port: PortId) -> PortSpec {
    let attachment = match port {
        STREAM => Attachment::UnixStream,
        DGRAM => Attachment::UnixDatagram,
        _ => Attachment::VhostUser,
    };
    let address = Ipv4Addr::new(10, 88, 0, u8::try_from(port.0).unwrap() + 1);
    specs::port(port.0, &format!("guest{port}"), address, attachment)
}

impl Bed {
    /// With a port of each kind whose guests come to a socket.
    fn start(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("lichen-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let parts = vec![(Echo::default(), 1), (Echo::default(), 2)];
        let (loops, handles) = WorkerLoop::<Attached, Echo>::prepare(parts, 64).unwrap();
        let run = |worker: WorkerLoop<Attached, Echo>| thread::spawn(move || worker.run(|_| {}));
        let workers = loops.into_iter().map(run).collect();
        let (told, links) = mpsc::channel();
        let attachments = Attachments::new(handles.clone(), move |port, state| {
            let _ = told.send((port, state));
        });
        let mut datapath = Datapath::new(handles, attachments.unwrap());
        let network = Command::SetNetwork(specs::network(1, "bridge", 88));
        datapath.handle_command(network, None).unwrap();
        for port in [STREAM, DGRAM, RINGS] {
            let path = place.join(port.0.to_string());
            let socket = match port {
                DGRAM => OwnedFd::from(UnixDatagram::bind(path).unwrap()),
                _ => OwnedFd::from(UnixListener::bind(path).unwrap()),
            };
            datapath.handle_command(Command::SetPort(spec(port)), Some(socket)).unwrap();
        }
        // Nobody comes by a path here.
        std::fs::remove_dir_all(&place).unwrap();
        Self { datapath, workers, links }
    }

    fn plug(
        &mut self,
        port: PortId,
        descriptor: impl Into<Option<OwnedFd>>,
    ) -> Result<(), CommandError> {
        let descriptor: Option<OwnedFd> = descriptor.into();
        self.datapath.handle_command(Command::Plug { port }, descriptor)
    }

    fn plug_stream(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        self.plug(STREAM, OwnedFd::from(ours)).unwrap();
        assert_eq!(self.link(), (STREAM, LinkState::Connected));
        theirs
    }

    fn plug_datagrams(&mut self) -> UnixDatagram {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        self.plug(DGRAM, OwnedFd::from(ours)).unwrap();
        assert_eq!(self.link(), (DGRAM, LinkState::Connected));
        theirs
    }

    #[track_caller]
    fn link(&self) -> (PortId, LinkState) {
        self.links.recv_timeout(PATIENCE).expect("a link changes")
    }

    fn stop(mut self) {
        self.datapath.handle_command(Command::Stop, None).unwrap();
        for worker in self.workers {
            worker.join().expect("no panic").expect("no error");
        }
    }
}

/// An Ethernet frame of one guest to another.
fn frame(from: PortId, to: PortId, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (spec(from), spec(to));
    let packet = udp((from.address, 1).into(), (to.address, 2).into(), payload);
    ethernet(from.mac, to.mac, 0x0800, &packet)[VNET_LEN..].to_vec()
}

/// A burst each way, every frame as it was sent and in order.
#[track_caller]
fn talk(stream: &mut UnixStream, datagrams: &UnixDatagram) {
    let mut buffer = [0; 2000];
    for round in 0..50u8 {
        let burst = (0..8u8).map(|at| frame(STREAM, DGRAM, &[round, at, 7, 7]));
        for frame in burst {
            stream.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&frame).unwrap();
        }
        for at in 0..8 {
            let len = datagrams.recv(&mut buffer).expect("a frame that was sent arrives");
            assert_eq!(buffer[42..len.min(46)], [round, at, 7, 7]);
        }
        for at in 0..8 {
            datagrams.send(&frame(DGRAM, STREAM, &[round, at, 9, 9])).unwrap();
        }
        for at in 0..8 {
            let mut len = [0; 4];
            stream.read_exact(&mut len).expect("a frame that was sent arrives");
            let len = u32::from_be_bytes(len) as usize;
            stream.read_exact(&mut buffer[..len]).unwrap();
            assert_eq!(buffer[42..46], [round, at, 9, 9]);
        }
    }
}

#[test]
fn guests_that_were_passed_talk_move_and_are_followed_by_others() {
    let mut bed = Bed::start("passed-guests");
    let (mut stream, mut datagrams) = (bed.plug_stream(), bed.plug_datagrams());
    talk(&mut stream, &datagrams);
    // Both at one worker, at the other, and each at its own.
    for (port, worker) in [(STREAM, 1), (STREAM, 0), (DGRAM, 0), (STREAM, 1), (DGRAM, 1)] {
        bed.datapath.move_port(port, worker);
        talk(&mut stream, &datagrams);
    }

    let (second, _other) = UnixStream::pair().unwrap();
    let busy = bed.plug(STREAM, OwnedFd::from(second));
    assert!(matches!(busy, Err(CommandError::Busy(STREAM))), "{busy:?}");
    talk(&mut stream, &datagrams);

    drop(stream);
    assert_eq!(bed.link(), (STREAM, LinkState::Waiting));
    stream = bed.plug_stream();
    talk(&mut stream, &datagrams);
    // Nobody sends to it, and still its end is noticed.
    drop(datagrams);
    assert_eq!(bed.link(), (DGRAM, LinkState::Waiting));
    datagrams = bed.plug_datagrams();
    talk(&mut stream, &datagrams);

    // A port that is removed lets go of its guest.
    bed.datapath.handle_command(Command::RemovePort { port: STREAM }, None).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    bed.stop();
}

#[test]
fn a_descriptor_for_no_port_or_one_with_rings_or_none_at_all_is_refused() {
    let mut bed = Bed::start("passed-refused");
    let end = || OwnedFd::from(UnixStream::pair().unwrap().0);
    for port in [RINGS, PortId(9)] {
        let refused = bed.plug(port, end());
        assert!(matches!(refused, Err(CommandError::NoFrames(it)) if it == port), "{refused:?}");
    }
    assert!(matches!(bed.plug(STREAM, None), Err(CommandError::NoDescriptor)));
    assert!(matches!(bed.plug(DGRAM, end()), Err(CommandError::Descriptor(_))));
    assert!(bed.links.try_recv().is_err(), "nothing has changed");
    bed.stop();
}
