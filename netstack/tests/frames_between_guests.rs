//! What one guest can and cannot do to another: switch and guard, counter by counter.

use std::time::Duration;

use lichen_netstack::ids::MacAddr;
use lichen_netstack::port::Offloads;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{Segment, echo_request, ethernet, packet, packet_with, udp};
use lichen_netstack::wire::arp::{Arp, Operation};
use lichen_netstack::wire::headers::Network;
use lichen_netstack::wire::tcp::Flags;

const BROADCAST: MacAddr = MacAddr::BROADCAST;

/// Guests 0 (the attacker) and 1 on `bridge`, guest 2 on another network.
fn lab() -> Lab {
    let mut lab = Lab::new(2);
    lab.add_network(2, "other", 89);
    lab.add_guest(2, 89, 2, Offloads::ChecksumAndTcp);
    lab
}

/// A good frame from guest 0 to guest 1.
fn good(lab: &Lab) -> Vec<u8> {
    let (a, b) = (lab.spec(0), lab.spec(1));
    let payload = udp((a.address, 1000).socket(), (b.address, 2000).socket(), b"hello neighbour");
    ethernet(a.mac, b.mac, 0x0800, &payload)
}

trait ToSocket {
    fn socket(self) -> std::net::SocketAddr;
}

impl ToSocket for (std::net::Ipv4Addr, u16) {
    fn socket(self) -> std::net::SocketAddr {
        std::net::SocketAddr::from((self.0, self.1))
    }
}

fn arp(lab: &Lab, operation: Operation, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mac = lab.spec(0).mac;
    let arp = Arp {
        operation,
        sender_mac: mac,
        sender: sender.into(),
        target_mac: MacAddr([0; 6]),
        target: target.into(),
    };
    let mut frame = Vec::new();
    arp.emit(&mut frame);
    frame[..6].copy_from_slice(&BROADCAST.0);
    let mut with_header = ethernet(mac, BROADCAST, 0x0806, &[])[..12].to_vec();
    with_header.extend_from_slice(&frame);
    with_header
}

#[test]
fn a_frame_reaches_its_neighbour_unchanged_and_is_counted() {
    let mut lab = lab();
    let frame = good(&lab);
    lab.send(0, frame.clone());
    let received = lab.received(1);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].bytes, frame[12..]);
    let (a, b) = (lab.statistics(0), lab.statistics(1));
    assert_eq!((a.frames_from_guest, a.bytes_from_guest), (1, frame.len() as u64 - 12));
    assert_eq!((b.frames_to_guest, b.bytes_to_guest), (1, frame.len() as u64 - 12));
    assert!(a.drops.is_empty() && b.drops.is_empty());
}

#[test]
fn runts_are_dropped() {
    let mut lab = lab();
    let frame = good(&lab);
    for len in [0, 5, 11, 12, 13, 25, 12 + 14, 12 + 15, 12 + 20, 12 + 33] {
        lab.send(0, frame[..len].to_vec());
    }
    assert_eq!(lab.dropped(0, "l2_runt"), 10);
    assert!(lab.received(1).is_empty());
}

#[test]
fn frames_over_the_mtu_are_dropped_whole() {
    let mut lab = lab();
    let (a, b) = (lab.spec(0).clone(), lab.spec(1).clone());
    for len in [1481, 9000, 65_000] {
        let packet = packet(a.address, b.address, 99, &vec![0; len]);
        lab.send(0, ethernet(a.mac, b.mac, 0x0800, &packet));
    }
    assert_eq!(lab.dropped(0, "l2_oversize"), 3);
    assert!(lab.received(1).is_empty());
    let packet = packet(a.address, b.address, 99, &[0; 1480]);
    lab.send(0, ethernet(a.mac, b.mac, 0x0800, &packet));
    assert_eq!(lab.received(1).len(), 1);
}

#[test]
fn a_foreign_source_mac_is_dropped_and_the_owner_keeps_its_traffic() {
    let mut lab = lab();
    let b = lab.spec(1).mac;
    let frame = good(&lab);
    let sources = [b, lab.gateway_mac(0), MacAddr([0; 6]), BROADCAST, MacAddr([2; 6])];
    for source in sources {
        let mut spoofed = frame.clone();
        spoofed[18..24].copy_from_slice(&source.0);
        lab.send(0, spoofed);
    }
    assert_eq!(lab.dropped(0, "mac_spoof"), 5);
    assert!(lab.received(1).is_empty());
    lab.send(0, frame);
    assert_eq!(lab.received(1).len(), 1);
}

