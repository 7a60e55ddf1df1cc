//! Questions and their answers over time: which resolver is asked when, and who waits for what.
//!
//! The first resolver is asked at once; each [`PATIENCE`] without an answer brings in the next one, and
//! then the first again, while those asked before may still answer. A resolver that fails is followed by
//! the next at once. After [`LIFETIME`], or when every resolver has failed, the answer is SERVFAIL with
//! an extended error. Equal questions share one exchange, so that a birthday attack finds one target.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::answer::{Local, Why, answer, encode, header_only, refuse};
use crate::catalog::Catalog;
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
    by_question: HashMap<(Via, Vec<u8>), u64>,
    exchanges: HashMap<u32, Exchange>,
    actions: VecDeque<Action<T>>,
    next_pending: u64,
    next_exchange: u32,
}

struct Pending<T> {
    key: (Via, Vec<u8>),
    askers: Vec<Asker<T>>,
    /// The first asker's message, which all of them sent but for id and case.
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
        self.forward(now, asker, via, message);
    }

    fn forward(&mut self, now: Duration, asker: Asker<T>, via: Via, message: &[u8]) {
        let key = (via, sharing_key(message));
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
            askers: vec![asker],
            message: message.to_vec(),
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
                self.end_in_failure(number);
            } else {
                pending.next_ask = pending.started + LIFETIME;
            }
            return;
        }
        let resolver = left[pending.asks % left.len()];
        pending.asks += 1;
        // All resolvers once at the pace of PATIENCE, then ever slower.
        let round = u32::try_from(pending.asks / left.len()).unwrap_or(u32::MAX);
        pending.next_ask = now + PATIENCE * round.saturating_add(1).min(8);
        let via = pending.key.0;
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
            Judged::Answer(message) => {
                let bytes = match (clean(*message, is_own), reply) {
                    (Cleaned::Untouched, Reply::Message(bytes)) => bytes.to_vec(),
                    (Cleaned::Changed(message), _) => message.to_vec().unwrap_or_default(),
                    (Cleaned::Untouched, Reply::Failed) => Vec::new(),
                };
                self.end(number, &bytes);
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
            .map(|(number, pending)| (*number, pending.started + LIFETIME <= now))
            .collect();
        for (number, over) in due {
            if over {
                self.end_in_failure(number);
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
        self.next_ask.min(self.started + LIFETIME)
    }
}

/// What two messages have in common when one exchange can serve both: all but the id, in one case.
fn sharing_key(message: &[u8]) -> Vec<u8> {
    message[2..].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use hickory_proto::op::{Message, ResponseCode};

    use super::*;
    use crate::question::tests::{query, query_with_edns};
    use crate::question::{HEADER_LEN, kind};

    /// The network `bridge`, 10.88.0.0/16, with one workload `web` at .2 whose alias is `www`.
    struct Bridge {
        internal: bool,
    }

    impl Catalog for Bridge {
        fn network(&self) -> &str {
            "bridge"
        }

        fn gateway(&self) -> Ipv4Addr {
            Ipv4Addr::new(10, 88, 0, 1)
        }

        fn gateway6(&self) -> Option<Ipv6Addr> {
            Some(Ipv6Addr::new(0xfd00, 0, 0, 0x58, 0, 0, 0, 1))
        }

        fn addresses6_of(&self, label: &str) -> Vec<Ipv6Addr> {
            let known = label == "web";
            known.then(|| Ipv6Addr::new(0xfd00, 0, 0, 0x58, 0, 0, 0, 2)).into_iter().collect()
        }

        fn addresses_of(&self, label: &str) -> Vec<Ipv4Addr> {
            let known = ["web", "www"].contains(&label);
            known.then(|| Ipv4Addr::new(10, 88, 0, 2)).into_iter().collect()
        }

        fn name_of(&self, address: IpAddr) -> Option<String> {
            let its = ["10.88.0.2", "fd00:0:0:58::2"].map(|text| text.parse::<IpAddr>().unwrap());
            its.contains(&address).then(|| "web".to_owned())
        }

        fn contains(&self, address: IpAddr) -> bool {
            match address {
                IpAddr::V4(address) => address.octets()[..2] == [10, 88],
                IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 0, 0, 0x58],
            }
        }

        fn is_ours(&self, address: IpAddr) -> bool {
            match address {
                IpAddr::V4(address) => address.octets()[..2] == [10, 88],
                IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 0, 0, 0x58],
            }
        }

        fn is_network(&self, label: &str) -> bool {
            ["bridge", "other"].contains(&label)
        }

        fn is_internal(&self) -> bool {
            self.internal
        }
    }

    const OPEN: Bridge = Bridge { internal: false };

    fn resolver() -> Resolver<u32> {
        let mut resolver = Resolver::new(1);
        resolver.set_resolvers(&["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()]);
        resolver
    }

    fn ask(message: &[u8]) -> Vec<Action<u32>> {
        let mut resolver = resolver();
        resolver.handle_query(Duration::ZERO, 1, &OPEN, Via::Udp, message);
        std::iter::from_fn(|| resolver.poll_action()).collect()
    }

    fn answered(message: &[u8]) -> Message {
        match ask(message).as_slice() {
            [Action::Answer { message, .. }] => Message::from_vec(message).unwrap(),
            actions => panic!("not answered at once: {actions:?}"),
        }
    }

    fn texts(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn a_workload_is_found_by_each_of_its_names() {
        for name in ["web", "WEB", "www", "web.hypr", "web.bridge.internal", "Web.Bridge.Internal"]
        {
            let reply = answered(&query(9, name, kind::A));
            assert_eq!(texts(&reply), ["10.88.0.2"], "{name}");
            assert!(reply.metadata.authoritative);
            let asked = query(9, name, kind::A);
            let sent = reply.to_vec().unwrap();
            assert_eq!(sent[HEADER_LEN..asked.len()], asked[HEADER_LEN..], "case is kept: {name}");
        }
    }

    #[test]
    fn a_name_without_that_type_is_nodata_with_its_soa() {
        for (name, kind) in [
            ("www", kind::AAAA),
            ("web.bridge.internal", 16),
            ("web.hypr", 15),
            ("bridge.internal", kind::A),
        ] {
            let reply = answered(&query(9, name, kind));
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
            assert!(reply.answers.is_empty());
            assert_eq!(reply.authorities.len(), 1, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_of_ours_is_nxdomain_with_its_soa_and_never_forwarded() {
        for name in [
            "nobody",
            "nobody.hypr",
            "nobody.bridge.internal",
            "a.web.bridge.internal",
            "x.local",
            "db.other.internal",
        ] {
            let reply = answered(&query(9, name, kind::A));
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
            assert_eq!(reply.authorities.len(), 1, "{name}");
        }
    }

    #[test]
    fn addresses_have_names() {
        let name = |ip: &str| texts(&answered(&query(9, ip, kind::PTR)));
        assert_eq!(name("2.0.88.10.in-addr.arpa"), ["web.bridge.internal."]);
        assert_eq!(name("1.0.88.10.in-addr.arpa"), ["gateway.bridge.internal."]);
        let unknown = answered(&query(9, "9.0.88.10.in-addr.arpa", kind::PTR));
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn ipv6_addresses_are_found_by_name_and_have_names() {
        for name in ["web", "web.hypr", "web.bridge.internal"] {
            assert_eq!(texts(&answered(&query(9, name, kind::AAAA))), ["fd00:0:0:58::2"], "{name}");
        }
        for name in ["gateway.bridge.internal", "host.lichen.internal"] {
            assert_eq!(texts(&answered(&query(9, name, kind::AAAA))), ["fd00:0:0:58::1"], "{name}");
        }
        let reverse = |text: &str| {
            let address: Ipv6Addr = text.parse().unwrap();
            let digits = format!("{:032x}", address.to_bits());
            let labels: Vec<String> = digits.chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", labels.join("."))
        };
        let name = |ip: &str| texts(&answered(&query(9, &reverse(ip), kind::PTR)));
        assert_eq!(name("fd00:0:0:58::2"), ["web.bridge.internal."]);
        assert_eq!(name("fd00:0:0:58::1"), ["gateway.bridge.internal."]);
        assert_eq!(name("::1"), ["localhost."]);
        let unknown = answered(&query(9, &reverse("fd00:0:0:58::9"), kind::PTR));
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(unknown.authorities.len(), 1);
        let foreign = ask(&query(9, &reverse("2001:db8::1"), kind::PTR));
        assert!(matches!(foreign[0], Action::Ask { .. }), "asked outside");
        let odd = format!("0.{}", reverse("fd00:0:0:58::2"));
        assert!(matches!(ask(&query(9, &odd, kind::PTR))[0], Action::Ask { .. }));
    }

    #[test]
    fn what_is_not_a_plain_query_is_refused() {
        for (message, code) in [
            (query(9, "web", kind::AXFR), ResponseCode::Refused),
            (query(9, "web", kind::ANY), ResponseCode::Refused),
            (query_with_edns("web", kind::A, 1232, 1), ResponseCode::BADVERS),
        ] {
            // As numbers: 16 is BADVERS in an answer and BADSIG elsewhere.
            assert_eq!(u16::from(answered(&message).metadata.response_code), u16::from(code));
        }
        let mut chaos = query(9, "version.bind", 16);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(answered(&chaos).metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn an_internal_network_asks_nobody() {
        let mut resolver = resolver();
        let internal = Bridge { internal: true };
        let message = query_with_edns("example.com", kind::A, 1232, 0);
        resolver.handle_query(Duration::ZERO, 1, &internal, Via::Udp, &message);
        let Some(Action::Answer { message, .. }) = resolver.poll_action() else {
            panic!("not answered")
        };
        assert_eq!(
            Message::from_vec(&message).unwrap().metadata.response_code,
            ResponseCode::Refused
        );
        assert!(String::from_utf8_lossy(&message).contains("internal"));
        assert_eq!(resolver.poll_action(), None);
    }

    /// Asks for example.com and answers the resolver with its first ask.
    fn forwarded() -> (Resolver<u32>, u32, Vec<u8>) {
        let mut resolver = resolver();
        let message = query(0x1234, "Example.com", kind::A);
        resolver.handle_query(Duration::ZERO, 1, &OPEN, Via::Udp, &message);
        let Some(Action::Ask { exchange, message, via: Via::Udp, .. }) = resolver.poll_action()
        else {
            panic!("not forwarded")
        };
        (resolver, exchange, message)
    }

    /// What an honest resolver answers to `message`.
    fn reply_to(message: &[u8], address: [u8; 4]) -> Vec<u8> {
        let mut reply = message.to_vec();
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&address);
        reply
    }

    fn never(_: IpAddr) -> bool {
        false
    }

    fn hear(resolver: &mut Resolver<u32>, exchange: u32, reply: &[u8]) -> Vec<Action<u32>> {
        resolver.handle_reply(Duration::ZERO, exchange, Reply::Message(reply), &mut never);
        std::iter::from_fn(|| resolver.poll_action()).collect()
    }

    #[test]
    fn a_foreign_name_is_forwarded_and_answered_under_the_askers_id_and_case() {
        let (mut resolver, exchange, message) = forwarded();
        let actions = hear(&mut resolver, exchange, &reply_to(&message, [192, 0, 2, 9]));
        let [Action::Forget { .. }, Action::Answer { asker: 1, message }] = actions.as_slice()
        else {
            panic!("{actions:?}")
        };
        assert_eq!(message[..2], [0x12, 0x34]);
        assert_eq!(&message[12..25], b"\x07Example\x03com\0");
        assert_eq!(texts(&Message::from_vec(message).unwrap()), ["192.0.2.9"]);
        assert_eq!(resolver.poll_timeout(), None);
    }

    #[test]
    fn forged_replies_are_not_believed() {
        let (mut resolver, exchange, message) = forwarded();
        let honest = reply_to(&message, [192, 0, 2, 9]);
        let change = |at: usize, by: u8| {
            let mut forged = honest.clone();
            forged[at] ^= by;
            forged
        };
        let forgeries =
            [change(0, 1), change(1, 1), change(2, 0x80), change(13, 0x01), change(5, 2)];
        for forged in forgeries.iter().chain([&honest[..20].to_vec(), &Vec::new()]) {
            assert_eq!(hear(&mut resolver, exchange, forged), []);
        }
        assert_eq!(hear(&mut resolver, exchange + 1, &honest), []);
        assert_eq!(hear(&mut resolver, exchange, &honest).len(), 2);
    }

    #[test]
    fn another_case_of_letters_or_a_cut_reply_is_asked_again_over_tcp() {
        for (at, by) in [(13, 0x20), (2, 0x02)] {
            let (mut resolver, exchange, message) = forwarded();
            let mut reply = reply_to(&message, [192, 0, 2, 9]);
            reply[at] ^= by;
            let actions = hear(&mut resolver, exchange, &reply);
            assert!(
                matches!(
                    actions.as_slice(),
                    [Action::Forget { .. }, Action::Ask { via: Via::Tcp, .. }]
                ),
                "{actions:?}"
            );
        }
    }

    #[test]
    fn a_silent_resolver_is_joined_by_the_next_and_the_wait_has_an_end() {
        let (mut resolver, _, _) = forwarded();
        let mut asked = vec![];
        let mut now = Duration::ZERO;
        let end = loop {
            now = resolver.poll_timeout().expect("a question under way has a time-out").max(now);
            resolver.handle_timeout(now);
            while let Some(action) = resolver.poll_action() {
                match action {
                    Action::Ask { resolver, .. } => asked.push((now.as_millis(), resolver)),
                    Action::Answer { message, .. } => {
                        asked.push((now.as_millis(), "0.0.0.0:0".parse().unwrap()));
                        assert_eq!(message[3] & 0xf, 2, "SERVFAIL");
                    }
                    Action::Forget { .. } => {}
                }
            }
            if resolver.poll_timeout().is_none() {
                break now;
            }
        };
        assert_eq!(asked[0], (400, "192.0.2.2:53".parse().unwrap()));
        assert_eq!(end, LIFETIME);
        assert!(resolver.exchanges.is_empty() && resolver.by_question.is_empty());
    }

    #[test]
    fn dead_resolvers_are_servfail_at_once() {
        let (mut resolver, exchange, _) = forwarded();
        resolver.handle_reply(Duration::ZERO, exchange, Reply::Failed, &mut never);
        let second =
            std::iter::from_fn(|| resolver.poll_action()).find_map(|action| match action {
                Action::Ask { exchange, resolver, .. } => Some((exchange, resolver)),
                _ => None,
            });
        let (exchange, asked) = second.expect("the next resolver is asked");
        assert_eq!(asked, "192.0.2.2:53".parse().unwrap());
        resolver.handle_reply(Duration::ZERO, exchange, Reply::Failed, &mut never);
        let actions: Vec<_> = std::iter::from_fn(|| resolver.poll_action()).collect();
        let [Action::Forget { .. }, Action::Answer { message, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(message[3] & 0xf, 2);
    }

    #[test]
    fn equal_questions_share_one_exchange() {
        let mut resolver = resolver();
        for asker in 0..100 {
            let name = if asker % 2 == 0 { "example.com" } else { "EXAMPLE.com" };
            let message = query(u16::try_from(asker).unwrap(), name, kind::A);
            resolver.handle_query(Duration::ZERO, asker, &OPEN, Via::Udp, &message);
        }
        let asks: Vec<_> = std::iter::from_fn(|| resolver.poll_action()).collect();
        let [Action::Ask { exchange, message, .. }] = asks.as_slice() else { panic!("{asks:?}") };
        let actions = hear(&mut resolver, *exchange, &reply_to(message, [192, 0, 2, 9]));
        assert_eq!(actions.len(), 101);
    }

    #[test]
    fn an_answer_that_is_too_long_for_its_asker_is_cut_with_the_bit_set() {
        let (mut resolver, exchange, message) = forwarded();
        let mut reply = reply_to(&message, [192, 0, 2, 1]);
        for host in 2..60 {
            reply[7] += 1;
            reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, host]);
        }
        let actions = hear(&mut resolver, exchange, &reply);
        let Some(Action::Answer { message, .. }) = actions.last() else { panic!("{actions:?}") };
        assert!(message.len() <= 512);
        let cut = Message::from_vec(message).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
    }
}
