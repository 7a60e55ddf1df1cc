//! The guest's end of a TCP flow: one smoltcp socket, with what goes past it.
//!
//! smoltcp sees IP packets only, takes and emits segments of 64 KiB whole, and verifies no checksum: `Headers` has done
//! that. Large data that comes in order goes past it, straight from the frame to the host (see [`Endpoint::is_next`]),
//! and so does the middle of a long stream to the guest (see `direct.rs`).

use std::net::SocketAddr;

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::IpEndpoint;

use super::direct::{Acknowledgement, Sign, Way};
use super::past::Past;
use super::tcp_device::{Limits, Wire, partial_checksum};
use super::tcp_guard::{Expectation, Judgement, TcpGuard};
use super::tcp_stack::{Rings, TcpStack, clock, on_our_clock};
use crate::counters::DropReason;
use crate::port::Port;
use crate::port::to_guest::ToGuest;
use crate::time::Instant;
use crate::wire::ip::header_len_of;
use crate::wire::ipv4::IPV4_LEN;
use crate::wire::ipv6::IPV6_LEN;
use crate::wire::tcp::{BareSegment, Flags, TCP_LEN, TcpHeader, option};

/// Segments emitted in one go; more wait for the next round, so that one flow cannot hold the worker.
const MAX_BURST: usize = 64;
/// Least data in a segment that is offered to the host directly. What fits fewer segments of a wire waits for
/// the answer that may carry its acknowledgement, as smoltcp does it.
const LEAST_DIRECT: usize = 8 << 10;
/// Most data in a segment that goes past smoltcp: what fits an IP packet with either header.
const MAX_DIRECT: usize = 65_535 - IPV6_LEN - TCP_LEN;
/// What a guest takes that says nothing, or nonsense (RFC 9293 3.7.1; Linux has the same floor).
const LEAST_MSS: u16 = 536;

/// One guest's end of one connection.
pub struct Endpoint {
    rings: Rings,
    guard: TcpGuard,
    reset_by_guest: bool,
    past: Past,
    /// Largest segment that the guest takes.
    guest_mss: u16,
}

impl Endpoint {
    pub(super) fn new(rings: Rings) -> Self {
        Self {
            rings,
            guard: TcpGuard::default(),
            reset_by_guest: false,
            past: Past::default(),
            guest_mss: LEAST_MSS,
        }
    }

    pub(super) fn into_rings(self) -> Rings {
        self.rings
    }

    fn socket(&self) -> &Socket<'static> {
        self.rings.sockets.get(self.rings.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.rings.sockets.get_mut(self.rings.handle)
    }

    /// The connection's state in the words of RFC 9293.
    pub fn state(&self) -> State {
        self.socket().state()
    }

    /// Whether the guest has reset the connection, or refused it.
    pub fn was_reset(&self) -> bool {
        self.reset_by_guest
    }

    /// Bytes in both rings.
    pub fn buffered(&self) -> usize {
        self.socket().recv_queue() + self.unacknowledged()
    }

    /// Bytes of the guest that wait to be read.
    pub fn readable(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Whether the guest has finished and all it sent has been read.
    pub fn is_finished_by_guest(&self) -> bool {
        let ended = matches!(
            self.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        );
        ended && self.readable() == 0
    }

    /// Whether bytes for the guest can be added.
    pub fn is_writable(&self) -> bool {
        match self.way() {
            Way::Direct => self.socket().may_send() && self.rings.direct.has_room(),
            Way::Smoltcp => self.socket().can_send(),
            Way::Wait => false,
        }
    }

    fn way(&self) -> Way {
        self.rings.direct.way(self.socket().send_queue())
    }

    /// Bytes for the guest that it has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.socket().send_queue() + self.rings.direct.len()
    }

    /// Lets `consume` take bytes of the guest; it answers how many it took.
    pub fn read<R>(&mut self, consume: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        let mut taken = 0;
        let result = self
            .socket_mut()
            .recv(|bytes| {
                let (len, result) = consume(bytes);
                taken = len;
                (len, result)
            })
            .ok();
        self.rings.note_carried(taken);
        result
    }

