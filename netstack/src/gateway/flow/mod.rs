//! Flows: a guest's side, the host's side, and what lies between.
//!
//! Every flow belongs to the port whose guest speaks it. A flow is found by its [`FlowKey`] and
//! addressed by its index, which is also in the token of its host socket.

pub mod echo;
pub mod idle_queue;
mod ring_memory;
pub mod tcp;
pub mod tcp_endpoint;
pub mod tcp_guard;
pub mod udp;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::port::to_guest::ToGuest;
use crate::time::Instant;

/// The two ends of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The guest's end.
    pub guest: SocketAddrV4,
    /// The other end.
    pub remote: SocketAddrV4,
}

/// From key to index. The hash is fast and seeded, so that a guest cannot aim at one bucket.
#[derive(Debug, Default)]
pub struct FlowIndex(HashMap<FlowKey, usize, foldhash::fast::RandomState>);

impl FlowIndex {
    /// The flow with that key.
    pub fn get(&self, key: &FlowKey) -> Option<usize> {
        self.0.get(key).copied()
    }

    /// Makes a flow findable.
    pub fn insert(&mut self, key: FlowKey, index: usize) {
        self.0.insert(key, index);
    }

    /// Makes a flow unfindable.
    pub fn remove(&mut self, key: &FlowKey) {
        self.0.remove(key);
    }
}

/// What a flow needs of the rest of the worker while it is served.
pub struct FlowContext<'a, P, H> {
    /// The time.
    pub now: Instant,
    /// The host.
    pub host: &'a mut H,
    /// The way to the guest.
    pub to_guest: ToGuest<'a, P>,
    /// The gateway's address.
    pub gateway: Ipv4Addr,
    /// Largest IP packet on the network.
    pub mtu: u16,
    /// The port's slot, for tokens.
    pub slot: u16,
}
