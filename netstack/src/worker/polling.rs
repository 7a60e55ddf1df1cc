//! Looking into ports while the worker does not sleep: their guests need not tell of frames meanwhile, which for a
//! virtual machine is an exit each time. Only ports that something happened to lately are looked into.

use super::Worker;
use super::slot::Slot;
use crate::gateway::names::NameService;
use crate::host::{Host, Token, TokenKind};
use crate::port::Port;
use crate::time::Instant;

/// The slots whose guests need not tell of frames.
#[derive(Debug, Default)]
pub(super) struct Polling {
    is_on: bool,
    slots: Vec<u16>,
}

impl Polling {
    /// Something was done for this slot's guest, which may well answer.
    #[inline(always)]
    pub(super) fn note_touched<P: Port, H: Host>(&mut self, slot: u16, open: &mut Slot<P, H>) {
        if self.is_on && !open.is_polled && open.io.begin_polling() {
            open.is_polled = true;
            self.slots.push(slot);
        }
    }
}

impl<P: Port, H: Host, N: NameService> Worker<P, H, N> {
    /// Has ports looked into from now on, by who drives the worker: [`Worker::poll_ports`] again and again, and
    /// [`Worker::end_polling`] before it sleeps.
    pub fn polling_ports(mut self) -> Self {
        self.polling.is_on = true;
        self
    }

    /// Takes the frames of ports that are looked into. True if there were some.
    pub fn poll_ports(&mut self, now: Instant) -> bool {
        let mut found = false;
        for at in 0..self.polling.slots.len() {
            let slot = self.polling.slots[at];
            if let Some(Some(open)) = self.slots.get_mut(usize::from(slot))
                && open.io.has_frames()
            {
                found = true;
                self.handle_frames(now, slot);
            }
        }
        found
    }

    /// Has all guests tell of frames again. Those that wait already are taken by [`Worker::handle_timeout`], for which
    /// [`Worker::is_busy`] asks then.
    pub fn end_polling(&mut self) {
        while let Some(slot) = self.polling.slots.pop() {
            if let Some(Some(open)) = self.slots.get_mut(usize::from(slot))
                && open.end_polling()
            {
                self.again.push(Token { port: slot, kind: TokenKind::Frames, index: 0 });
            }
        }
    }
}
