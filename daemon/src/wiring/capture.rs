//! Captures: frames of some ports, as a stream of pcapng that somebody reads from a pipe.
//!
//! The worker puts records into a bounded buffer and never waits; a thread of the capture writes them out. What
//! does not fit is counted, and told in the stream when there is room again. The capture ends when nobody reads
//! the pipe any more, which the thread looks for while nothing happens.
//!
//! A capture of one port ends with that port. One of a network, or of all, takes in ports that come while it runs, each
//! as an interface that is described in the stream before its first frame.

mod sink;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lichen_netstack::command::{CaptureScope, CaptureSpec};
use lichen_netstack::ids::{NetworkId, PortId};

pub(super) use self::sink::{Member, PortRecorder};
use self::sink::{Sink, lock};

/// Captures at once.
const MAX_CAPTURES: usize = 8;

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
#[derive(Default)]
pub(super) struct Captures {
    running: Arc<AtomicUsize>,
    /// Those that take in ports which come later.
    open: Arc<Mutex<Vec<Arc<Sink>>>>,
}

impl Captures {
    /// Begins a capture of those of the ports that it is of, each of whose recorders is to be given to its port.
    pub(super) fn begin<'a>(
        &self,
        spec: CaptureSpec,
        members: impl Iterator<Item = Member<'a>>,
        pipe: OwnedFd,
    ) -> Result<Vec<(PortId, PortRecorder)>, CaptureError> {
        let slot = Slot::take(&self.running).ok_or(CaptureError::TooMany)?;
        let sink = Arc::new(Sink::new(spec));
        let recorders =
            members.filter_map(|member| Some((member.port.id, sink.recorder(&member)?))).collect();
        if !matches!(spec.scope, CaptureScope::Port(_)) {
            lock(&self.open).push(Arc::clone(&sink));
        }
        let (own, open) = (Arc::clone(&sink), Arc::clone(&self.open));
        let spawned = std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            own.write_out(&pipe);
            lock(&open).retain(|it| !Arc::ptr_eq(it, &own));
            drop(slot);
        });
        if let Err(error) = spawned {
            lock(&self.open).retain(|it| !Arc::ptr_eq(it, &sink));
            return Err(error.into());
        }
        Ok(recorders)
    }

    /// Whether no capture waits for ports.
    pub(super) fn is_complete(&self) -> bool {
        lock(&self.open).is_empty()
    }

    /// What a port that has come is to show its frames to.
    pub(super) fn handle_newcomer(&self, member: &Member<'_>) -> Vec<PortRecorder> {
        lock(&self.open).iter().filter_map(|sink| sink.recorder(member)).collect()
    }

    /// A network has gone, and with it, in a moment, the captures of it.
    pub(super) fn handle_network_gone(&self, network: NetworkId) {
        lock(&self.open).retain(|sink| sink.spec.scope != CaptureScope::Network(network));
    }
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

    use std::time::Duration;

    use lichen_netstack::command::{Attachment, CapturedFlow, FlowProtocol, LargeFrames, PortSpec};
    use lichen_netstack::frame::vnet_header::VNET_LEN;
    use lichen_netstack::port::recording::{Direction, Interest, Recorder as _};
    use lichen_netstack::testing::frames::{ethernet, udp};
    use lichen_netstack::testing::specs;

    use super::super::pcapng;
    use super::sink::{MAX_INTERFACES, MAX_WAITING};
    use super::*;

    const NO_OFFLOAD: [u8; VNET_LEN] = [0; VNET_LEN];

    fn port(id: u32, name: &str) -> PortSpec {
        specs::port(id, name, [10, 88, 0, 1 + u8::try_from(id).unwrap()].into(), Attachment::TAP)
    }

    fn spec(scope: CaptureScope, snaplen: u32) -> CaptureSpec {
        CaptureSpec { scope, snaplen, flow: None, large: LargeFrames::Whole }
    }

    type Begun = (Vec<PortRecorder>, std::fs::File);

    /// A capture, with the ports `web` and `db` on one network, and where it can be read.
    fn begin(captures: &Captures, spec: CaptureSpec) -> Result<Begun, CaptureError> {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (ports, network) = ([port(1, "web"), port(2, "db")], specs::network(1, "bridge", 88));
        let members = ports.iter().map(|port| Member { port, network: &network });
        let recorders = captures.begin(spec, members, writer)?;
        Ok((recorders.into_iter().map(|(_, recorder)| recorder).collect(), reader.into()))
    }

    fn capture(snaplen: u32) -> Begun {
        begin(&Captures::default(), spec(CaptureScope::All, snaplen)).unwrap()
    }

    fn read_to_end(mut reader: std::fs::File) -> Vec<u8> {
        let mut file = Vec::new();
        reader.read_to_end(&mut file).unwrap();
        file
    }

    /// Kinds of the blocks of a file, and the first word of each.
    fn blocks(mut file: &[u8]) -> Vec<(u32, u32)> {
        let word =
            |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            found.push((word(file, 0), word(file, 8)));
            file = &file[word(file, 4) as usize..];
        }
        found
    }

    #[test]
    fn there_are_so_many_captures_at_once_and_an_ended_one_makes_room() {
        let captures = Captures::default();
        let mut running: Vec<_> = (0..MAX_CAPTURES)
            .map(|_| begin(&captures, spec(CaptureScope::All, 100)).unwrap())
            .collect();
        assert!(matches!(
            begin(&captures, spec(CaptureScope::All, 100)),
            Err(CaptureError::TooMany)
        ));
        // Its reader goes, though nothing passes.
        drop(running.pop().unwrap().1);
        let begun = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            begin(&captures, spec(CaptureScope::All, 100)).ok()
        });
        assert!(begun.is_some());
    }

    #[test]
    fn frames_come_with_their_interface_and_no_longer_than_asked_for() {
        let (captures, network) = (Captures::default(), NetworkId(1));
        let (mut recorders, reader) =
            begin(&captures, spec(CaptureScope::Network(network), 60)).unwrap();
        let direction = Direction::FromGuest;
        assert_eq!(recorders[1].record(direction, &NO_OFFLOAD, &[7; 1514]), Interest::More);
        recorders[1].flush();
        drop(recorders);
        captures.handle_network_gone(network);
        let file = read_to_end(reader);
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
            let interest = recorders[0].record(Direction::ToGuest, &NO_OFFLOAD, &[1; 1500]);
            assert_eq!(interest, Interest::More);
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
            interest = recorders[0].record(Direction::ToGuest, &NO_OFFLOAD, &[1; 60]);
            recorders[0].flush();
            if interest == Interest::Ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(interest, Interest::Ended);
        assert_eq!(recorders[1].flush(), Interest::Ended);
    }

    #[test]
    fn a_port_that_comes_later_is_an_interface_from_then_on_and_the_same_when_it_comes_again() {
        let captures = Captures::default();
        let network = specs::network(1, "bridge", 88);
        let other = specs::network(2, "other", 89);
        let scope = CaptureScope::Network(network.id);
        let (mut recorders, reader) = begin(&captures, spec(scope, 100)).unwrap();
        recorders[0].record(Direction::FromGuest, &NO_OFFLOAD, &[1; 60]);
        let (late, foreign) =
            (port(3, "late"), PortSpec { network: other.id, ..port(4, "foreign") });
        assert!(captures.handle_newcomer(&Member { port: &foreign, network: &other }).is_empty());
        for _ in 0..2 {
            let mut came = captures.handle_newcomer(&Member { port: &late, network: &network });
            assert_eq!(came.len(), 1);
            came[0].record(Direction::ToGuest, &NO_OFFLOAD, &[2; 60]);
        }
        drop(recorders);
        assert!(!captures.is_complete(), "more ports may come");
        captures.handle_network_gone(other.id);
        assert!(!captures.is_complete());
        captures.handle_network_gone(network.id);
        let file = read_to_end(reader);
        let kinds: Vec<u32> = blocks(&file).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 1, 6, 1, 6, 6]);
        let packets = blocks(&file).into_iter().filter(|(kind, _)| *kind == 6);
        assert_eq!(packets.map(|(_, interface)| interface).collect::<Vec<_>>(), [0, 2, 2]);
        assert!(file.windows(24).any(|it| it == b"10.88.0.4 on network bri"));
    }

    #[test]
    fn a_capture_of_one_port_takes_in_no_other_and_ends_with_it() {
        let captures = Captures::default();
        let scope = CaptureScope::Port(PortId(2));
        let (recorders, reader) = begin(&captures, spec(scope, 100)).unwrap();
        assert_eq!((recorders.len(), captures.is_complete()), (1, true));
        drop(recorders);
        assert_eq!(blocks(&read_to_end(reader)).len(), 2, "a head and one interface");
    }

    #[test]
    fn there_are_so_many_interfaces_and_no_more() {
        let captures = Captures::default();
        let (_recorders, _reader) = begin(&captures, spec(CaptureScope::All, 100)).unwrap();
        let network = specs::network(1, "bridge", 88);
        let takes = |id| {
            let port = PortSpec { id: PortId(id), ..port(1, "many") };
            captures.handle_newcomer(&Member { port: &port, network: &network }).len() == 1
        };
        assert_eq!((3..5000).filter(|id| takes(*id)).count(), MAX_INTERFACES - 2);
    }

    #[test]
    fn of_a_flow_nothing_else_takes_room() {
        let captures = Captures::default();
        let end = |text: &str| text.parse().unwrap();
        let (guest, remote) = (end("10.88.0.2:5000"), end("192.0.2.1:9"));
        let flow = Some(CapturedFlow { protocol: FlowProtocol::Udp, guest, remote });
        let wanted = CaptureSpec { flow, ..spec(CaptureScope::All, 65_535) };
        let (mut recorders, _reader) = begin(&captures, wanted).unwrap();
        let frame = |to| {
            let packet = udp(guest, to, &[1; 1000]);
            let port = port(1, "web");
            ethernet(port.mac, specs::network(1, "bridge", 88).gateway_mac, 0x0800, &packet)
        };
        let mut record = |frame: &[u8]| {
            recorders[0].record(Direction::FromGuest, &NO_OFFLOAD, &frame[VNET_LEN..])
        };
        let other = frame(end("192.0.2.1:10"));
        for _ in 0..10_000 {
            assert_eq!(record(&other), Interest::More);
        }
        assert_eq!(record(&frame(remote)), Interest::More);
        let buffer = recorders[0].sink.lock();
        assert_eq!(buffer.lost, [0, 0]);
        assert!(buffer.waiting.len() < 2000);
    }
}
