//! The way of a frame to a guest: Ethernet header, offloads that the guest lacks, counters.

use std::io::IoSlice;

use super::{Front, Offloads, Passed, Port, Transmit};
use crate::counters::{Counters, DropReason};
use crate::frame::offload;
use crate::frame::vnet_header::{GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use crate::ids::MacAddr;
use crate::wire::ETHERNET_LEN;
use crate::wire::headers::{ChecksumState, Headers};

/// Bytes in front of an IP packet in a frame buffer.
pub const IP_OFFSET: usize = VNET_LEN + ETHERNET_LEN;

/// Writes frames to one guest, from the gateway.
pub struct ToGuest<'a, P> {
    /// The guest's port.
    pub port: &'a mut P,
    /// The port's counters.
    pub counters: &'a mut Counters,
    /// The guest's address.
    pub guest_mac: MacAddr,
    /// Our address.
    pub gateway_mac: MacAddr,
    /// At least [`MAX_FRAME`](super::MAX_FRAME) bytes to build frames in.
    pub scratch: &'a mut [u8],
}

impl<P: Port> ToGuest<'_, P> {
    /// Sends a finished IP packet.
    pub fn send_ip(&mut self, packet: &[u8]) -> Transmit {
        self.send_ip_parts(packet, &[])
    }

    /// Sends a finished IP packet that lies in pieces: its header, and what follows.
    pub fn send_ip_parts(&mut self, header: &[u8], parts: &[&[u8]]) -> Transmit {
        let mut at = IP_OFFSET;
        for part in std::iter::once(&header).chain(parts) {
            self.scratch[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.send_scratch(at - IP_OFFSET, VnetHeader::default())
    }

    /// Sends a finished Ethernet frame.
    pub fn send_ethernet(&mut self, frame: &[u8]) -> Transmit {
        self.scratch[VNET_LEN..VNET_LEN + frame.len()].copy_from_slice(frame);
        let vnet = VnetHeader::default();
        self.scratch[..VNET_LEN].copy_from_slice(&vnet.emit());
        let frame = &mut self.scratch[..VNET_LEN + frame.len()];
        deliver(self.port, self.counters, frame, &vnet, None)
    }

    /// Sends an IP packet that lies in pieces: its headers, and its payload. Where the port takes it so, and its guest
    /// does what `vnet` asks for, nothing is put together.
    pub fn send_parts(&mut self, headers: &[u8], payload: [&[u8]; 2], vnet: VnetHeader) {
        self.scratch[IP_OFFSET..IP_OFFSET + headers.len()].copy_from_slice(headers);
        let payload_len = payload[0].len() + payload[1].len();
        let offloads = self.port.offloads();
        if offloads != Offloads::None
            && takes_gso(offloads, &vnet)
            && let Some(port) = self.port.gathering()
        {
            let head = &mut self.scratch[..IP_OFFSET + headers.len()];
            put_front(head, self.guest_mac, self.gateway_mac, &vnet);
            let parts = [IoSlice::new(head), IoSlice::new(payload[0]), IoSlice::new(payload[1])];
            let result = port.transmit_parts(&parts);
            let len = head.len() + payload_len - VNET_LEN;
            count(self.counters, result, len);
            return;
        }
        let mut at = IP_OFFSET + headers.len();
        for part in payload {
            self.scratch[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.send_scratch(at - IP_OFFSET, vnet);
    }

    /// Sends the IP packet of `len` bytes that was built at [`IP_OFFSET`] of the scratch buffer.
    pub fn send_scratch(&mut self, len: usize, vnet: VnetHeader) -> Transmit {
        let frame = &mut self.scratch[..IP_OFFSET + len];
        put_front(frame, self.guest_mac, self.gateway_mac, &vnet);
        deliver(self.port, self.counters, frame, &vnet, None)
    }
}

/// Writes what stands before the IP packet at [`IP_OFFSET`].
fn put_front(frame: &mut [u8], guest: MacAddr, gateway: MacAddr, vnet: &VnetHeader) {
    frame[..VNET_LEN].copy_from_slice(&vnet.emit());
    frame[VNET_LEN..VNET_LEN + 6].copy_from_slice(&guest.0);
    frame[VNET_LEN + 6..VNET_LEN + 12].copy_from_slice(&gateway.0);
    let ethertype = if frame[IP_OFFSET] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    frame[VNET_LEN + 12..IP_OFFSET].copy_from_slice(&ethertype);
}

/// Whether a receiver takes a frame whole that stands for several, should it be one.
fn takes_gso(offloads: Offloads, vnet: &VnetHeader) -> bool {
    match vnet.gso.map(|gso| gso.kind) {
        None => true,
        Some(GsoKind::Tcpv4 | GsoKind::Tcpv6) => {
            matches!(offloads, Offloads::ChecksumAndTcp | Offloads::ChecksumTcpAndUdp)
        }
        Some(GsoKind::UdpL4) => offloads == Offloads::ChecksumTcpAndUdp,
    }
}

/// Hands a frame to `port`, doing first what its guest does not do itself. `vnet` is the virtio-net header
/// in front of it, ours or one that was checked; `headers` saves parsing again where the caller has them.
#[inline]
pub fn deliver<P: Port>(
    port: &mut P,
    counters: &mut Counters,
    frame: &mut [u8],
    vnet: &VnetHeader,
    headers: Option<&Headers>,
) -> Transmit {
    if !takes_gso(port.offloads(), vnet) {
        return deliver_segments(port, counters, frame, vnet, headers);
    }
    deliver_whole(port, counters, frame, vnet.checksum)
}

/// The same for a frame that is not to be cut.
#[inline(always)]
pub fn deliver_whole<P: Port>(
    port: &mut P,
    counters: &mut Counters,
    frame: &mut [u8],
    checksum: Option<PartialChecksum>,
) -> Transmit {
    if let Some(partial) = left_to_us(port, checksum) {
        offload::complete_checksum(&mut frame[VNET_LEN..], partial);
        frame[..VNET_LEN].copy_from_slice(&VnetHeader::default().emit());
    }
    transmit(port, counters, frame)
}

/// The same for one that `from` has just shown, without taking it from there first; where that can be done.
#[inline(always)]
pub fn pass_whole<P: Port>(
    from: &mut P,
    (port, counters): (&mut P, &mut Counters),
    front: &Front,
    checksum: Option<PartialChecksum>,
) -> Passed {
    if left_to_us(port, checksum).is_some() || from.pass(front, port) == Passed::No {
        return Passed::No;
    }
    count(counters, Transmit::Sent, front.frame_len - VNET_LEN);
    Passed::Sent
}

/// The checksum that a receiver does not complete itself.
#[inline(always)]
fn left_to_us<P: Port>(port: &P, checksum: Option<PartialChecksum>) -> Option<PartialChecksum> {
    checksum.filter(|_| port.offloads() == Offloads::None)
}

#[inline(never)]
fn deliver_segments<P: Port>(
    port: &mut P,
    counters: &mut Counters,
    frame: &[u8],
    vnet: &VnetHeader,
    headers: Option<&Headers>,
) -> Transmit {
    let frame = &frame[VNET_LEN..];
    let parsed;
    let headers = match headers {
        Some(headers) => headers,
        None => match Headers::parse(frame, ChecksumState::Partial) {
            Ok(headers) => {
                parsed = headers;
                &parsed
            }
            Err(reason) => {
                counters.drop(reason);
                return Transmit::Sent;
            }
        },
    };
    let gso = vnet.gso.expect("only frames with segments come here");
    let mut result = Transmit::Sent;
    let segmented = offload::segment(frame, headers, gso, |piece| {
        if result != Transmit::Gone {
            match transmit(port, counters, piece) {
                Transmit::Sent => {}
                failed => result = failed,
            }
        }
    });
    if let Err(reason) = segmented {
        counters.drop(reason);
    }
    result
}

#[inline]
fn transmit<P: Port>(port: &mut P, counters: &mut Counters, frame: &[u8]) -> Transmit {
    let result = port.transmit(frame);
    count(counters, result, frame.len() - VNET_LEN);
    result
}

/// Counts a frame of `len` bytes, Ethernet header included.
#[inline]
fn count(counters: &mut Counters, result: Transmit, len: usize) {
    match result {
        Transmit::Sent => {
            counters.frames_to_guest += 1;
            counters.bytes_to_guest += len as u64;
        }
        Transmit::Full => counters.drop(DropReason::ToGuestFull),
        Transmit::Malformed => counters.drop(DropReason::RingError),
        Transmit::Gone => counters.drop(DropReason::ToGuestGone),
    }
}
