//! The host's side of a flow: sockets that the datapath opens, and what it asks of the host's routing.
//!
//! The traits have two implementers: [`sys`] (real sockets) and the simulated host of `testing`. Sockets
//! never wait. Readiness comes to the worker with the [`Token`] that was given when the socket was opened,
//! edge-triggered: once told, a socket is ready until it says otherwise. A stream that gives less than it was asked
//! for has no more data. A spurious token is harmless.

pub mod sys;

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::port::watch::FrameWatch;
use crate::wire::icmp::IcmpError;

/// Which socket became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Which port's.
    pub port: u16,
    /// Which of the port's tables.
    pub kind: TokenKind,
    /// Which entry of that table.
    pub index: u32,
}

/// The tables that a port keeps sockets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// The port's own frames.
    Frames,
    /// TCP flows.
    Tcp,
    /// UDP flows.
    Udp,
    /// ICMP echo flows.
    Echo,
    /// Listeners of published TCP ports.
    Listener,
    /// Sockets of published UDP ports.
    Published,
    /// Questions to the host's resolvers.
    Names,
    /// The worker's own wake-up.
    Commands,
    /// The worker's timer.
    Time,
}

impl Token {
    /// The token as an epoll datum.
    pub fn to_bits(self) -> u64 {
        let kind = match self.kind {
            TokenKind::Frames => 0,
            TokenKind::Tcp => 1,
            TokenKind::Udp => 2,
            TokenKind::Echo => 3,
            TokenKind::Listener => 4,
            TokenKind::Names => 5,
            TokenKind::Commands => 6,
            TokenKind::Published => 7,
            TokenKind::Time => 8,
        };
        u64::from(self.port) << 48 | kind << 40 | u64::from(self.index)
    }

    /// The reverse of [`Token::to_bits`]; `None` for what it never makes.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let kind = match bits >> 40 & 0xff {
            0 => TokenKind::Frames,
            1 => TokenKind::Tcp,
            2 => TokenKind::Udp,
            3 => TokenKind::Echo,
            4 => TokenKind::Listener,
            5 => TokenKind::Names,
            6 => TokenKind::Commands,
            7 => TokenKind::Published,
            8 => TokenKind::Time,
            _ => return None,
        };
        let port = u16::try_from(bits >> 48).ok()?;
        Some(Self { port, kind, index: u32::try_from(bits & 0xffff_ffff).ok()? })
    }
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Reading yields data, an end or an error.
    pub readable: bool,
    /// Writing makes progress or yields an error.
    pub writable: bool,
    /// There is more than data to be read: an end, an error, or data before an urgent byte, where a read stops.
    pub beyond_data: bool,
}

impl Readiness {
    /// Reading yields something, whatever it is.
    pub const READ: Self = Self { readable: true, writable: false, beyond_data: true };
    /// So do both directions.
    pub const BOTH: Self = Self { writable: true, ..Self::READ };
    /// Only writing makes progress.
    pub const WRITE: Self = Self { readable: false, writable: true, beyond_data: false };
}

/// Where the host would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out, to one receiver.
    Unicast,
    /// To itself.
    Local,
    /// To several receivers.
    Broadcast,
    /// Nowhere.
    Unreachable,
}

