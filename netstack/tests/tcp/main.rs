//! TCP as a guest sees it, one segment at a time.

mod segments;
mod standards;

use std::net::SocketAddr;

use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Received, Segment};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::tcp::Flags;

pub(crate) const SERVER: &str = "192.0.2.1:80";

pub(crate) fn guest_end(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 88, 0, 2], port))
}

pub(crate) fn server_end() -> SocketAddr {
    SERVER.parse().unwrap()
}

pub(crate) fn send(lab: &mut Lab, segment: &Segment) -> Vec<Received> {
    send_from(lab, 4000, segment)
}

pub(crate) fn send_from(lab: &mut Lab, port: u16, segment: &Segment) -> Vec<Received> {
    lab.send_ip(0, &segment.emit(guest_end(port), server_end()));
    lab.received(0)
}

/// A connection whose guest has sent SYN 1000 and acknowledged the answer. Answers our sequence number.
pub(crate) fn established() -> (Lab, u32) {
    let mut lab = Lab::new(2);
    lab.world.serve(SERVER, Behaviour::Accept);
    let answer = send(&mut lab, &Segment::syn(1000));
    let (header, _) = answer[0].tcp().unwrap();
    assert!(header.flags.has(Flags::SYN | Flags::ACK));
    assert_eq!(header.acknowledgement, 1001);
    let ours = header.sequence.wrapping_add(1);
    assert!(send(&mut lab, &Segment::new(Flags::ACK, 1001, ours)).is_empty());
    assert_eq!(lab.used(0, "half_open"), 0);
    (lab, ours)
}

pub(crate) fn flags(received: &[Received]) -> Vec<u8> {
    received.iter().filter_map(Received::tcp).map(|(header, _)| header.flags.0).collect()
}

pub(crate) fn ethernet(lab: &Lab, segment: &Segment) -> Vec<u8> {
    let packet = segment.emit(guest_end(4000), server_end());
    lichen_netstack::testing::frames::ethernet(lab.spec(0).mac, lab.gateway_mac(0), 0x0800, &packet)
}
