//! One TCP flow: what it keeps, how bytes move between its two sides, and when it is over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::tcp_endpoint::{Endpoint, Flush};
use super::tcp_stack::TcpStack;
use super::view::{FlowView, Traffic};
use super::{FlowContext, FlowKey};
use crate::command::{FlowProtocol, FlowState};
use crate::gateway::names::{Conversation, IDLE_LIFETIME};
use crate::host::{Host, Stream};
use crate::port::Port;
use crate::time::Instant;

/// How long a connection may take to become established towards the guest.
const SYN_LIFETIME: Duration = Duration::from_secs(10);
/// How long our FIN, or data behind it, may stay unacknowledged.
const FIN_LIFETIME: Duration = Duration::from_secs(60);
/// How long a half-closed connection may be silent (RFC 5382 REQ-5: at least four minutes).
const HALF_CLOSED_LIFETIME: Duration = Duration::from_secs(240);
/// How long data may stay unacknowledged, zero windows included (RFC 1122 4.2.3.5 R2; Linux: 15 minutes).
const UNACKNOWLEDGED_LIFETIME: Duration = Duration::from_secs(900);
/// How long a drained flow keeps its pages.
pub(super) const TRIM_DELAY: Duration = Duration::from_secs(2);
/// Most bytes taken from a host socket in one service, so that one flow cannot hold the worker.
const MAX_TURN: usize = 4 << 20;

/// A flow in its place.
pub(super) struct Flow<S> {
    pub(super) key: FlowKey,
    pub(super) stage: Stage<S>,
    /// Readiness of the host socket as far as we know.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Whether it is read until it has nothing, since a read that gives less than was asked for may not be the last.
    pub(super) is_read_empty: bool,
    /// Whether the host has finished sending.
    pub(super) host_finished: bool,
    /// Whether the guest's end was passed on to the host.
    pub(super) guest_finished: bool,
    pub(super) half_open: bool,
    pub(super) dirty: bool,
    /// Whether it waits for the port's rings to have room.
    pub(super) starved: bool,
    /// Bytes charged to the port's budget.
    pub(super) charged: usize,
    pub(super) opened: Instant,
    /// Last segment from the guest.
    pub(super) heard: Instant,
    pub(super) traffic: Traffic,
    /// When our end is sent once more.
    pub(super) repeat_end: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    pub(super) queued: Option<Instant>,
}

// A joined flow is the common case; boxing it would cost an allocation and a cache line each.
#[allow(clippy::large_enum_variant)]
/// Where a flow stands in its life.
pub(super) enum Stage<S> {
    /// The host connects; the guest's SYN waits.
    Connecting { stream: S, to: SocketAddr, syn: Vec<u8> },
    /// Both sides exist.
    Joined { endpoint: Endpoint, stream: S },
    /// The guest speaks with the name service.
    Names { endpoint: Endpoint, conversation: Conversation },
    /// Taken apart; only while being served.
    Gone,
}

/// How the host's side of a flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Orderly,
    Reset,
}

impl End {
    pub(super) fn apply<S: Stream>(self, stream: S) {
        match self {
            Self::Orderly => drop(stream),
            Self::Reset => stream.reset(),
        }
    }
}

/// What a served flow wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Wait for the next event.
    Live,
    /// The turn was over before the work was.
    Again,
    /// Nothing is left to do.
    End(End),
}

impl<S> Stage<S> {
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Joined { endpoint, .. } | Self::Names { endpoint, .. } => Some(endpoint),
            Self::Connecting { .. } | Self::Gone => None,
        }
    }
}

impl<S: Stream> Flow<S> {
    pub(super) fn new(key: FlowKey, stage: Stage<S>, now: Instant) -> Self {
        Self {
            key,
            stage,
            readable: false,
            writable: false,
            is_read_empty: false,
            host_finished: false,
            guest_finished: false,
            half_open: true,
            dirty: false,
            starved: false,
            charged: 0,
            opened: now,
            heard: now,
            traffic: Traffic::default(),
            repeat_end: None,
            deadline: None,
            queued: None,
        }
    }

    /// The flow as it is shown.
    pub(super) fn view(&self) -> FlowView {
        let state = match self.stage.endpoint().map(Endpoint::state) {
            None => FlowState::Connecting,
            Some(State::Listen | State::SynSent | State::SynReceived) => FlowState::Opening,
            Some(State::Established) => FlowState::Established,
            Some(_) => FlowState::Closing,
        };
        let (key, heard, traffic) = (self.key, self.heard, self.traffic);
        FlowView { protocol: FlowProtocol::Tcp, key, state, heard, traffic }
    }

    pub(super) fn is_established(&self) -> bool {
        self.stage.endpoint().is_some_and(|endpoint| {
            !matches!(endpoint.state(), State::Listen | State::SynSent | State::SynReceived)
        })
    }

