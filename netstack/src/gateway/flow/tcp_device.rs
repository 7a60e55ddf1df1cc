//! What smoltcp takes for its device: packets of the guest go in one at a time, and segments of up to 64 KiB come
//! out whole, to be cut by whoever needs them smaller.

use std::num::NonZeroUsize;

use smoltcp::phy::{
    Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, SegmentationCapabilities,
    TxToken,
};

use super::past::{Past, raise};
use super::tcp_guard::TcpGuard;
use crate::counters::Counters;
use crate::frame::vnet_header::{Gso, GsoKind, PartialChecksum, VnetHeader};
use crate::ids::MacAddr;
use crate::port::Port;
use crate::port::to_guest::{IP_OFFSET, ToGuest};
use crate::wire::ip::header_len_of;
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::tcp::{Flags, PROTOCOL_TCP, TCP_LEN, TcpHeader, option};
use crate::wire::{ETHERNET_LEN, checksum};

fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = 65_535;
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::None;
    let mut segmentation = SegmentationCapabilities::default();
    segmentation.tcpv4 = NonZeroUsize::new(65_535);
    segmentation.tcpv6 = NonZeroUsize::new(65_535);
    capabilities.segmentation = segmentation;
    capabilities
}

/// The device that an `Interface` is made with; it only tells what it can.
pub(super) struct Capabilities;

impl Device for Capabilities {
    type RxToken<'a> = FromGuest<'a>;
    type TxToken<'a> = NoToken;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(FromGuest<'_>, NoToken)> {
        None
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<NoToken> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

pub(super) struct NoToken;

impl TxToken for NoToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        f(&mut vec![0; len])
    }
}

/// The device of one exchange: at most one packet in, segments out.
pub(super) struct Wire<'a, 'b, P> {
    pub(super) from_guest: Option<&'a [u8]>,
    pub(super) to_guest: &'a mut ToGuest<'b, P>,
    pub(super) guard: &'a mut TcpGuard,
    pub(super) past: &'a mut Past,
    /// By how much smoltcp's numbers of our bytes are lower than the guest's.
    pub(super) ahead: u32,
    pub(super) limits: Limits,
}

impl<P: Port> Device for Wire<'_, '_, P> {
    type RxToken<'t>
        = FromGuest<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Segment<'t, P>
    where
        Self: 't;

    fn receive(
        &mut self,
        _: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.from_guest.take()?;
        Some((FromGuest(packet), self.segment()))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        if !self.to_guest.port.has_room() {
            return None;
        }
        Some(self.segment())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

impl<P: Port> Wire<'_, '_, P> {
    fn segment(&mut self) -> Segment<'_, P> {
        Segment {
            port: self.to_guest.port,
            counters: self.to_guest.counters,
            scratch: self.to_guest.scratch,
            guest_mac: self.to_guest.guest_mac,
            gateway_mac: self.to_guest.gateway_mac,
            guard: self.guard,
            past: self.past,
            ahead: self.ahead,
            limits: self.limits,
            segment_size: None,
        }
    }
}

pub(super) struct FromGuest<'a>(&'a [u8]);

impl RxToken for FromGuest<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// How large segments to the guest are.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) mtu: u16,
    pub(super) guest_mss: u16,
}

impl Limits {
    /// The largest segment that fits the MTU behind an IP header of that length.
    pub(super) fn mss(self, ip_len: usize) -> u16 {
        let headers = u16::try_from(ip_len + TCP_LEN).expect("short headers");
        self.mtu.saturating_sub(headers).max(48)
    }
}

/// A segment on its way out.
pub(super) struct Segment<'a, P> {
    // `dyn`-free: the lifetime of the inner borrow is erased by reborrowing field by field.
    port: &'a mut P,
    counters: &'a mut Counters,
    scratch: &'a mut [u8],
    guest_mac: MacAddr,
    gateway_mac: MacAddr,
    guard: &'a mut TcpGuard,
    past: &'a mut Past,
    ahead: u32,
    limits: Limits,
    segment_size: Option<u16>,
}

impl<P: Port> Segment<'_, P> {
    /// By how much the guest's side cuts a segment with so much data: smoltcp says it for IPv4 only.
    fn cut(&self, is_ipv6: bool, header: &TcpHeader) -> Option<u16> {
        if !is_ipv6 {
            return self.segment_size;
        }
        let options = u16::try_from(header.header_len - TCP_LEN).expect("at most forty");
        let size = self.limits.mss(IPV6_LEN).min(self.limits.guest_mss).saturating_sub(options);
        (header.payload_len > usize::from(size)).then_some(size)
    }
}

impl<P: Port> TxToken for Segment<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let packet = &mut self.scratch[IP_OFFSET..IP_OFFSET + len];
        let result = f(packet);
        let is_ipv6 = packet[0] >> 4 == 6;
        let ip_len = header_len_of(packet);
        self.past.translate(&mut packet[ip_len..]);
        raise(&mut packet[ip_len + 4..ip_len + 8], self.ahead);
        let header = TcpHeader::parse(&packet[ip_len..]).expect("smoltcp emits whole segments");
        let options = ip_len + TCP_LEN..ip_len + header.header_len;
        let scale = option(&packet[options.clone()], 3).and_then(|bytes| bytes.first().copied());
        self.guard.observe_to_guest(&header, scale);
        if header.flags.has(Flags::SYN) {
            announce_mss(&mut packet[options], self.limits.mss(ip_len));
        }
        let ends = if is_ipv6 { &packet[8..40] } else { &packet[12..20] };
        let pseudo = checksum::add(0, ends) + u64::from(PROTOCOL_TCP) + (len - ip_len) as u64;
        packet[ip_len + 16..ip_len + 18].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        let vnet = partial_checksum(ip_len, header.header_len, self.cut(is_ipv6, &header), is_ipv6);
        let mut to_guest = ToGuest {
            port: self.port,
            counters: self.counters,
            guest_mac: self.guest_mac,
            gateway_mac: self.gateway_mac,
            scratch: self.scratch,
        };
        to_guest.send_scratch(len, vnet);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size.map(std::num::NonZeroU16::get);
    }
}

/// Says that the checksum of a segment is to be completed, and that it is to be cut into segments of that size.
pub(super) fn partial_checksum(
    ip_len: usize,
    tcp_len: usize,
    size: Option<u16>,
    is_ipv6: bool,
) -> VnetHeader {
    let start = u16::try_from(ETHERNET_LEN + ip_len).expect("two short headers");
    VnetHeader {
        checksum: Some(PartialChecksum { start, offset: 16 }),
        gso: size.map(|size| Gso {
            kind: if is_ipv6 { GsoKind::Tcpv6 } else { GsoKind::Tcpv4 },
            size,
            header_len: start + u16::try_from(tcp_len).expect("at most 60"),
            ecn: false,
        }),
    }
}

/// Overwrites the MSS option of a SYN: smoltcp says what its 64 KiB device takes, a neighbour on this
/// network says what fits the MTU.
fn announce_mss(options: &mut [u8], mss: u16) {
    let mut at = 0;
    while at + 4 <= options.len() {
        match options[at] {
            0 => return,
            1 => at += 1,
            2 => return options[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes()),
            _ => at += usize::from(options[at + 1]).max(2),
        }
    }
}
