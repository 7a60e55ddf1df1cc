//! A whole datapath, two workers on threads of their own, with taps of several queues. A queue is one end of a pair of
//! sockets that keep frames apart, as a tap does.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lichen_daemon::wiring::attachments::{Attached, Attachments};
use lichen_netstack::command::{Attachment, Command, PortSpec};
use lichen_netstack::datapath::{CommandError, Datapath};
use lichen_netstack::ids::PortId;
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::worker::WorkerEvent;
use lichen_netstack::worker::event_loop::WorkerLoop;
use rustix::net::sockopt::Timeout;
use rustix::net::sockopt::set_socket_timeout;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

const PATIENCE: Duration = Duration::from_secs(30);
const SENDER: PortId = PortId(1);
const RECEIVER: PortId = PortId(2);
/// Enough that each of two queues has some.
const FLOWS: u16 = 40;

struct Bed {
    datapath: Datapath<Attachments>,
    workers: Vec<thread::JoinHandle<std::io::Result<()>>>,
    told: mpsc::Receiver<WorkerEvent>,
}

fn spec(port: PortId, queues: u16) -> PortSpec {
    let address = Ipv4Addr::new(10, 88, 0, u8::try_from(port.0).unwrap() + 1);
    specs::port(port.0, &format!("guest{port}"), address, Attachment::Tap { queues })
}

/// The datapath's end of a queue, and the guest's.
fn queue() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_timeout(&theirs, Timeout::Recv, Some(PATIENCE)).unwrap();
    (ours, theirs)
}

impl Bed {
    fn start() -> Self {
        let parts = vec![(Echo::default(), 1), (Echo::default(), 2)];
        let (loops, handles) = WorkerLoop::<Attached, Echo>::prepare(parts, 64).unwrap();
        let (events, told) = mpsc::channel();
        let run = |worker: WorkerLoop<Attached, Echo>| {
            let events = events.clone();
            thread::spawn(move || worker.run(|event| events.send(event).unwrap()))
        };
        let workers = loops.into_iter().map(run).collect();
        let attachments = Attachments::new(handles.clone(), |_, _| {}).unwrap();
        let mut datapath = Datapath::new(handles, attachments);
        let network = Command::SetNetwork(specs::network(1, "bridge", 88));
        datapath.handle_command(network, None).unwrap();
        Self { datapath, workers, told }
    }

    /// A port with so many queues, of which so many come; answers the guest's ends.
    fn set(
        &mut self,
        port: PortId,
        queues: u16,
        brought: u16,
    ) -> Result<Vec<OwnedFd>, CommandError> {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..brought).map(|_| queue()).unzip();
        self.datapath.handle_command(Command::SetPort(spec(port, queues)), ours).map(|()| theirs)
    }

    /// Waits until each worker has done what it was told so far: their answers come in order.
    #[track_caller]
    fn settle(&self) {
        self.datapath.request_statistics();
        let mut left = self.workers.len();
        while left > 0 {
            if let WorkerEvent::Statistics(_) = self.told.recv_timeout(PATIENCE).unwrap() {
                left -= 1;
            }
        }
    }

    /// A datagram of each flow from any of the sender's queues; answers how many came by each of the receiver's.
    #[track_caller]
    fn talk(&self, sender: &[OwnedFd], receiver: &[OwnedFd]) -> Vec<usize> {
        self.settle();
        send_flows(sender);
        receive_flows(receiver)
    }

    fn stop(mut self) {
        self.datapath.handle_command(Command::Stop, None).unwrap();
        for worker in self.workers {
            worker.join().expect("no panic").expect("no error");
        }
    }
}

/// A datagram of each flow, by each queue in turn.
#[track_caller]
fn send_flows(sender: &[OwnedFd]) {
    let (from, to) = (spec(SENDER, 1), spec(RECEIVER, 1));
    for (port, queue) in (1000..1000 + FLOWS).zip(sender.iter().cycle()) {
        let packet = udp((from.address, port).into(), (to.address, 2).into(), b"x");
        let frame = ethernet(from.mac, to.mac, 0x0800, &packet);
        assert_eq!(send(queue, &frame, SendFlags::empty()), Ok(frame.len()));
    }
}

/// How many come by each queue, until all have come.
#[track_caller]
fn receive_flows(receiver: &[OwnedFd]) -> Vec<usize> {
    let mut counts = vec![0; receiver.len()];
    let mut buffer = [0; 2000];
    let deadline = std::time::Instant::now() + PATIENCE;
    while counts.iter().sum::<usize>() < usize::from(FLOWS) {
        assert!(std::time::Instant::now() < deadline, "{counts:?} of {FLOWS}");
        for (count, queue) in counts.iter_mut().zip(receiver) {
            while recv(queue, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {
                *count += 1;
            }
        }
        thread::yield_now();
    }
    counts
}

#[test]
fn frames_of_every_queue_arrive_on_all_queues_also_after_their_port_has_moved() {
    let mut bed = Bed::start();
    let sender = bed.set(SENDER, 3, 3).unwrap();
    let receiver = bed.set(RECEIVER, 2, 2).unwrap();
    let counts = bed.talk(&sender, &receiver);
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    for (port, worker) in [(SENDER, 1), (RECEIVER, 0), (SENDER, 0)] {
        assert!(bed.datapath.move_port(port, worker));
        assert_eq!(bed.talk(&sender, &receiver), counts, "a flow keeps to its queue");
    }

    // Opened again, it has the new queues, and the old ones are closed, every one.
    let again = bed.set(SENDER, 2, 2).unwrap();
    assert_eq!(bed.talk(&again, &receiver), counts);
    bed.datapath.handle_command(Command::RemovePort { port: RECEIVER }, None).unwrap();
    for queue in sender.iter().chain(&receiver) {
        let ended = recv(queue, &mut [0; 10][..], RecvFlags::empty());
        assert!(matches!(ended, Ok((0, _))), "{ended:?}");
    }
    bed.stop();
}

#[test]
fn a_tap_comes_with_all_its_queues_or_not_at_all() {
    let mut bed = Bed::start();
    for (queues, brought) in [(2, 1), (2, 3), (1, 2), (5, 5), (0, 1)] {
        let refused = bed.set(SENDER, queues, brought).unwrap_err();
        assert!(matches!(refused, CommandError::Queues { .. }), "{queues}, {brought}: {refused}");
    }
    assert!(matches!(bed.set(SENDER, 2, 0), Err(CommandError::NoDescriptor)));
    assert!(bed.datapath.inventory().ports.is_empty());
    bed.set(SENDER, 4, 4).unwrap();
    assert_eq!(bed.datapath.inventory().ports.len(), 1);
    bed.stop();
}
