//! TCP flows of one port: a guest's connection on one side, a host socket or the name service on the other.
//!
//! Life of a flow from the guest: its SYN is kept and the host connects first (`Connecting`); only when
//! that succeeds are rings taken and the SYN answered (`Joined`), so a guest never sees a connection
//! that the host could not make. A published port goes the other way: the host has accepted, and our SYN
//! goes to the guest (`Joined` at once, its socket in SYN-SENT).
//!
//! Invariants: bytes go straight between ring and socket, or from a frame to the socket, never through a
//! buffer of ours; a side that finished is finished towards the other only after its bytes; a reset of one
//! side is a reset of the other.

mod opening;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use slab::Slab;

use super::idle_queue::IdleQueue;
use super::tcp_endpoint::Endpoint;
use super::tcp_flow::{End, Flow, Stage, TRIM_DELAY, Verdict};
use super::tcp_stack::TcpStack;
use super::view::FlowView;
use super::{FlowContext, FlowIndex, FlowKey, Work};
use crate::counters::DropReason;
use crate::gateway::names::Conversation;
use crate::host::{Host, Readiness, Stream};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::tcp::{BareSegment, Flags, TcpHeader};

/// Flows of one port at once.
pub const MAX_FLOWS: usize = 4096;
/// Flows of one port that are not established yet, connects in flight included.
pub const MAX_HALF_OPEN: usize = 256;
/// Bytes in all rings of one port.
pub const MAX_BUFFERED: usize = 64 << 20;
/// Least time between two services of a flow by timer: smoltcp may ask to be polled in the past for ever.
const LEAST_DELAY: Duration = Duration::from_millis(1);
/// Entries of the queue of deadlines for each flow, and flows that it is for at least.
const MOST_STALE: usize = 4;
const LEAST_QUEUE: usize = 64;
/// How long an end waits that smoltcp has forgotten to repeat.
const REPEAT_END: Duration = Duration::from_secs(1);

/// The TCP flows of one port.
pub struct TcpFlows<S> {
    stack: TcpStack,
    index: FlowIndex,
    flows: Slab<Flow<S>>,
    /// Flows to serve at the end of the batch.
    dirty: Vec<usize>,
    deadlines: BinaryHeap<Reverse<(Instant, usize)>>,
    work: Work,
    half_open_order: IdleQueue,
    half_open: usize,
    buffered: usize,
    /// Flows whose host was left unread because the port's rings were full.
    starved: Vec<usize>,
    next_local_port: u16,
    next_conversation: u64,
    conversations: usize,
}

/// Where a new flow of a guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a server.
    Host(SocketAddr),
    /// To the network's own name service.
    Names,
}

impl<S: Stream> TcpFlows<S> {
    /// No flows yet.
    pub fn new(seed: u64, mtu: u16, now: Instant) -> Self {
        Self {
            stack: TcpStack::new(seed, mtu, now),
            index: FlowIndex::default(),
            flows: Slab::new(),
            dirty: Vec::new(),
            deadlines: BinaryHeap::new(),
            work: Work::default(),
            half_open_order: IdleQueue::default(),
            half_open: 0,
            buffered: 0,
            starved: Vec::new(),
            next_local_port: 49_152 + u16::try_from(seed & 0x1fff).expect("thirteen bits"),
            next_conversation: 0,
            conversations: 0,
        }
    }

    /// The host's sockets, with their flows' indexes.
    pub fn sockets(&self) -> impl Iterator<Item = (usize, &S)> {
        self.flows.iter().filter_map(|(index, flow)| match &flow.stage {
            Stage::Connecting { stream, .. } | Stage::Joined { stream, .. } => {
                Some((index, stream))
            }
            Stage::Names { .. } | Stage::Gone => None,
        })
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// What was done for the flows so far.
    pub fn work(&self) -> Work {
        let queued = self.deadlines.len() + self.half_open_order.len();
        Work { queued: queued as u64, ..self.work }
    }

    /// Flows that are not established yet.
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// The flows as they are shown.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.flows.iter().map(|(_, flow)| flow.view())
    }

