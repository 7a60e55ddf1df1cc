//! A port whose other end is held by the test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use crate::counters::Counters;
use crate::port::{Gathering, Offloads, Port, Receive, Transmit};

/// Both directions of a simulated port; clones share them.
#[derive(Clone, Debug)]
pub struct Wire(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    from_guest: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
    /// Frames that the guest has not been told of: it sees none that nobody flushes.
    unflushed: VecDeque<Vec<u8>>,
    room: usize,
    offloads: Offloads,
    gone: bool,
    sabotaged: bool,
    gathers: bool,
    /// Frames that came in pieces.
    gathered: usize,
    writes_sabotaged: bool,
}

impl State {
    fn held(&self) -> usize {
        self.to_guest.len() + self.unflushed.len()
    }
}

impl Wire {
    /// A wire to a guest with these offloads, with room for `room` frames that it has not taken.
    pub fn new(offloads: Offloads, room: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            from_guest: VecDeque::new(),
            to_guest: VecDeque::new(),
            unflushed: VecDeque::new(),
            room,
            offloads,
            gone: false,
            sabotaged: false,
            gathers: true,
            gathered: 0,
            writes_sabotaged: false,
        })))
    }

    /// Lets the guest send a frame, virtio-net header in front.
    pub fn send(&self, frame: Vec<u8>) {
        self.0.borrow_mut().from_guest.push_back(frame);
    }

    /// Takes the next frame for the guest.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.0.borrow_mut().to_guest.pop_front()
    }

    /// Whether the guest has sent frames that nobody read yet.
    pub fn is_readable(&self) -> bool {
        !self.0.borrow().from_guest.is_empty()
    }

    /// Changes how many frames the guest leaves lying about.
    pub fn set_room(&self, room: usize) {
        self.0.borrow_mut().room = room;
    }

    /// Takes frames whole only, from now on.
    pub fn take_whole(&self) {
        self.0.borrow_mut().gathers = false;
    }

    /// How many frames came in pieces.
    pub fn gathered(&self) -> usize {
        self.0.borrow().gathered
    }

    /// Makes the next read panic, as a defect of ours would.
    pub fn sabotage(&self) {
        self.0.borrow_mut().sabotaged = true;
    }

    /// Makes the next write panic.
    pub fn sabotage_writes(&self) {
        self.0.borrow_mut().writes_sabotaged = true;
    }

    /// Unplugs the guest.
    pub fn unplug(&self) {
        self.0.borrow_mut().gone = true;
    }
}

impl Gathering for Wire {
    fn transmit_parts(&mut self, parts: &[IoSlice<'_>]) -> Transmit {
        self.0.borrow_mut().gathered += 1;
        self.transmit(&parts.iter().map(|part| &**part).collect::<Vec<_>>().concat())
    }
}

impl Port for Wire {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        let mut state = self.0.borrow_mut();
        assert!(!state.sabotaged, "a sabotaged wire was read");
        if state.gone {
            return Receive::Gone;
        }
        match state.from_guest.pop_front() {
            Some(frame) => {
                buffer[..frame.len()].copy_from_slice(&frame);
                Receive::Frame(frame.len())
            }
            None => Receive::Empty,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        let mut state = self.0.borrow_mut();
        assert!(!state.writes_sabotaged, "a sabotaged wire was written");
        if state.gone {
            Transmit::Gone
        } else if state.held() >= state.room {
            Transmit::Full
        } else {
            state.unflushed.push_back(frame.to_vec());
            Transmit::Sent
        }
    }

    fn gathering(&mut self) -> Option<&mut dyn Gathering> {
        if self.0.borrow().gathers { Some(self) } else { None }
    }

    fn has_room(&mut self) -> bool {
        let state = self.0.borrow();
        state.held() < state.room
    }

    fn flush(&mut self, _: &mut Counters) {
        let mut state = self.0.borrow_mut();
        let State { to_guest, unflushed, .. } = &mut *state;
        to_guest.append(unflushed);
    }

    fn offloads(&self) -> Offloads {
        self.0.borrow().offloads
    }
}
