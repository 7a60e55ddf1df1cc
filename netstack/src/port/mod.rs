//! Where frames come from and go to: one port is one network interface of one workload.

pub mod alarm;
pub mod framing;
pub mod recording;
pub mod selection;
pub mod steering;
pub mod tap;
pub mod to_guest;
pub mod turn;
pub mod unix_datagram;
pub mod unix_stream;
pub mod watch;

use std::io::IoSlice;

use self::recording::Recorder;
use self::watch::FrameWatch;
use crate::counters::{Counters, DropReason};
use crate::frame::vnet_header::VNET_LEN;
use crate::wire::ETHERNET_LEN;

/// The longest frame a port carries: virtio-net header, Ethernet header, 65,535 bytes of IP.
pub const MAX_FRAME: usize = VNET_LEN + ETHERNET_LEN + 65_535;

/// Bytes of a frame that [`Port::peek`] shows: all its headers, as a rule.
pub const FRONT: usize = 128;

/// The beginning of a frame that lies in its guest's memory, as it was when it was copied from there.
#[derive(Clone, Copy, Debug)]
pub struct Front {
    /// As many bytes of the frame as it has; what is behind them means nothing.
    pub bytes: [u8; FRONT],
    /// The frame's whole length.
    pub frame_len: usize,
}

impl Front {
    /// Of no frame.
    pub const EMPTY: Self = Self { bytes: [0; FRONT], frame_len: 0 };

    /// The bytes that the frame has of these.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.frame_len.min(FRONT)]
    }
}

/// A source and sink of frames, each with a virtio-net header in front.
pub trait Port {
    /// Reads one frame into `buffer`, which holds at least [`MAX_FRAME`] bytes. Never waits.
    fn receive(&mut self, buffer: &mut [u8]) -> Receive;

    /// Shows the beginning of the next frame, if it lies where it need not be taken to be looked at: it may be passed on
    /// then, and is received otherwise. False says nothing about whether a frame waits.
    fn peek(&mut self, front: &mut Front) -> bool {
        let _ = front;
        false
    }

    /// Copies the frame that was just shown from its guest's memory to that of another, `front` as it is here. If it was
    /// sent, it is taken from here; otherwise nothing has happened, and it is to be received.
    fn pass(&mut self, front: &Front, to: &mut Self) -> Passed
    where
        Self: Sized,
    {
        let _ = (front, to);
        Passed::No
    }

    /// Hands one frame over. Never waits; a frame that is not [`Transmit::Sent`] may be offered again.
    fn transmit(&mut self, frame: &[u8]) -> Transmit;

    /// The port as one that takes frames in pieces, if putting them together first would only cost.
    fn gathering(&mut self) -> Option<&mut dyn Gathering> {
        None
    }

    /// Whether the next frame would be taken.
    fn has_room(&mut self) -> bool;

    /// Ends a turn: what was taken and given since the last call is made known to the guest. Cheap when
    /// nothing was. Frames that were taken and are lost after all are counted.
    fn flush(&mut self, counters: &mut Counters);

    /// From now on the worker looks for frames itself, so the guest need not tell of them. False where only a call of the
    /// kernel could say whether there are any: such a port goes on telling.
    fn begin_polling(&mut self) -> bool {
        false
    }

    /// Whether a frame waits, of a port that is polled.
    fn has_frames(&mut self) -> bool {
        false
    }

    /// Has the guest tell of frames again. True if some wait already, of which it has not told.
    fn end_polling(&mut self) -> bool {
        false
    }

    /// Shows every frame from now on to `recorder`. A port that cannot do that lets go of it at once.
    fn record(&mut self, recorder: Box<dyn Recorder>) {
        drop(recorder);
    }

    /// Takes back who is shown the frames.
    fn take_recorders(&mut self) -> Vec<Box<dyn Recorder>> {
        Vec::new()
    }

    /// Has its descriptors watched there from now on, if it is not so already: the port has come to another worker.
    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        let _ = watch;
        Ok(())
    }

    /// Ends that, since the port goes to another worker.
    fn unwatch(&mut self, watch: &FrameWatch) {
        let _ = watch;
    }

    /// What the receiver of transmitted frames does itself.
    fn offloads(&self) -> Offloads;
}

/// A port that takes a frame in pieces.
pub trait Gathering {
    /// As [`Port::transmit`], of a frame that consists of these parts; the first has all its headers.
    fn transmit_parts(&mut self, parts: &[IoSlice<'_>]) -> Transmit;
}

/// What reading a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// A frame of that many bytes, virtio-net header included.
    Frame(usize),
    /// Nothing for now.
    Empty,
    /// What came is no frame of the guest's, for that reason; the next may be one.
    Dropped(DropReason),
    /// Never again.
    Gone,
}

/// What passing on a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The receiver has it.
    Sent,
    /// It cannot be done in this way.
    No,
}

/// What writing a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// The receiver has it.
    Sent,
    /// The receiver takes no more for now.
    Full,
    /// The guest has offered room that is none; the frame is lost, and the next may find better.
    Malformed,
    /// Never again.
    Gone,
}

/// What a receiver of frames does itself, so that we need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Nothing: every frame is complete and fits the MTU.
    None,
    /// It completes checksums.
    Checksum,
    /// It completes checksums and takes TCP segments of 64 KiB whole.
    ChecksumAndTcp,
    /// As before, and UDP likewise (USO).
    ChecksumTcpAndUdp,
}
