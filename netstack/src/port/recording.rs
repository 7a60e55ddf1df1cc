//! Showing the frames of a port to somebody who records them.
//!
//! A port that nobody records knows nothing of it: it is wrapped in a [`Recording`] when somebody comes, and
//! unwrapped when nobody is left, so recording costs nothing when it is off.

use super::watch::FrameWatch;
use super::{Offloads, Port, Receive, Transmit};
use crate::counters::Counters;
use crate::frame::vnet_header::VNET_LEN;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest sent it.
    FromGuest,
    /// The guest was given it.
    ToGuest,
}

/// Whether somebody who records goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It wants the next frame too.
    More,
    /// It is not to be shown any more.
    Ended,
}

/// Somebody who is shown frames while the worker waits: it must never wait itself.
pub trait Recorder: Send {
    /// A frame has passed, Ethernet header first. One that stands for several is shown whole; `vnet` stood before it.
    fn record(&mut self, direction: Direction, vnet: &[u8; VNET_LEN], frame: &[u8]) -> Interest;

    /// A turn is over, and perhaps for a while.
    fn flush(&mut self) -> Interest;
}

/// A port whose frames are shown.
pub struct Recording<P> {
    port: P,
    recorders: Vec<Box<dyn Recorder>>,
}

impl<P: Port> Recording<P> {
    /// Shows the frames of `port` to nobody yet.
    pub fn new(port: P) -> Self {
        Self { port, recorders: Vec::new() }
    }

    /// The port itself.
    pub fn into_port(self) -> P {
        self.port
    }

    /// Whether nobody is shown anything.
    pub fn is_over(&self) -> bool {
        self.recorders.is_empty()
    }

    fn show(&mut self, direction: Direction, frame: &[u8]) {
        // A frame without even its virtio-net header is none, and is counted as such.
        let Some((vnet, frame)) = frame.split_first_chunk() else { return };
        self.recorders.retain_mut(|it| it.record(direction, vnet, frame) == Interest::More);
    }
}

impl<P: Port> Port for Recording<P> {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        let received = self.port.receive(buffer);
        if let Receive::Frame(len) = received {
            self.show(Direction::FromGuest, &buffer[..len]);
        }
        received
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        let transmitted = self.port.transmit(frame);
        if transmitted == Transmit::Sent {
            self.show(Direction::ToGuest, frame);
        }
        transmitted
    }

    fn has_room(&mut self) -> bool {
        self.port.has_room()
    }

    fn flush(&mut self, counters: &mut Counters) {
        self.port.flush(counters);
        self.recorders.retain_mut(|it| it.flush() == Interest::More);
    }

    fn begin_polling(&mut self) -> bool {
        self.port.begin_polling()
    }

    fn has_frames(&mut self) -> bool {
        self.port.has_frames()
    }

    fn end_polling(&mut self) -> bool {
        self.port.end_polling()
    }

    fn record(&mut self, recorder: Box<dyn Recorder>) {
        self.recorders.push(recorder);
    }

    fn take_recorders(&mut self) -> Vec<Box<dyn Recorder>> {
        std::mem::take(&mut self.recorders)
    }

    fn watch(&mut self, watch: &FrameWatch) -> rustix::io::Result<()> {
        self.port.watch(watch)
    }

    fn unwatch(&mut self, watch: &FrameWatch) {
        self.port.unwatch(watch);
    }

    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::port::MAX_FRAME;
    use crate::testing::wire::Wire;

    /// Remembers what it was shown, and has enough after `wants` frames.
    struct Notes {
        seen: Arc<Mutex<Vec<(Direction, usize)>>>,
        wants: usize,
    }

    impl Recorder for Notes {
        fn record(&mut self, direction: Direction, _: &[u8; VNET_LEN], frame: &[u8]) -> Interest {
            let mut seen = self.seen.lock().unwrap();
            seen.push((direction, frame.len()));
            if seen.len() < self.wants { Interest::More } else { Interest::Ended }
        }

        fn flush(&mut self) -> Interest {
            Interest::More
        }
    }

    #[test]
    fn what_passes_is_shown_and_what_does_not_is_not() {
        let wire = Wire::new(Offloads::None, 1);
        let mut port = Recording::new(wire.clone());
        let seen = Arc::new(Mutex::new(Vec::new()));
        port.record(Box::new(Notes { seen: Arc::clone(&seen), wants: 4 }));
        let mut buffer = vec![0; MAX_FRAME];
        for len in [VNET_LEN + 60, VNET_LEN - 1, VNET_LEN] {
            wire.send(vec![0; len]);
            assert_eq!(port.receive(&mut buffer), Receive::Frame(len));
        }
        assert_eq!(port.transmit(&[0; VNET_LEN + 70]), Transmit::Sent);
        assert_eq!(port.transmit(&[0; VNET_LEN + 80]), Transmit::Full);
        use Direction::{FromGuest, ToGuest};
        assert_eq!(*seen.lock().unwrap(), [(FromGuest, 60), (FromGuest, 0), (ToGuest, 70)]);
        assert!(!port.is_over());
        wire.send(vec![0; VNET_LEN + 90]);
        port.receive(&mut buffer);
        assert!(port.is_over(), "it has said that it has enough");
        assert_eq!(seen.lock().unwrap().len(), 4);
    }
}