#[test]
fn arp_is_answered_for_the_gateway_and_for_neighbours_only() {
    let mut lab = lab();
    for (target, mac) in [([10, 88, 0, 1], lab.gateway_mac(0)), ([10, 88, 0, 3], lab.spec(1).mac)] {
        lab.send(0, arp(&lab, Operation::Request, [10, 88, 0, 2], target));
        let answer = lab.received(0);
        let Network::Arp(reply) = answer[0].headers.network else { panic!("not ARP") };
        assert_eq!((reply.operation, reply.sender_mac), (Operation::Reply, mac));
        assert_eq!(reply.sender.octets(), target);
    }
    for target in [[10, 88, 0, 99], [10, 89, 0, 2], [8, 8, 8, 8]] {
        lab.send(0, arp(&lab, Operation::Request, [10, 88, 0, 2], target));
    }
    assert_eq!(lab.dropped(0, "arp_unknown"), 3);
    // A probe for its own address is left unanswered, one for a neighbour's is not.
    lab.send(0, arp(&lab, Operation::Request, [0; 4], [10, 88, 0, 2]));
    assert!(lab.received(0).is_empty());
    lab.send(0, arp(&lab, Operation::Request, [0; 4], [10, 88, 0, 3]));
    assert_eq!(lab.received(0).len(), 1);
    assert!(lab.received(1).is_empty(), "neighbours are never asked");
}

#[test]
fn arp_that_claims_a_foreign_address_poisons_nobody() {
    let mut lab = lab();
    for (operation, sender) in [
        (Operation::Reply, [10, 88, 0, 1]),
        (Operation::Reply, [10, 88, 0, 3]),
        (Operation::Request, [10, 88, 0, 3]),
        (Operation::Request, [192, 0, 2, 1]),
    ] {
        lab.send(0, arp(&lab, operation, sender, [10, 88, 0, 3]));
    }
    assert_eq!(lab.dropped(0, "arp_spoof"), 4);
    assert!(lab.received(1).is_empty());
}

#[test]
fn tags_and_foreign_protocols_are_dropped_by_reason() {
    let mut lab = lab();
    let (a, b) = (lab.spec(0).mac, lab.spec(1).mac);
    for (ethertype, reason) in [
        (0x8100, "vlan"),
        (0x88a8, "vlan"),
        (0x9100, "vlan"),
        (0x86dd, "ip_header"),
        (0x88cc, "ethertype"),
        (0x0806, "arp_spoof"),
    ] {
        let before = lab.dropped(0, reason);
        lab.send(0, ethernet(a, b, ethertype, &[0; 60]));
        assert_eq!(lab.dropped(0, reason), before + 1, "{ethertype:#x}");
    }
    assert!(lab.received(1).is_empty());
}

#[test]
fn broadcast_goes_nowhere_and_a_storm_of_it_is_cut() {
    let mut lab = lab();
    let (a, b) = (lab.spec(0).clone(), lab.spec(1).clone());
    let packet = udp((a.address, 1).socket(), ([255; 4].into(), 9).socket(), b"x");
    for _ in 0..1000 {
        lab.wire(0).send(ethernet(a.mac, BROADCAST, 0x0800, &packet));
    }
    lab.settle();
    assert_eq!(lab.dropped(0, "broadcast"), 500);
    assert_eq!(lab.dropped(0, "storm_limit"), 500);
    for nth in 0..50_000u32 {
        let [_, x, y, z] = nth.to_be_bytes();
        lab.wire(0).send(ethernet(a.mac, MacAddr([2, 9, 9, x, y, z]), 0x0800, &packet));
    }
    lab.settle();
    assert_eq!(lab.dropped(0, "unknown_unicast"), 50_000);
    assert!(lab.received(1).is_empty());
    let frame = good(&lab);
    lab.send(0, frame);
    assert_eq!(lab.received(1).len(), 1);
    assert_eq!(b.mac, lab.spec(1).mac);
}

