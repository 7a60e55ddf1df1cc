//! One worker: the ports it owns, and all that happens to them.
//!
//! The worker waits for nothing and reads no clock. Whoever drives it (the epoll loop of `event_loop`, or
//! the simulated lab) calls the `handle_*` methods when something happened, `poll_timeout` to know when
//! to come back, and `poll_event` for what control should hear.
//!
//! A panic while a port is served closes that port and no other.

mod busy_poll;
mod commands;
pub mod crossing;
pub mod event_loop;
mod exchanges;
mod frames;
mod polling;
mod slot;
mod wake_up;
mod words;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use self::crossing::Links;
use self::exchanges::Exchanges;
use self::polling::Polling;
use self::slot::Slot;
pub use self::words::{Moving, Possessions, WorkerCommand, WorkerEvent};
use crate::balance::Load;
use crate::command::Event;
use crate::counters::DropReason;
use crate::frame::staging::Staging;
use crate::gateway::flow::Work;
use crate::gateway::names::{Action, Asker, NameService, Reply, Ticket};
use crate::host::{Host, Listener, Readiness, Token, TokenKind};
use crate::port::{MAX_FRAME, Port};
use crate::switch::directory::Directory;
use crate::time::Instant;

/// Parcels taken from one other worker in one turn.
const MAX_PARCELS: usize = 8;
/// How long a listener rests that could not be accepted from.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections accepted from one listener in one turn.
const MAX_ACCEPTS: usize = 16;

/// Why a port is closed whose service has panicked.
const DEFECT: &str = "a defect in the datapath was met while serving this port";

/// One worker's whole state.
pub struct Worker<P: Port, H: Host, N> {
    host: H,
    names: N,
    slots: Vec<Option<Slot<P, H>>>,
    directory: Arc<Directory>,
    exchanges: Exchanges<H>,
    links: Links,
    /// What the other workers have.
    others: Possessions,
    /// A frame on its way in, or datagrams of the host's.
    received: Staging,
    /// A frame on its way out.
    scratch: Staging,
    events: VecDeque<WorkerEvent>,
    seed: u64,
    generation: u32,
    stopped: bool,
    /// Host sockets that all flows together may hold.
    descriptors: usize,
    /// Sockets that were not read empty, to be served again without a new edge.
    again: Vec<Token>,
    /// Slots whose guests have not been told of all that was done.
    touched: Vec<u16>,
    /// Listeners that could not be accepted from, and when that is tried again.
    paused: Vec<(Instant, Token)>,
    polling: Polling,
}

impl<P: Port, H: Host, N: NameService> Worker<P, H, N> {
    /// A worker without ports. `seed` feeds everything that must not be guessed; `descriptors` is how many
    /// host sockets all flows together may hold, which ports share fairly.
    pub fn new(host: H, names: N, seed: u64, descriptors: usize) -> Self {
        Self {
            host,
            names,
            slots: Vec::new(),
            directory: Arc::default(),
            exchanges: Exchanges::default(),
            links: Links::alone(),
            others: Possessions::default(),
            received: Staging::new(2 * MAX_FRAME),
            scratch: Staging::new(MAX_FRAME),
            events: VecDeque::new(),
            seed,
            generation: 0,
            stopped: false,
            descriptors,
            again: Vec::new(),
            touched: Vec::new(),
            paused: Vec::new(),
            polling: Polling::default(),
        }
    }

