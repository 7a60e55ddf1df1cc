//! A hostile guest and its neighbour on one worker, as the datapath has them (security rows V10, V17, V22).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use lichen_netstack::command::{Attachment, PortStatistics};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::MacAddr;
use lichen_netstack::switch::directory::{Directory, Location};
use lichen_netstack::testing::frames::{Segment, ethernet, ip, udp};
use lichen_netstack::testing::host::World;
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::time::Instant;
use lichen_netstack::wire::headers::{ChecksumState, Headers};
use lichen_netstack::wire::udp::{PROTOCOL_UDP, UDP_LEN, emit_partial_header};
use lichen_netstack::worker::{Worker, WorkerCommand, WorkerEvent};
use lichen_vhost_net::port::VhostPort;
use lichen_vhost_net::testing::front_end::rings::{FROM_GUEST, SIZE, TO_GUEST};
use lichen_vhost_net::testing::front_end::{FEATURES, FrontEnd, WITH_TSO, WITH_USO};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bed::{A, B, Bed, Watchdog};

/// Where a table of descriptors and the bytes that it names lie, beside the rings and their buffers.
const TABLE: u64 = 0x30_0000;
const BYTES: u64 = 0x31_0000;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// Both guests on one network. The first means harm.
struct Pair {
    worker: Worker<VhostPort, World, Echo>,
    guests: [FrontEnd; 2],
    /// How many frames the first has been given.
    posted: u16,
    _bed: Bed,
}

fn address(guest: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 88, 0, guest + 2), 9)
}

fn mac(guest: u8) -> MacAddr {
    MacAddr::for_ipv4(*address(guest).ip())
}

impl Pair {
    fn new() -> Self {
        Self::agreeing_to(FEATURES)
    }

    /// Both agree to these features.
    fn agreeing_to(features: u64) -> Self {
        let bed = Bed::new();
        let mut guests = [A, B].map(|port| bed.guest_with(port, features));
        let network = specs::network(1, "bridge", 88);
        let ports = [(A, 0), (B, 1)].map(|(id, guest)| {
            let name = format!("guest{guest}");
            specs::port(id.0, &name, *address(guest).ip(), Attachment::VhostUser)
        });
        let mut worker = Worker::new(World::default(), Echo::default(), 1, 1024);
        let place = |slot, port| Location { worker: 0, slot, port };
        let places = ports.iter().zip(0..).map(|(port, slot)| (port, place(slot, port.id)));
        let directory = Arc::new(Directory::new([&network], places));
        worker.handle_command(Instant::START, WorkerCommand::SetDirectory(directory));
        for (spec, slot) in ports.into_iter().zip(0..) {
            let io = Some(bed.take(spec.id));
            worker.handle_command(Instant::START, WorkerCommand::SetPort { slot, spec, io });
        }
        guests.iter_mut().for_each(|guest| guest.post(SIZE));
        Self { worker, guests, posted: 0, _bed: bed }
    }

    /// Lets the worker take what a guest has sent.
    fn serve(&mut self, slot: u16) {
        self.worker.handle_frames(Instant::START, slot);
        while self.worker.is_busy() {
            self.worker.handle_timeout(Instant::START);
        }
    }

    fn statistics(&mut self) -> Vec<PortStatistics> {
        self.worker.handle_command(Instant::START, WorkerCommand::Statistics);
        let events = std::iter::from_fn(|| self.worker.poll_event());
        let ports = events.filter_map(|event| match event {
            WorkerEvent::Statistics(ports) => Some(ports),
            _ => None,
        });
        let ports = ports.last().expect("they were asked for");
        assert_eq!(ports.len(), 2, "both ports are open");
        ports
    }

    /// How often frames were dropped, by reason. What is cut for its receiver into too many pieces counts
    /// there, all else at the hostile guest.
    fn drops(&mut self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for (reason, count) in self.statistics().into_iter().flat_map(|port| port.drops) {
            *sum.entry(reason).or_default() += count;
        }
        sum
    }

    /// The neighbour sends a datagram to the hostile guest, which arrives.
    #[track_caller]
    fn assert_neighbour_passes(&mut self) {
        let packet = udp(address(1).into(), address(0).into(), b"an honest word");
        let frame = ethernet(mac(1), mac(0), 0x0800, &packet);
        self.guests[0].want_call(TO_GUEST);
        self.guests[1].transmit(&frame);
        self.serve(1);
        assert_eq!(self.guests[0].used(TO_GUEST), 1);
        let received = self.guests[0].received(self.posted, frame.len());
        assert_eq!(received[VNET_LEN..], frame[VNET_LEN..]);
        self.posted += 1;
        self.guests[0].post(1);
    }

