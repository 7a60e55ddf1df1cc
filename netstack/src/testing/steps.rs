//! What parts of the datapath are measured by: each a step that can be taken as often as one likes, to be timed
//! or to have its instructions counted.
//!
//! A step includes what the lab does for it: its guest copies a frame that was made before, its host copies bytes.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use super::Lab;
use super::frames::{Segment, ethernet, udp};
use super::host::Behaviour;
use crate::frame::vnet_header::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use crate::port::Offloads;
use crate::switch::addresses::OwnAddresses;
use crate::switch::directory::{Directory, Location};
use crate::switch::fast_lane::FastLane;
use crate::switch::judge;
use crate::wire::ETHERNET_LEN;
use crate::wire::headers::{ChecksumState, Headers};
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::tcp::{Flags, TCP_LEN};

/// A step, ready to be taken.
pub type Step = Box<dyn FnMut()>;

/// A kind of step.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What is measured.
    pub name: &'static str,
    /// Makes all that the step needs.
    pub prepare: fn() -> Step,
}

/// All of them.
pub const KINDS: [Kind; 12] = [
    Kind { name: "headers of IPv4", prepare: || headers(CLIENT, SERVER) },
    Kind { name: "headers of IPv6", prepare: || headers(CLIENT6, SERVER6) },
    Kind { name: "guard", prepare: || judged(|found, frame| found.by_guard(frame)) },
    Kind { name: "fast lane", prepare: || judged(|found, frame| found.by_fast_lane(frame)) },
    Kind { name: "switch, 1400 B", prepare: || between_ports(1400) },
    Kind { name: "switch, 64 B", prepare: || between_ports(64) },
    Kind { name: "TCP from guest, 1400 B", prepare: || tcp_from_guest(1400) },
    Kind { name: "TCP from guest, 60 KB", prepare: || tcp_from_guest(60_000) },
    Kind { name: "TCP to guest, 1400 B", prepare: || tcp_to_guest(1400) },
    Kind { name: "TCP to guest, 60 KB", prepare: || tcp_to_guest(60_000) },
    Kind { name: "UDP beside no other flow", prepare: || datagram(0) },
    Kind { name: "UDP beside 4095 flows", prepare: || datagram(4095) },
];

const CLIENT: &str = "10.88.0.2:4000";
const NEIGHBOUR: &str = "10.88.0.3:80";
const SERVER: &str = "192.0.2.1:80";
const CLIENT6: &str = "[fd00:0:0:58::2]:4000";
const SERVER6: &str = "[2001:db8::1]:80";
const MSS: u16 = 1460;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// Of one worker, however many the tests run on.
fn lab(guests: u8) -> Lab {
    Lab::with_workers(1, guests, Offloads::ChecksumAndTcp)
}

fn headers(from: &str, to: &str) -> Step {
    let lab = lab(1);
    let packet = Segment::new(Flags::ACK, 1, 1).with(&[7; 512]).emit(at(from), at(to));
    let ethertype = if at(from).is_ipv6() { 0x86dd } else { 0x0800 };
    let frame = ethernet(lab.spec(0).mac, lab.gateway_mac(0), ethertype, &packet);
    Box::new(move || {
        let headers = Headers::parse(black_box(&frame[VNET_LEN..]), ChecksumState::Partial);
        black_box(headers.expect("a good frame"));
    })
}

/// Who is where, as the switch has it.
struct Found {
    lab: Lab,
    directory: Directory,
}

impl Found {
    fn by_guard(&self, frame: &[u8]) -> bool {
        let port = self.lab.spec(0);
        let network = self.directory.network(port.network).expect("its network");
        black_box(judge(port, &OwnAddresses::default(), network, frame)).is_ok()
    }

    fn by_fast_lane(&self, frame: &[u8]) -> bool {
        let port = self.lab.spec(0);
        let network = self.directory.network(port.network).expect("its network");
        black_box(FastLane::new(network).judge(port, frame, frame.len())).is_some()
    }
}

fn judged(judge: fn(&Found, &[u8]) -> bool) -> Step {
    let lab = lab(2);
    let place = |slot: u16| Location { worker: 0, slot, port: lab.spec(slot.into()).id };
    let ports = [(lab.spec(0), place(0)), (lab.spec(1), place(1))];
    let directory = Directory::new(lab.networks(), ports);
    let frame = Frame::of_tcp(&lab, NEIGHBOUR, 512).bytes;
    let found = Found { lab, directory };
    Box::new(move || assert!(judge(&found, black_box(&frame))))
}

fn between_ports(len: usize) -> Step {
    let mut lab = lab(2);
    let frame = Frame::of_tcp(&lab, NEIGHBOUR, len).bytes;
    let (sender, receiver) = (lab.wire(0).clone(), lab.wire(1).clone());
    Box::new(move || {
        sender.send(frame.clone());
        lab.handle_frames(0);
        black_box(receiver.take().expect("it is delivered"));
    })
}

