//! Making an eventfd readable that a monitor shares, without ever waiting.
//!
//! `write` waits for room in the counter unless O_NONBLOCK is set, and that flag is the monitor's as much as
//! ours: a monitor that clears it and fills the counter would hold up every port of a worker. The kernel's own
//! way of signalling an eventfd never waits. Asynchronous I/O has it (`IOCB_FLAG_RESFD`, io_submit(2)): the end
//! of a read signals, and a read of /dev/null ends at once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Reads whose ends are not collected yet, at least.
const DEPTH: usize = 64;
const PREAD: u16 = 0;
const SIGNAL: u32 = 1;

/// `struct iocb` of linux/aio_abi.h, on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signalled: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    request: u64,
    results: [i64; 2],
}

/// One for the process: the host has a limit for all its processes together (`fs.aio-max-nr`).
struct Bell {
    context: libc::c_ulong,
    source: File,
}

/// Wakes whoever waits for `eventfd`. Never waits; a counter that is full wakes as well.
///
/// # Errors
/// `InvalidInput` when it is no eventfd; then nothing was done to it.
pub(crate) fn ring(eventfd: BorrowedFd<'_>) -> io::Result<()> {
    static BELL: OnceLock<Option<Bell>> = OnceLock::new();
    let bell = BELL.get_or_init(|| {
        Bell::new()
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "this host has no asynchronous I/O to spare (fs.aio-max-nr): a monitor of a virtual \
                     machine that means harm could hold up the others"
                );
            })
            .ok()
    });
    match bell {
        Some(bell) => bell.ring(eventfd),
        None => ring_by_write(eventfd),
    }
}

impl Bell {
    fn new() -> io::Result<Self> {
        let source = File::open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup(2) writes the context, which is zero before.
        checked(unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) })?;
        Ok(Self { context, source })
    }

    fn ring(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            match self.submit(eventfd) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.collect()?,
                result => return result,
            }
        }
    }

    fn submit(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let mut byte = 0_u8;
        let descriptor = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
        let mut read = Iocb {
            opcode: PREAD,
            fd: descriptor(self.source.as_fd()),
            buffer: (&raw mut byte).expose_provenance() as u64,
            len: 1,
            flags: SIGNAL,
            signalled: descriptor(eventfd),
            ..Iocb::default()
        };
        let mut requests = [&raw mut read];
        // SAFETY: the request lives through the call and asks for a byte that does, too: a read of /dev/null has
        // ended when the call returns, and writes nothing.
        checked(unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, 1_usize, requests.as_mut_ptr())
        })
    }

    /// Makes room for further reads, whose results say nothing.
    fn collect(&self) -> io::Result<()> {
        let mut events = [IoEvent::default(); 4 * DEPTH];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: as many events as the array holds are written to it; the timeout is read.
        checked(unsafe {
            let (context, most) = (self.context, events.len());
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                0_usize,
                most,
                events.as_mut_ptr(),
                &raw const now,
            )
        })
    }
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where there is no other way. Waits only where the monitor wants it to.
fn ring_by_write(eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", eventfd.as_raw_fd());
    if std::fs::read_link(path)?.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::ioctl_fionbio(eventfd, true)?;
    match rustix::io::write(eventfd, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn counter(fd: impl AsFd) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(fd, &mut value).expect("a counter that is not zero");
        u64::from_ne_bytes(value)
    }

    #[test]
    fn every_ring_counts_however_many_there_are() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        for _ in 0..10_000 {
            ring(fd.as_fd()).unwrap();
        }
        assert_eq!(counter(&fd), 10_000);
    }

    /// A test that waits would not end; who runs it sees which.
    #[test]
    fn a_full_counter_that_would_wait_is_not_waited_for() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..1000 {
            ring(fd.as_fd()).unwrap();
        }
        counter(&fd);
        ring(fd.as_fd()).unwrap();
        assert_eq!(counter(&fd), 1);
    }

    #[test]
    fn what_is_no_eventfd_is_refused_by_either_way_and_left_alone() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for fd in [reader.as_fd(), writer.as_fd()] {
            for refuse in [ring, ring_by_write] {
                assert_eq!(refuse(fd).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            }
        }
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
    }

    #[test]
    fn without_asynchronous_input_an_honest_counter_is_rung_all_the_same() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        ring_by_write(fd.as_fd()).unwrap();
        ring_by_write(fd.as_fd()).unwrap();
        assert_eq!(counter(&fd), 2);
    }
}
