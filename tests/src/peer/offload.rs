//! Our segmentation and checksums held against Linux's own.
//!
//! Runs in an empty network namespace of its own: a tap `a` whose reader takes everything, a tap `b` whose
//! reader takes nothing, and Linux forwarding between them. What is written to `a` whole comes out of `b`
//! as Linux cuts it; the same frame cut by us must be the same bytes.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use lichen_netstack::frame::offload;
use lichen_netstack::frame::vnet_header::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use lichen_netstack::ids::MacAddr;
use lichen_netstack::testing::frames::{Segment, ethernet, udp};
use lichen_netstack::wire::headers::{ChecksumState, Headers};
use lichen_netstack::wire::ip::header_len;
use lichen_netstack::wire::{ETHERNET_LEN, checksum, ipv4};

use super::raw::{TapReader, tap};

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const SENDER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const RECEIVER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const IP: usize = VNET_LEN + ETHERNET_LEN;

/// Compares every kind of frame and prints how many pieces were equal.
pub(super) fn compare() -> io::Result<()> {
    let mut a = tap("a", TapReader::TakesAll)?;
    let mut b = tap("b", TapReader::TakesNothing)?;
    let set_up = "ip link set lo up; ip link set dev a address 02:00:00:00:00:0a up; \
         ip link set dev b address 02:00:00:00:00:0b up; \
         ip addr add 10.1.0.1/24 dev a; ip addr add 10.2.0.1/24 dev b; \
         ip neigh replace 10.2.0.2 lladdr 02:00:00:00:00:02 dev b; \
         ip addr add fd01::1/64 dev a nodad; ip addr add fd02::1/64 dev b nodad; \
         ip neigh replace fd02::2 lladdr 02:00:00:00:00:02 dev b; \
         echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; \
         echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/a/rp_filter; \
         echo 1 >/proc/sys/net/ipv4/ip_forward";
    if !Command::new("sh").args(["-ec", set_up]).status()?.success() {
        return Err(io::Error::other("the namespace could not be set up"));
    }
    let mut equal = 0;
    let ends = [("10.1.0.2:4000", "10.2.0.2:80"), ("[fd01::2]:4000", "[fd02::2]:80")];
    let ends = ends.map(|(from, to)| [from, to].map(|end| end.parse().expect("an address")));
    for frame in ends.into_iter().flat_map(frames) {
        let expected = cut_by_us(&frame)?;
        a.write_all(&frame)?;
        for (nth, ours) in expected.iter().enumerate() {
            let theirs = next_packet(&mut b)?;
            if theirs != *ours {
                return Err(io::Error::other(format!(
                    "piece {nth} differs\n ours  {ours:02x?}\n Linux {theirs:02x?}"
                )));
            }
            equal += 1;
        }
    }
    println!("{equal} pieces are equal");
    Ok(())
}

/// Whole frames with work left to do: TCP of several sizes, flags and options, UDP, and lone checksums.
fn frames([from, to]: [SocketAddr; 2]) -> Vec<Vec<u8>> {
    let (tcp, transport) = match from {
        SocketAddr::V4(_) => (GsoKind::Tcpv4, 34),
        SocketAddr::V6(_) => (GsoKind::Tcpv6, 54),
    };
    let timestamps = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut frames = Vec::new();
    for (len, size, flags, options) in [
        (1, 0, 0x18, vec![]),
        (1000, 0, 0x19, timestamps.clone()),
        (2856, 1428, 0x18, timestamps.clone()),
        (2857, 1428, 0x10, timestamps.clone()),
        (10_001, 1440, 0x19, vec![]),
        (40_000, 1000, 0x11, vec![]),
        (60_000, 1428, 0x98, timestamps),
    ] {
        let payload: Vec<u8> = (0..len).map(|i: u32| (i % 253) as u8).collect();
        let segment = Segment { options, ..Segment::new(flags, 0xffff_f000, 7).with(&payload) };
        let header_len =
            transport + 20 + u16::try_from(segment.options.len()).expect("few options");
        let gso = (size > 0).then_some(Gso { kind: tcp, size, header_len, ecn: flags & 0x80 != 0 });
        frames.push(partial(&segment.emit(from, to), [from, to], (6, 16), gso));
    }
    for (len, size) in [(1, 0), (1400, 0), (5000, 1200), (2400, 1200)] {
        let payload: Vec<u8> = (0..len).map(|i: u32| (i % 251) as u8).collect();
        let header_len = transport + 8;
        let gso = (size > 0).then_some(Gso { kind: GsoKind::UdpL4, size, header_len, ecn: false });
        frames.push(partial(&udp(from, to, &payload), [from, to], (17, 6), gso));
    }
    frames
}

