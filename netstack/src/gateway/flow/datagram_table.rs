//! A table of flows that each have a datagram socket: found by key, closed when silent for too long, and
//! the one that would be closed first making room when the table is full.
//!
//! The queue holds when each flow may have to be closed at the earliest; when that has come, it is put back if it has
//! lived on.

use std::time::Duration;

use slab::Slab;

use super::idle_queue::IdleQueue;
use super::view::{FlowView, Traffic};
use super::{FlowIndex, FlowKey, Work};
use crate::command::{FlowProtocol, FlowState};
use crate::host::{Token, TokenKind};
use crate::time::Instant;

/// The bounds of a table, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// In the tokens of its sockets.
    pub(super) kind: TokenKind,
    /// Flows at once.
    pub(super) flows: usize,
    /// How long a silent flow lives, unless its [`Entry::lifetime`] says otherwise.
    pub(super) lifetime: Duration,
    /// The least that an [`Entry::lifetime`] says.
    pub(super) shortest: Duration,
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
    /// How long it lives after that.
    pub(super) lifetime: Duration,
    pub(super) traffic: Traffic,
    pub(super) flow: F,
}

impl<F> Entry<F> {
    /// When it is closed if it stays silent.
    fn end(&self) -> Instant {
        self.heard + self.lifetime
    }
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

    pub(super) fn get(&self, index: usize) -> Option<&F> {
        self.flows.get(index).map(|entry| &entry.flow)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Entry<F>> {
        self.flows.get_mut(index)
    }

    /// Makes room for one more flow where there is none; answers the flow that had to go.
    pub(super) fn make_room(&mut self) -> Option<Entry<F>> {
        if self.flows.len() < self.bounds.flows { None } else { self.evict_oldest() }
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
        let (traffic, lifetime) = (Traffic::default(), self.bounds.lifetime);
        place.insert(Entry { key, heard: now, lifetime, traffic, flow: open(token)? });
        self.index.insert(key, index);
        self.idle.push(now + self.bounds.shortest, index);
        Ok(index)
    }

    /// Closes the flow that would be closed first.
    pub(super) fn evict_oldest(&mut self) -> Option<Entry<F>> {
        let flows = &self.flows;
        let oldest = self.idle.pop_oldest(|index| flows.get(index).map(Entry::end));
        oldest.map(|index| self.remove(index))
    }

    /// Closes a flow that was silent for its lifetime, if there is one.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Entry<F>> {
        let flows = &self.flows;
        let ends = |index| flows.get(index).map(Entry::end);
        let expired = self.idle.pop_expired(now, ends);
        expired.map(|index| self.remove(index))
    }

    /// When [`DatagramTable::expire`] may have something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.idle.poll_timeout()
    }

    /// Closes a flow before its time.
    pub(super) fn close(&mut self, index: usize) {
        self.remove(index);
        // Its place in the queue is left behind; many of those would be a leak.
        if self.idle.len() > 2 * self.bounds.flows {
            self.idle.refill(self.flows.iter().map(|(index, entry)| (entry.end(), index)));
        }
    }

    /// What was done for the flows' timers so far.
    pub(super) fn work(&self) -> Work {
        Work { served: 0, timers: self.idle.looked_at(), queued: self.idle.len() as u64 }
    }

    /// The flows, with their indexes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Entry<F>)> {
        self.flows.iter()
    }

    /// The flows as they are shown.
    pub(super) fn views(&self, protocol: FlowProtocol) -> impl Iterator<Item = FlowView> {
        self.flows.iter().map(move |(_, entry)| FlowView {
            protocol,
            key: entry.key,
            state: FlowState::Open,
            heard: entry.heard,
            traffic: entry.traffic,
        })
    }

    fn remove(&mut self, index: usize) -> Entry<F> {
        let entry = self.flows.remove(index);
        self.index.remove(&entry.key);
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    const BOUNDS: Bounds = Bounds {
        kind: TokenKind::Udp,
        flows: 4,
        lifetime: Duration::from_secs(300),
        shortest: Duration::from_secs(30),
    };

    fn key(port: u16) -> FlowKey {
        let end = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        FlowKey { guest: end, remote: end }
    }

    #[test]
    fn flows_that_are_closed_before_their_time_leave_nothing_behind() {
        let mut table = DatagramTable::new(BOUNDS);
        let now = Instant::from_micros(1);
        let open = |table: &mut DatagramTable<()>, port| {
            table.insert(now, 0, key(port), |_| Ok::<_, ()>(())).unwrap()
        };
        let first = open(&mut table, 1);
        for port in 2..1000 {
            let index = open(&mut table, port);
            table.close(index);
        }
        assert!(table.idle.len() <= 2 * BOUNDS.flows, "{}", table.idle.len());
        assert_eq!(table.find(&key(1)), Some(first));
        assert!(table.expire(now + BOUNDS.lifetime).is_some());
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_flow_that_ends_sooner_is_closed_sooner_and_makes_room_before_those_that_were_idle_longer()
    {
        let mut table = DatagramTable::new(BOUNDS);
        let at = |seconds: u64| Instant::from_micros(seconds * 1_000_000);
        for port in 1..=4 {
            let index =
                table.insert(at(u64::from(port)), 0, key(port), |_| Ok::<_, ()>(())).unwrap();
            if port > 2 {
                table.get_mut(index).unwrap().lifetime = BOUNDS.shortest;
            }
        }
        assert_eq!(table.make_room().map(|entry| entry.key), Some(key(3)));
        assert!(table.expire(at(33)).is_none());
        assert_eq!(table.expire(at(34)).map(|entry| entry.key), Some(key(4)));
        assert!(table.expire(at(300)).is_none());
        assert_eq!(table.poll_timeout(), Some(at(301)));
        assert_eq!(table.expire(at(301)).map(|entry| entry.key), Some(key(1)));
        assert_eq!(table.expire(at(302)).map(|entry| entry.key), Some(key(2)));
    }
}