#[test]
fn another_network_is_out_of_reach_by_any_address() {
    let mut lab = lab();
    let (a, c) = (lab.spec(0).clone(), lab.spec(2).clone());
    let to_c = udp((a.address, 1).socket(), (c.address, 9).socket(), b"x");
    lab.send(0, ethernet(a.mac, c.mac, 0x0800, &to_c));
    assert_eq!(lab.dropped(0, "unknown_unicast"), 1);
    lab.send_ip(0, &to_c);
    assert_eq!(lab.dropped(0, "other_network"), 1);
    assert_eq!(lab.received(0)[0].icmp().unwrap()[..2], [3, 13]);
    let syn = Segment::syn(1).emit((a.address, 1).socket(), (c.address, 80).socket());
    lab.send_ip(0, &syn);
    assert_eq!(lab.received(0)[0].tcp().unwrap().0.flags.0, Flags::RST | Flags::ACK);
    lab.send_ip(0, &echo_request(a.address, c.address, 1, b"x"));
    assert_eq!(lab.received(0)[0].icmp().unwrap()[..2], [3, 13]);
    lab.send_ip(0, &echo_request(a.address, "10.89.0.1".parse().unwrap(), 1, b"x"));
    assert_eq!(lab.received(0)[0].icmp().unwrap()[..2], [3, 13]);
    assert!(lab.received(2).is_empty());
    assert_eq!(lab.dropped(0, "other_network"), 4);
}

#[test]
fn foreign_and_impossible_sources_are_dropped() {
    let mut lab = lab();
    let b = lab.spec(1).clone();
    let cases: [([u8; 4], [u8; 4], &str); 10] = [
        ([10, 88, 0, 3], [10, 88, 0, 9], "ip_spoof"),
        ([10, 88, 0, 1], [10, 88, 0, 3], "ip_spoof"),
        ([192, 0, 2, 1], [10, 88, 0, 3], "ip_spoof"),
        ([127, 0, 0, 1], [10, 88, 0, 3], "martian"),
        ([0, 0, 0, 1], [10, 88, 0, 3], "martian"),
        ([224, 0, 0, 1], [10, 88, 0, 3], "martian"),
        ([255, 255, 255, 255], [10, 88, 0, 3], "martian"),
        ([10, 88, 0, 2], [10, 88, 0, 2], "land"),
        ([10, 88, 0, 1], [10, 88, 0, 1], "land"),
        ([10, 88, 0, 3], [10, 88, 0, 3], "land"),
    ];
    for (source, destination, reason) in cases {
        let before = lab.dropped(0, reason);
        let packet = packet(source.into(), destination.into(), 99, b"payload");
        lab.send(0, ethernet(lab.spec(0).mac, b.mac, 0x0800, &packet));
        assert_eq!(lab.dropped(0, reason), before + 1, "{source:?} to {destination:?}");
    }
    assert!(lab.received(1).is_empty());
}

#[test]
fn malformed_ip_headers_are_dropped() {
    let mut lab = lab();
    let (a, b) = (lab.spec(0).clone(), lab.spec(1).clone());
    for (at, value, reason) in [
        (0, 0x55, "ip_header"),
        (0, 0x44, "ip_header"),
        (0, 0x4f, "ip_header"),
        (2, 0xff, "ip_header"),
        (3, 5, "ip_header"),
        (10, 0xaa, "csum"),
    ] {
        let before = lab.dropped(0, reason);
        let mut packet =
            packet_with(a.address, b.address, 99, b"payload", |packet| packet[at] = value);
        if at == 10 {
            packet[10] ^= 0x55;
        }
        lab.send(0, ethernet(a.mac, b.mac, 0x0800, &packet));
        assert_eq!(lab.dropped(0, reason), before + 1, "byte {at}");
    }
    assert!(lab.received(1).is_empty());
}

#[test]
fn a_virtio_header_that_contradicts_its_frame_is_dropped() {
    let mut lab = lab();
    let (a, b) = (lab.spec(0).clone(), lab.spec(1).clone());
    let segment = Segment::new(Flags::ACK, 1, 1)
        .with(&[7; 3000])
        .emit((a.address, 1).socket(), (b.address, 2).socket());
    let frame = ethernet(a.mac, b.mac, 0x0800, &segment);
    // flags, gso type, header length, gso size, checksum start, checksum offset
    let cases: [(u8, u8, u16, u16, u16, u16); 11] = [
        (1, 0xff, 0, 0, 34, 16),
        (1, 1, 54, 0, 34, 16),
        (0, 1, 54, 1448, 34, 16),
        (1, 1, 54, 1448, 65_535, 16),
        (1, 1, 54, 1448, 34, 65_535),
        (1, 1, 54, 1448, 33, 16),
        (1, 1, 54, 1448, 34, 6),
        (1, 1, 54, 9000, 34, 16),
        (1, 5, 54, 1400, 34, 16),
        (1, 3, 54, 1448, 34, 16),
        (1, 0x80, 54, 1448, 34, 16),
    ];
    for (nth, (flags, gso, header_len, size, start, offset)) in cases.into_iter().enumerate() {
        let mut frame = frame.clone();
        frame[0] = flags;
        frame[1] = gso;
        frame[2..4].copy_from_slice(&header_len.to_le_bytes());
        frame[4..6].copy_from_slice(&size.to_le_bytes());
        frame[6..8].copy_from_slice(&start.to_le_bytes());
        frame[8..10].copy_from_slice(&offset.to_le_bytes());
        lab.send(0, frame);
        assert_eq!(lab.dropped(0, "vnet_hdr"), nth as u64 + 1, "case {nth}");
    }
    assert!(lab.received(1).is_empty());
}