    /// The hostile guest sends bytes in that many descriptors of one table.
    fn send_in_pieces(&mut self, bytes: &[u8], pieces: u16) {
        let guest = &mut self.guests[0];
        let len = bytes.len() / usize::from(pieces);
        guest.memory().write_slice(bytes, GuestAddress(BYTES)).unwrap();
        for at in 0..pieces {
            let mut descriptor = (BYTES + u64::from(at) * len as u64).to_le_bytes().to_vec();
            descriptor.extend_from_slice(&(len as u32).to_le_bytes());
            let flags = if at + 1 == pieces { 0 } else { NEXT };
            descriptor.extend_from_slice(&flags.to_le_bytes());
            descriptor.extend_from_slice(&(at + 1).to_le_bytes());
            let place = GuestAddress(TABLE + 16 * u64::from(at));
            guest.memory().write_slice(&descriptor, place).unwrap();
        }
        guest.offer(FROM_GUEST, 0, TABLE, 16 * u32::from(pieces), INDIRECT);
    }
}

/// A segment from the hostile guest to its neighbour, so that header and packet are together that long.
fn segment(len: usize) -> Vec<u8> {
    let payload = vec![7; len - VNET_LEN - 14 - 20 - 20];
    let packet = Segment::new(0x18, 1, 1).with(&payload).emit(address(0).into(), address(1).into());
    let frame = ethernet(mac(0), mac(1), 0x0800, &packet);
    assert_eq!(frame.len(), len);
    frame
}

/// V10.
#[test]
fn a_frame_in_256_legal_descriptors_is_cut_for_its_receiver_or_is_too_large_and_never_a_ring_error()
{
    let mut pair = Pair::new();
    let mut frame = segment(256 * 64);
    pair.send_in_pieces(&frame, 256);
    pair.serve(0);
    assert_eq!(pair.guests[0].used(FROM_GUEST), 1);
    assert_eq!(pair.guests[1].used(TO_GUEST), 0);
    assert_eq!(pair.drops(), BTreeMap::from([("l2_oversize".to_owned(), 1)]));

    // The same as one that stands for segments of 1448 bytes, its checksum left to be completed.
    frame[..VNET_LEN].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    pair.send_in_pieces(&frame, 256);
    pair.serve(0);
    let payload = frame.len() - VNET_LEN - 54;
    assert_eq!(usize::from(pair.guests[1].used(TO_GUEST)), payload.div_ceil(1448));
    assert_eq!(pair.drops().len(), 1, "nothing new: {:?}", pair.drops());
    pair.assert_neighbour_passes();
}

/// V17.
#[test]
fn a_virtio_net_header_that_lies_costs_its_frame_and_nobody_else() {
    let mut pair = Pair::new();
    let f = 0xff;
    let headers: [[u8; VNET_LEN]; 8] = [
        // gso_type 0xff, alone and with all else as large as can be.
        [0, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [f, f, f, f, f, f, f, f, f, f, f, f],
        // csum_start, csum_offset and both at 65535.
        [1, 0, f, f, 0, 0, f, f, 16, 0, 0, 0],
        [1, 0, f, f, 0, 0, 34, 0, f, f, 0, 0],
        [1, 0, f, f, 0, 0, f, f, f, f, 0, 0],
        // TCP in segments of no byte, of one byte, and of one byte as UDP.
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 1, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0],
        [1, 5, 42, 0, 1, 0, 34, 0, 6, 0, 0, 0],
    ];
    for (header, count) in headers.iter().zip(1..) {
        let mut frame = segment(1400);
        frame[..VNET_LEN].copy_from_slice(header);
        pair.guests[0].transmit(&frame);
        pair.serve(0);
        assert_eq!(pair.drops(), BTreeMap::from([("vnet_hdr".to_owned(), count)]), "{header:?}");
        assert_eq!(pair.guests[1].used(TO_GUEST), 0, "{header:?}");
        pair.assert_neighbour_passes();
    }
    // Without a lie the same frame arrives.
    pair.guests[0].transmit(&segment(1400));
    pair.serve(0);
    assert_eq!(pair.guests[1].used(TO_GUEST), 1);
}

