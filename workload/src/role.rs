//! Starting this program again in another role.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use crate::channel::Channel;
use crate::inheritance::only_standard_descriptors;

/// The roles of this crate; the names are the program's hidden first argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// `supervise`
    Supervise,
    /// `netns-helper`
    NetnsHelper,
}

impl Role {
    /// Starts the role as a child whose standard input is the other end of the channel.
    ///
    /// By `/proc/self/exe`, so that a program that was replaced on disk still starts its own kind.
    pub(crate) fn start(self) -> io::Result<(Child, Channel)> {
        let name = match self {
            Self::Supervise => "supervise",
            Self::NetnsHelper => "netns-helper",
        };
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("lichen").arg(name).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let child = only_standard_descriptors(&mut command).spawn()?;
        Ok((child, Channel::new(ours)))
    }
}

/// In the role: the channel that standard input is, moved out of the way of descriptors 0 to 2.
pub(crate) fn channel_of_this_role() -> io::Result<Channel> {
    let stream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    // A role that a person started by hand has no socket there.
    rustix::net::sockopt::socket_domain(&stream)?;
    Ok(Channel::new(UnixStream::from(stream)))
}
