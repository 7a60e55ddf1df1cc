//! Captures: frames of some ports, as a stream of pcapng that somebody reads from a pipe.
//!
//! The worker puts records into a bounded buffer and never waits; a thread of the capture writes them out. What
//! does not fit is counted, and told in the stream when there is room again. The capture ends when nobody reads
//! the pipe any more, which the thread looks for while nothing happens.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lichen_netstack::command::PortSpec;
use lichen_netstack::port::recording::{Direction, Interest, Recorder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pcapng::{self, Nanoseconds, Way};

/// Bytes of one capture that wait to be read.
const MAX_WAITING: usize = 4 << 20;
/// Captures at once.
const MAX_CAPTURES: usize = 8;
/// How often it is looked whether anybody reads, while nothing is to be written.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a capture cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    /// Too many.
    #[error("{MAX_CAPTURES} captures run already; end one of them first")]
    TooMany,
    /// No thread.
    #[error("the capture cannot be written")]
    Thread(#[from] io::Error),
}

/// The captures of one datapath.
#[derive(Debug, Default)]
pub(super) struct Captures {
    running: Arc<AtomicUsize>,
}

impl Captures {
    /// Begins a capture of these ports, each of whose recorders is to be given to its port.
    pub(super) fn begin(
        &self,
        ports: &[PortSpec],
        networks: impl Fn(&PortSpec) -> String,
        snaplen: u32,
        pipe: OwnedFd,
    ) -> Result<Vec<PortRecorder>, CaptureError> {
        let slot = Slot::take(&self.running).ok_or(CaptureError::TooMany)?;
        let mut head = pcapng::section_header(concat!("lichen ", env!("CARGO_PKG_VERSION")));
        for port in ports {
            let address6 = port.address6.map(|it| format!(" and {it}")).unwrap_or_default();
            let description = format!("{}{address6} on network {}", port.address, networks(port));
            head.extend(pcapng::interface(&port.name, &description, snaplen));
        }
        let buffer = Buffer { waiting: head, lost: vec![0; ports.len()], ..Buffer::default() };
        let sink = Arc::new(Sink { buffer: Mutex::new(buffer), filled: Condvar::new() });
        let own = Arc::clone(&sink);
        std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            own.write_out(&pipe);
            drop(slot);
        })?;
        let numbers = 0..u32::try_from(ports.len()).expect("at most 1024 ports");
        let recorder = |interface| {
            let sink = Arc::clone(&sink);
            PortRecorder { sink, interface, keep: snaplen as usize }
        };
        Ok(numbers.map(recorder).collect())
    }
}

/// What a port shows its frames to.
pub(super) struct PortRecorder {
    sink: Arc<Sink>,
    interface: u32,
    keep: usize,
}

impl Recorder for PortRecorder {
    fn record(&mut self, direction: Direction, frame: &[u8]) -> Interest {
        let way = match direction {
            Direction::FromGuest => Way::Outbound,
            Direction::ToGuest => Way::Inbound,
        };
        let kept = &frame[..frame.len().min(self.keep)];
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
struct Sink {
    buffer: Mutex<Buffer>,
    filled: Condvar,
}

#[derive(Default)]
struct Buffer {
    waiting: Vec<u8>,
    /// Frames that did not fit, by interface.
    lost: Vec<u64>,
    /// Whether some were lost that the stream has not told yet.
    has_lost: bool,
    /// Nobody reads any more.
    is_closed: bool,
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until nobody reads, or until every recorder has gone.
    fn write_out(self: Arc<Self>, pipe: &OwnedFd) {
        let mut writing = Vec::new();
        loop {
            let mut buffer = self.lock();
            if buffer.waiting.is_empty() && !buffer.has_lost {
                if is_closed(pipe) || Arc::strong_count(&self) == 1 {
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

/// One of the places for captures, given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(running: &Arc<AtomicUsize>) -> Option<Self> {
        let add = |running: usize| (running < MAX_CAPTURES).then_some(running + 1);
        let taken = running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.ok().map(|_| Self(Arc::clone(running)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use lichen_netstack::command::Attachment;
    use lichen_netstack::testing::specs;

    use super::*;

    fn port(name: &str) -> PortSpec {
        specs::port(1, name, [10, 88, 0, 2].into(), Attachment::Tap)
    }

    fn begin(
        captures: &Captures,
        snaplen: u32,
    ) -> Result<(Vec<PortRecorder>, std::fs::File), CaptureError> {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let ports = [port("web"), port("db")];
        let recorders = captures.begin(&ports, |_| "bridge".to_owned(), snaplen, writer)?;
        Ok((recorders, reader.into()))
    }

    fn capture(snaplen: u32) -> (Vec<PortRecorder>, std::fs::File) {
        begin(&Captures::default(), snaplen).unwrap()
    }

    #[test]
    fn there_are_so_many_captures_at_once_and_an_ended_one_makes_room() {
        let captures = Captures::default();
        let mut running: Vec<_> =
            (0..MAX_CAPTURES).map(|_| begin(&captures, 100).unwrap()).collect();
        assert!(matches!(begin(&captures, 100), Err(CaptureError::TooMany)));
        // Its reader goes, though nothing passes.
        drop(running.pop().unwrap().1);
        let begun = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            begin(&captures, 100).ok()
        });
        assert!(begun.is_some());
    }

    #[test]
    fn frames_come_with_their_interface_and_no_longer_than_asked_for() {
        let (mut recorders, mut reader) = capture(60);
        assert_eq!(recorders[1].record(Direction::FromGuest, &[7; 1514]), Interest::More);
        recorders[1].flush();
        drop(recorders);
        let mut file = Vec::new();
        reader.read_to_end(&mut file).unwrap();
        let packet = &file[file.len() - pcapng::PACKET_OVERHEAD - 60..];
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(8), word(20), word(24)), (6, 1, 60, 1514));
        assert_eq!(packet[28..88], [7; 60]);
    }

    #[test]
    fn a_reader_that_is_slow_loses_frames_which_are_counted_and_one_that_goes_ends_it() {
        let (mut recorders, mut reader) = capture(65_535);
        let mut taken = 0;
        for _ in 0..10_000 {
            assert_eq!(recorders[0].record(Direction::ToGuest, &[1; 1500]), Interest::More);
            recorders[0].flush();
            taken += 1;
        }
        let waiting = recorders[0].sink.lock().waiting.len();
        assert!(waiting <= MAX_WAITING, "{waiting}");
        let lost = recorders[0].sink.lock().lost[0];
        assert!(lost > 0 && lost < taken, "{lost}");
        // What was lost is told as soon as somebody reads.
        let mut bytes = vec![0; 16 << 20];
        let mut len = 0;
        let told = |bytes: &[u8]| {
            let value = [&[5, 0, 8, 0][..], &lost.to_ne_bytes()].concat();
            bytes.windows(value.len()).any(|window| window == value)
        };
        while !told(&bytes[..len]) {
            let count = reader.read(&mut bytes[len..]).unwrap();
            assert!(count > 0, "it goes on");
            len += count;
        }
        drop(reader);
        let mut interest = Interest::More;
        for _ in 0..500 {
            interest = recorders[0].record(Direction::ToGuest, &[1; 60]);
            recorders[0].flush();
            if interest == Interest::Ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(interest, Interest::Ended);
        assert_eq!(recorders[1].flush(), Interest::Ended);
    }
}