/// A frame for `a` whose transport checksum is left to its reader.
fn partial(
    packet: &[u8],
    [from, to]: [SocketAddr; 2],
    (protocol, field): (u8, u16),
    gso: Option<Gso>,
) -> Vec<u8> {
    let ip_len = header_len(from.ip());
    let start = u16::try_from(ETHERNET_LEN + ip_len).expect("two short headers");
    let vnet = VnetHeader { checksum: Some(PartialChecksum { start, offset: field }), gso };
    let ethertype = if from.is_ipv4() { 0x0800 } else { 0x86dd };
    let mut frame = ethernet(SENDER, A, ethertype, packet);
    frame[..VNET_LEN].copy_from_slice(&vnet.emit());
    let len = packet.len() - ip_len;
    let pseudo = checksum::pseudo_header_between(from.ip(), to.ip(), protocol, len);
    let at = VNET_LEN + usize::from(start) + usize::from(field);
    frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    frame
}

/// What we make of a frame after the hop that Linux will add to it, without virtio-net headers.
fn cut_by_us(frame: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut frame = frame.to_vec();
    frame[VNET_LEN..VNET_LEN + 6].copy_from_slice(&RECEIVER.0);
    frame[VNET_LEN + 6..VNET_LEN + 12].copy_from_slice(&B.0);
    if frame[IP] >> 4 == 6 {
        frame[IP + 7] -= 1;
    } else {
        frame[IP + 8] -= 1;
        ipv4::fill_checksum(&mut frame[IP..], ipv4::IPV4_LEN);
    }
    let (vnet, bytes) = frame.split_first_chunk_mut::<VNET_LEN>().expect("a header is there");
    let vnet = VnetHeader::parse(vnet).map_err(refused)?;
    let headers = Headers::parse(bytes, ChecksumState::Partial).map_err(refused)?;
    vnet.check(&headers, bytes.len(), 1500).map_err(refused)?;
    let mut pieces = Vec::new();
    match vnet.gso {
        Some(gso) => offload::segment(bytes, &headers, gso, |piece| {
            pieces.push(piece[VNET_LEN..].to_vec());
        })
        .map_err(refused)?,
        None => {
            offload::complete_checksum(bytes, vnet.checksum.expect("all frames have one"));
            pieces.push(bytes.to_vec());
        }
    }
    Ok(pieces)
}

fn refused(reason: lichen_netstack::counters::DropReason) -> io::Error {
    io::Error::other(reason.name())
}

/// The next TCP or UDP frame of the sender that Linux sends out of `b`, past its own chatter.
fn next_packet(b: &mut File) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    loop {
        let len = b.read(&mut buffer)?;
        let frame = &buffer[VNET_LEN..len];
        let (protocol, source): (u8, IpAddr) = match frame[12..14] {
            [8, 0] => (frame[23], <[u8; 4]>::try_from(&frame[26..30]).expect("four").into()),
            [0x86, 0xdd] => (frame[20], <[u8; 16]>::try_from(&frame[22..38]).expect("16").into()),
            _ => continue,
        };
        let is_senders = ["10.1.0.2", "fd01::2"].contains(&source.to_string().as_str());
        if matches!(protocol, 6 | 17) && is_senders {
            return Ok(frame.to_vec());
        }
    }
}
