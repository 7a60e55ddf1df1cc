//! A service with two ports, and a datapath that only keeps what it is given.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::counters::Counters;
use lichen_netstack::ids::{MacAddr, PortId};
use lichen_netstack::port::{MAX_FRAME, Port, Receive, Transmit};
use lichen_vhost_net::port::VhostPort;
use lichen_vhost_net::service::{Datapath, Service};
use lichen_vhost_net::testing::front_end::FrontEnd;
use lichen_vhost_net::testing::front_end::rings::{FROM_GUEST, TO_GUEST};

/// The port that is attacked, and its neighbour.
pub(crate) const A: PortId = PortId(1);
pub(crate) const B: PortId = PortId(2);
/// The address of either's guest.
pub(crate) const MAC: MacAddr = MacAddr([2, 0x4c, 10, 88, 0, 2]);

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    ports: BTreeMap<PortId, VhostPort>,
    told: BTreeMap<PortId, LinkState>,
}

impl Datapath for Kept {
    fn plug(&mut self, port: PortId, rings: VhostPort) {
        self.0.lock().unwrap().ports.insert(port, rings);
    }

    fn unplug(&mut self, port: PortId, _: &[BorrowedFd<'_>]) {
        self.0.lock().unwrap().ports.remove(&port);
    }

    fn tell(&mut self, port: PortId, state: LinkState) {
        self.0.lock().unwrap().told.insert(port, state);
    }
}

/// Descriptors and mappings are counted for the whole process, so there is one at a time.
pub(crate) struct Bed {
    folder: PathBuf,
    kept: Kept,
    _service: Service,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lichen-vhost-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let kept = Kept::default();
        let service = Service::start(kept.clone()).unwrap();
        for port in [A, B] {
            let path = folder.join(port.0.to_string());
            service.add(port, MAC, UnixListener::bind(path).unwrap());
        }
        Self { folder, kept, _service: service, _alone: alone }
    }

    pub(crate) fn socket(&self, port: PortId) -> PathBuf {
        self.folder.join(port.0.to_string())
    }

    pub(crate) fn connect(&self, port: PortId) -> FrontEnd {
        FrontEnd::connect(&self.socket(port)).unwrap()
    }

    /// A guest that is set up and connected.
    pub(crate) fn guest(&self, port: PortId) -> FrontEnd {
        self.guest_that(port, |_| {})
    }

    /// The same, whose driver agrees to these features.
    pub(crate) fn guest_with(&self, port: PortId, features: u64) -> FrontEnd {
        self.guest_that(port, |guest| guest.agree_to(features))
    }

    /// The same, changed before it is set up.
    pub(crate) fn guest_that(&self, port: PortId, change: impl Fn(&mut FrontEnd)) -> FrontEnd {
        // An earlier connection may not have been seen to end yet; monitors try again.
        let guest = loop {
            let mut guest = self.connect(port);
            change(&mut guest);
            if guest.set_up_like_qemu().is_ok() {
                break guest;
            }
        };
        self.wait_for(port, |state| *state == LinkState::Connected);
        guest
    }

    /// What was told of a port last.
    pub(crate) fn state(&self, port: PortId) -> LinkState {
        let state = self.kept.0.lock().unwrap();
        state.told.get(&port).cloned().unwrap_or(LinkState::Waiting)
    }

    pub(crate) fn wait_for(&self, port: PortId, wanted: impl Fn(&LinkState) -> bool) {
        eventually(&format!("the link of {port:?}"), || wanted(&self.state(port)));
    }

    /// Waits for trouble whose reason contains these words.
    pub(crate) fn wait_for_trouble(&self, port: PortId, words: &str) {
        eventually(
            &format!("`{words}` is told: {:?}", self.state(port)),
            || matches!(self.state(port), LinkState::Trouble { reason } if reason.contains(words)),
        );
    }

    /// Uses a port's rings, which must run.
    pub(crate) fn with<T>(&self, port: PortId, work: impl FnOnce(&mut VhostPort) -> T) -> T {
        // They rest for the moment of each message.
        eventually("the rings run", || self.is_plugged(port));
        work(self.kept.0.lock().unwrap().ports.get_mut(&port).expect("its rings run"))
    }

    /// Takes a port's rings away, to a worker of the test's own.
    pub(crate) fn take(&self, port: PortId) -> VhostPort {
        eventually("the rings run", || self.is_plugged(port));
        self.kept.0.lock().unwrap().ports.remove(&port).expect("its rings run")
    }

    pub(crate) fn is_plugged(&self, port: PortId) -> bool {
        self.kept.0.lock().unwrap().ports.contains_key(&port)
    }

    /// Everything that a guest has sent, as the worker would read it.
    pub(crate) fn receive_all(&self, port: PortId) -> Vec<Vec<u8>> {
        self.with(port, |rings| {
            let mut frames = Vec::new();
            let mut buffer = vec![0; MAX_FRAME];
            loop {
                match rings.receive(&mut buffer) {
                    Receive::Frame(len) => frames.push(buffer[..len].to_vec()),
                    Receive::Dropped(_) => {}
                    Receive::Empty | Receive::Gone => break,
                }
            }
            rings.flush(&mut Counters::default());
            frames
        })
    }

    /// Sends frames to a guest.
    pub(crate) fn send(&self, port: PortId, frames: &[Vec<u8>]) -> Vec<Transmit> {
        self.with(port, |rings| {
            let sent = frames.iter().map(|frame| rings.transmit(frame)).collect();
            rings.flush(&mut Counters::default());
            sent
        })
    }

    /// Ten frames each way through a port, every byte compared.
    pub(crate) fn exchange(&self, port: PortId, guest: &mut FrontEnd) {
        let numbers = guest.posted()..guest.posted() + 10;
        let frames: Vec<Vec<u8>> = numbers.clone().map(frame).collect();
        for frame in &frames {
            guest.transmit(frame);
        }
        assert_eq!(self.receive_all(port), frames);
        assert_eq!(guest.used(FROM_GUEST), 10);
        guest.post(10);
        assert_eq!(self.send(port, &frames), [Transmit::Sent; 10]);
        assert_eq!(guest.used(TO_GUEST), 10);
        for (number, frame) in numbers.zip(&frames) {
            let received = guest.received(number, frame.len());
            assert_eq!(received[12..], frame[12..]);
        }
    }

    /// The attacker is cut off, which is told in these words; the neighbour goes on.
    #[track_caller]
    pub(crate) fn assert_costs_its_port_only(
        &self,
        mut attacker: FrontEnd,
        words: &str,
        neighbour: &mut FrontEnd,
    ) {
        assert!(attacker.is_closed(), "{words}: the connection goes on");
        self.wait_for_trouble(A, words);
        self.exchange(B, neighbour);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A frame with a header of zeros, and bytes that tell it from others.
pub(crate) fn frame(number: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend((0..60 + number % 1000).map(|at| (at.wrapping_mul(7) ^ number).to_le_bytes()[0]));
    frame
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends the process when a test waits for ever, and says why. Dropped, it does nothing.
pub(crate) struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        let (alive, watched) = mpsc::channel();
        std::thread::spawn(move || {
            if watched.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test was held up by a guest for half a minute");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Mappings of guests' memory in this process.
pub(crate) fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:guest")).count()
}
