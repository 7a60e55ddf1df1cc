//! The seam to the name service: the datapath carries questions and answers, and knows no DNS.
//!
//! The service is without I/O. It answers a question at once or later, and asks the host's resolvers by
//! telling us what to send where; we own the sockets. It answers every question exactly once.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::flow::tcp_endpoint::Endpoint;
use crate::budget::TokenBucket;
use crate::command::Transport;
use crate::switch::directory::{NamedPrefixes, NetworkView};
use crate::time::Instant;

/// The gateway's port for names.
pub const NAMES_PORT: u16 = 53;
/// Questions of one port under way at once.
pub const MAX_IN_FLIGHT: usize = 128;
/// Conversations over TCP of one port at once.
pub const MAX_CONVERSATIONS: usize = 16;
/// Questions of one conversation under way at once; more wait in its ring.
pub const MAX_PIPELINED: usize = 16;
/// How long a conversation may be silent.
pub const IDLE_LIFETIME: Duration = Duration::from_secs(5);
/// Questions of one port in a second, sustained; twice as many at once.
pub const SUSTAINED_RATE: u32 = 200;

/// Who asked, so that the answer finds its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The port's slot.
    pub slot: u16,
    /// Which life of that slot: slots are used again.
    pub generation: u32,
    /// Where on that port.
    pub asker: Asker,
}

/// Where on a port a question came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A datagram from there, and to which of the gateway's addresses.
    Datagram {
        /// Who asked.
        from: SocketAddr,
        /// Who was asked, and answers.
        to: IpAddr,
    },
    /// A conversation over TCP: its flow, and its number, which is never used again.
    Conversation {
        /// Index of the flow.
        flow: usize,
        /// The conversation's number.
        number: u64,
    },
}

/// Answers names.
pub trait NameService {
    /// A question of a guest on that network.
    fn handle_query(
        &mut self,
        now: Instant,
        ticket: Ticket,
        network: &NetworkView,
        transport: Transport,
        message: &[u8],
    );
    /// What came of an [`Action::Ask`].
    fn handle_reply(&mut self, now: Instant, exchange: u32, reply: Reply<'_>);
    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);
    /// When [`NameService::handle_timeout`] has something to do.
    fn poll_timeout(&self) -> Option<Instant>;
    /// What is to be done next; to be called until it answers `None`.
    fn poll_action(&mut self) -> Option<Action>;
    /// The host's resolvers have changed.
    fn set_resolvers(&mut self, resolvers: &[SocketAddr]);
    /// The networks have changed: their names and addresses, all of them.
    fn set_networks(&mut self, networks: Vec<NamedPrefixes>);
}

/// What the service wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer a question; an empty message means silence.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// The DNS message.
        message: Vec<u8>,
    },
    /// Ask a resolver, from a fresh socket.
    Ask {
        /// The service's number for it, unused by any other exchange under way.
        exchange: u32,
        /// Which resolver.
        resolver: SocketAddr,
        /// Over what.
        transport: Transport,
        /// The DNS message.
        message: Vec<u8>,
    },
    /// Close an exchange's socket.
    Forget {
        /// Which.
        exchange: u32,
    },
}

/// What came of asking a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A DNS message; the exchange stays open until it is forgotten.
    Message(&'a [u8]),
    /// The exchange failed.
    Failed,
}

/// A guest's conversation with the service over TCP: messages with two bytes of length in front
/// (RFC 1035 4.2.2, RFC 7766).
#[derive(Debug)]
pub struct Conversation {
    /// Its number.
    pub number: u64,
    /// Last byte from the guest, or answer to it.
    pub active: Instant,
    /// Questions not answered yet.
    pub pending: usize,
    received: Vec<u8>,
    /// Answers that did not fit into the ring yet.
    pub unsent: Vec<u8>,
}

impl Conversation {
    /// A conversation that begins now.
    pub fn new(now: Instant, number: u64) -> Self {
        Self { number, active: now, pending: 0, received: Vec::new(), unsent: Vec::new() }
    }