/// Opens sockets of the host.
pub trait Host {
    /// A TCP connection.
    type Stream: Stream;
    /// A datagram socket.
    type Datagram: Datagram;
    /// A listening TCP socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Starts a TCP connection.
    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Stream>;
    /// Opens a UDP socket that speaks with `to` only.
    fn open_udp(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Datagram>;
    /// Opens an ICMP echo socket that speaks with `to` only; fails where the host does not allow it.
    fn open_echo(&mut self, to: IpAddr, token: Token) -> io::Result<Self::Datagram>;
    /// Wants to hear of connections on a listener.
    fn watch_listener(&mut self, listener: &Self::Listener, token: Token) -> io::Result<()>;
    /// Wants to hear of datagrams on a socket.
    fn watch_datagram(&mut self, socket: &Self::Datagram, token: Token) -> io::Result<()>;
    /// Wants to hear of an accepted connection.
    fn watch_stream(&mut self, stream: &Self::Stream, token: Token) -> io::Result<()>;
    /// Ends what of an accepted or opened connection was heard: its port goes to another worker.
    fn unwatch_stream(&mut self, stream: &Self::Stream);
    /// The same for a datagram socket.
    fn unwatch_datagram(&mut self, socket: &Self::Datagram);
    /// The same for a listener.
    fn unwatch_listener(&mut self, listener: &Self::Listener);
    /// Where the frames of a slot's port are watched; `None` where who drives the worker looks by itself.
    fn frame_watch(&self, slot: u16) -> Option<FrameWatch>;
    /// Where the host would send a packet to `to`, now.
    fn route(&mut self, to: IpAddr) -> Route;
}

/// A TCP connection of the host. Dropping it closes it in an orderly way.
pub trait Stream {
    /// How the connection attempt ended; `WouldBlock` while it has not.
    fn connected(&mut self) -> io::Result<()>;
    /// Reads; zero means the peer has finished.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Finishes our direction.
    fn finish(&mut self);
    /// Closes with a reset instead of an orderly end.
    fn reset(self);
}

/// A datagram socket of the host: connected to one peer, or that of a published port.
pub trait Datagram {
    /// Reads one datagram, or several of one sender that the host has put together.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Arrival>;
    /// Sends one datagram, or several of equal size: `segment_size` bytes each, the last may be shorter.
    /// `route` says whereto, unless the socket is connected.
    fn send(
        &mut self,
        bytes: &[u8],
        segment_size: Option<usize>,
        route: Option<Peer>,
    ) -> io::Result<()>;
    /// Forbids or allows fragmentation on the way, as a guest's don't-fragment bit says.
    fn set_fragmentation(&mut self, fragmentation: Fragmentation);
    /// Sets the time to live of what is sent from now on.
    fn set_ttl(&mut self, ttl: u8);
    /// An error that came back for a datagram. To be asked for after `receive` or `send` has failed, until
    /// there is none. `quote` gets what the error quotes of the datagram, after its IP and UDP header.
    fn take_bounce(&mut self, quote: &mut [u8]) -> Option<Bounce>;
}

/// What came with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Bytes, of all datagrams together.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    pub segment_size: usize,
    /// Who sent it to a published port, and to which of our addresses.
    pub peer: Option<Peer>,
}

/// The other end of a datagram on a socket that is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The address of the host that it speaks with; `None` leaves that to the host.
    pub local: Option<IpAddr>,
}

/// An error that came back for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounce {
    /// What it says.
    pub error: IcmpError,
    /// Who says it; `None` for the host itself.
    pub from: Option<IpAddr>,
    /// Where the datagram went.
    pub to: Option<SocketAddr>,
    /// Bytes of the datagram that are quoted.
    pub quoted: usize,
}

/// The socket of a published port.
#[derive(Debug)]
pub enum PublishedSocket<L, D> {
    /// It listens for connections.
    Tcp(L),
    /// It takes datagrams.
    Udp(D),
}

/// Whether datagrams may be fragmented on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmentation {
    /// The don't-fragment bit is clear.
    Allowed,
    /// The don't-fragment bit is set.
    Forbidden,
}

/// A listening TCP socket of the host.
pub trait Listener {
    /// What it accepts.
    type Stream;
    /// Takes one connection, with the client's address; one of IPv4 is told as such on a socket of both.
    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_what_it_writes() {
        for kind in [TokenKind::Frames, TokenKind::Tcp, TokenKind::Names, TokenKind::Published] {
            let token = Token { port: 65_535, kind, index: u32::MAX };
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        assert_eq!(Token::from_bits(0xff << 40), None);
    }
}
