//! Datagram sockets of the host: UDP, connected or of a published port, and ICMP echo where
//! `ping_group_range` allows it.
//!
//! Several datagrams of one size pass in one call (`UDP_SEGMENT`, `UDP_GRO`), and ICMP errors come whole,
//! with who sent them (`IP_RECVERR`). A kernel that lacks one of these costs speed or detail only.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketFlags, SocketType, connect, getsockname, ipproto, socket_with, sockopt};

use super::ancillary::{Control, receive_message, send_message, set_option};
use super::family;
use crate::host::{Arrival, Bounce, Datagram, Fragmentation, Peer};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// Datagrams that the kernel takes in one call (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;

/// A datagram socket. When it is connected, the kernel drops what others than its peer send.
#[derive(Debug)]
pub struct SysDatagram {
    fd: OwnedFd,
    family: Family,
}

/// Whose options a socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl SysDatagram {
    pub(super) fn udp(to: SocketAddr) -> io::Result<Self> {
        let fd = socket_with(family(to), SocketType::DGRAM, FLAGS, Some(ipproto::UDP))?;
        connect(&fd, &to)?;
        let socket = Self { fd, family: Family::of(to) };
        socket.want_errors();
        socket.want_trains();
        Ok(socket)
    }

    pub(super) fn echo(to: IpAddr) -> io::Result<Self> {
        let to = SocketAddr::new(to, 0);
        let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let fd = socket_with(family(to), SocketType::DGRAM, FLAGS, Some(protocol))?;
        connect(&fd, &to)?;
        let socket = Self { fd, family: Family::of(to) };
        socket.want_errors();
        Ok(socket)
    }

    /// Takes over the bound UDP socket of a published port, and makes it nonblocking.
    pub fn published(fd: OwnedFd) -> io::Result<Self> {
        let is_udp = sockopt::socket_type(&fd)? == SocketType::DGRAM
            && sockopt::socket_protocol(&fd)? == Some(ipproto::UDP);
        let bound = SocketAddr::try_from(getsockname(&fd)?).ok().filter(|bound| bound.port() > 0);
        let Some(bound) = bound.filter(|_| is_udp) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        rustix::io::ioctl_fionbio(&fd, true)?;
        let socket = Self { fd, family: Family::of(bound) };
        socket.want_errors();
        socket.want_trains();
        match bound {
            SocketAddr::V4(_) => socket.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
            SocketAddr::V6(_) => socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        }
        Ok(socket)
    }

    fn want_errors(&self) {
        match self.family {
            Family::V4 => self.set(libc::IPPROTO_IP, libc::IP_RECVERR, 1),
            Family::V6 => self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
        }
    }

    fn want_trains(&self) {
        self.set(libc::SOL_UDP, libc::UDP_GRO, 1);
    }

    /// Sets an option that is a help and no need.
    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
        let _ = set_option(self.fd.as_raw_fd(), level, option, value);
    }
}

