//! Questions and their answers over time: which resolver is asked when, and who waits for what.
//!
//! The first resolver is asked at once; each [`PATIENCE`] without an answer brings in the next one, and
//! then the first again, while those asked before may still answer. A resolver that fails is followed by
//! the next at once. After [`LIFETIME`], or when every resolver has failed, the answer is SERVFAIL with
//! an extended error. Equal questions share one exchange, so that a birthday attack finds one target.
//!
//! A question may take two lookups (DNS64); both together have the time of one, and the first half of it.

mod lookups;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::answer::{Local, Why, answer, encode, header_only, refuse};
use crate::catalog::Catalog;
use crate::dns64::Lookup;
use crate::forward::{Judged, Sent, readdress};
use crate::question::{Code, Question, Rejection};
use crate::rebinding::{Cleaned, clean};
use crate::secrets::Secrets;

/// How long a resolver is waited for before the next is asked too.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long an asker waits at most.
const LIFETIME: Duration = Duration::from_secs(4);
/// Questions under way at once, all askers together.
const MAX_PENDING: usize = 2048;
/// Resolvers that are used.
const MAX_RESOLVERS: usize = 3;
/// Datagrams of one exchange that are looked at: garbage first must not end the wait, nor go on for ever.
const MAX_FOREIGN: u32 = 64;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// As a datagram.
    Udp,
    /// Over a stream.
    Tcp,
}

/// What is to be done. `T` names an asker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Answer a question; an empty message is silence.
    Answer {
        /// Whose.
        asker: T,
        /// A DNS message.
        message: Vec<u8>,
    },
    /// Send a message to a resolver, from a fresh socket.
    Ask {
        /// Names the exchange in [`Resolver::handle_reply`].
        exchange: u32,
        /// Whom.
        resolver: SocketAddr,
        /// How.
        via: Via,
        /// A DNS message.
        message: Vec<u8>,
    },
    /// Close an exchange's socket.
    Forget {
        /// Which.
        exchange: u32,
    },
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A message.
    Message(&'a [u8]),
    /// An error of the socket.
    Failed,
}

/// Answers questions, by itself or by asking. Times are durations since any fixed start.
pub struct Resolver<T> {
    resolvers: Vec<SocketAddr>,
    secrets: Secrets,
    pending: BTreeMap<u64, Pending<T>>,
    by_question: HashMap<Key, u64>,
    exchanges: HashMap<u32, Exchange>,
    actions: VecDeque<Action<T>>,
    next_pending: u64,
    next_exchange: u32,
}

/// What questions have in common when one exchange can serve them all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    via: Via,
    /// What is asked first: another network may want another answer.
    lookup: Lookup,
    /// All but the id, in one case.
    message: Vec<u8>,
}

struct Pending<T> {
    key: Key,
    askers: Vec<Asker<T>>,
    /// What is being asked.
    lookup: Lookup,
    /// The first asker's message, which all of them sent but for id and case; as `lookup` asks it.
    message: Vec<u8>,
    started: Duration,
    /// When the next resolver is asked.
    next_ask: Duration,
    /// How many asks there were; also which resolver is next.
    asks: usize,
    failed: Vec<SocketAddr>,
    exchanges: Vec<u32>,
}

struct Asker<T> {
    asker: T,
    question: Question,
    limit: usize,
}

struct Exchange {
    pending: u64,
    resolver: SocketAddr,
    via: Via,
    sent: Sent,
    foreign: u32,
}

impl<T: Copy> Resolver<T> {
    /// A resolver that knows no resolvers yet; `seed` must be unpredictable.
    pub fn new(seed: u64) -> Self {
        Self {
            resolvers: Vec::new(),
            secrets: Secrets::new(seed),
            pending: BTreeMap::new(),
            by_question: HashMap::new(),
            exchanges: HashMap::new(),
            actions: VecDeque::new(),
            next_pending: 0,
            next_exchange: 0,
        }
    }

