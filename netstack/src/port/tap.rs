//! A tap device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, virtio-net headers of twelve bytes).
//!
//! The device is made and configured elsewhere; here a descriptor is read and written. A write is taken
//! by the namespace's stack at once, so a tap is never full.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::watch::FrameWatch;
use super::{Gathering, Offloads, Port, Receive, Transmit};
use crate::counters::Counters;

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: Offloads,
}

impl Tap {
    /// Takes over a descriptor on which the interface is already set, and makes it nonblocking.
    pub fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let offloads = if takes_large_datagrams(fd.as_fd()) {
            Offloads::ChecksumTcpAndUdp
        } else {
            Offloads::ChecksumAndTcp
        };
        Ok(Self { fd, offloads })
    }
}

/// Asks for all offloads that we can do; a kernel before 6.2 knows none for UDP, and then all stays as the
/// tap's maker has set it.
fn takes_large_datagrams(tap: BorrowedFd<'_>) -> bool {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let flags = libc::c_ulong::from(tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6);
    // SAFETY: this request takes a number and no pointer; on what is no tap it fails.
    #[expect(unsafe_code, reason = "rustix does not know TUNSETOFFLOAD")]
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) };
    result == 0
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Gathering for Tap {
    fn transmit_parts(&mut self, parts: &[IoSlice<'_>]) -> Transmit {
        transmitted(|| rustix::io::writev(&self.fd, parts))
    }
}

fn transmitted(mut write: impl FnMut() -> rustix::io::Result<usize>) -> Transmit {
    loop {
        match write() {
            Ok(_) => return Transmit::Sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Transmit::Full,
            // The interface is down: the frame is lost, as on a cable that is not plugged in.
            Err(Errno::IO) => return Transmit::Sent,
            Err(_) => return Transmit::Gone,
        }
    }
}

impl Port for Tap {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(0) => return Receive::Gone,
                Ok(len) => return Receive::Frame(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Receive::Empty,
                Err(_) => return Receive::Gone,
            }
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        transmitted(|| rustix::io::write(&self.fd, frame))
    }

    fn gathering(&mut self) -> Option<&mut dyn Gathering> {
        Some(self)
    }

    fn has_room(&mut self) -> bool {
        true
    }

    fn flush(&mut self, _: &mut Counters) {
        // Each call of the kernel has told it already.
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        watch.begin_or_go_on(&self.fd)
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        watch.end(&self.fd);
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}
