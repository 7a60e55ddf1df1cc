//! A guest's datagrams on their way out, whatever they carry: how a socket of the host is to send them, what an error
//! about them quotes, and what the guest is told of them.

use std::io;

use super::FlowContext;
use crate::counters::DropReason;
use crate::host::{Bounce, Datagram, Fragmentation, Peer};
use crate::port::Port;
use crate::wire::icmp::IcmpError;
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::udp::UDP_LEN;

/// Reads of one socket in one go.
pub(super) const MAX_BURST: usize = 64;
/// A packet of the guest that has as many hops left as its kernel gives by default leaves with what the
/// host gives by default; one with fewer leaves with as many as it has.
const ORDINARY_TTL: u8 = 63;

/// One datagram (or several of equal size) of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The IP packet it came in, header first.
    pub packet: &'a [u8],
    /// The UDP payload.
    pub payload: &'a [u8],
    /// Bytes of each datagram when the payload stands for several.
    pub segment_size: Option<u16>,
    /// What the guest's don't-fragment bit says.
    pub fragmentation: Fragmentation,
    /// Hops that are left beyond us.
    pub ttl: u8,
}

/// What a socket was last told of how to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    fragmentation: Option<Fragmentation>,
    ttl: Option<u8>,
}

impl Options {
    /// What a datagram of the guest asks for.
    pub(super) fn of(fragmentation: Fragmentation, ttl: u8) -> Self {
        let ttl = (ttl < ORDINARY_TTL).then_some(ttl);
        Self { fragmentation: Some(fragmentation), ttl }
    }

    /// Makes a socket that was told `self` do as `wanted` says.
    pub(super) fn change<D: Datagram>(&mut self, wanted: Self, socket: &mut D) {
        if let Some(fragmentation) = wanted.fragmentation
            && wanted.fragmentation != self.fragmentation
        {
            socket.set_fragmentation(fragmentation);
        }
        if wanted.ttl != self.ttl {
            socket.set_ttl(wanted.ttl.unwrap_or(ORDINARY_TTL + 1));
        }
        *self = wanted;
    }
}

/// Bytes that follow the IP header in a [`Quote`] (RFC 792): the whole header of UDP and of an echo.
pub(super) const QUOTED: usize = 8;

/// What an ICMP error about a flow quotes: both headers of its last datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quote {
    bytes: [u8; IPV6_LEN + QUOTED],
    len: usize,
}

impl Quote {
    pub(super) const EMPTY: Self = Self { bytes: [0; IPV6_LEN + QUOTED], len: QUOTED };

    /// Of a guest's UDP datagram.
    pub(super) fn of(outgoing: &Outgoing<'_>) -> Self {
        Self::at(outgoing.packet, outgoing.packet.len() - outgoing.payload.len() - UDP_LEN)
    }

    /// Of a guest's packet whose transport begins there, with the options of its IP header left out.
    pub(super) fn at(packet: &[u8], transport: usize) -> Self {
        let mut quote = Self::EMPTY;
        // What has extension headers has lost them on its way here.
        let header_len = if packet[0] >> 4 == 6 { IPV6_LEN } else { IPV4_LEN };
        quote.bytes[..header_len].copy_from_slice(&packet[..header_len]);
        if header_len == IPV4_LEN {
            quote.bytes[0] = 0x45;
        }
        quote.len = header_len + QUOTED;
        quote.bytes[header_len..quote.len].copy_from_slice(&packet[transport..transport + QUOTED]);
        quote
    }

    /// The same with these as the last bytes.
    pub(super) fn ending<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.bytes[self.len - N..self.len].copy_from_slice(&bytes);
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a guest's datagrams are sent with.
pub(super) struct Sending<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of each, when they are several.
    pub(super) segment_size: Option<usize>,
    /// Whereto, unless the socket is connected.
    pub(super) route: Option<Peer>,
}

/// What the host did not take.
pub(super) struct Unsent {
    pub(super) error: io::Error,
    /// Errors of earlier datagrams that the guest was told of on the way.
    bounced: usize,
}

/// Sends datagrams of a guest, and tells it what became of them; what came back for earlier ones is told
/// too, about what `quote_of` finds.
pub(super) fn send<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    sending: &Sending<'_>,
    quote: &Quote,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) {
    if let Err(Unsent { error, bounced: 0 }) = try_send(cx, socket, sending, quote_of) {
        tell(cx, &error, quote.bytes());
    }
}

/// Sends datagrams of a guest. What came back for earlier ones is told.
pub(super) fn try_send<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    sending: &Sending<'_>,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) -> Result<(), Unsent> {
    let Sending { bytes, segment_size, route } = *sending;
    let Err(mut error) = socket.send(bytes, segment_size, route) else { return Ok(()) };
    // An error of an earlier datagram is told by the next call, which then does nothing else.
    let bounced = tell_bounces(cx, socket, quote_of);
    if bounced > 0 && error.raw_os_error() != Some(libc::EMSGSIZE) {
        match socket.send(bytes, segment_size, route) {
            Ok(()) => return Ok(()),
            Err(again) => error = again,
        }
    }
    cx.to_guest.counters.drop(DropReason::HostSend);
    Err(Unsent { error, bounced })
}

/// Tells the guest of the errors that came back to a socket, each about what `quote_of` finds for it and the
/// first bytes that it quotes; answers how many.
pub(super) fn tell_bounces<P: Port, H, D: Datagram>(
    cx: &mut FlowContext<'_, P, H>,
    socket: &mut D,
    quote_of: impl Fn(&Bounce, &[u8]) -> Option<Quote>,
) -> usize {
    let mut bounced = 0;
    let mut quoted = [0; QUOTED];
    // No more than a burst may cause; the rest is told with the next.
    while bounced < MAX_BURST
        && let Some(bounce) = socket.take_bounce(&mut quoted)
    {
        if let Some(quote) = quote_of(&bounce, &quoted[..bounce.quoted.min(QUOTED)]) {
            cx.tell(bounce.error, bounce.from, quote.bytes());
        }
        bounced += 1;
    }
    bounced
}

/// Tells a guest what became of its datagram, where ICMP has a word for it.
pub(super) fn tell<P: Port, H>(cx: &mut FlowContext<'_, P, H>, error: &io::Error, packet: &[u8]) {
    let message = match error.kind() {
        io::ErrorKind::ConnectionRefused => IcmpError::PortUnreachable,
        io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
        _ => return,
    };
    cx.tell(message, None, packet);
}
