//! `/dev/net/tun` (Linux: Documentation/networking/tuntap.rst).
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::{Doing as _, TapError};
use crate::netlink::Socket;

/// Virtio-net header with the buffer count, as every later virtio device has it.
const HEADER_SIZE: c_int = 12;

/// Most queues of a tap.
pub const MAX_QUEUES: u16 = 4;

/// Whether a tap may have several queues: of a tap that exists the kernel does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OneQueue,
    SeveralQueues,
}

/// Creates the tap or opens a persistent one that exists, in the network namespace that we are in: all its queues or
/// none.
pub(super) fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    let (kind, other) = match queues {
        1 => (Kind::OneQueue, Kind::SeveralQueues),
        2..=MAX_QUEUES => (Kind::SeveralQueues, Kind::OneQueue),
        asked => return Err(TapError::QueueCount { asked }),
    };
    match open_all(name, kind, queues) {
        Err(TapError::InterfaceForeign { .. }) => {
            // Of an earlier attachment with another number of queues. Anything else is refused again.
            let left = open_all(name, other, 1)?;
            discard_tap(&left[0]).doing("remove the tap of an earlier attachment")?;
            drop(left);
            open_all(name, kind, queues)
        }
        opened => opened,
    }
}

/// A tap of one queue can be open once; of one of several we must look ourselves that nobody else holds it open, who
/// would get a part of the frames.
fn open_all(name: &str, kind: Kind, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    let request = interface_request(name, kind)?;
    let busy = || TapError::InterfaceBusy { name: name.to_owned() };
    if kind == Kind::SeveralQueues && open_queues(name)?.is_some_and(|open| open > 0) {
        return Err(busy());
    }
    let opened = (0..queues).map(|_| open_queue(name, &request)).collect::<Result<Vec<_>, _>>()?;
    if kind == Kind::SeveralQueues
        && open_queues(name)?.is_some_and(|open| open != u32::from(queues))
    {
        return Err(busy());
    }
    Ok(opened)
}

fn open_queues(name: &str) -> Result<Option<u32>, TapError> {
    let socket = Socket::open().doing("open a netlink socket")?;
    match socket.index_of(name).doing("find the interface")? {
        Some(interface) => socket.open_queues(interface).doing("count the tap's queues"),
        None => Ok(None),
    }
}

fn open_queue(name: &str, request: &libc::ifreq) -> Result<OwnedFd, TapError> {
    // The tap lands in the namespace in which the device file is opened, not the one of TUNSETIFF.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = match openat(CWD, "/dev/net/tun", flags, Mode::empty()) {
        Ok(tap) => tap,
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Err(TapError::NoTunDevice),
        Err(Errno::ACCESS | Errno::PERM) => return Err(TapError::TunPermission),
        Err(error) => return Err(error).doing("open /dev/net/tun"),
    };
    match set_interface(&tap, request) {
        Ok(()) => {}
        Err(error) => return Err(interface_error(name, error)),
    }
    set_header_size(&tap).doing("set the size of the virtio-net header")?;
    set_offload(&tap).doing("leave checksums and segmentation to the reader")?;
    Ok(tap)
}

/// Lets the tap outlive its descriptor. One that was not kept vanishes with it.
pub(super) fn keep(tap: &OwnedFd) -> Result<(), TapError> {
    set(tap, libc::TUNSETPERSIST, 1).doing("make the tap persistent")
}

/// Lets go of a tap that was kept: it vanishes with its last descriptor.
pub fn discard_tap(tap: &OwnedFd) -> io::Result<()> {
    set(tap, libc::TUNSETPERSIST, 0)
}

fn interface_request(name: &str, kind: Kind) -> Result<libc::ifreq, TapError> {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(forbidden) {
        return Err(TapError::InterfaceName { name: name.to_owned() });
    }
    // SAFETY: a zeroed ifreq is a valid one: integers, and an empty name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    let several = match kind {
        Kind::OneQueue => 0,
        Kind::SeveralQueues => libc::IFF_MULTI_QUEUE,
    };
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several) as libc::c_short;
    Ok(request)
}

fn interface_error(name: &str, error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::EBUSY) => TapError::InterfaceBusy { name: name.to_owned() },
        // An interface that is no tap, or a tap of another kind.
        Some(libc::EINVAL | libc::EEXIST) => TapError::InterfaceForeign { name: name.to_owned() },
        Some(libc::EPERM) => TapError::ForeignNamespace(error.into()),
        _ => TapError::Step { what: format!("create the tap {name}"), os: error.into() },
    }
}

fn set_interface(tap: &OwnedFd, request: &libc::ifreq) -> io::Result<()> {
    let mut request = *request;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    answered(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as c_ulong, &raw mut request) })
}

fn set_header_size(tap: &OwnedFd) -> io::Result<()> {
    let size = HEADER_SIZE;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    answered(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as c_ulong, &raw const size)
    })
}

/// Kernels before 6.2 do not know segmentation of UDP.
fn set_offload(tap: &OwnedFd) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    set(tap, libc::TUNSETOFFLOAD, (tcp | udp).into())
        .or_else(|_| set(tap, libc::TUNSETOFFLOAD, tcp.into()))
}

/// An ioctl whose argument is a number.
fn set(tap: &OwnedFd, request: libc::Ioctl, value: c_ulong) -> io::Result<()> {
    // SAFETY: used with TUNSETOFFLOAD and TUNSETPERSIST only, which take a number and no pointer.
    answered(unsafe { libc::ioctl(tap.as_raw_fd(), request, value) })
}

fn answered(answer: c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_that_the_kernel_or_proc_would_misread_are_refused() {
        for name in ["", "a/b", "../x", "with space", "sixteen-bytes-xx", "tap%d", "a:1"] {
            assert!(interface_request(name, Kind::OneQueue).is_err(), "{name:?}");
        }
        assert!(interface_request("eth0", Kind::SeveralQueues).is_ok());
    }
}