    /// Bytes in all rings.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Whether a flow with that key exists.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.index.get(key).is_some()
    }

    /// Takes a segment of an existing flow. Answers false when there is no such flow.
    pub fn handle_segment<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: &FlowKey,
        packet: &mut [u8],
        header: &TcpHeader,
    ) -> bool {
        let Some(index) = self.index.get(key) else { return false };
        let flow = &mut self.flows[index];
        flow.heard = cx.now;
        match &mut flow.stage {
            Stage::Connecting { .. } => {
                if header.flags.has(Flags::RST) {
                    self.remove(index, End::Orderly);
                } else {
                    cx.to_guest.counters.drop(DropReason::Duplicate);
                }
                return true;
            }
            Stage::Joined { endpoint, stream } if flow.writable && endpoint.is_next(header) => {
                let data = packet.len() - header.payload_len;
                let taken = match stream.send(&packet[data..]) {
                    Ok(len) => {
                        flow.traffic.from_guest += len as u64;
                        len
                    }
                    Err(error) => {
                        flow.writable = error.kind() != io::ErrorKind::WouldBlock;
                        // Another error is met again when the ring is emptied.
                        0
                    }
                };
                if let Some((rest, header)) = endpoint.pass(packet, header, taken) {
                    let (stack, now) = (&mut self.stack, cx.now);
                    endpoint.handle_segment(stack, now, rest, &header, &mut cx.to_guest);
                }
            }
            Stage::Joined { endpoint, .. } | Stage::Names { endpoint, .. } => {
                if header.payload_len > 0 && self.buffered >= MAX_BUFFERED {
                    cx.to_guest.counters.drop(DropReason::FlowBudget);
                    return true;
                }
                endpoint.handle_segment(&mut self.stack, cx.now, packet, header, &mut cx.to_guest);
            }
            Stage::Gone => unreachable!("a flow is only taken apart while it is served"),
        }
        self.mark(index);
        true
    }

    /// A host socket became ready.
    pub fn handle_ready<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        readiness: Readiness,
    ) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.readable |= readiness.readable;
        flow.writable |= readiness.writable;
        flow.is_read_empty |= readiness.beyond_data;
        if matches!(flow.stage, Stage::Connecting { .. }) {
            if readiness.writable {
                self.finish_connect(cx, index);
            }
        } else {
            self.mark(index);
        }
    }

    /// Serves every flow that something happened to. `serve_names` reads and answers name queries.
    pub fn handle_batch_end<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        mut serve_names: impl FnMut(usize, &mut Endpoint, &mut Conversation),
    ) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            if let Some(flow) = self.flows.get_mut(index) {
                flow.dirty = false;
                self.serve(cx, index, &mut serve_names);
            }
        }
        if self.buffered < MAX_BUFFERED {
            for index in std::mem::take(&mut self.starved) {
                if let Some(flow) = self.flows.get_mut(index) {
                    flow.starved = false;
                    self.mark(index);
                }
            }
        }
        // Flows that are not through with their turn have marked themselves again.
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
    }

    /// Whether flows wait to be served.
    pub fn is_busy(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Marks the flows whose time has come, for the end of the batch.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, index))) = self.deadlines.peek().copied() {
            if at > now {
                break;
            }
            self.work.timers += 1;
            self.deadlines.pop();
            if let Some(flow) = self.flows.get_mut(index)
                && flow.queued == Some(at)
            {
                flow.queued = None;
                if flow.deadline.is_some_and(|deadline| deadline <= now) {
                    self.mark(index);
                } else {
                    self.queue_deadline(index);
                }
            }
        }
    }

    /// When [`TcpFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// Resets every flow on both sides; a guest whose host still connects is told by a reset of its next segment.
    pub fn reset_all<P: Port, H: Host<Stream = S>>(&mut self, cx: &mut FlowContext<'_, P, H>) {
        let indices: Vec<usize> = self.flows.iter().map(|(index, _)| index).collect();
        for index in indices {
            if let Stage::Joined { endpoint, .. } | Stage::Names { endpoint, .. } =
                &mut self.flows[index].stage
            {
                endpoint.abort();
                endpoint.flush(&mut self.stack, cx.now, &mut cx.to_guest);
            }
            self.remove(index, End::Reset);
        }
    }

    /// Resets every flow towards the host alone, for a guest that is gone.
    pub fn reset_hosts(&mut self) {
        let indices: Vec<usize> = self.flows.iter().map(|(index, _)| index).collect();
        indices.into_iter().for_each(|index| self.remove(index, End::Reset));
    }

    /// The flow of a name conversation, to be answered later.
    pub fn conversation(&mut self, index: usize) -> Option<&mut Conversation> {
        match self.flows.get_mut(index).map(|flow| &mut flow.stage) {
            Some(Stage::Names { conversation, .. }) => Some(conversation),
            _ => None,
        }
    }

    /// Name conversations now.
    pub fn conversations(&self) -> usize {
        self.conversations
    }

    /// Serves a flow at the end of the batch.
    pub fn mark(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        if !flow.dirty {
            flow.dirty = true;
            self.dirty.push(index);
        }
    }

    fn serve<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
        serve_names: &mut impl FnMut(usize, &mut Endpoint, &mut Conversation),
    ) {
        self.work.served += 1;
        let over_budget = self.buffered >= MAX_BUFFERED;
        let flow = &mut self.flows[index];
        let verdict = match &mut flow.stage {
            Stage::Connecting { .. } => {
                if flow.deadline.is_some_and(|deadline| deadline <= cx.now) {
                    return self.remove(index, End::Orderly);
                }
                return;
            }
            Stage::Joined { .. } => flow.splice(&mut self.stack, cx, over_budget),
            Stage::Names { endpoint, conversation } => {
                serve_names(index, endpoint, conversation);
                flow.serve_endpoint(&mut self.stack, cx)
            }
            Stage::Gone => unreachable!("a flow is only taken apart while it is served"),
        };
        if let Verdict::End(end) = verdict {
            return self.remove(index, end);
        }
        let flow = &mut self.flows[index];
        let buffered = flow.stage.endpoint().map_or(0, Endpoint::buffered);
        self.buffered = self.buffered - flow.charged + buffered;
        flow.charged = buffered;
        if flow.half_open && flow.is_established() {
            flow.half_open = false;
            self.half_open -= 1;
        }
        let starved = over_budget && flow.readable && !flow.host_finished;
        if verdict == Verdict::Again {
            self.mark(index);
        } else if starved && !flow.starved {
            flow.starved = true;
            self.starved.push(index);
        }
        self.set_deadline(cx.now, index);
    }

    fn set_deadline(&mut self, now: Instant, index: usize) {
        let flow = &mut self.flows[index];
        let lifetime = flow.lifetime_end();
        let Some(endpoint) = flow.stage.endpoint() else { return };
        let trim = endpoint.wants_trim().then(|| flow.heard.max(flow.opened) + TRIM_DELAY);
        let protocol = endpoint.poll_timeout(&mut self.stack, now);
        let waits = protocol.is_none() && endpoint.waits_for_end();
        flow.repeat_end = if waits { flow.repeat_end.or(Some(now + REPEAT_END)) } else { None };
        flow.deadline = [protocol, lifetime, trim, flow.repeat_end]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(now + LEAST_DELAY));
        self.queue_deadline(index);
    }

    /// Puts the flow's deadline into the heap unless an earlier entry is there already.
    fn queue_deadline(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        if let Some(deadline) = flow.deadline
            && flow.queued.is_none_or(|queued| deadline < queued)
        {
            flow.queued = Some(deadline);
            self.deadlines.push(Reverse((deadline, index)));
            self.forget_stale_deadlines();
        }
    }

    /// Leaves one entry for each flow, once most are of flows that have gone or of deadlines that came to be
    /// earlier: a connect may wait for minutes, and a guest can make thousands a second.
    fn forget_stale_deadlines(&mut self) {
        if self.deadlines.len() > MOST_STALE * (self.flows.len() + LEAST_QUEUE) {
            let queued = |(index, flow): (usize, &Flow<S>)| Some(Reverse((flow.queued?, index)));
            self.deadlines = self.flows.iter().filter_map(queued).collect();
        }
    }

    fn remove(&mut self, index: usize, end: End) {
        let flow = self.flows.remove(index);
        self.index.remove(&flow.key);
        self.buffered -= flow.charged;
        if flow.half_open {
            self.half_open -= 1;
        }
        match flow.stage {
            Stage::Connecting { stream, .. } => end.apply(stream),
            Stage::Joined { endpoint, stream } => {
                end.apply(stream);
                self.stack.recycle(endpoint);
            }
            Stage::Names { endpoint, .. } => {
                self.conversations -= 1;
                self.stack.recycle(endpoint);
            }
            Stage::Gone => {}
        }
    }
}

/// Answers a segment of no flow with a reset.
pub fn reset<P: Port, H>(cx: &mut FlowContext<'_, P, H>, key: &FlowKey, header: &TcpHeader) {
    if let Some(segment) = BareSegment::reset_for(header, key.remote, key.guest) {
        cx.to_guest.send_ip(&segment.emit());
    }
}
