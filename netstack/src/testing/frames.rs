//! Frames as a guest would write them, and as a test reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::frame::vnet_header::{VNET_LEN, VnetHeader};
use crate::ids::MacAddr;
use crate::wire::checksum;
use crate::wire::headers::{Headers, Ipv4, Ipv6, Network, Transport};
use crate::wire::icmp::{ECHO_REQUEST, PROTOCOL_ICMP};
use crate::wire::icmp6;
use crate::wire::ip::IpHeader;
use crate::wire::ipv4::{IPV4_LEN, Ipv4Header};
use crate::wire::tcp::{Flags, PROTOCOL_TCP, TcpHeader};
use crate::wire::udp::{PROTOCOL_UDP, emit_header};
use crate::wire::{ETHERNET_LEN, ipv4};

/// An Ethernet frame with an empty virtio-net header in front.
pub fn ethernet(from: MacAddr, to: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = VnetHeader::default().emit().to_vec();
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An IPv4 packet without options.
pub fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet_with(from, to, protocol, payload, |_| {})
}

/// An IPv4 packet whose header is changed before its checksum is made.
pub fn packet_with(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
    change: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = Ipv4Header {
        source: from,
        destination: to,
        protocol,
        ttl: 64,
        traffic_class: 0,
        identification: 7,
        fragment: 0,
        payload_len: payload.len(),
    };
    let mut packet = header.emit().to_vec();
    packet.extend_from_slice(payload);
    change(&mut packet);
    ipv4::fill_checksum(&mut packet, IPV4_LEN);
    packet
}

/// A packet of the family of its ends, without options or extension headers.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => packet(from, to, protocol, payload),
        _ => {
            let header = IpHeader::between(from, to, protocol).with_payload_len(payload.len());
            [header.emit().as_slice(), payload].concat()
        }
    }
}

/// A UDP datagram in its packet.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = emit_header(from, to, payload).to_vec();
    datagram.extend_from_slice(payload);
    ip(from.ip(), to.ip(), PROTOCOL_UDP, &datagram)
}

/// An ICMPv6 message in its packet, its checksum made.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    icmp6::packet((from, to), hop_limit, message.to_vec())
}

/// An echo request over IPv6 in its packet.
pub fn echo_request6(from: Ipv6Addr, to: Ipv6Addr, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![icmp6::ECHO_REQUEST, 0, 0, 0, 0x12, 0x34];
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(data);
    icmp6(from, to, 64, &message)
}

/// An echo request in its packet.
pub fn echo_request(from: Ipv4Addr, to: Ipv4Addr, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0x12, 0x34];
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(data);
    let sum = checksum::finish(checksum::add(0, &message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(from, to, PROTOCOL_ICMP, &message)
}

/// A TCP segment to build.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Window field.
    pub window: u16,
    /// Options, padded by the caller to four bytes.
    pub options: Vec<u8>,
    /// Data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// A SYN with an MSS of 1460.
    pub fn syn(sequence: u32) -> Self {
        Self {
            flags: Flags::SYN,
            sequence,
            acknowledgement: 0,
            window: 64_000,
            options: vec![2, 4, 5, 0xb4],
            payload: vec![],
        }
    }

    /// Any other segment.
    pub fn new(flags: u8, sequence: u32, acknowledgement: u32) -> Self {
        Self { flags, sequence, acknowledgement, window: 64_000, options: vec![], payload: vec![] }
    }

    /// The same with data.
    pub fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The packet, checksums included.
    pub fn emit(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&from.port().to_be_bytes());
        bytes.extend_from_slice(&to.port().to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.acknowledgement.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).expect("at most fifteen words");
        bytes.extend_from_slice(&[words << 4, self.flags]);
        bytes.extend_from_slice(&self.window.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.options);
        bytes.extend_from_slice(&self.payload);
        let len = bytes.len();
        let pseudo = checksum::pseudo_header_between(from.ip(), to.ip(), PROTOCOL_TCP, len);
        let sum = checksum::finish(checksum::add(pseudo, &bytes));
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        ip(from.ip(), to.ip(), PROTOCOL_TCP, &bytes)
    }
}

/// A frame that a guest received, parsed.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its virtio-net header.
    pub vnet: VnetHeader,
    /// Its headers.
    pub headers: Headers,
    /// All of it from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl Received {
    /// Parses a frame with its virtio-net header; whatever the datapath sends must parse.
    pub fn parse(frame: &[u8]) -> Self {
        let (vnet, bytes) = frame.split_first_chunk::<VNET_LEN>().expect("a virtio-net header");
        let vnet = VnetHeader::parse(vnet).expect("a header of ours");
        let state = vnet.checksum_state();
        let headers = Headers::parse(bytes, state).expect("a frame of ours parses");
        Self { vnet, headers, bytes: bytes.to_vec() }
    }

    /// The IPv4 packet, if it is one.
    pub fn ipv4(&self) -> Option<&Ipv4> {
        match &self.headers.network {
            Network::Ipv4(ip) => Some(ip),
            Network::Ipv6(_) | Network::Arp(_) => None,
        }
    }

    /// The IPv6 packet, if it is one.
    pub fn ipv6(&self) -> Option<&Ipv6> {
        match &self.headers.network {
            Network::Ipv6(ip) => Some(ip),
            Network::Ipv4(_) | Network::Arp(_) => None,
        }
    }

    /// The transport with where it begins and ends.
    fn transport(&self) -> Option<(Transport, std::ops::Range<usize>)> {
        let (transport, header_len, total_len) = match &self.headers.network {
            Network::Ipv4(ip) => (ip.transport, ip.header_len, ip.total_len),
            Network::Ipv6(ip) => (ip.transport, ip.header_len, ip.total_len),
            Network::Arp(_) => return None,
        };
        Some((transport, ETHERNET_LEN + header_len..ETHERNET_LEN + total_len))
    }

    /// The TCP header and data, if it is a segment.
    pub fn tcp(&self) -> Option<(TcpHeader, &[u8])> {
        match self.transport()? {
            (Transport::Tcp(header), place) => {
                Some((header, &self.bytes[place.start + header.header_len..place.end]))
            }
            _ => None,
        }
    }

    /// The data of a UDP datagram.
    pub fn udp(&self) -> Option<&[u8]> {
        match self.transport()? {
            (Transport::Udp(_), place) => Some(&self.bytes[place.start + 8..place.end]),
            _ => None,
        }
    }

    /// The ICMP message.
    pub fn icmp(&self) -> Option<&[u8]> {
        match self.transport()? {
            (Transport::Icmp(_), place) => Some(&self.bytes[place]),
            _ => None,
        }
    }
}