#[test]
fn a_large_segment_is_cut_for_a_guest_that_cannot_take_it() {
    for (offloads, frames) in
        [(Offloads::ChecksumAndTcp, 1), (Offloads::Checksum, 3), (Offloads::None, 3)]
    {
        let mut lab = Lab::with_offloads(2, offloads);
        let (a, b) = (lab.spec(0).clone(), lab.spec(1).clone());
        let data: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
        let segment = Segment::new(Flags::ACK | Flags::PSH, 1, 1)
            .with(&data)
            .emit((a.address, 1).socket(), (b.address, 2).socket());
        let mut frame = ethernet(a.mac, b.mac, 0x0800, &segment);
        frame[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
        lab.send(0, frame);
        let received = lab.received(1);
        assert_eq!(received.len(), frames, "{offloads:?}");
        let mut whole = Vec::new();
        for (nth, piece) in received.iter().enumerate() {
            let (header, data) = piece.tcp().unwrap();
            assert_eq!(header.sequence, 1 + whole.len() as u32);
            assert_eq!(header.flags.has(Flags::PSH), nth + 1 == frames);
            whole.extend_from_slice(data);
        }
        assert_eq!(whole, data);
    }
}

#[test]
fn a_receiver_that_takes_nothing_costs_only_itself() {
    let mut lab = Lab::new(3);
    lab.wire(1).set_room(0);
    let frame = good(&lab);
    for _ in 0..5000 {
        lab.wire(0).send(frame.clone());
    }
    lab.settle();
    assert_eq!(lab.dropped(1, "to_guest_full"), 5000);
    let (a, c) = (lab.spec(0).clone(), lab.spec(2).clone());
    let to_c = udp((a.address, 1).socket(), (c.address, 9).socket(), b"x");
    lab.send(0, ethernet(a.mac, c.mac, 0x0800, &to_c));
    assert_eq!(lab.received(2).len(), 1);
    lab.wire(1).set_room(10);
    lab.send(0, frame);
    assert_eq!(lab.received(1).len(), 1);
}

#[test]
fn a_port_whose_frames_end_is_told_and_forgotten() {
    let mut lab = lab();
    lab.wire(0).unplug();
    lab.handle_frames(0);
    lab.settle();
    let told = format!("{:?}", lab.events);
    assert!(told.contains("PortLost") && told.contains("SlotLost"), "{told}");
    lab.advance(Duration::from_secs(1));
}

#[test]
fn a_defect_met_while_serving_a_port_costs_that_port_only() {
    let mut lab = Lab::new(3);
    let to_c = |lab: &Lab| {
        let (b, c) = (lab.spec(1).clone(), lab.spec(2).clone());
        let packet = udp((b.address, 1).socket(), (c.address, 9).socket(), b"x");
        ethernet(b.mac, c.mac, 0x0800, &packet)
    };
    lab.wire(0).sabotage();
    lab.handle_frames(0);
    lab.settle();
    assert!(format!("{:?}", lab.events).contains("a defect in the datapath"));
    let frame = to_c(&lab);
    lab.send(1, frame);
    assert_eq!(lab.received(2).len(), 1);
}

/// Guests 0 and 1 are two ports of one workload that hands each frame of one to the other.
#[test]
fn a_bridge_between_two_ports_makes_no_loop() {
    let mut lab = Lab::new(3);
    let (neighbour, bridged) = (lab.spec(2).clone(), lab.spec(0).clone());
    let request = echo_request(neighbour.address, bridged.address, 1, b"once");
    for to in [bridged.mac, BROADCAST] {
        lab.send(2, ethernet(neighbour.mac, to, 0x0800, &request));
    }
    let mut handed_on = 0;
    for _ in 0..20 {
        for (from, to) in [(0, 1), (1, 0)] {
            let frames: Vec<_> = std::iter::from_fn(|| lab.wire(from).take()).collect();
            handed_on += frames.len();
            for frame in frames {
                lab.send(to, frame);
            }
        }
    }
    assert_eq!(handed_on, 1, "the unicast frame, once");
    assert_eq!(lab.dropped(1, "mac_spoof"), 1);
    assert!(lab.received(2).is_empty(), "nothing comes back");
}
