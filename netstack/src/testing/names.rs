//! A name service that answers every question with its own bytes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::command::Transport;
use crate::gateway::names::{Action, NameService, Reply, Ticket};

use crate::switch::directory::{NamedPrefixes, NetworkView};
use crate::time::Instant;

/// A question that is answered only after [`DELAY`].
pub const SLOW: &[u8] = b"answer me slowly";
/// How long that takes.
pub const DELAY: Duration = Duration::from_secs(1);

/// Answers at once, or what is asked slowly after a while.
#[derive(Debug, Default)]
pub struct Echo {
    actions: VecDeque<Action>,
    slow: VecDeque<(Instant, Ticket)>,
}

impl NameService for Echo {
    fn handle_query(
        &mut self,
        now: Instant,
        ticket: Ticket,
        _: &NetworkView,
        _: Transport,
        message: &[u8],
    ) {
        if message == SLOW {
            return self.slow.push_back((now + DELAY, ticket));
        }
        let message = message.to_vec();
        self.actions.push_back(Action::Answer { ticket, message });
    }

    fn handle_reply(&mut self, _: Instant, _: u32, _: Reply<'_>) {}

    fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, ticket)) = self.slow.front().copied().filter(|(at, _)| *at <= now) {
            self.slow.pop_front();
            self.actions.push_back(Action::Answer { ticket, message: SLOW.to_vec() });
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.slow.front().map(|(at, _)| *at)
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn set_resolvers(&mut self, _: &[SocketAddr]) {}

    fn set_networks(&mut self, _: Vec<NamedPrefixes>) {}
}
