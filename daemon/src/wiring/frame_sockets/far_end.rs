//! The guest's end of a socket: whether it is there, and who has sent a datagram.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};

use super::other_end;

/// By what the guest's end is known to be there.
pub(super) enum FarEnd {
    /// Our end of a stream, which tells when the other is closed.
    Stream(Arc<OwnedFd>),
    /// What the monitor has bound, and sends its datagrams from.
    Address(SocketAddrUnix),
    /// Our end of a pair of datagram sockets.
    Pair(Arc<OwnedFd>),
}

impl FarEnd {
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Stream(stream) => {
                let mut fds = [PollFd::new(&**stream, PollFlags::RDHUP)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().is_empty()
            }
            Self::Address(peer) => is_bound(peer),
            // Where the kernel does not say, the next frame tells.
            Self::Pair(socket) => other_end::is_open(socket.as_fd()).unwrap_or(true),
        }
    }

    /// Whether it may go without anybody being told, so that it has to be looked for.
    pub(super) fn goes_silently(&self) -> bool {
        match self {
            Self::Stream(_) => false,
            Self::Address(_) | Self::Pair(_) => true,
        }
    }

    /// Has the monitor see that it is served no longer, also where others hold what was passed to us.
    pub(super) fn hang_up(&self) {
        if let Self::Stream(socket) | Self::Pair(socket) = self {
            // The other end may have gone before.
            let _ = shutdown(&**socket, Shutdown::Both);
        }
    }
}

/// Who has sent a datagram, as far as it can be answered.
pub(super) enum Sender {
    Peer(SocketAddrUnix),
    /// It has an address, which nobody has bound now.
    Gone,
    /// It has none, or one that means something else in our directory.
    Nameless,
}

pub(super) fn judge(sender: SocketAddrUnix) -> Sender {
    let is_absolute = sender.path_bytes().is_some_and(|path| path.starts_with(b"/"));
    if !is_absolute && sender.abstract_name().is_none() {
        Sender::Nameless
    } else if is_bound(&sender) {
        Sender::Peer(sender)
    } else {
        Sender::Gone
    }
}

/// Whether a datagram socket has that address now.
fn is_bound(peer: &SocketAddrUnix) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None) {
        // One that is connected itself may not be connected to.
        Ok(probe) => matches!(connect(&probe, peer), Ok(()) | Err(Errno::PERM | Errno::AGAIN)),
        // No descriptor is left: it is looked again.
        Err(_) => true,
    }
}
