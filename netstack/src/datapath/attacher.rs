//! What the datapath asks of whoever knows the kinds of attachment.

use std::io;
use std::os::fd::OwnedFd;

use crate::command::PortSpec;
use crate::ids::PortId;
use crate::port::Port;
use crate::switch::directory::Location;

/// Makes ports of the descriptors that control hands over.
pub trait Attacher {
    /// What it makes.
    type Port: Port;

    /// A port for that place with the frames of these queues, which its worker has been told to watch. Called for a new
    /// port, and when control has opened a port again.
    fn open(&mut self, place: Location, queues: Vec<OwnedFd>) -> io::Result<Self::Port>;

    /// A port without a guest, for a slot whose guest connects to a socket.
    fn unplugged(&mut self) -> Self::Port;

    /// The port is in its place; from now on guests that connect to `socket` are plugged into it. Replaces
    /// an earlier socket, while a guest that is connected stays.
    fn listen(&mut self, spec: &PortSpec, place: Location, socket: OwnedFd) -> io::Result<()>;

    /// From now on the guest of a port that takes whole frames is whose monitor holds the other end of `descriptor`,
    /// unless it has one.
    fn plug(&mut self, port: PortId, descriptor: OwnedFd) -> io::Result<Plugged>;

    /// A port goes to another place if `go` says so; until it has said so no guest is plugged in or out.
    fn relocate(&mut self, port: PortId, place: Location, go: impl FnOnce() -> bool) -> bool;

    /// A port has been removed.
    fn detach(&mut self, port: PortId);
}

/// Whether a guest was plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// It is the port's guest.
    Yes,
    /// The port has a guest already, which stays.
    Busy,
}
