//! From one lookup of a question to the next, or to its answer.

use std::time::Duration;

use hickory_proto::op::Message;

use super::{Asker, Resolver};
use crate::answer::query_of;
use crate::dns64::{Lookup, Outcome};

impl<T: Copy> Resolver<T> {
    /// Ends a question with a reply, or goes on to the next lookup. `as_it_came` is the reply's own bytes, where nothing
    /// was taken out of it.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        number: u64,
        reply: &Message,
        as_it_came: Option<&[u8]>,
    ) {
        let Some(pending) = self.pending.get(&number) else { return };
        let Some(Asker { question, .. }) = pending.askers.first() else { return };
        let outcome = match pending.lookup {
            Lookup::Plain => Outcome::AsItIs,
            lookup => match query_of(question) {
                Some(query) => lookup.judge(reply, query),
                None => return self.end_in_failure(number),
            },
        };
        let encoded = match (outcome, as_it_came) {
            (Outcome::Next(lookup), _) => return self.look_up(now, number, lookup),
            (Outcome::AsItIs, Some(bytes)) => return self.end(number, bytes),
            (Outcome::AsItIs, None) => reply.to_vec(),
            (Outcome::Answer(answer), _) => answer.to_vec(),
        };
        match encoded {
            Ok(bytes) => self.end(number, &bytes),
            Err(_) => self.end_in_failure(number),
        }
    }

    /// Asks anew for something else in the place of the same question, in what is left of its time.
    pub(super) fn look_up(&mut self, now: Duration, number: u64, lookup: Lookup) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let Some(Asker { question, .. }) = pending.askers.first() else { return };
        pending.message = lookup.message(&pending.message, question);
        pending.lookup = lookup;
        pending.asks = 0;
        pending.failed.clear();
        for exchange in std::mem::take(&mut pending.exchanges) {
            self.close(exchange);
        }
        self.ask_next(now, number);
    }

    /// Nobody has answered a lookup.
    pub(super) fn give_up(&mut self, now: Duration, number: u64) {
        let Some(pending) = self.pending.get(&number) else { return };
        match pending.lookup.after_failure() {
            Some(lookup) => self.look_up(now, number, lookup),
            None => self.end_in_failure(number),
        }
    }
}