    /// Takes bytes of the guest, at most what completes one message, and answers how many it took and the
    /// message if it is complete.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> (usize, Option<Vec<u8>>) {
        let mut taken = 0;
        if self.received.len() < 2 {
            taken = bytes.len().min(2 - self.received.len());
            self.received.extend_from_slice(&bytes[..taken]);
        }
        let [high, low, ..] = self.received[..] else { return (taken, None) };
        let whole = 2 + usize::from(u16::from_be_bytes([high, low]));
        let more = (whole - self.received.len()).min(bytes.len() - taken);
        self.received.extend_from_slice(&bytes[taken..taken + more]);
        taken += more;
        if self.received.len() < whole {
            return (taken, None);
        }
        let message = self.received.split_off(2);
        self.received.clear();
        (taken, Some(message))
    }

    /// Queues an answer.
    pub fn answer(&mut self, now: Instant, message: &[u8]) {
        self.active = now;
        self.pending = self.pending.saturating_sub(1);
        if let Ok(len) = u16::try_from(message.len())
            && len > 0
        {
            self.unsent.extend_from_slice(&len.to_be_bytes());
            self.unsent.extend_from_slice(message);
        }
    }

    /// Whether the guest has kept silent for too long.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.pending == 0 && self.active + IDLE_LIFETIME <= now
    }
}

/// Where a port's conversations are served.
pub struct Desk<'a, N> {
    /// The time.
    pub now: Instant,
    /// The port's slot.
    pub slot: u16,
    /// Which life of the slot this is.
    pub generation: u32,
    /// The port's network.
    pub network: &'a NetworkView,
    /// Who answers.
    pub service: &'a mut N,
    /// The port's questions under way.
    pub in_flight: &'a mut usize,
    /// How often the port may ask.
    pub rate: &'a mut TokenBucket,
    /// Questions that were over budget.
    pub refused: usize,
}

impl<N: NameService> Desk<'_, N> {
    /// Reads questions from a conversation and writes answers that wait.
    pub fn serve(&mut self, flow: usize, endpoint: &mut Endpoint, conversation: &mut Conversation) {
        while endpoint.readable() > 0 && conversation.pending < MAX_PIPELINED {
            let message = endpoint.read(|bytes| conversation.handle_bytes(bytes)).flatten();
            conversation.active = self.now;
            if let Some(message) = message {
                self.ask(flow, conversation, &message);
            }
        }
        while !conversation.unsent.is_empty() && endpoint.is_writable() {
            let written = endpoint.write(|room| {
                let len = room.len().min(conversation.unsent.len());
                room[..len].copy_from_slice(&conversation.unsent[..len]);
                (len, len)
            });
            let Some(len) = written.filter(|len| *len > 0) else { break };
            conversation.unsent.drain(..len);
        }
        let done = conversation.pending == 0 && conversation.unsent.is_empty();
        if done && endpoint.is_finished_by_guest() {
            endpoint.finish();
        }
    }

    fn ask(&mut self, flow: usize, conversation: &mut Conversation, message: &[u8]) {
        if *self.in_flight >= MAX_IN_FLIGHT || !self.rate.take(self.now) {
            self.refused += 1;
            return;
        }
        *self.in_flight += 1;
        conversation.pending += 1;
        let asker = Asker::Conversation { flow, number: conversation.number };
        let ticket = Ticket { slot: self.slot, generation: self.generation, asker };
        self.service.handle_query(self.now, ticket, self.network, Transport::Tcp, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_any_slicing_of_the_stream() {
        let stream = [0, 3, 1, 2, 3, 0, 0, 0, 1, 9];
        for size in 1..=stream.len() {
            let mut conversation = Conversation::new(Instant::START, 0);
            let mut messages = Vec::new();
            for piece in stream.chunks(size) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let (taken, message) = conversation.handle_bytes(rest);
                    rest = &rest[taken..];
                    messages.extend(message);
                }
            }
            assert_eq!(messages, [vec![1, 2, 3], vec![], vec![9]], "pieces of {size}");
        }
    }
}
