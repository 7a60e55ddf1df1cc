//! Frames as they are: a packet socket on an interface, and taps of our own.
#![expect(unsafe_code, reason = "packet(7) and tun ioctls, which no safe wrapper has")]

use std::ffi::{CString, c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Sends whole Ethernet frames on an interface.
pub(super) struct PacketSocket(File);

impl PacketSocket {
    /// Needs CAP_NET_RAW in the namespace, which a workload's root has.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: the name is a C string that lives for the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: takes numbers only; the descriptor is owned from here on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: a zeroed sockaddr_ll is a valid one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
        address.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
        let size = libc::socklen_t::try_from(size_of_val(&address)).expect("twenty bytes");
        // SAFETY: the pointer names a sockaddr_ll of that size for the length of the call.
        answered(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
        Ok(Self(File::from(socket)))
    }

    /// Sends one frame, as soon as the interface's queue has room for it.
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.0.write(frame) {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the reader of a tap does itself.
#[derive(Clone, Copy)]
pub(super) enum TapReader {
    /// Everything: frames come as the stack made them.
    TakesAll,
    /// Nothing: the kernel completes checksums and cuts segments first.
    TakesNothing,
}

/// Makes a tap in our own namespace, with twelve bytes of virtio-net header.
pub(super) fn tap(name: &str, reader: TapReader) -> io::Result<File> {
    let tap = open_queue(name, 0, 12)?;
    let offloads = match reader {
        TapReader::TakesAll => libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN,
        TapReader::TakesNothing => 0,
    };
    // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
    answered(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as c_ulong, c_ulong::from(offloads))
    })?;
    Ok(tap)
}

/// A queue more of a tap that has several, which from now on has headers of that size on all of them.
pub(super) fn further_queue(name: &str, header_size: c_int) -> io::Result<File> {
    open_queue(name, libc::IFF_MULTI_QUEUE, header_size)
}

fn open_queue(name: &str, flags: c_int, header_size: c_int) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a zeroed ifreq is a valid one: integers, and an empty name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    answered(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as c_ulong, &raw mut request)
    })?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    answered(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as c_ulong, &raw const header_size)
    })?;
    Ok(tap)
}

fn answered(answer: c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
