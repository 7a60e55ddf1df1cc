//! A unix datagram socket: one datagram is one Ethernet frame.
//!
//! The form of QEMU's `-netdev dgram`, of vfkit and of krunkit, whose first datagram may be a greeting.
//! There is no virtio-net header: every frame is complete in both directions. The port has one [`Peer`]. At a bound
//! socket it is told by the address it sends from, and what others send is dropped; a connected socket has no other.
//!
//! A peer with an address is named by what its monitor has bound, each time anew, so one that starts again at the same
//! place is reached without a word; no other file is named in this crate.
//!
//! A unix datagram socket that is full says so and nothing more: nobody is woken when it has room again. So
//! what does not fit waits, bounded, for a timer, which comes less and less often; after about a second
//! without any progress everything that waits is lost.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, recvfrom, send, sendto};

use super::alarm::{Alarm, Ended};
use super::watch::FrameWatch;
use super::{Offloads, Port, Receive, Transmit};
use crate::counters::{Counters, DropReason};
use crate::frame::vnet_header::{VNET_LEN, VnetHeader};
use crate::timer::Timer;

/// What vfkit and krunkit say first; it is no frame.
pub const GREETING: &[u8] = b"VFKT";
/// Frames, and their bytes, that wait for the guest's monitor to read.
pub const MAX_BACKLOG: usize = 1024;
const MAX_BACKLOG_BYTES: usize = 1 << 20;
/// First and longest pause before what waits is sent again.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// Pauses without progress after which what waits is lost: seven that grow, and a second of the longest.
const MAX_PAUSES: u32 = 107;

/// Who a port's datagrams come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever has bound this address.
    At(SocketAddrUnix),
    /// The other end of a connected socket, to which the kernel lets nobody else send.
    Connected,
}

/// A guest whose monitor has sent a datagram, or holds the other end of a pair.
#[derive(Debug)]
pub struct UnixDatagramPort {
    socket: Arc<OwnedFd>,
    peer: Peer,
    watch: FrameWatch,
    alarm: Arc<Alarm<Ended>>,
    timer: Timer,
    backlog: VecDeque<Box<[u8]>>,
    backlog_bytes: usize,
    /// Pauses since something was sent.
    pauses: u32,
    /// Whether the peer has sent nothing yet that was read here.
    is_new: bool,
    has_ended: bool,
    /// Frames that were taken and will never arrive, since that was last asked for.
    lost: u64,
}

/// What became of one frame.
enum Sent {
    Yes,
    NotYet,
    Never,
}

impl UnixDatagramPort {
    /// Serves `peer` at a socket, and has that watched.
    pub fn new(
        socket: Arc<OwnedFd>,
        peer: Peer,
        watch: FrameWatch,
        alarm: Arc<Alarm<Ended>>,
    ) -> rustix::io::Result<Self> {
        let timer = Timer::new()?;
        watch.begin(&timer)?;
        watch.begin(&*socket)?;
        Ok(Self {
            socket,
            peer,
            watch,
            alarm,
            timer,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            pauses: 0,
            is_new: true,
            has_ended: false,
            lost: 0,
        })
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = match &self.peer {
                Peer::At(address) => sendto(&*self.socket, frame, flags, address),
                Peer::Connected => send(&*self.socket, frame, flags),
            };
            return match sent {
                Ok(_) => Sent::Yes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Sent::NotYet,
                // Its socket takes no datagram of that size, whenever it comes.
                Err(Errno::MSGSIZE) => Sent::Never,
                Err(_) => {
                    self.end();
                    Sent::Never
                }
            };
        }
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.give_up();
        self.alarm.raise(Ended::Gone);
    }

    fn give_up(&mut self) {
        self.lost += self.backlog.len() as u64;
        self.backlog.clear();
        self.backlog_bytes = 0;
        self.pauses = 0;
    }

    fn put_by(&mut self, frame: &[u8]) -> Transmit {
        let fits = self.backlog_bytes + frame.len() <= MAX_BACKLOG_BYTES;
        if !fits || self.backlog.len() >= MAX_BACKLOG {
            return Transmit::Full;
        }
        if self.backlog.is_empty() && self.set_timer().is_err() {
            return Transmit::Full;
        }
        self.backlog_bytes += frame.len();
        self.backlog.push_back(frame.into());
        Transmit::Sent
    }

    /// Sends what waits, as far as it goes, when its time has come.
    fn handle_timer(&mut self) {
        if self.backlog.is_empty() || !self.timer.take_expired() {
            return;
        }
        self.pauses += 1;
        while let Some(frame) = self.backlog.pop_front() {
            match self.send(&frame) {
                Sent::Yes => self.pauses = 0,
                Sent::Never => self.lost += 1,
                Sent::NotYet => {
                    self.backlog.push_front(frame);
                    break;
                }
            }
            self.backlog_bytes = self.backlog_bytes.saturating_sub(frame.len());
        }
        let waits = !self.backlog.is_empty();
        if waits && (self.pauses >= MAX_PAUSES || self.set_timer().is_err()) {
            self.give_up();
        }
    }

    fn set_timer(&self) -> rustix::io::Result<()> {
        self.timer.set((FIRST_PAUSE * (1 << self.pauses.min(7))).min(LONGEST_PAUSE))
    }
}

impl Drop for UnixDatagramPort {
    fn drop(&mut self) {
        self.watch.end(&self.timer);
        self.watch.end(&*self.socket);
    }
}

impl Port for UnixDatagramPort {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        self.handle_timer();
        while !self.has_ended {
            let received = recvfrom(&*self.socket, &mut buffer[VNET_LEN..], RecvFlags::DONTWAIT);
            let (len, sender) = match received {
                Ok((len, _, sender)) => (len, sender),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.end();
                    break;
                }
            };
            if let Peer::At(address) = &self.peer {
                let sender = sender.and_then(|sender| SocketAddrUnix::try_from(sender).ok());
                if sender.as_ref() != Some(address) {
                    return Receive::Dropped(DropReason::Stranger);
                }
            }
            let is_new = std::mem::replace(&mut self.is_new, false);
            if is_new && buffer[VNET_LEN..VNET_LEN + len] == *GREETING {
                continue;
            }
            buffer[..VNET_LEN].copy_from_slice(&VnetHeader::default().emit());
            return Receive::Frame(VNET_LEN + len);
        }
        Receive::Empty
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        let frame = &frame[VNET_LEN..];
        if self.has_ended {
            return Transmit::Full;
        }
        if !self.backlog.is_empty() {
            return self.put_by(frame);
        }
        match self.send(frame) {
            Sent::Yes => Transmit::Sent,
            Sent::NotYet => self.put_by(frame),
            Sent::Never => Transmit::Full,
        }
    }

    fn has_room(&mut self) -> bool {
        !self.has_ended && self.backlog.is_empty()
    }

    fn flush(&mut self, counters: &mut Counters) {
        // Each datagram has told its receiver already.
        counters.lose(std::mem::take(&mut self.lost));
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        if !watch.is_same(&self.watch) {
            self.unwatch(watch);
            self.watch = watch.clone();
        }
        self.watch.begin_or_go_on(&self.timer)?;
        self.watch.begin_or_go_on(&*self.socket)
    }

    fn unwatch(&mut self, _: &FrameWatch) {
        self.watch.end(&self.timer);
        self.watch.end(&*self.socket);
    }

    fn offloads(&self) -> Offloads {
        Offloads::None
    }
}