/// Datagrams of `size` bytes in one, `len` together, from the hostile guest to its neighbour.
fn datagrams(len: usize, size: u16) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let packet = udp(address(0).into(), address(1).into(), &payload);
    let mut frame = ethernet(mac(0), mac(1), 0x0800, &packet);
    // UDP_L4, with the pseudo header's sum where the checksum belongs.
    frame[..10].copy_from_slice(&[1, 5, 42, 0, 0, 0, 34, 0, 6, 0]);
    frame[4..6].copy_from_slice(&size.to_le_bytes());
    frame
}

#[test]
fn datagrams_in_one_frame_arrive_whole_where_that_was_agreed_on_and_cut_elsewhere() {
    let frame = datagrams(10_000, 1000);
    let mut pair = Pair::agreeing_to(WITH_USO);
    pair.send_in_pieces(&frame, 2);
    pair.serve(0);
    let buffers = pair.guests[1].used(TO_GUEST);
    assert_eq!(usize::from(buffers), frame.len().div_ceil(2048));
    let received = pair.guests[1].received(0, frame.len());
    assert_eq!(received[..10], frame[..10], "still one that is to be cut");
    assert_eq!(received[10..VNET_LEN], buffers.to_le_bytes());
    assert_eq!(received[VNET_LEN..], frame[VNET_LEN..]);
    drop(pair);

    let mut pair = Pair::agreeing_to(WITH_TSO);
    pair.send_in_pieces(&frame, 2);
    pair.serve(0);
    assert_eq!(pair.guests[1].used(TO_GUEST), 10);
    for piece in 0..10_u16 {
        let start = VNET_LEN + 14 + 20 + 8;
        let received = pair.guests[1].received(piece, start + 1000);
        assert_eq!(received[1], 0, "nothing is left to be cut");
        let sent = start + 1000 * usize::from(piece);
        assert_eq!(received[start..], frame[sent..sent + 1000]);
    }
    assert_eq!(pair.drops(), BTreeMap::new());
    pair.assert_neighbour_passes();
}

#[test]
fn datagrams_in_one_frame_are_as_many_as_linux_sends_and_no_more() {
    for (features, name) in [(WITH_USO, "whole"), (WITH_TSO, "cut")] {
        let mut pair = Pair::agreeing_to(features);
        // Sizes of nothing, of one byte, one piece too many, pieces beyond the MTU; TCP's kind with a datagram.
        let mut hostile = vec![
            datagrams(1280, 0),
            datagrams(1280, 1),
            datagrams(1290, 10),
            datagrams(4000, 1473),
            datagrams(1280, u16::MAX),
        ];
        hostile.push(datagrams(1280, 100));
        hostile[5][1] = 1;
        // A checksum that is complete already.
        hostile.push(datagrams(1280, 100));
        hostile[6][0] = 0;
        for (frame, count) in hostile.iter().zip(1..) {
            pair.send_in_pieces(frame, 1);
            pair.serve(0);
            assert_eq!(pair.drops(), BTreeMap::from([("vnet_hdr".to_owned(), count)]), "{name}");
            assert_eq!(pair.guests[1].used(TO_GUEST), 0, "{name}");
            pair.assert_neighbour_passes();
        }
        pair.send_in_pieces(&datagrams(640, 10), 1);
        pair.serve(0);
        let whole = features == WITH_USO;
        assert_eq!(pair.guests[1].used(TO_GUEST), if whole { 1 } else { 64 }, "{name}");
        // As many as there may be; the neighbour has room for 64 frames.
        if whole {
            pair.guests[1].post(1);
            pair.send_in_pieces(&datagrams(1280, 10), 1);
            pair.serve(0);
            assert_eq!(pair.guests[1].used(TO_GUEST), 1);
        }
    }
}

/// A datagram to the neighbour whose checksum is left to be completed, as drivers send them.
fn partial_datagram(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|at| (at % 249) as u8).collect();
    let header = emit_partial_header(address(0).into(), address(1).into(), UDP_LEN + len);
    let datagram = [&header[..], &payload].concat();
    let packet = ip((*address(0).ip()).into(), (*address(1).ip()).into(), PROTOCOL_UDP, &datagram);
    let mut frame = ethernet(mac(0), mac(1), 0x0800, &packet);
    frame[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    frame
}

