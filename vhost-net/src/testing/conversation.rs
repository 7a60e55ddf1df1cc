//! A monitor's side of a conversation made of any bytes, with descriptors of several kinds.
//!
//! What must hold whatever the bytes are: no panic, no waiting, and rings that rest while something changes.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use lichen_netstack::command::LinkState;
use lichen_netstack::counters::Counters;
use lichen_netstack::ids::{MacAddr, PortId};
use lichen_netstack::port::{MAX_FRAME, Port as _, Receive};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::front_end::messages::{log, message, pair, region};
use super::front_end::rings::{logged_ring_address, ring_address};
use super::front_end::{FEATURES, LOG_ALL, MEMORY, USER};
use crate::port::VhostPort;
use crate::service::Datapath;
use crate::session::Session;

/// Bytes of `data` that describe one message.
const WORDS: usize = 8;
/// Messages of one conversation.
const MAX_MESSAGES: usize = 64;

/// What came of a conversation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// Messages that were sent before it ended.
    pub messages: u64,
    /// How often rings ran.
    pub plugged: u64,
    /// How often the connection was ended for what was said.
    pub ended: u64,
}

/// A datapath that uses the rings that it is given, at once and once.
#[derive(Default)]
struct Rings {
    port: Option<VhostPort>,
    plugged: u64,
}

impl Datapath for Rings {
    fn plug(&mut self, _: PortId, mut rings: VhostPort) {
        assert!(self.port.is_none(), "rings are used by one");
        let mut buffer = vec![0; MAX_FRAME];
        for _ in 0..64 {
            if matches!(rings.receive(&mut buffer), Receive::Empty | Receive::Gone) {
                break;
            }
        }
        rings.transmit(&[0; 76]);
        rings.flush(&mut Counters::default());
        self.plugged += 1;
        self.port = Some(rings);
    }

    fn unplug(&mut self, _: PortId, _: &[BorrowedFd<'_>]) {
        assert!(self.port.take().is_some(), "rings rest that ran");
    }

    fn tell(&mut self, _: PortId, _: LinkState) {}
}

/// Has the conversation that `data` describes.
///
/// # Panics
///
/// When one of the promises above is broken.
pub fn conversation(data: &[u8]) -> Said {
    let (mut ours, theirs) = UnixStream::pair().expect("two descriptors");
    ours.set_nonblocking(true).expect("a socket");
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file");
    ftruncate(&memory, MEMORY).expect("four MiB");
    rustix::io::write(&memory, b"kernel").expect("a file that can be written");
    let given: [OwnedFd; 4] =
        [memory, event(), event(), theirs.try_clone().expect("one more").into()];
    let now = Instant::now();
    let session = Session::new((PortId(1), MacAddr([2; 6])), theirs, Arc::new(event()), now);
    let mut session = session.expect("a few descriptors");
    let (mut rings, mut said) = (Rings::default(), Said::default());
    for words in data.chunks_exact(WORDS).take(MAX_MESSAGES) {
        let (bytes, descriptors) = compose(words, &given);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if sendmsg(&ours, &[IoSlice::new(&bytes)], &mut ancillary, flags).is_err() {
            break;
        }
        said.messages += 1;
        if session.handle_readable(now, &mut rings).is_err() {
            said.ended += 1;
            break;
        }
        while matches!(ours.read(&mut [0; 4096]), Ok(1..)) {}
    }
    session.unplug(&mut rings);
    assert!(rings.port.is_none(), "nothing is used after the end");
    said.plugged = rings.plugged;
    said
}

/// One message, mostly sound, of eight bytes; and the descriptors that come with it.
fn compose<'a>(words: &[u8], given: &'a [OwnedFd; 4]) -> (Vec<u8>, Vec<BorrowedFd<'a>>) {
    let [kind, flags, ring, small, which, count, twist, at] =
        <[u8; WORDS]>::try_from(words).expect("chunks of eight");
    // One beyond the last, now and then.
    let index = u32::from(ring % 9);
    let number = [u32::from(small), 64, 1, u32::MAX][usize::from(flags >> 6)];
    let start = u64::from(small) * 4096;
    let table = |regions: u8| -> Vec<u8> {
        let mut body = pair(regions.into(), 0);
        for _ in 0..regions.min(40) {
            body.extend(region(start % MEMORY, MEMORY - start % MEMORY, USER + start, start));
        }
        body
    };
    // Requests by number; the last few are none.
    let request = u32::from(kind % 48);
    let mut body = match request {
        2 => {
            let logged = if small & 0x20 == 0 { 0 } else { LOG_ALL };
            (FEATURES ^ u64::from(small >> 6) ^ logged).to_ne_bytes().to_vec()
        }
        6 => log(u64::from(small), u64::from(flags & 3) * 4096),
        16 => u64::from(small & 15).to_ne_bytes().to_vec(),
        5 => table([1, 1, 1, small][usize::from(flags & 3)]),
        9 if flags & 4 == 0 => ring_address(index & 7),
        9 => logged_ring_address(index & 7, u64::from(small) << (flags & 0x30)),
        8 | 10 | 11 | 18 => pair(index, number),
        12..=14 => u64::from(index).to_ne_bytes().to_vec(),
        19 => [[2; 6], [small; 6]][usize::from(flags & 1)].into_iter().chain([0; 2]).collect(),
        20 => (1500 + u64::from(small)).to_ne_bytes().to_vec(),
        37 | 38 => {
            let mut body = vec![0; 8];
            body.extend(region(start % MEMORY, 4096, USER + start, start));
            body
        }
        _ => Vec::new(),
    };
    if twist & 0x80 != 0 && !body.is_empty() {
        let place = usize::from(at) % body.len();
        body[place] ^= twist;
    }
    let mut bytes = message(request, &body);
    if flags & 8 != 0 {
        bytes[4] |= 8;
    }
    if twist & 0xe0 == 0x60 {
        let place = usize::from(at) % bytes.len();
        bytes[place] ^= twist;
    }
    let needed = match request {
        5 => usize::from([1, 1, 1, small.min(40)][usize::from(flags & 3)]),
        6 | 7 | 12..=14 | 37 => 1,
        _ => 0,
    };
    let count = if count > 240 { usize::from(count - 240) * 16 } else { needed };
    let kind = match request {
        7 | 12..=14 => 1 + usize::from(which & 1),
        _ => 0,
    };
    let kind = if which > 240 { usize::from(which) % 4 } else { kind };
    (bytes, vec![given[kind].as_fd(); count.min(253)])
}
