//! A tap device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, virtio-net headers of twelve bytes).
//!
//! The device is made and configured elsewhere; here a descriptor for each of its queues is read and written. A write is
//! taken by the namespace's stack at once, so a tap is never full.
//!
//! Of several queues (`IFF_MULTI_QUEUE`) each is read in its [`Turn`], and a frame is written to the one of its flow
//! ([`steering`]), on which the namespace's stack then answers.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::turn::Turn;
use super::watch::FrameWatch;
use super::{Gathering, Offloads, Port, Receive, Transmit, steering};
use crate::counters::Counters;

/// Most queues of one tap. A worker fills from four processors of a guest.
pub const MAX_QUEUES: u16 = 4;

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// At least one.
    queues: Vec<OwnedFd>,
    turn: Turn,
    offloads: Offloads,
}

impl Tap {
    /// Takes over a descriptor of each of the tap's queues, on which the interface is already set, and makes them
    /// nonblocking. There must be one, and at most [`MAX_QUEUES`].
    pub fn new(queues: Vec<OwnedFd>) -> rustix::io::Result<Self> {
        if queues.is_empty() || queues.len() > usize::from(MAX_QUEUES) {
            return Err(Errno::INVAL);
        }
        queues.iter().try_for_each(|queue| rustix::io::ioctl_fionbio(queue, true))?;
        // The interface's, so that one of its queues is as good as another.
        let offloads = if takes_large_datagrams(queues[0].as_fd()) {
            Offloads::ChecksumTcpAndUdp
        } else {
            Offloads::ChecksumAndTcp
        };
        Ok(Self { queues, turn: Turn::first(), offloads })
    }

    /// The queue for a frame that begins like that.
    #[inline]
    fn queue_of(&self, frame: &[u8]) -> &OwnedFd {
        &self.queues[steering::queue_of(frame, self.queues.len())]
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

impl Gathering for Tap {
    fn transmit_parts(&mut self, parts: &[IoSlice<'_>]) -> Transmit {
        let queue = self.queue_of(parts.first().map_or(&[], |part| part));
        transmitted(|| rustix::io::writev(queue, parts))
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
        let queues = self.queues.len();
        let mut empty = 0;
        loop {
            match rustix::io::read(&self.queues[self.turn.queue(queues)], &mut *buffer) {
                Ok(0) => return Receive::Gone,
                Ok(len) => {
                    self.turn.count();
                    return Receive::Frame(len);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.turn.pass_on(queues);
                    empty += 1;
                    // What has come to an earlier one meanwhile is told anew.
                    if empty == queues {
                        return Receive::Empty;
                    }
                }
                Err(_) => return Receive::Gone,
            }
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        let queue = self.queue_of(frame);
        transmitted(|| rustix::io::write(queue, frame))
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
        self.queues.iter().try_for_each(|queue| watch.begin_or_go_on(queue))
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        self.queues.iter().for_each(|queue| watch.end(queue));
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
    };

    use super::*;
    use crate::ids::MacAddr;
    use crate::port::MAX_FRAME;
    use crate::testing::frames::{ethernet, udp};

    /// A tap whose queues are pairs of sockets, which keep frames apart as a tap does; with their other ends.
    fn tap(queues: usize) -> (Tap, Vec<OwnedFd>) {
        let pair = || {
            let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::NONBLOCK);
            socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
        };
        let (ours, theirs) = (0..queues).map(|_| pair()).unzip();
        (Tap::new(ours).unwrap(), theirs)
    }

    fn put(queue: &OwnedFd, frame: &[u8]) {
        assert_eq!(send(queue, frame, SendFlags::empty()), Ok(frame.len()));
    }

    /// The lengths of what comes until nothing does.
    fn received(tap: &mut Tap) -> Vec<usize> {
        let mut buffer = vec![0; MAX_FRAME];
        let mut lengths = Vec::new();
        loop {
            match tap.receive(&mut buffer) {
                Receive::Frame(len) => lengths.push(len),
                Receive::Empty => return lengths,
                other => panic!("{other:?}"),
            }
        }
    }

    fn count(queue: &OwnedFd) -> usize {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| recv(queue, &mut buffer[..], RecvFlags::empty()).ok()).count()
    }

    #[test]
    fn one_to_four_queues_are_taken_and_no_other_number() {
        for (queues, taken) in [(0, false), (1, true), (4, true), (5, false)] {
            let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let tap = Tap::new((0..queues).map(|_| null()).collect());
            assert_eq!(tap.is_ok(), taken, "{queues}");
        }
    }

    #[test]
    fn a_queue_that_never_ends_leaves_the_others_their_turns() {
        let (mut tap, guest) = tap(3);
        for len in [100, 300] {
            (0..40).for_each(|_| put(&guest[len / 100 - 1], &vec![0; len]));
        }
        let mut expected = Vec::new();
        for (len, frames) in [(100, 16), (300, 16), (100, 16), (300, 16), (100, 8), (300, 8)] {
            expected.extend(std::iter::repeat_n(len, frames));
        }
        assert_eq!(received(&mut tap), expected);
        // What comes to any of them later is found, wherever the turn is.
        for (queue, len) in [(1, 20), (2, 30), (0, 10), (0, 10), (1, 20)] {
            put(&guest[queue], &vec![0; len]);
            assert_eq!(received(&mut tap), [len]);
        }
    }

    #[test]
    fn a_flow_is_written_to_one_queue_whole_or_in_parts() {
        let (mut tap, guest) = tap(2);
        let mut used = [0, 0];
        for port in 1000..1040 {
            let (from, to) = (format!("10.88.0.2:{port}"), "10.88.0.3:53".parse().unwrap());
            let packet = udp(from.parse().unwrap(), to, b"x");
            let frame = ethernet(MacAddr([2; 6]), MacAddr([4; 6]), 0x0800, &packet);
            assert_eq!(tap.transmit(&frame), Transmit::Sent);
            let (head, payload) = frame.split_at(frame.len() - 1);
            let parts = [IoSlice::new(head), IoSlice::new(payload), IoSlice::new(&[])];
            assert_eq!(tap.transmit_parts(&parts), Transmit::Sent);
            let came = [count(&guest[0]), count(&guest[1])];
            assert!(came == [2, 0] || came == [0, 2], "{came:?}");
            used = [used[0] + came[0], used[1] + came[1]];
        }
        assert!(used.iter().all(|used| *used > 20), "{used:?}");
    }

    #[test]
    fn a_queue_that_is_gone_is_the_end_of_the_port() {
        let (mut tap, mut guest) = tap(2);
        drop(guest.pop());
        assert_eq!(tap.receive(&mut vec![0; MAX_FRAME]), Receive::Gone);
    }
}