/// Most frames are copied from guest to guest: only what the receiver does not do itself goes by a buffer.
#[test]
fn frames_between_guests_arrive_whole_and_are_counted_on_both_sides() {
    const GUEST_CSUM: u64 = 1 << 1;
    for features in [FEATURES, WITH_USO, FEATURES & !GUEST_CSUM] {
        let mut pair = Pair::agreeing_to(features);
        let (mut frames, mut bytes) = (0_u64, 0_u64);
        for len in [0, 18, 19, 74, 75, 300, 1000, 1472] {
            let frame = partial_datagram(len);
            pair.guests[0].transmit(&frame);
            pair.serve(0);
            assert_eq!(pair.guests[0].used(FROM_GUEST), 1);
            assert_eq!(pair.guests[1].used(TO_GUEST), 1);
            let received = pair.guests[1].received(u16::try_from(frames).unwrap(), frame.len());
            assert_eq!(received[10..VNET_LEN], [1, 0], "one buffer");
            let state = if features & GUEST_CSUM == 0 {
                assert_eq!(received[..10], [0; 10]);
                ChecksumState::Full
            } else {
                assert_eq!(received[..10], frame[..10]);
                assert_eq!(received[VNET_LEN..], frame[VNET_LEN..]);
                ChecksumState::Partial
            };
            let payload = VNET_LEN + 14 + 20 + UDP_LEN;
            assert_eq!(received[payload..], frame[payload..]);
            Headers::parse(&received[VNET_LEN..], state).expect("a sound frame");
            frames += 1;
            bytes += (frame.len() - VNET_LEN) as u64;
            let ports = pair.statistics();
            assert_eq!((ports[0].frames_from_guest, ports[0].bytes_from_guest), (frames, bytes));
            assert_eq!((ports[1].frames_to_guest, ports[1].bytes_to_guest), (frames, bytes));
        }
        assert_eq!(pair.drops(), BTreeMap::new());
    }
}

/// While the worker looks on it finds what a guest has not told of, and before it sleeps it takes what is left.
#[test]
fn a_worker_that_looks_into_rings_misses_no_frame_that_nobody_told_of() {
    let mut pair = Pair::new();
    pair.worker = pair.worker.polling_ports();
    let frame = partial_datagram(100);
    let arrived = |pair: &mut Pair| pair.guests[1].used(TO_GUEST);
    pair.guests[0].transmit(&frame);
    assert!(!pair.worker.poll_ports(Instant::START), "nothing has happened to that port yet");
    pair.serve(0);
    assert_eq!(arrived(&mut pair), 1);

    assert!(!pair.worker.poll_ports(Instant::START), "nothing waits");
    for _ in 0..3 {
        pair.guests[0].transmit(&frame);
        assert!(pair.worker.poll_ports(Instant::START));
        assert_eq!(arrived(&mut pair), 1);
    }
    // The receiver may answer at once: it is looked into as well.
    let packet = udp(address(1).into(), address(0).into(), b"an answer");
    pair.guests[1].transmit(&ethernet(mac(1), mac(0), 0x0800, &packet));
    assert!(pair.worker.poll_ports(Instant::START));
    assert_eq!(pair.guests[0].used(TO_GUEST), 1);

    pair.worker.end_polling();
    assert!(!pair.worker.is_busy(), "nothing waits, so it may sleep");
    pair.serve(0);
    pair.guests[0].transmit(&frame);
    pair.worker.end_polling();
    assert!(pair.worker.is_busy(), "what came last is not slept over");
    pair.worker.handle_timeout(Instant::START);
    assert_eq!(arrived(&mut pair), 1);
    assert_eq!(pair.drops(), BTreeMap::new());
}

/// V22. What is no eventfd is refused when it is handed over; of an eventfd a full counter is left, for which a
/// writer would wait. Of waiting the watchdog tells.
#[test]
fn a_call_that_is_full_holds_nobody_up_and_is_heard_once_it_was_read() {
    let _watchdog = Watchdog::new();
    let mut pair = Pair::new();
    pair.guests[0].calls(TO_GUEST);
    pair.guests[0].fill_call(TO_GUEST);
    for _ in 0..200 {
        pair.assert_neighbour_passes();
    }
    assert_eq!(pair.guests[0].calls(TO_GUEST), u64::MAX);
    assert_eq!(pair.drops(), BTreeMap::new());
    pair.assert_neighbour_passes();
    assert_eq!(pair.guests[0].calls(TO_GUEST), 1);
}
