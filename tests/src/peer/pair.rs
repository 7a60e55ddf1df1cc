//! A runtime of virtual machines: it makes a pair of sockets, passes one end to the product, and goes on as the monitor
//! that holds the other.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Runs the words before `--`, which must succeed, and becomes those behind it. In each, `FD` stands for the number of the
/// end that it inherits.
pub(super) fn pair(kind: &str, words: &[&str]) -> io::Result<()> {
    let kind = match kind {
        "stream" => SocketType::STREAM,
        "dgram" => SocketType::DGRAM,
        _ => return Err(io::Error::other("a pair is of `stream` or of `dgram`")),
    };
    let at = words.iter().position(|word| *word == "--");
    let (plug, monitor) = words.split_at(at.ok_or_else(|| io::Error::other("no monitor"))?);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let status = inheriting(plug, &ours)?.status()?;
    if !status.success() {
        return Err(io::Error::other("the socket was not taken"));
    }
    drop(ours);
    Err(inheriting(&monitor[1..], &theirs)?.exec())
}

fn inheriting(words: &[&str], end: &OwnedFd) -> io::Result<Command> {
    fcntl_setfd(end, FdFlags::empty())?;
    let number = end.as_raw_fd().to_string();
    let mut words = words.iter().map(|word| word.replace("FD", &number));
    let program = words.next().ok_or_else(|| io::Error::other("no program"))?;
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}
