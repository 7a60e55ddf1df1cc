//! Connected datagram sockets of the host: UDP, and ICMP echo where `ping_group_range` allows it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send,
    socket_with,
};

use crate::host::{Datagram, Fragmentation};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A datagram socket that speaks with one peer; the kernel drops what others send.
#[derive(Debug)]
pub struct SysDatagram {
    fd: OwnedFd,
}

impl SysDatagram {
    pub(super) fn udp(to: SocketAddr) -> io::Result<Self> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let fd = socket_with(family, SocketType::DGRAM, FLAGS, Some(ipproto::UDP))?;
        connect(&fd, &to)?;
        Ok(Self { fd })
    }

    pub(super) fn echo(to: Ipv4Addr) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, Some(ipproto::ICMP))?;
        connect(&fd, &SocketAddr::from((to, 0)))?;
        Ok(Self { fd })
    }

    fn set_ip_option(&self, option: libc::c_int, value: libc::c_int) {
        let size = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
        // SAFETY: the descriptor is open for the whole call, and the pointer names `size` readable bytes.
        #[expect(unsafe_code, reason = "rustix has no IP_MTU_DISCOVER")]
        unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_IP,
                option,
                (&raw const value).cast(),
                size,
            );
        }
    }
}

impl AsFd for SysDatagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Datagram for SysDatagram {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.fd, &mut *buffer, RecvFlags::empty())?.0)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&self.fd, bytes, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn send_segmented(&mut self, bytes: &[u8], size: usize) -> io::Result<()> {
        bytes.chunks(size.max(1)).try_for_each(|piece| self.send(piece))
    }

    fn set_fragmentation(&mut self, fragmentation: Fragmentation) {
        let mode = match fragmentation {
            Fragmentation::Allowed => libc::IP_PMTUDISC_DONT,
            Fragmentation::Forbidden => libc::IP_PMTUDISC_DO,
        };
        self.set_ip_option(libc::IP_MTU_DISCOVER, mode);
    }

    fn path_mtu(&mut self) -> Option<u16> {
        let mut mtu: libc::c_int = 0;
        let mut size = libc::socklen_t::try_from(size_of_val(&mtu)).expect("four bytes");
        // SAFETY: the descriptor is open for the whole call, and both pointers name writable values of
        // the sizes that are told.
        #[expect(unsafe_code, reason = "rustix has no IP_MTU")]
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU,
                (&raw mut mtu).cast(),
                &raw mut size,
            )
        };
        (result == 0).then(|| u16::try_from(mtu).ok()).flatten()
    }
}
