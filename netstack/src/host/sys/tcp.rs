//! TCP sockets of the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, acceptfrom_with, connect, ipproto,
    recv, send, shutdown, socket_with, sockopt,
};

use super::family;
use crate::host::{Listener, Stream};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A TCP connection.
#[derive(Debug)]
pub struct SysStream {
    fd: OwnedFd,
}

impl SysStream {
    pub(super) fn connect(to: SocketAddr) -> io::Result<Self> {
        let fd = socket_with(family(to), SocketType::STREAM, FLAGS, Some(ipproto::TCP))?;
        tune(fd.as_fd());
        match connect(&fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self { fd }),
            Err(error) => Err(error.into()),
        }
    }
}

/// Small writes of the guest leave at once (it has its own Nagle), a peer that vanished is found, and an urgent byte
/// stays where it was among the others (RFC 6093). What a listener accepts is tuned as it is.
fn tune(socket: BorrowedFd<'_>) {
    // None of them fails on a TCP socket.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_socket_oobinline(socket, true);
}

impl AsFd for SysStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stream for SysStream {
    fn connected(&mut self) -> io::Result<()> {
        match rustix::net::getpeername(&self.fd) {
            Ok(_) => Ok(()),
            Err(Errno::NOTCONN) => {
                sockopt::socket_error(&self.fd)??;
                // Nothing has happened yet.
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.fd, &mut *buffer, RecvFlags::empty())?.0)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.fd, bytes, SendFlags::NOSIGNAL)?)
    }

    fn finish(&mut self) {
        // Fails only where the connection is already gone, which reading tells.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    fn reset(self) {
        // Closing with a linger of zero sends RST instead of FIN.
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }
}

/// A listening socket of a published port.
#[derive(Debug)]
pub struct SysListener {
    fd: OwnedFd,
}

impl SysListener {
    /// Takes over a socket that listens, and makes it nonblocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if !sockopt::socket_acceptconn(&fd)? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        tune(fd.as_fd());
        Ok(Self { fd })
    }
}

impl AsFd for SysListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener for SysListener {
    type Stream = SysStream;

    fn accept(&mut self) -> io::Result<(SysStream, SocketAddr)> {
        let (fd, address) = acceptfrom_with(&self.fd, FLAGS)?;
        let client = match address.and_then(|address| SocketAddr::try_from(address).ok()) {
            Some(SocketAddr::V6(client)) => match client.ip().to_ipv4_mapped() {
                Some(ip) => SocketAddr::new(IpAddr::V4(ip), client.port()),
                None => SocketAddr::V6(client),
            },
            Some(client) => client,
            // Nobody: the workload will see the gateway.
            None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        };
        Ok((SysStream { fd }, client))
    }
}