    /// The same as one of several.
    pub fn linked(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// The host's side, for whoever drives a simulated one.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// The frames of a slot's port, for whoever drives a simulated one.
    pub fn port(&mut self, slot: u16) -> Option<&mut P> {
        Some(&mut self.slots.get_mut(usize::from(slot))?.as_mut()?.io)
    }

    /// What was done for the flows of a slot, for whoever asserts that it does not grow with their number.
    pub fn flow_work(&self, slot: u16) -> Option<Work> {
        Some(self.slots.get(usize::from(slot))?.as_ref()?.gateway.work())
    }

    /// Whether a command has asked the worker to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn lose_slot(&mut self, slot: u16, reason: &str) {
        if let Some(mut open) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) {
            let port = open.spec.id;
            open.gateway.tcp.reset_hosts();
            let reason = reason.to_owned();
            self.events.push_back(WorkerEvent::SlotLost { slot, port });
            self.events.push_back(WorkerEvent::Event(Event::PortLost { port, reason }));
            self.share_descriptors();
        }
    }

    /// Runs `work` for a slot; a panic in it closes the slot's port.
    fn contained(&mut self, slot: u16, work: impl FnOnce(&mut Self)) {
        self.touch(slot);
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.lose_slot(slot, DEFECT);
        }
    }

    /// Something is done for a slot's guest, which it is told of by the next [`Worker::flush`].
    fn touch(&mut self, slot: u16) {
        frames::touch(&mut self.touched, slot);
    }

    /// Lets guests, and other workers, know of what was done for them.
    fn flush(&mut self) {
        self.links.send();
        while let Some(slot) = self.touched.pop() {
            if let Some(Some(open)) = self.slots.get_mut(usize::from(slot)) {
                self.polling.note_touched(slot, open);
                open.flush();
            }
        }
    }

    /// Whether it is one of several.
    pub fn has_others(&self) -> bool {
        self.links.workers() > 1
    }

    /// A second has passed, of which so much was work, of a thousand: lets it be told.
    pub fn handle_second(&mut self, busy: u16) {
        let slots = self.slots.iter_mut().flatten();
        let frames = slots.map(|open| (open.spec.id, open.frames_since_last_time())).collect();
        self.events.push_back(WorkerEvent::Load(Load { busy, frames }));
    }

    /// Something became ready.
    pub fn handle_ready(&mut self, now: Instant, token: Token, readiness: Readiness) {
        match token.kind {
            TokenKind::Frames => self.handle_frames(now, token.port),
            TokenKind::Names => self.handle_exchange(now, token.index, readiness),
            TokenKind::Commands | TokenKind::Time => {}
            TokenKind::Tcp
            | TokenKind::Udp
            | TokenKind::Echo
            | TokenKind::Listener
            | TokenKind::Published => {
                self.contained(token.port, |worker| worker.handle_socket(now, token, readiness));
                self.run_names(now);
            }
        }
        self.flush();
    }

    fn handle_socket(&mut self, now: Instant, token: Token, readiness: Readiness) {
        let Some(Some(open)) = self.slots.get_mut(usize::from(token.port)) else { return };
        let Some(network) = self.directory.network(open.spec.network) else { return };
        let index = token.index as usize;
        let mut cx = open.flow_context(now, &mut self.host, &network.spec, &mut self.scratch);
        let more = match token.kind {
            TokenKind::Tcp => {
                cx.gateway.tcp.handle_ready(&mut cx.flow, index, readiness);
                false
            }
            TokenKind::Udp => cx.gateway.udp.handle_ready(&mut cx.flow, index, &mut self.received),
            TokenKind::Echo => {
                cx.gateway.echo.handle_ready(&mut cx.flow, index, &mut self.received)
            }
            TokenKind::Published => {
                let home = (cx.port, network, &*self.directory);
                cx.gateway.handle_published(&mut cx.flow, home, index, &mut self.received)
            }
            TokenKind::Listener => {
                self.accept(now, token);
                false
            }
            TokenKind::Frames | TokenKind::Names | TokenKind::Commands | TokenKind::Time => false,
        };
        if more {
            self.again.push(token);
        }
        self.end_batch(now, token.port);
    }

    /// Accepts from a listener until nobody waits, or until the turn is over; then it comes back.
    fn accept(&mut self, now: Instant, token: Token) {
        for _ in 0..MAX_ACCEPTS {
            let Some(Some(open)) = self.slots.get_mut(usize::from(token.port)) else { return };
            let Some(forward) = open.forwards.get_mut(token.index as usize) else { return };
            match forward.listener.accept() {
                Ok((stream, client)) => {
                    let Some(network) = self.directory.network(open.spec.network) else { return };
                    let spec = open.forwards[token.index as usize].spec.clone();
                    open.handle_accepted(
                        now,
                        &mut self.host,
                        network,
                        &self.directory,
                        &mut self.scratch,
                        (&spec, stream, client),
                    );
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // No descriptor is left, most likely: who waits goes on waiting, and so do we.
                    open.counters.drop(DropReason::HostSocket);
                    return self.paused.push((now + ACCEPT_PAUSE, token));
                }
            }
        }
        self.again.push(token);
    }

    /// Serves the flows of a slot that something happened to.
    fn end_batch(&mut self, now: Instant, slot: u16) {
        let Some(Some(open)) = self.slots.get_mut(usize::from(slot)) else { return };
        let Some(network) = self.directory.network(open.spec.network) else { return };
        open.end_batch(slot::Surroundings {
            now,
            host: &mut self.host,
            names: &mut self.names,
            network,
            directory: &self.directory,
            scratch: &mut self.scratch,
        });
        if open.gateway.tcp.is_busy() {
            self.again.push(Token { port: slot, kind: TokenKind::Tcp, index: u32::MAX });
        }
        open.tell_control(now, &mut self.events);
        if let Some(used) = open.poll_addresses() {
            self.events.push_back(WorkerEvent::Addresses { port: open.spec.id, used });
        }
    }

    /// Whether [`Worker::handle_timeout`] is to be called at once.
    pub fn is_busy(&self) -> bool {
        !self.again.is_empty() || self.links.has_more()
    }

    /// Time has passed, or more is left to do.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut again = std::mem::take(&mut self.again);
        self.paused.retain(|(until, token)| {
            let due = *until <= now;
            if due {
                again.push(*token);
            }
            !due
        });
        for token in again {
            if token.kind == TokenKind::Frames {
                self.handle_frames(now, token.port);
                continue;
            }
            self.contained(token.port, |worker| worker.handle_socket(now, token, Readiness::READ));
        }
        for slot in 0..self.slots.len() {
            let slot = u16::try_from(slot).expect("slots are numbered by u16");
            let Some(Some(open)) = self.slots.get_mut(usize::from(slot)) else { continue };
            if open.poll_timeout().is_some_and(|at| at <= now) {
                self.contained(slot, |worker| {
                    let Worker { slots, directory, host, scratch, .. } = worker;
                    if let Some(Some(open)) = slots.get_mut(usize::from(slot)) {
                        let network = directory.network(open.spec.network);
                        let network = network.map(|network| &network.spec);
                        open.handle_timeout(now, host, network, scratch);
                    }
                    worker.end_batch(now, slot);
                });
            }
        }
        if self.names.poll_timeout().is_some_and(|at| at <= now) {
            self.names.handle_timeout(now);
        }
        self.run_names(now);
        self.flush();
    }

    /// When [`Worker::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let slots = self.slots.iter().flatten().filter_map(Slot::poll_timeout);
        let paused = self.paused.iter().map(|(until, _)| *until);
        slots.chain(self.names.poll_timeout()).chain(paused).min()
    }

    /// The next thing that control should hear.
    pub fn poll_event(&mut self) -> Option<WorkerEvent> {
        self.events.pop_front()
    }

    fn handle_exchange(&mut self, now: Instant, index: u32, readiness: Readiness) {
        let (names, exchanges) = (&mut self.names, &mut self.exchanges);
        let received = &mut self.received;
        // What a resolver sends is as little to be trusted as what a guest does.
        let handled = catch_unwind(AssertUnwindSafe(|| {
            exchanges.handle_ready(index, readiness, received, |exchange, reply| {
                names.handle_reply(now, exchange, reply);
            });
        }));
        if handled.is_err() {
            tracing::error!(
                "a defect was met in a resolver's reply; the question is left unanswered"
            );
            self.exchanges.close(index);
        }
        self.run_names(now);
    }

    /// Does what the name service asks for.
    fn run_names(&mut self, now: Instant) {
        while let Some(action) = self.names.poll_action() {
            match action {
                Action::Answer { ticket, message } => {
                    self.contained(ticket.slot, |worker| worker.answer(now, ticket, &message));
                }
                Action::Ask { exchange, resolver, transport, message } => {
                    let opened =
                        self.exchanges.ask(&mut self.host, exchange, resolver, transport, message);
                    if opened.is_err() {
                        self.names.handle_reply(now, exchange, Reply::Failed);
                    }
                }
                Action::Forget { exchange } => self.exchanges.forget(exchange),
            }
        }
    }

    /// Brings an answer of the name service to who asked, if that port is still there.
    fn answer(&mut self, now: Instant, ticket: Ticket, message: &[u8]) {
        let Some(Some(open)) = self.slots.get_mut(usize::from(ticket.slot)) else { return };
        let Some(network) = self.directory.network(open.spec.network) else { return };
        if open.generation != ticket.generation {
            return;
        }
        let mut cx = open.flow_context(now, &mut self.host, &network.spec, &mut self.scratch);
        match ticket.asker {
            Asker::Datagram { from, to } => {
                cx.gateway.handle_answer(&mut cx.flow, (to, from), message);
            }
            Asker::Conversation { flow, number } => {
                cx.gateway.handle_conversation_answer(now, flow, number, message);
                self.end_batch(now, ticket.slot);
            }
        }
    }
}
