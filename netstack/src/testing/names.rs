//! A name service that answers every question with its own bytes.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::command::Transport;
use crate::gateway::names::{Action, NameService, Reply, Ticket};

use crate::switch::directory::{NamedPrefixes, NetworkView};
use crate::time::Instant;

/// Answers at once, or holds its answers back.
#[derive(Debug, Default)]
pub struct Echo {
    actions: VecDeque<Action>,
    /// Tickets of questions that are not answered while this is `Some`.
    pub held: Option<Vec<Ticket>>,
}

impl NameService for Echo {
    fn handle_query(
        &mut self,
        _: Instant,
        ticket: Ticket,
        _: &NetworkView,
        _: Transport,
        message: &[u8],
    ) {
        match &mut self.held {
            Some(held) => held.push(ticket),
            None => {
                let message = message.to_vec();
                self.actions.push_back(Action::Answer { ticket, message });
            }
        }
    }

    fn handle_reply(&mut self, _: Instant, _: u32, _: Reply<'_>) {}

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn set_resolvers(&mut self, _: &[SocketAddr]) {}

    fn set_networks(&mut self, _: Vec<NamedPrefixes>) {}
}
