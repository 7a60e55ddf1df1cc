//! What all recorders of a capture fill, and its thread empties into a pipe.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lichen_netstack::command::{CaptureSpec, LargeFrames, NetworkSpec, PortSpec};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::recording::{Direction, Interest, Recorder};
use lichen_netstack::port::selection::Selection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::pcapng::{self, Nanoseconds, Way};

/// Bytes of one capture that wait to be read, descriptions of interfaces aside.
pub(super) const MAX_WAITING: usize = 4 << 20;
/// Ports that one capture takes in, while it runs.
pub(super) const MAX_INTERFACES: usize = 4096;
/// How often it is looked whether anybody reads, while nothing is to be written.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A port that may be recorded.
#[derive(Clone, Copy, Debug)]
pub(in crate::wiring) struct Member<'a> {
    pub(in crate::wiring) port: &'a PortSpec,
    /// The port's.
    pub(in crate::wiring) network: &'a NetworkSpec,
}

/// What a port shows its frames to.
pub(in crate::wiring) struct PortRecorder {
    pub(super) sink: Arc<Sink>,
    interface: u32,
    selection: Selection,
}

impl PortRecorder {
    fn write(&self, way: Way, frame: &[u8]) -> Interest {
        let kept = &frame[..frame.len().min(self.sink.spec.snaplen as usize)];
        let mut buffer = self.sink.lock();
        if buffer.is_closed {
            return Interest::Ended;
        }
        if buffer.waiting.len() + pcapng::PACKET_OVERHEAD + kept.len() + 3 > MAX_WAITING {
            buffer.lost[self.interface as usize] += 1;
            buffer.has_lost = true;
            return Interest::More;
        }
        pcapng::packet(&mut buffer.waiting, self.interface, now(), way, kept, frame.len());
        Interest::More
    }
}

impl Recorder for PortRecorder {
    fn record(&mut self, direction: Direction, vnet: &[u8; VNET_LEN], frame: &[u8]) -> Interest {
        let way = match direction {
            Direction::FromGuest => Way::Outbound,
            Direction::ToGuest => Way::Inbound,
        };
        let mut interest = Interest::More;
        self.selection.pick(vnet, frame, |frame| interest = self.write(way, frame));
        interest
    }

    fn flush(&mut self) -> Interest {
        let buffer = self.sink.lock();
        if buffer.is_closed {
            return Interest::Ended;
        }
        if !buffer.waiting.is_empty() {
            self.sink.filled.notify_one();
        }
        Interest::More
    }
}

/// What all recorders of a capture fill, and its thread empties.
pub(super) struct Sink {
    pub(super) spec: CaptureSpec,
    buffer: Mutex<Buffer>,
    filled: Condvar,
}

#[derive(Default)]
pub(super) struct Buffer {
    pub(super) waiting: Vec<u8>,
    /// The interface that a port is in the stream.
    interfaces: HashMap<PortId, u32>,
    /// Frames that did not fit, by interface.
    pub(super) lost: Vec<u64>,
    /// Whether some were lost that the stream has not told yet.
    has_lost: bool,
    /// Nobody reads any more.
    is_closed: bool,
}

impl Sink {
    pub(super) fn new(spec: CaptureSpec) -> Self {
        let note = match spec.large {
            LargeFrames::Whole => {
                "Frames as they passed: large segments are whole, and checksums may be left to the receiver. \
                 --segment shows them as a wire would carry them."
            }
            LargeFrames::Cut => "Large segments are cut, and checksums completed, as on a wire.",
        };
        let head = pcapng::section_header(concat!("lichen ", env!("CARGO_PKG_VERSION")), note);
        let buffer = Buffer { waiting: head, ..Buffer::default() };
        Self { spec, buffer: Mutex::new(buffer), filled: Condvar::new() }
    }

    /// What a port is to show its frames to, where they are wanted: an interface of the stream, the same as before
    /// for a port that comes again.
    pub(super) fn recorder(self: &Arc<Self>, member: &Member<'_>) -> Option<PortRecorder> {
        let Member { port, network } = member;
        let mut buffer = self.lock();
        if buffer.is_closed || !self.spec.scope.has(port) {
            return None;
        }
        let interface = match buffer.interfaces.get(&port.id) {
            Some(interface) => *interface,
            None if buffer.lost.len() == MAX_INTERFACES => {
                tracing::warn!(port = %port.name, "a capture holds {MAX_INTERFACES} ports, and no more");
                return None;
            }
            None => buffer.describe(member, self.spec.snaplen),
        };
        self.filled.notify_one();
        let CaptureSpec { flow, large, .. } = self.spec;
        let selection = Selection { flow, large, mtu: network.mtu };
        Some(PortRecorder { sink: Arc::clone(self), interface, selection })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Buffer> {
        lock(&self.buffer)
    }

    /// Writes until nobody reads, or until every recorder has gone and none can come.
    pub(super) fn write_out(self: &Arc<Self>, pipe: &OwnedFd) {
        let mut writing = Vec::new();
        loop {
            let mut buffer = self.lock();
            if buffer.waiting.is_empty() && !buffer.has_lost {
                if is_closed(pipe) || Arc::strong_count(self) == 1 {
                    break;
                }
                let waited = self.filled.wait_timeout(buffer, LOOK_EVERY);
                buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            writing.clear();
            std::mem::swap(&mut writing, &mut buffer.waiting);
            if std::mem::take(&mut buffer.has_lost) {
                let lost = (0..).zip(&buffer.lost).filter(|(_, lost)| **lost > 0);
                lost.for_each(|(at, lost)| writing.extend(pcapng::losses(at, now(), *lost)));
            }
            drop(buffer);
            if write_all(pipe, &writing).is_err() {
                break;
            }
        }
        let mut buffer = self.lock();
        *buffer = Buffer { is_closed: true, ..Buffer::default() };
    }
}

impl Buffer {
    /// Describes a port as the next interface.
    fn describe(&mut self, Member { port, network }: &Member<'_>, snaplen: u32) -> u32 {
        let address6 = port.address6.map(|it| format!(" and {it}")).unwrap_or_default();
        let description = format!("{}{address6} on network {}", port.address, network.name);
        self.waiting.extend(pcapng::interface(&port.name, &description, snaplen));
        let interface = u32::try_from(self.lost.len()).expect("a few thousand");
        self.lost.push(0);
        self.interfaces.insert(port.id, interface);
        interface
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_closed(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

fn write_all(pipe: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(pipe, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::new(pipe, PollFlags::OUT)];
                poll(&mut fds, None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn now() -> Nanoseconds {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
