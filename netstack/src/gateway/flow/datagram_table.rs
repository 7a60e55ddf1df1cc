//! A table of flows that each have a datagram socket: found by key, closed when silent for too long, and
//! the one that was idle longest making room when the table is full.

use std::time::Duration;

use slab::Slab;

use super::idle_queue::IdleQueue;
use super::{FlowIndex, FlowKey};
use crate::host::{Token, TokenKind};
use crate::time::Instant;

/// The bounds of a table, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// In the tokens of its sockets.
    pub(super) kind: TokenKind,
    /// Flows at once.
    pub(super) flows: usize,
    /// How long a silent flow lives.
    pub(super) lifetime: Duration,
}

/// Flows by key. `F` is what a flow keeps besides its key and when it was last heard.
pub(super) struct DatagramTable<F> {
    bounds: Bounds,
    index: FlowIndex,
    flows: Slab<Entry<F>>,
    idle: IdleQueue,
}

/// A flow in its place.
pub(super) struct Entry<F> {
    pub(super) key: FlowKey,
    /// Last datagram in either direction.
    pub(super) heard: Instant,
    pub(super) flow: F,
}

/// Whether another flow had to go for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    WasThere,
    WasMade,
}

impl<F> DatagramTable<F> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, index: FlowIndex::default(), flows: Slab::new(), idle: IdleQueue::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn find(&self, key: &FlowKey) -> Option<usize> {
        self.index.get(key)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Entry<F>> {
        self.flows.get_mut(index)
    }

    /// Makes room for one more flow where there is none.
    pub(super) fn make_room(&mut self) -> Room {
        if self.flows.len() >= self.bounds.flows && self.evict_oldest() {
            Room::WasMade
        } else {
            Room::WasThere
        }
    }

    /// Adds a flow that `open` makes, given the token for its socket.
    pub(super) fn insert<E>(
        &mut self,
        now: Instant,
        slot: u16,
        key: FlowKey,
        open: impl FnOnce(Token) -> Result<F, E>,
    ) -> Result<usize, E> {
        let place = self.flows.vacant_entry();
        let index = place.key();
        let token = Token {
            port: slot,
            kind: self.bounds.kind,
            index: u32::try_from(index).expect("a port has a few thousand flows"),
        };
        place.insert(Entry { key, heard: now, flow: open(token)? });
        self.index.insert(key, index);
        self.idle.push(now, index);
        Ok(index)
    }

    /// Closes the flow that was idle longest; false when there is none.
    pub(super) fn evict_oldest(&mut self) -> bool {
        let flows = &self.flows;
        let oldest = self.idle.pop_oldest(|index| flows.get(index).map(|entry| entry.heard));
        oldest.inspect(|index| self.remove(*index)).is_some()
    }

    /// Closes the flows that were silent for their lifetime.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        loop {
            let flows = &self.flows;
            let expired = self.idle.pop_expired(now, self.bounds.lifetime, |index| {
                flows.get(index).map(|entry| entry.heard)
            });
            match expired {
                Some(index) => self.remove(index),
                None => return,
            }
        }
    }

    /// When [`DatagramTable::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.idle.poll_timeout(self.bounds.lifetime)
    }

    fn remove(&mut self, index: usize) {
        let entry = self.flows.remove(index);
        self.index.remove(&entry.key);
    }
}
