//! The host's side of a flow: sockets that the datapath opens, and what it asks of the host's routing.
//!
//! The traits have two implementers: [`sys`] (real sockets) and the simulated host of `testing`. Sockets
//! never wait. Readiness comes to the worker with the [`Token`] that was given when the socket was opened,
//! edge-triggered: once told, a socket is ready until it says otherwise. A spurious token is harmless.

pub mod sys;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

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
    /// Listeners of published ports.
    Listener,
    /// Questions to the host's resolvers.
    Names,
    /// The worker's own wake-up.
    Commands,
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
    /// A connected datagram socket.
    type Datagram: Datagram;
    /// A listening TCP socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Starts a TCP connection.
    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Stream>;
    /// Opens a UDP socket that speaks with `to` only.
    fn open_udp(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Datagram>;
    /// Opens an ICMP echo socket that speaks with `to` only; fails where the host does not allow it.
    fn open_echo(&mut self, to: Ipv4Addr, token: Token) -> io::Result<Self::Datagram>;
    /// Wants to hear of connections on a listener.
    fn watch_listener(&mut self, listener: &Self::Listener, token: Token) -> io::Result<()>;
    /// Wants to hear of an accepted connection.
    fn watch_stream(&mut self, stream: &Self::Stream, token: Token) -> io::Result<()>;
    /// Where the host would send a packet to `to`, now.
    fn route(&mut self, to: Ipv4Addr) -> Route;
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

/// A connected datagram socket of the host.
pub trait Datagram {
    /// Reads one datagram.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Sends one datagram.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Sends `bytes` as datagrams of `size` bytes each; the last may be shorter.
    fn send_segmented(&mut self, bytes: &[u8], size: usize) -> io::Result<()>;
    /// Forbids or allows fragmentation on the way, as a guest's don't-fragment bit says.
    fn set_fragmentation(&mut self, fragmentation: Fragmentation);
    /// The path MTU that the host knows after `EMSGSIZE`.
    fn path_mtu(&mut self) -> Option<u16>;
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
    /// Takes one connection, with the client's address.
    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddrV4)>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_what_it_writes() {
        for kind in [TokenKind::Frames, TokenKind::Tcp, TokenKind::Names, TokenKind::Commands] {
            let token = Token { port: 65_535, kind, index: u32::MAX };
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        assert_eq!(Token::from_bits(0xff << 40), None);
    }
}