/// A guest's TCP segment, large where it does not fit one frame, its checksum left to be completed, as Linux sends it.
struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    const TCP: usize = VNET_LEN + ETHERNET_LEN + IPV4_LEN;

    fn of_tcp(lab: &Lab, to: &str, len: usize) -> Self {
        let to_mac = if to == NEIGHBOUR { lab.spec(1).mac } else { lab.gateway_mac(0) };
        let packet = Segment::new(Flags::ACK, 0, 0).with(&vec![7; len]).emit(at(CLIENT), at(to));
        let mut bytes = ethernet(lab.spec(0).mac, to_mac, 0x0800, &packet);
        let start = u16::try_from(ETHERNET_LEN + IPV4_LEN).expect("two headers");
        let header_len = start + u16::try_from(TCP_LEN).expect("a header");
        let gso = Gso { kind: GsoKind::Tcpv4, size: MSS, header_len, ecn: false };
        let vnet = VnetHeader {
            checksum: Some(PartialChecksum { start, offset: 16 }),
            gso: (len > MSS.into()).then_some(gso),
        };
        bytes[..VNET_LEN].copy_from_slice(&vnet.emit());
        Self { bytes }
    }

    fn numbered(&mut self, sequence: u32, acknowledgement: u32) -> Vec<u8> {
        self.bytes[Self::TCP + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
        self.bytes[Self::TCP + 8..][..4].copy_from_slice(&acknowledgement.to_be_bytes());
        self.bytes.clone()
    }
}

/// An open flow of a guest.
struct Open {
    lab: Lab,
    /// Its peer in the world outside.
    peer: u64,
    /// What the guest says next.
    sequence: u32,
    /// What the guest expects next.
    next: u32,
}

impl Open {
    fn new() -> Self {
        let mut lab = lab(1);
        lab.world.serve(SERVER, Behaviour::Accept);
        lab.send_ip(0, &Segment::syn(1).emit(at(CLIENT), at(SERVER)));
        let answers = lab.received(0);
        let answer = answers.iter().find_map(|frame| frame.tcp()).expect("an answer to the SYN").0;
        let next = answer.sequence.wrapping_add(1);
        lab.send_ip(0, &Segment::new(Flags::ACK, 2, next).emit(at(CLIENT), at(SERVER)));
        let peer = lab.world.connections(SERVER)[0];
        Self { lab, peer, sequence: 2, next }
    }

    /// Takes the guest's frames, and answers how many bytes they are from the Ethernet header on.
    fn take(&self) -> usize {
        let wire = self.lab.wire(0);
        std::iter::from_fn(|| wire.take()).map(|frame| frame.len() - VNET_LEN).sum()
    }
}

fn tcp_from_guest(len: usize) -> Step {
    let mut open = Open::new();
    let mut frame = Frame::of_tcp(&open.lab, SERVER, len);
    let bytes = u32::try_from(len).expect("less than a window");
    Box::new(move || {
        open.lab.send(0, frame.numbered(open.sequence, open.next));
        open.sequence = open.sequence.wrapping_add(bytes);
        assert_eq!(open.lab.world.peer_receive(open.peer).len(), len);
        // Acknowledgements may wait.
        open.lab.advance(Duration::from_millis(3));
        assert!(open.take() > 0, "it is acknowledged");
    })
}

fn tcp_to_guest(len: usize) -> Step {
    let mut open = Open::new();
    let mut acknowledgement = Frame::of_tcp(&open.lab, SERVER, 0);
    let data = vec![7; len];
    let bytes = u32::try_from(len).expect("less than a window");
    Box::new(move || {
        assert_eq!(open.lab.world.peer_send(open.peer, &data), len);
        open.lab.settle();
        assert!(open.take() > len, "it comes at once");
        open.next = open.next.wrapping_add(bytes);
        open.lab.send(0, acknowledgement.numbered(open.sequence, open.next));
    })
}

fn datagram(others: u16) -> Step {
    let mut lab = lab(1);
    let from = |nth: u16| SocketAddr::from(([10, 88, 0, 2], 1024 + nth));
    let to = "192.0.2.1:9";
    for nth in (0..=others).rev() {
        lab.send_ip(0, &udp(from(nth), at(to), b"x"));
    }
    let socket = *lab.world.datagram_sockets(to).last().expect("just opened");
    let packet = udp(from(0), at(to), &[7; 64]);
    let frame = ethernet(lab.spec(0).mac, lab.gateway_mac(0), 0x0800, &packet);
    Box::new(move || {
        lab.send(0, frame.clone());
        assert!(!black_box(lab.world.datagrams_sent(socket)).is_empty());
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_taken_again_and_again() {
        for Kind { prepare, .. } in KINDS {
            let mut step = prepare();
            (0..100).for_each(|_| step());
        }
    }
}