impl AsFd for SysDatagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Datagram for SysDatagram {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let message = receive_message(self.fd.as_raw_fd(), buffer, 0)?;
        let (mut segment_size, mut local) = (message.len, None);
        for control in message.controls() {
            match control {
                Control::SegmentSize(size) if size > 0 => segment_size = size,
                Control::Local(address) => local = Some(address),
                Control::SegmentSize(_) | Control::Error { .. } => {}
            }
        }
        let peer = message.address().map(|address| Peer { address, local });
        Ok(Arrival { len: message.len, segment_size, peer })
    }

    fn send(
        &mut self,
        bytes: &[u8],
        segment_size: Option<usize>,
        route: Option<Peer>,
    ) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let size = segment_size.unwrap_or(bytes.len()).max(1);
        if bytes.len() <= size {
            return send_message(fd, bytes, None, route);
        }
        for train in bytes.chunks(size.saturating_mul(MAX_SEGMENTS)) {
            let segments = u16::try_from(size).ok().filter(|_| train.len() > size);
            if send_message(fd, train, segments, route).is_err() {
                // Too large for the path, or nothing the kernel can do: one by one it tells which.
                train.chunks(size).try_for_each(|piece| send_message(fd, piece, None, route))?;
            }
        }
        Ok(())
    }

    fn set_fragmentation(&mut self, fragmentation: Fragmentation) {
        match (self.family, fragmentation) {
            (Family::V4, Fragmentation::Allowed) => {
                self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
            }
            (Family::V4, Fragmentation::Forbidden) => {
                self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
            }
            // Only the host fragments: by what it knows of the path, or not at all.
            (Family::V6, Fragmentation::Allowed) => {
                self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT);
            }
            (Family::V6, Fragmentation::Forbidden) => {
                self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO);
            }
        }
    }

    fn set_ttl(&mut self, ttl: u8) {
        match self.family {
            Family::V4 => self.set(libc::IPPROTO_IP, libc::IP_TTL, ttl.into()),
            Family::V6 => self.set(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl.into()),
        }
    }

    fn take_bounce(&mut self, quote: &mut [u8]) -> Option<Bounce> {
        loop {
            let message = receive_message(self.fd.as_raw_fd(), quote, libc::MSG_ERRQUEUE).ok()?;
            let error = message.controls().find_map(|control| match control {
                Control::Error { error, from } => Some((error, from)),
                Control::SegmentSize(_) | Control::Local(_) => None,
            });
            // Others are of no use to a guest.
            if let Some((error, from)) = error {
                return Some(Bounce { error, from, to: message.address(), quoted: message.len });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::wire::icmp::IcmpError;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    /// A socket published on all addresses, and where.
    fn published() -> (SysDatagram, u16) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (SysDatagram::published(socket.into()).unwrap(), port)
    }

    /// Waits until something has come.
    fn receive(socket: &mut SysDatagram) -> (Vec<u8>, Arrival) {
        let mut buffer = vec![0; 65_535];
        loop {
            match socket.receive(&mut buffer) {
                Ok(arrival) => return (buffer[..arrival.len].to_vec(), arrival),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let (mut socket, port) = published();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.set_read_timeout(PATIENCE).unwrap();
        client.connect((Ipv4Addr::new(127, 0, 0, 9), port)).unwrap();
        client.send(b"ask").unwrap();
        let (bytes, arrival) = receive(&mut socket);
        assert_eq!(bytes, b"ask");
        let peer = arrival.peer.unwrap();
        assert_eq!(peer.address, client.local_addr().unwrap());
        assert_eq!(peer.local, Some(Ipv4Addr::new(127, 0, 0, 9).into()));
        socket.send(b"answer", None, Some(peer)).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
    }

    #[test]
    fn a_train_arrives_as_the_datagrams_that_it_is_made_of() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        server.set_read_timeout(PATIENCE).unwrap();
        let mut socket = SysDatagram::udp(server.local_addr().unwrap()).unwrap();
        // More than the kernel takes in one call.
        let bytes: Vec<u8> = (0..6990u32).map(|nth| (nth / 100) as u8).collect();
        socket.send(&bytes, Some(100), None).unwrap();
        let mut buffer = [0; 200];
        for nth in 0..70u8 {
            let len = server.recv(&mut buffer).unwrap();
            assert_eq!(len, if nth == 69 { 90 } else { 100 });
            assert!(buffer[..len].iter().all(|byte| *byte == nth));
        }
    }

    #[test]
    fn a_train_of_a_peer_is_read_whole_or_in_parts_and_says_which() {
        let (mut near, port) = published();
        let mut far = SysDatagram::udp((Ipv4Addr::LOCALHOST, port).into()).unwrap();
        far.send(&[7; 1050], Some(100), None).unwrap();
        let mut sizes = Vec::new();
        while sizes.len() < 11 {
            let (bytes, arrival) = receive(&mut near);
            sizes.extend(bytes.chunks(arrival.segment_size).map(<[u8]>::len));
        }
        assert_eq!(sizes, [vec![100; 10], vec![50]].concat());
    }

    #[test]
    fn a_port_unreachable_comes_back_with_who_sent_it() {
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut socket = SysDatagram::udp(closed).unwrap();
        socket.send(b"x", None, None).unwrap();
        let error = loop {
            match socket.receive(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.unwrap_err(),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let bounce = socket.take_bounce(&mut []).unwrap();
        assert_eq!(bounce.error, IcmpError::PortUnreachable);
        assert_eq!(bounce.from, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(bounce.to, Some(closed));
        assert_eq!(socket.take_bounce(&mut []), None);
    }

    #[test]
    fn an_ipv6_socket_takes_the_options_of_its_family() {
        let Ok(server) = UdpSocket::bind("[::1]:0") else {
            return eprintln!("skipped: this machine has no IPv6");
        };
        server.set_read_timeout(PATIENCE).unwrap();
        let mut socket = SysDatagram::udp(server.local_addr().unwrap()).unwrap();
        for fragmentation in [Fragmentation::Forbidden, Fragmentation::Allowed] {
            socket.set_fragmentation(fragmentation);
            socket.set_ttl(9);
            socket.send(b"over six", None, None).unwrap();
            let mut buffer = [0; 16];
            assert_eq!(server.recv(&mut buffer).unwrap(), 8);
        }
        let closed = server.local_addr().unwrap();
        drop(server);
        socket.send(b"x", None, None).unwrap();
        let bounce = loop {
            if let Some(bounce) = socket.take_bounce(&mut []) {
                break bounce;
            }
        };
        assert_eq!(bounce.error, IcmpError::PortUnreachable);
        assert_eq!((bounce.from, bounce.to), (Some(closed.ip()), Some(closed)));
    }

    #[test]
    fn what_is_no_bound_udp_socket_is_refused() {
        let stream = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(SysDatagram::published(stream.into()).is_err());
        let unbound = socket_with(
            rustix::net::AddressFamily::INET,
            SocketType::DGRAM,
            FLAGS,
            Some(ipproto::UDP),
        )
        .unwrap();
        assert!(SysDatagram::published(unbound).is_err());
    }
}