    /// When the flow is given up unless the guest is heard.
    pub(super) fn lifetime_end(&self) -> Option<Instant> {
        let endpoint = self.stage.endpoint()?;
        if let Stage::Names { conversation, .. } = &self.stage
            && conversation.pending == 0
        {
            return Some(conversation.active + IDLE_LIFETIME);
        }
        match endpoint.state() {
            State::Listen | State::SynSent | State::SynReceived => Some(self.opened + SYN_LIFETIME),
            State::FinWait1 | State::Closing | State::LastAck => Some(self.heard + FIN_LIFETIME),
            State::FinWait2 => Some(self.heard + HALF_CLOSED_LIFETIME),
            _ if endpoint.unacknowledged() > 0 => Some(self.heard + UNACKNOWLEDGED_LIFETIME),
            _ => None,
        }
    }

    /// Moves bytes both ways, passes ends on, and sends what the guest is to see.
    pub(super) fn splice<P: Port, H: Host<Stream = S>>(
        &mut self,
        stack: &mut TcpStack,
        cx: &mut FlowContext<'_, P, H>,
        over_budget: bool,
    ) -> Verdict {
        let Stage::Joined { endpoint, stream } = &mut self.stage else {
            unreachable!("the caller saw the stage");
        };
        if endpoint.was_reset() {
            return Verdict::End(End::Reset);
        }
        let mut failed = false;
        while self.writable && endpoint.readable() > 0 {
            match endpoint.read(|bytes| took(stream.send(bytes))) {
                Some(Progress::Some(len)) => self.traffic.from_guest += len as u64,
                Some(Progress::Blocked) => self.writable = false,
                Some(Progress::Interrupted) => {}
                Some(Progress::End | Progress::Failed) | None => {
                    failed = true;
                    break;
                }
            }
        }
        if !self.guest_finished && endpoint.is_finished_by_guest() {
            stream.finish();
            self.guest_finished = true;
        }
        let mut turn = 0;
        while self.readable && !self.host_finished && !over_budget && endpoint.is_writable() {
            let mut asked = 0;
            let fill = |bytes: &mut [u8]| {
                asked = bytes.len();
                took(stream.receive(bytes))
            };
            match endpoint.write(fill) {
                Some(Progress::Some(len)) => {
                    turn += len;
                    self.traffic.to_guest += len as u64;
                    // Another read would only be told so, and what came waits for it.
                    self.readable = len == asked || self.is_read_empty;
                }
                Some(Progress::Blocked) => self.readable = false,
                Some(Progress::Interrupted) => {}
                Some(Progress::End) => {
                    self.host_finished = true;
                    endpoint.finish();
                }
                Some(Progress::Failed) | None => {
                    failed = true;
                    break;
                }
            }
            if turn >= MAX_TURN {
                break;
            }
        }
        if failed {
            endpoint.abort();
            endpoint.flush(stack, cx.now, &mut cx.to_guest);
            return Verdict::End(End::Reset);
        }
        let verdict = self.serve_endpoint(stack, cx);
        if verdict == Verdict::Live && turn >= MAX_TURN { Verdict::Again } else { verdict }
    }

    /// Sends what the guest is to see, and judges whether the flow is over.
    pub(super) fn serve_endpoint<P: Port, H: Host<Stream = S>>(
        &mut self,
        stack: &mut TcpStack,
        cx: &mut FlowContext<'_, P, H>,
    ) -> Verdict {
        let expired = self.lifetime_end().is_some_and(|end| end <= cx.now);
        let trim_due = self.heard + TRIM_DELAY <= cx.now;
        let (Stage::Joined { endpoint, .. } | Stage::Names { endpoint, .. }) = &mut self.stage
        else {
            unreachable!("the caller saw the stage");
        };
        if expired {
            endpoint.abort();
        }
        let flush = endpoint.flush(stack, cx.now, &mut cx.to_guest);
        if self.repeat_end.is_some_and(|at| at <= cx.now) && endpoint.waits_for_end() {
            endpoint.repeat_end(&mut cx.to_guest);
            self.repeat_end = None;
        }
        if expired || endpoint.was_reset() {
            return Verdict::End(End::Reset);
        }
        if trim_due {
            endpoint.trim();
        }
        let drained = endpoint.readable() == 0;
        match endpoint.state() {
            // A reset in SYN-RECEIVED puts smoltcp's socket back into LISTEN.
            State::Listen => Verdict::End(End::Reset),
            State::Closed | State::TimeWait if drained => {
                let orderly = matches!(self.stage, Stage::Names { .. })
                    || (self.guest_finished && self.host_finished);
                Verdict::End(if orderly { End::Orderly } else { End::Reset })
            }
            _ if flush == Flush::More => Verdict::Again,
            _ => Verdict::Live,
        }
    }
}

enum Progress {
    Some(usize),
    Blocked,
    Interrupted,
    End,
    Failed,
}

/// An I/O result as bytes moved and what that means.
fn took(result: io::Result<usize>) -> (usize, Progress) {
    match result {
        Ok(0) => (0, Progress::End),
        Ok(len) => (len, Progress::Some(len)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => (0, Progress::Blocked),
            io::ErrorKind::Interrupted => (0, Progress::Interrupted),
            _ => (0, Progress::Failed),
        },
    }
}