    /// Whom to ask from now on, in order of preference; exchanges under way go on.
    pub fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.resolvers = resolvers.iter().copied().take(MAX_RESOLVERS).collect();
    }

    /// Takes a question of a guest.
    pub fn handle_query(
        &mut self,
        now: Duration,
        asker: T,
        catalog: &impl Catalog,
        via: Via,
        message: &[u8],
    ) {
        let question = match Question::parse(message) {
            Ok(question) => question,
            Err(Rejection::Silence) => return self.say(asker, Vec::new()),
            Err(Rejection::Answer { id, opcode, code }) => {
                return self.say(asker, header_only(id, opcode, code));
            }
        };
        let limit = match via {
            Via::Udp => question.largest_datagram(),
            Via::Tcp => usize::from(u16::MAX),
        };
        if let Local::Answer(reply) = answer(&question, catalog) {
            return self.say(asker, encode(&reply, limit));
        }
        let asker = Asker { asker, question, limit };
        if self.resolvers.is_empty() {
            return self.fail(asker, Why::NotReady);
        }
        let lookup = if catalog.has_nat64() { Lookup::of(&asker.question) } else { Lookup::Plain };
        self.forward(now, asker, (via, lookup), message);
    }

    fn forward(
        &mut self,
        now: Duration,
        asker: Asker<T>,
        (via, lookup): (Via, Lookup),
        message: &[u8],
    ) {
        let key = Key { via, lookup, message: message[2..].to_ascii_lowercase() };
        if let Some(pending) =
            self.by_question.get(&key).and_then(|number| self.pending.get_mut(number))
        {
            return pending.askers.push(asker);
        }
        if self.pending.len() >= MAX_PENDING {
            return self.fail(asker, Why::NoReachableAuthority);
        }
        let number = self.next_pending;
        self.next_pending += 1;
        self.by_question.insert(key.clone(), number);
        let pending = Pending {
            key,
            message: lookup.message(message, &asker.question),
            askers: vec![asker],
            lookup,
            started: now,
            next_ask: now,
            asks: 0,
            failed: Vec::new(),
            exchanges: Vec::new(),
        };
        self.pending.insert(number, pending);
        self.ask_next(now, number);
    }

    /// Asks the next resolver that has not failed; when all have, the question has failed.
    fn ask_next(&mut self, now: Duration, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let left: Vec<SocketAddr> = self
            .resolvers
            .iter()
            .filter(|resolver| !pending.failed.contains(resolver))
            .copied()
            .collect();
        if left.is_empty() {
            if pending.exchanges.is_empty() {
                self.give_up(now, number);
            } else {
                pending.next_ask = pending.deadline();
            }
            return;
        }
        let resolver = left[pending.asks % left.len()];
        pending.asks += 1;
        // All resolvers once at the pace of PATIENCE, then ever slower.
        let round = u32::try_from(pending.asks / left.len()).unwrap_or(u32::MAX);
        pending.next_ask = now + PATIENCE * round.saturating_add(1).min(8);
        let via = pending.key.via;
        self.open(number, resolver, via);
    }

    fn open(&mut self, number: u64, resolver: SocketAddr, via: Via) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let Some((sent, message)) = Sent::prepare(&pending.message, &mut self.secrets) else {
            return self.end_in_failure(number);
        };
        while self.exchanges.contains_key(&self.next_exchange) {
            self.next_exchange = self.next_exchange.wrapping_add(1);
        }
        let exchange = self.next_exchange;
        self.next_exchange = self.next_exchange.wrapping_add(1);
        pending.exchanges.push(exchange);
        let state = Exchange { pending: number, resolver, via, sent, foreign: 0 };
        self.exchanges.insert(exchange, state);
        self.actions.push_back(Action::Ask { exchange, resolver, via, message });
    }

    /// Takes what came of an ask. `is_own` says of an address whether it is the host's or ours.
    pub fn handle_reply(
        &mut self,
        now: Duration,
        exchange: u32,
        reply: Reply<'_>,
        is_own: &mut impl FnMut(IpAddr) -> bool,
    ) {
        let Some(state) = self.exchanges.get_mut(&exchange) else { return };
        let (number, resolver, via) = (state.pending, state.resolver, state.via);
        let judged = match (reply, via) {
            (Reply::Failed, _) => Judged::Unable,
            (Reply::Message(message), Via::Udp) => state.sent.judge(message),
            (Reply::Message(message), Via::Tcp) => state.sent.judge_stream(message),
        };
        match judged {
            Judged::Foreign => {
                state.foreign += 1;
                if state.foreign >= MAX_FOREIGN {
                    self.close(exchange);
                    self.give_up_on(now, number, resolver);
                }
            }
            Judged::Truncated if via == Via::Udp => {
                self.close(exchange);
                self.open(number, resolver, Via::Tcp);
            }
            Judged::Truncated | Judged::Unable => {
                self.close(exchange);
                self.give_up_on(now, number, resolver);
            }
            Judged::Answer(mut message) => {
                let as_it_came = match (clean(&mut message, is_own), reply) {
                    (Cleaned::Untouched, Reply::Message(bytes)) => Some(bytes),
                    _ => None,
                };
                self.conclude(now, number, &message, as_it_came);
            }
        }
    }

    fn give_up_on(&mut self, now: Duration, number: u64, resolver: SocketAddr) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.failed.push(resolver);
            self.ask_next(now, number);
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Duration) {
        let due: Vec<(u64, bool)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.poll_timeout() <= now)
            .map(|(number, pending)| (*number, pending.deadline() <= now))
            .collect();
        for (number, over) in due {
            if over {
                self.give_up(now, number);
            } else {
                self.ask_next(now, number);
            }
        }
    }

    /// When [`Resolver::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.pending.values().map(Pending::poll_timeout).min()
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action<T>> {
        self.actions.pop_front()
    }

    fn say(&mut self, asker: T, message: Vec<u8>) {
        self.actions.push_back(Action::Answer { asker, message });
    }

    fn fail(&mut self, asker: Asker<T>, why: Why) {
        let reply = refuse(&asker.question, Code::ServFail, Some(why));
        self.say(asker.asker, encode(&reply, asker.limit));
    }

    fn end_in_failure(&mut self, number: u64) {
        for asker in self.take(number) {
            self.fail(asker, Why::NoReachableAuthority);
        }
    }

    fn end(&mut self, number: u64, reply: &[u8]) {
        for asker in self.take(number) {
            let message = readdress(reply, &asker.question, asker.limit);
            self.say(asker.asker, message);
        }
    }

    /// Forgets a question and its exchanges; answers who asked it.
    fn take(&mut self, number: u64) -> Vec<Asker<T>> {
        let Some(pending) = self.pending.remove(&number) else { return Vec::new() };
        self.by_question.remove(&pending.key);
        for exchange in pending.exchanges {
            self.exchanges.remove(&exchange);
            self.actions.push_back(Action::Forget { exchange });
        }
        pending.askers
    }

    fn close(&mut self, exchange: u32) {
        if let Some(state) = self.exchanges.remove(&exchange)
            && let Some(pending) = self.pending.get_mut(&state.pending)
        {
            pending.exchanges.retain(|open| *open != exchange);
        }
        self.actions.push_back(Action::Forget { exchange });
    }
}

impl<T> Pending<T> {
    fn poll_timeout(&self) -> Duration {
        self.next_ask.min(self.deadline())
    }

    /// When its lookup is given up.
    fn deadline(&self) -> Duration {
        let followed = self.lookup.after_failure().is_some();
        self.started + if followed { LIFETIME / 2 } else { LIFETIME }
    }
}

#[cfg(test)]
mod tests;
