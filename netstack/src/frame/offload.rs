//! What a network card would do: complete a checksum, cut a large frame into segments.
//!
//! Used only for a receiver that has not offered to do so itself; the bytes are those that Linux's own
//! software fallback makes (`skb_checksum_help`, `tcp_gso_segment`, `__udp_gso_segment`).

use std::net::IpAddr;

use super::vnet_header::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use crate::counters::DropReason;
use crate::wire::headers::{Headers, Network, Transport};
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::tcp::{Flags, PROTOCOL_TCP};
use crate::wire::udp::{PROTOCOL_UDP, UDP_LEN};
use crate::wire::{ETHERNET_LEN, be16, be32, checksum, ipv4};

const CWR: u8 = 0x80;

/// Completes a partial checksum in place. `frame` starts with its Ethernet header, and the header has
/// been [checked](VnetHeader::check) against it.
pub fn complete_checksum(frame: &mut [u8], partial: PartialChecksum) {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    let end = ETHERNET_LEN
        + match frame[ETHERNET_LEN] >> 4 {
            6 => IPV6_LEN + usize::from(be16(frame, ETHERNET_LEN + 4)),
            _ => usize::from(be16(frame, ETHERNET_LEN + 2)),
        };
    let sum = match checksum::finish(checksum::add(0, &frame[start..end])) {
        // In UDP zero means "no checksum"; in TCP both forms of zero are equal.
        0 if partial.offset == 6 => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts `frame` (Ethernet header first, checked, with `headers` of its own) and hands each piece, with
/// an empty virtio-net header in front and all checksums complete, to `emit`.
pub fn segment(
    frame: &[u8],
    headers: &Headers,
    gso: Gso,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    let ip = match &headers.network {
        Network::Ipv4(ip) => Enclosing {
            source: ip.source.into(),
            destination: ip.destination.into(),
            header_len: ip.header_len,
            total_len: ip.total_len,
            transport: ip.transport,
        },
        Network::Ipv6(ip) => Enclosing {
            source: ip.source.into(),
            destination: ip.destination.into(),
            header_len: ip.header_len,
            total_len: ip.total_len,
            transport: ip.transport,
        },
        Network::Arp(_) => return Err(DropReason::VnetHeader),
    };
    let transport_len = match ip.transport {
        Transport::Tcp(tcp) => tcp.header_len,
        Transport::Udp(_) => UDP_LEN,
        _ => return Err(DropReason::VnetHeader),
    };
    let transport = ETHERNET_LEN + ip.header_len;
    let headers_len = transport + transport_len;
    let payload = &frame[headers_len..ETHERNET_LEN + ip.total_len];
    let size = usize::from(gso.size);
    let count = gso.pieces(payload.len())?;
    let identification = be16(frame, ETHERNET_LEN + 4);
    let mut piece = vec![0; VNET_LEN + headers_len + size];
    piece[..VNET_LEN].copy_from_slice(&VnetHeader::default().emit());
    for index in 0..count {
        let data = &payload[index * size..payload.len().min((index + 1) * size)];
        let len = VNET_LEN + headers_len + data.len();
        piece[VNET_LEN..VNET_LEN + headers_len].copy_from_slice(&frame[..headers_len]);
        piece[VNET_LEN + headers_len..len].copy_from_slice(data);
        let bytes = &mut piece[VNET_LEN..len];
        let step = u16::try_from(index).expect("at most 128 pieces");
        finish_ip(&mut bytes[ETHERNET_LEN..], &ip, identification.wrapping_add(step));
        match gso.kind {
            GsoKind::Tcpv4 | GsoKind::Tcpv6 => {
                let place = Place { index, count, offset: index * size };
                finish_tcp(&mut bytes[transport..], &ip, place);
            }
            GsoKind::UdpL4 => finish_udp(&mut bytes[transport..], &ip),
        }
        emit(&piece[..len]);
    }
    Ok(())
}

/// The packet that a segment is in.
struct Enclosing {
    source: IpAddr,
    destination: IpAddr,
    header_len: usize,
    total_len: usize,
    transport: Transport,
}

/// Which piece of how many, and how many payload bytes went before it.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    count: usize,
    offset: usize,
}

fn finish_ip(packet: &mut [u8], ip: &Enclosing, identification: u16) {
    let total = u16::try_from(packet.len()).expect("pieces are shorter than their frame");
    if ip.source.is_ipv6() {
        let behind = u16::try_from(IPV6_LEN).expect("forty");
        return packet[4..6].copy_from_slice(&(total - behind).to_be_bytes());
    }
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[4..6].copy_from_slice(&identification.to_be_bytes());
    ipv4::fill_checksum(packet, ip.header_len);
}

fn finish_tcp(segment: &mut [u8], ip: &Enclosing, place: Place) {
    let offset = u32::try_from(place.offset).expect("frames are below 64 KiB");
    let sequence = be32(segment, 4).wrapping_add(offset);
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    if place.index > 0 {
        segment[13] &= !CWR;
    }
    if place.index + 1 < place.count {
        segment[13] &= !(Flags::FIN | Flags::PSH);
    }
    let sum = transport_sum(segment, ip, PROTOCOL_TCP, 16);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

fn finish_udp(datagram: &mut [u8], ip: &Enclosing) {
    let len = u16::try_from(datagram.len()).expect("pieces are shorter than their frame");
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    let sum = match transport_sum(datagram, ip, PROTOCOL_UDP, 6) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}

fn transport_sum(bytes: &mut [u8], ip: &Enclosing, protocol: u8, field: usize) -> u16 {
    bytes[field..field + 2].fill(0);
    let len = bytes.len();
    let pseudo = checksum::pseudo_header_between(ip.source, ip.destination, protocol, len);
    checksum::finish(checksum::add(pseudo, bytes))
}