    /// Lets `fill` write bytes for the guest; it answers how many it wrote.
    pub fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        if self.way() == Way::Direct {
            let (len, result) = fill(self.rings.direct.room());
            self.rings.direct.add(len);
            self.rings.note_carried(len);
            return Some(result);
        }
        let mut written = 0;
        let result = self
            .socket_mut()
            .send(|bytes| {
                let (len, result) = fill(bytes);
                written = len;
                (len, result)
            })
            .ok();
        self.rings.note_carried(written);
        self.rings.direct.note(written);
        result
    }

    /// Finishes our direction once all written bytes are through.
    pub fn finish(&mut self) {
        self.rings.direct.want_end();
        self.finish_behind_direct();
    }

    /// smoltcp sends our end, as soon as all before it was sent.
    fn finish_behind_direct(&mut self) {
        if self.rings.direct.take_end() {
            self.socket_mut().close();
        }
    }

    /// Resets the connection; the segment goes out with the next [`Endpoint::flush`].
    pub fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Gives the rings' pages back when they hold nothing.
    pub fn trim(&mut self) {
        if self.buffered() == 0 && self.guard.is_gapless() {
            self.rings.trim_if_used();
        }
    }

    /// Whether [`Endpoint::trim`] would be worth its system call.
    pub fn wants_trim(&self) -> bool {
        self.rings.wants_trim() && self.buffered() == 0
    }

    /// Whether the data of a segment may go to the host at once: nothing of either side is under way, it is
    /// exactly what comes next, and there is enough of it. Whatever is out of the ordinary is smoltcp's.
    pub fn is_next(&self, header: &TcpHeader) -> bool {
        const SPECIAL: u8 = Flags::SYN | Flags::FIN | Flags::RST;
        let expectation = self.guard.expectation();
        let next = match self.past.owed {
            Some(next) => Some(next),
            None => self.guard.is_gapless().then_some(expectation.acknowledgement),
        };
        header.payload_len >= LEAST_DIRECT
            && header.flags.has(Flags::ACK)
            && header.flags.0 & SPECIAL == 0
            && next == Some(header.sequence)
            && header.acknowledgement == expectation.sequence
            && matches!(self.state(), State::Established | State::FinWait2)
            && self.buffered() == 0
            && self.guard.is_within_window(header.sequence.wrapping_add(header.sequence_len()))
    }

    /// Follows that the host has taken the first `len` bytes of a segment that [is next](Self::is_next). What is
    /// left for [`Endpoint::handle_segment`] is a segment that starts behind them; `None` when that says nothing.
    pub fn pass<'p>(
        &mut self,
        packet: &'p mut [u8],
        header: &TcpHeader,
        len: usize,
    ) -> Option<(&'p mut [u8], TcpHeader)> {
        let taken = u32::try_from(len).expect("segments are below 64 KiB");
        let next = header.sequence.wrapping_add(taken);
        if len > 0 {
            self.past.len = self.past.len.wrapping_add(taken);
            self.past.owed = Some(next);
        }
        if len == header.payload_len && header.window == self.past.window {
            self.guard.observe_from_guest(header);
            return None;
        }
        // The headers move to the data that is left. Nobody looks at their checksums any more.
        let headers_len = packet.len() - header.payload_len;
        packet.copy_within(..headers_len, len);
        let rest = &mut packet[len..];
        // The length of IPv6 leaves its header out.
        let (field, behind) = if rest[0] >> 4 == 6 { (4, IPV6_LEN) } else { (2, 0) };
        let total = u16::try_from(rest.len() - behind).expect("shorter than a packet");
        rest[field..field + 2].copy_from_slice(&total.to_be_bytes());
        let payload_len = header.payload_len - len;
        Some((rest, TcpHeader { sequence: next, payload_len, ..*header }))
    }

    /// Takes a segment of the guest: `packet` is the IP packet, without extension headers, `header` its parsed TCP header.
    pub fn handle_segment<P: Port>(
        &mut self,
        stack: &mut TcpStack,
        now: Instant,
        packet: &mut [u8],
        header: &TcpHeader,
        to_guest: &mut ToGuest<'_, P>,
    ) {
        if header.flags.has(Flags::RST) {
            // Only an exact number counts, so what has arrived must be acknowledged first.
            self.flush(stack, now, to_guest);
        }
        let tcp = header_len_of(packet);
        let mut acknowledgement = header.acknowledgement;
        match self.guard.judge(header) {
            Judgement::Accept => {}
            Judgement::AcceptWithAcknowledgement(raised) => acknowledgement = raised,
            Judgement::Reset => {
                self.reset_by_guest = true;
                return;
            }
            Judgement::Challenge => {
                to_guest.counters.drop(DropReason::TcpBlind);
                return self.challenge(now, to_guest);
            }
            Judgement::Refuse => {
                to_guest.counters.drop(DropReason::TcpBlind);
                return self.refuse(header, to_guest);
            }
            Judgement::Ignore => return to_guest.counters.drop(DropReason::TcpBlind),
        }
        if header.flags.has(Flags::SYN) {
            let options = &packet[tcp + TCP_LEN..tcp + header.header_len];
            let scale = option(options, 3);
            self.guard.observe_syn(scale.and_then(|bytes| bytes.first().copied()));
            self.guest_mss = option(options, 2)
                .and_then(|mss| mss.first_chunk())
                .map_or(LEAST_MSS, |mss| u16::from_be_bytes(*mss).max(LEAST_MSS));
        }
        self.acknowledge_direct(now, header, acknowledgement);
        let lowered = self.rings.direct.lower(acknowledgement);
        packet[tcp + 8..tcp + 12].copy_from_slice(&lowered.to_be_bytes());
        self.guard.observe_from_guest(header);
        self.past.window = header.window;
        let sequence = header.sequence.wrapping_sub(self.past.len);
        packet[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        let before = self.state();
        let limits = self.limits(stack);
        let mut device = Wire {
            from_guest: Some(packet),
            to_guest,
            guard: &mut self.guard,
            past: &mut self.past,
            ahead: self.rings.direct.ahead(),
            limits,
        };
        stack.interface.poll_ingress_single(clock(now), &mut device, &mut self.rings.sockets);
        // A refused SYN of ours closes smoltcp's socket.
        if before == State::SynSent && self.state() == State::Closed {
            self.reset_by_guest = true;
        }
    }

    /// Sends what is to be sent. Answers whether more waits.
    pub fn flush<P: Port>(
        &mut self,
        stack: &mut TcpStack,
        now: Instant,
        to_guest: &mut ToGuest<'_, P>,
    ) -> Flush {
        let limits = self.limits(stack);
        self.flush_direct(now, limits, to_guest);
        for _ in 0..MAX_BURST {
            let mut device = Wire {
                from_guest: None,
                to_guest,
                guard: &mut self.guard,
                past: &mut self.past,
                ahead: self.rings.direct.ahead(),
                limits,
            };
            let result =
                stack.interface.poll_egress(clock(now), &mut device, &mut self.rings.sockets);
            if result == PollResult::None {
                self.acknowledge_past(to_guest);
                return Flush::Done;
            }
        }
        Flush::More
    }

    fn limits(&self, stack: &TcpStack) -> Limits {
        Limits { mtu: stack.mtu, guest_mss: self.guest_mss }
    }

    /// Follows what a segment of the guest acknowledges of the bytes that went past smoltcp to it.
    fn acknowledge_direct(&mut self, now: Instant, header: &TcpHeader, acknowledgement: u32) {
        let is_current = acknowledgement == header.acknowledgement;
        let heard = Acknowledgement {
            advance: acknowledgement.wrapping_sub(self.guard.acknowledged()),
            window: is_current.then(|| self.guard.window_of(header)),
            is_bare: is_current && header.sequence_len() == 0,
        };
        if self.rings.direct.handle(now, heard) == Sign::Loss {
            self.repeat_direct(now);
        }
    }

    /// Has the bytes sent again that went past smoltcp and were not acknowledged.
    fn repeat_direct(&mut self, now: Instant) {
        let Rings { sockets, handle, direct, .. } = &mut self.rings;
        if direct.has_ended() {
            direct.rewind(now);
        } else {
            direct.hand_over(sockets.get_mut(*handle));
            self.finish_behind_direct();
        }
    }

    /// Sends what goes past smoltcp, as much as the guest takes.
    fn flush_direct<P: Port>(
        &mut self,
        now: Instant,
        limits: Limits,
        to_guest: &mut ToGuest<'_, P>,
    ) {
        self.rings.direct.set_possible(to_guest.port.gathering().is_some());
        if self.rings.direct.is_stuck(now) {
            self.repeat_direct(now);
        }
        let Some((from, to)) = self.ends().filter(|_| !self.rings.direct.is_empty()) else {
            return;
        };
        let ip_len = if from.is_ipv6() { IPV6_LEN } else { IPV4_LEN };
        let mss = usize::from(limits.mss(ip_len).min(self.guest_mss));
        while let Some(range) = self.rings.direct.next(MAX_DIRECT, mss)
            && to_guest.port.has_room()
        {
            self.settle_owed();
            let offset = u32::try_from(range.0).expect("a ring is smaller");
            let sequence = self.guard.acknowledged().wrapping_add(offset);
            let push = if self.rings.direct.is_last(range) { Flags::PSH } else { 0 };
            let segment = self.segment((from, to), Flags(Flags::ACK | push), sequence);
            let (headers, ip_len) = segment.emit_before(range.1);
            let size = u16::try_from(mss).expect("an MSS has sixteen bits");
            let vnet =
                partial_checksum(ip_len, TCP_LEN, (range.1 > mss).then_some(size), from.is_ipv6());
            to_guest.send_parts(&headers, self.rings.direct.parts(range), vnet);
            self.rings.direct.advance(now, range.1);
            let sent = u32::try_from(range.1).expect("less than a packet");
            self.guard.observe_sent(sequence.wrapping_add(sent));
        }
        self.finish_behind_direct();
    }

    /// The connection's two ends, ours first.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let socket = self.socket();
        Some((socket_address(socket.local_endpoint()?), socket_address(socket.remote_endpoint()?)))
    }

    /// Acknowledges what went past smoltcp, unless a segment of its own has done so.
    fn acknowledge_past<P: Port>(&mut self, to_guest: &mut ToGuest<'_, P>) {
        if self.settle_owed() {
            let sequence = self.guard.expectation().sequence;
            self.send_bare(to_guest, Flags(Flags::ACK), sequence);
        }
    }

    /// What is sent next acknowledges all that went past smoltcp. Answers whether that was owed.
    fn settle_owed(&mut self) -> bool {
        let owed = self.past.owed.take();
        owed.inspect(|next| self.guard.observe_acknowledgement(*next)).is_some()
    }

    /// When smoltcp wants to be served next.
    pub fn poll_timeout(&self, stack: &mut TcpStack, now: Instant) -> Option<Instant> {
        let protocol = stack.interface.poll_at(clock(now), &self.rings.sockets).map(on_our_clock);
        let direct = self.rings.direct.poll_timeout(now, self.guest_mss.into());
        protocol.into_iter().chain(direct).min()
    }

    /// Whether our end was sent and not acknowledged, with no data left before it.
    pub fn waits_for_end(&self) -> bool {
        self.unacknowledged() == 0
            && matches!(self.state(), State::FinWait1 | State::Closing | State::LastAck)
    }

    /// Sends our end once more. smoltcp forgets to, for good, when three duplicate acknowledgements came
    /// after a FIN that the guest had to drop.
    pub fn repeat_end<P: Port>(&mut self, to_guest: &mut ToGuest<'_, P>) {
        let expectation = self.guard.expectation();
        let sequence = expectation.sequence.wrapping_sub(1);
        self.send_bare(to_guest, Flags(Flags::FIN | Flags::ACK), sequence);
    }

    fn challenge<P: Port>(&mut self, now: Instant, to_guest: &mut ToGuest<'_, P>) {
        if self.guard.may_challenge(now) {
            let sequence = self.guard.expectation().sequence;
            self.send_bare(to_guest, Flags(Flags::ACK), sequence);
        }
    }

    fn refuse<P: Port>(&self, header: &TcpHeader, to_guest: &mut ToGuest<'_, P>) {
        let reset = self.ends().and_then(|(from, to)| BareSegment::reset_for(header, from, to));
        if let Some(reset) = reset {
            to_guest.send_ip(&reset.emit());
        }
    }

    /// A segment of ours with the acknowledgement and the window as they are.
    fn segment(
        &self,
        (from, to): (SocketAddr, SocketAddr),
        flags: Flags,
        sequence: u32,
    ) -> BareSegment {
        let Expectation { acknowledgement, window, .. } = self.guard.expectation();
        BareSegment { from, to, sequence, acknowledgement, flags, window }
    }

    fn send_bare<P: Port>(&self, to_guest: &mut ToGuest<'_, P>, flags: Flags, sequence: u32) {
        if let Some(ends) = self.ends() {
            to_guest.send_ip(&self.segment(ends, flags, sequence).emit());
        }
    }
}

/// Whether a flush has sent everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing is left to send now.
    Done,
    /// The burst limit came first.
    More,
}

fn socket_address(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}
