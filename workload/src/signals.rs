//! Signals as messages: a handler writes each into a pipe, so that one `poll` waits for signals, the
//! channel and a process alike.
//!
//! A handler instead of signalfd(2), because the launcher may already run threads, which do not have
//! the signals blocked. A signal that was ignored when the program started stays ignored (nohup(1)).
#![expect(unsafe_code, reason = "sigaction(2) and a signal handler")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::Signal;

/// What the launcher hands on to COMMAND.
pub(crate) const FORWARDED: [Signal; 6] =
    [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Who sent a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The kernel, for example because a terminal's Ctrl-C was pressed: COMMAND got it as well when it
    /// shares the terminal's foreground with us.
    Kernel,
    /// A process, by kill(2).
    Process,
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct Signals(BorrowedFd<'static>);

/// Reading and writing end, made once: a handler outlives whoever asked for it.
static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
/// The writing end for the handler, which may use nothing but atomics.
static WRITING_END: AtomicI32 = AtomicI32::new(-1);

impl Signals {
    /// Catches the signals from here on.
    pub(crate) fn catch(signals: &[Signal]) -> io::Result<Self> {
        let (reading, _) = match PIPE.get() {
            Some(pipe) => pipe,
            None => {
                let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
                let pipe = PIPE.get_or_init(|| {
                    rustix::pipe::pipe_with(flags).expect("two free descriptors at start")
                });
                WRITING_END.store(pipe.1.as_raw_fd(), Ordering::Release);
                pipe
            }
        };
        for signal in signals {
            catch(*signal)?;
        }
        Ok(Self(reading.as_fd()))
    }

    /// The next signal that has arrived, if any.
    pub(crate) fn next(&self) -> Option<(Signal, Sender)> {
        let mut record = [0; 2];
        // Records are written whole (pipe(7), PIPE_BUF), and read whole.
        match rustix::io::read(self.0, &mut record) {
            Ok(2) => {
                let sender = if record[1] == 0 { Sender::Process } else { Sender::Kernel };
                Signal::from_named_raw(record[0].into()).map(|signal| (signal, sender))
            }
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
    }
}

/// Ignores the signal of a background process that changes its terminal.
pub(crate) fn ignore_ttou() {
    // SAFETY: SIG_IGN is a valid disposition for SIGTTOU and no handler is involved.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
}

/// In a child between fork and exec: the disposition that [`ignore_ttou`] replaced.
pub(crate) fn restore_ttou() {
    // SAFETY: signal(2) is async-signal-safe (signal-safety(7)), and SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_DFL) };
}

fn catch(signal: Signal) -> io::Result<()> {
    let number = signal.as_raw();
    // SAFETY: a zeroed sigaction is a valid one; it is filled in below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `action` is valid for writing.
    if unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if action.sa_sigaction == libc::SIG_IGN && signal != Signal::CHILD {
        return Ok(());
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(_, _, _) as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, lives as long as the program, and
    // is async-signal-safe: see there.
    if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Async-signal-safe: reads an atomic, calls write(2), and leaves errno as it was.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler installed with SA_SIGINFO.
    let from_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    let record = [signal as u8, from_kernel.into()];
    // SAFETY: errno's address is valid for the calling thread; `record` is valid for two bytes. A full
    // pipe loses the signal, as the kernel does with one that is already pending.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(WRITING_END.load(Ordering::Acquire), record.as_ptr().cast(), record.len());
        *errno = before;
    }
}
