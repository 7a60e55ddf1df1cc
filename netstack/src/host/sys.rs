//! Real sockets, registered with a worker's epoll when they are opened.

mod ancillary;
mod datagram;
mod route;
mod tcp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::net::AddressFamily;

pub use self::datagram::SysDatagram;
pub use self::route::RouteQuery;
pub use self::tcp::{SysListener, SysStream};
use super::{Host, Route, Token};
use crate::port::watch::FrameWatch;

/// Opens real sockets.
#[derive(Debug)]
pub struct SysHost {
    poller: Arc<OwnedFd>,
    routes: RouteQuery,
}

impl SysHost {
    /// Opens sockets whose readiness goes to `poller`, an epoll descriptor.
    pub fn new(poller: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self { poller, routes: RouteQuery::new()? })
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.to_bits());
        Ok(epoll::add(&*self.poller, fd, data, flags)?)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        // One that could not be watched is not watched now.
        let _ = epoll::delete(&*self.poller, fd);
    }

    fn watch_both_ways(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::PRI
            | epoll::EventFlags::ET;
        self.watch(fd, token, flags)
    }
}

/// The family of a socket that speaks with `to`.
fn family(to: SocketAddr) -> AddressFamily {
    match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

impl Host for SysHost {
    type Stream = SysStream;
    type Datagram = SysDatagram;
    type Listener = SysListener;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<SysStream> {
        let stream = SysStream::connect(to)?;
        self.watch_both_ways(stream.as_fd(), token)?;
        Ok(stream)
    }

    fn open_udp(&mut self, to: SocketAddr, token: Token) -> io::Result<SysDatagram> {
        let datagram = SysDatagram::udp(to)?;
        self.watch(datagram.as_fd(), token, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(datagram)
    }

    fn open_echo(&mut self, to: IpAddr, token: Token) -> io::Result<SysDatagram> {
        let datagram = SysDatagram::echo(to)?;
        self.watch(datagram.as_fd(), token, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(datagram)
    }

    fn watch_listener(&mut self, listener: &SysListener, token: Token) -> io::Result<()> {
        // Edge-triggered, so that a listener that cannot be accepted from does not wake us for ever.
        self.watch(listener.as_fd(), token, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn watch_datagram(&mut self, socket: &SysDatagram, token: Token) -> io::Result<()> {
        self.watch(socket.as_fd(), token, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn watch_stream(&mut self, stream: &SysStream, token: Token) -> io::Result<()> {
        self.watch_both_ways(stream.as_fd(), token)
    }

    fn unwatch_stream(&mut self, stream: &SysStream) {
        self.unwatch(stream.as_fd());
    }

    fn unwatch_datagram(&mut self, socket: &SysDatagram) {
        self.unwatch(socket.as_fd());
    }

    fn unwatch_listener(&mut self, listener: &SysListener) {
        self.unwatch(listener.as_fd());
    }

    fn frame_watch(&self, slot: u16) -> Option<FrameWatch> {
        Some(FrameWatch::new(Arc::clone(&self.poller), slot))
    }

    fn route(&mut self, to: IpAddr) -> Route {
        self.routes.ask(to)
    }
}
