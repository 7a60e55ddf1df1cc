//! How a flow comes to be: room is made, the host connects or has accepted, and both sides are joined.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{MAX_FLOWS, MAX_HALF_OPEN, Target, TcpFlows, reset};
use crate::counters::DropReason;
use crate::gateway::flow::tcp_flow::{End, Flow, Stage};
use crate::gateway::flow::{FlowContext, FlowKey, ForwardSource};
use crate::gateway::names::Conversation;
use crate::host::{Host, Stream, Token, TokenKind};
use crate::port::Port;
use crate::time::Instant;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::header_len_of;
use crate::wire::tcp::TcpHeader;

/// How long a host connect may take; Linux gives up after about two minutes itself.
const CONNECT_LIFETIME: Duration = Duration::from_secs(130);

impl<S: Stream> TcpFlows<S> {
    /// Starts a flow of the guest with its SYN.
    pub fn handle_syn<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        packet: &mut [u8],
        header: &TcpHeader,
        target: Target,
    ) {
        if let Err(reason) = self.make_room() {
            cx.to_guest.counters.drop(reason);
            return reset(cx, &key, header);
        }
        self.make_half_open_room(cx);
        match target {
            Target::Host(to) => self.start_connect(cx, key, packet, header, to),
            Target::Names => self.start_names(cx, key, packet, header),
        }
    }

    fn start_connect<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        packet: &mut [u8],
        header: &TcpHeader,
        to: SocketAddr,
    ) {
        let entry = self.flows.vacant_entry();
        let index = entry.key();
        match cx.host.connect(to, token(cx.slot, index)) {
            Ok(stream) => {
                let stage = Stage::Connecting { stream, to, syn: packet.to_vec() };
                let mut flow = Flow::new(key, stage, cx.now);
                flow.deadline = Some(cx.now + CONNECT_LIFETIME);
                entry.insert(flow);
                self.admit(cx.now, key, index);
            }
            Err(error) => refuse(cx, &key, packet, header, &error),
        }
    }

    fn start_names<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: FlowKey,
        packet: &mut [u8],
        header: &TcpHeader,
    ) {
        let Ok(mut endpoint) = self.stack.listen(key.remote) else {
            cx.to_guest.counters.drop(DropReason::HostSocket);
            return reset(cx, &key, header);
        };
        endpoint.handle_segment(&mut self.stack, cx.now, packet, header, &mut cx.to_guest);
        let conversation = Conversation::new(cx.now, self.next_conversation);
        self.next_conversation += 1;
        self.conversations += 1;
        let stage = Stage::Names { endpoint, conversation };
        let index = self.flows.insert(Flow::new(key, stage, cx.now));
        self.admit(cx.now, key, index);
        self.mark(index);
    }

    /// Joins a connection that the host accepted on a published port with the guest.
    pub fn handle_accepted<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        stream: S,
        source: ForwardSource,
        guest: SocketAddr,
    ) {
        if let Err(reason) = self.make_room() {
            cx.to_guest.counters.drop(reason);
            return stream.reset();
        }
        self.make_half_open_room(cx);
        let Some(key) = self.forward_key(source, guest) else {
            cx.to_guest.counters.drop(DropReason::TcpBudget);
            return stream.reset();
        };
        let entry = self.flows.vacant_entry();
        let index = entry.key();
        let endpoint = self.stack.connect(key.remote, guest);
        let (Ok(endpoint), Ok(())) =
            (endpoint, cx.host.watch_stream(&stream, token(cx.slot, index)))
        else {
            cx.to_guest.counters.drop(DropReason::HostSocket);
            return stream.reset();
        };
        entry.insert(Flow::new(key, Stage::Joined { endpoint, stream }, cx.now));
        self.admit(cx.now, key, index);
        self.mark(index);
    }

    fn forward_key(&mut self, source: ForwardSource, guest: SocketAddr) -> Option<FlowKey> {
        let ports = std::iter::repeat_with(|| {
            self.next_local_port = self.next_local_port.checked_add(1).unwrap_or(32_768);
            self.next_local_port
        });
        source.key(guest, ports.take(MAX_FLOWS + 1), |key| self.index.get(key).is_none())
    }

    /// Joins a flow whose host has connected, or tells why it has not.
    pub(super) fn finish_connect<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        index: usize,
    ) {
        let flow = &mut self.flows[index];
        let Stage::Connecting { mut stream, to, mut syn } =
            std::mem::replace(&mut flow.stage, Stage::Gone)
        else {
            unreachable!("the caller saw the stage");
        };
        let key = flow.key;
        let tcp = header_len_of(&syn);
        let header = TcpHeader::parse(&syn[tcp..]).expect("the SYN was parsed when it came");
        match stream.connected() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                flow.stage = Stage::Connecting { stream, to, syn };
                return;
            }
            Err(error) if let Some((stream, to)) = connect_again(cx, index, to, &error) => {
                flow.stage = Stage::Connecting { stream, to, syn };
                return;
            }
            Err(error) => {
                self.remove(index, End::Orderly);
                return refuse(cx, &key, &syn, &header, &error);
            }
        }
        match self.stack.listen(key.remote) {
            Ok(mut endpoint) => {
                endpoint.handle_segment(
                    &mut self.stack,
                    cx.now,
                    &mut syn,
                    &header,
                    &mut cx.to_guest,
                );
                flow.opened = cx.now;
                flow.stage = Stage::Joined { endpoint, stream };
                self.mark(index);
            }
            Err(_) => {
                cx.to_guest.counters.drop(DropReason::HostSocket);
                stream.reset();
                self.remove(index, End::Orderly);
                reset(cx, &key, &header);
            }
        }
    }

    fn make_room(&self) -> Result<(), DropReason> {
        if self.flows.len() < MAX_FLOWS { Ok(()) } else { Err(DropReason::TcpBudget) }
    }

    /// A flood of SYNs pushes out its own: the oldest half-open flow goes, silently, so that an honest SYN
    /// that was pushed out is simply sent again.
    fn make_half_open_room<P: Port, H: Host<Stream = S>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
    ) {
        while self.half_open >= MAX_HALF_OPEN {
            let flows = &self.flows;
            let oldest = self.half_open_order.pop_oldest(|index| {
                flows.get(index).filter(|flow| flow.half_open).map(|flow| flow.opened)
            });
            match oldest {
                Some(index) if self.flows.get(index).is_some_and(|flow| flow.half_open) => {
                    cx.to_guest.counters.drop(DropReason::HalfOpenBudget);
                    self.remove(index, End::Reset);
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    fn admit(&mut self, now: Instant, key: FlowKey, index: usize) {
        self.index.insert(key, index);
        self.half_open += 1;
        if self.half_open_order.len() > 4 * MAX_HALF_OPEN {
            // Made anew: a place is used again, so an old entry cannot be told from its next flow's.
            let half_open =
                self.flows.iter().filter(|(place, flow)| flow.half_open && *place != index);
            self.half_open_order.refill(half_open.map(|(place, flow)| (flow.opened, place)));
        }
        self.half_open_order.push(now, index);
        self.queue_deadline(index);
    }
}

fn token(slot: u16, index: usize) -> Token {
    let index = u32::try_from(index).expect("a port has at most 4096 flows");
    Token { port: slot, kind: TokenKind::Tcp, index }
}

/// Where nobody listens on the host's loopback of IPv4, somebody may on that of IPv6: many development servers bind to
/// what `localhost` means first.
fn connect_again<P: Port, H: Host>(
    cx: &mut FlowContext<'_, P, H>,
    index: usize,
    to: SocketAddr,
    error: &io::Error,
) -> Option<(H::Stream, SocketAddr)> {
    if to.ip() != Ipv4Addr::LOCALHOST || error.kind() != io::ErrorKind::ConnectionRefused {
        return None;
    }
    let to = SocketAddr::from((Ipv6Addr::LOCALHOST, to.port()));
    // A host without IPv6 has refused.
    let stream = cx.host.connect(to, token(cx.slot, index)).ok()?;
    Some((stream, to))
}

/// Tells the guest that its SYN came to nothing, as a real network would.
fn refuse<P: Port, H>(
    cx: &mut FlowContext<'_, P, H>,
    key: &FlowKey,
    packet: &[u8],
    header: &TcpHeader,
    error: &io::Error,
) {
    let unreachable = match error.kind() {
        io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
        io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::TimedOut => return reset(cx, key, header),
        _ => {
            cx.to_guest.counters.drop(DropReason::HostSocket);
            return reset(cx, key, header);
        }
    };
    cx.to_guest.counters.drop(DropReason::NoRoute);
    cx.tell(unreachable, None, packet);
}
