//! Names that have addresses of IPv4 alone, as a network with NAT64 is told them.

use hickory_proto::op::{Edns, MessageType};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

const NAT64: Bridge = Bridge { internal: false, nat64: true };

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(owner: &str, ttl: u32, ip: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(ip.parse().unwrap())))
}

fn aaaa(owner: &str, ip: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::AAAA(AAAA(ip.parse().unwrap())))
}

fn cname(owner: &str, to: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(to))))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let (server, contact) = (name("ns.example."), name("nobody.invalid."));
    let soa = SOA::new(server, contact, 1, 3600, 600, 86_400, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(soa))
}

/// A conversation of one guest with the resolver, in which the test is the host's resolvers.
struct Talk {
    resolver: Resolver<u32>,
    /// What they have been asked and have not answered yet.
    asked: Vec<(u32, Via, Vec<u8>)>,
    answers: Vec<Vec<u8>>,
}

impl Talk {
    fn begin(catalog: &Bridge, message: &[u8]) -> Self {
        let mut talk = Self { resolver: resolver(), asked: vec![], answers: vec![] };
        talk.resolver.handle_query(Duration::ZERO, 1, catalog, Via::Udp, message);
        talk.settle();
        talk
    }

    fn about(kind: u16) -> Self {
        Self::begin(&NAT64, &query(7, "Www.example", kind))
    }

    fn settle(&mut self) {
        while let Some(action) = self.resolver.poll_action() {
            match action {
                Action::Ask { exchange, via, message, .. } => {
                    self.asked.push((exchange, via, message));
                }
                Action::Answer { message, .. } => self.answers.push(message),
                Action::Forget { exchange } => self.asked.retain(|(it, ..)| *it != exchange),
            }
        }
    }

    /// The name and type that are being asked.
    fn question(&self) -> (String, RecordType) {
        let [(_, _, message)] = self.asked.as_slice() else { panic!("{:?}", self.asked) };
        let message = Message::from_vec(message).unwrap();
        let query = &message.queries[0];
        (query.name.to_string().to_lowercase(), query.query_type)
    }

    /// Answers what is being asked.
    fn reply(&mut self, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) {
        let (exchange, _, message) = self.asked.first().expect("a question").clone();
        let mut reply = Message::from_vec(&message).unwrap();
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.authentic_data = true;
        reply.metadata.response_code = code;
        reply.answers = answers;
        reply.authorities = authorities;
        let mut is_own = |ip: IpAddr| ip == IpAddr::from([10, 88, 0, 2]);
        let bytes = reply.to_vec().unwrap();
        self.resolver.handle_reply(Duration::ZERO, exchange, Reply::Message(&bytes), &mut is_own);
        self.settle();
    }

    fn has(&mut self, answers: Vec<Record>) {
        self.reply(ResponseCode::NoError, answers, vec![]);
    }

    /// The one answer that the guest was given.
    fn answer(&self) -> Message {
        let [answer] = self.answers.as_slice() else { panic!("{:?}", self.answers) };
        assert!(self.asked.is_empty() && self.resolver.poll_timeout().is_none());
        assert!(self.resolver.exchanges.is_empty() && self.resolver.by_question.is_empty());
        assert_eq!(answer[..2], [0, 7]);
        Message::from_vec(answer).unwrap()
    }
}

#[test]
fn a_name_with_ipv4_alone_is_answered_with_what_stands_for_it() {
    let mut talk = Talk::about(kind::AAAA);
    assert_eq!(talk.question(), ("www.example.".into(), RecordType::AAAA));
    talk.reply(ResponseCode::NoError, vec![], vec![soa(300, 250)]);
    assert_eq!(talk.question(), ("www.example.".into(), RecordType::A));
    assert!(talk.answers.is_empty());
    talk.has(vec![a("www.example.", 3600, "192.0.2.33"), a("www.example.", 9, "192.0.2.34")]);
    let answer = talk.answer();
    assert_eq!(texts(&answer), ["64:ff9b::c000:221", "64:ff9b::c000:222"]);
    let ttls: Vec<u32> = answer.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [250, 9], "no longer than it is good that there is no AAAA");
    assert_eq!(answer.queries[0].query_type, RecordType::AAAA);
    assert_eq!(answer.queries[0].name.to_string(), "Www.example.");
    assert!(!answer.metadata.authentic_data, "nobody has signed it");
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[test]
fn without_an_soa_it_is_good_for_ten_minutes_at_most() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![]);
    talk.has(vec![a("www.example.", 3600, "192.0.2.33"), a("www.example.", 9, "192.0.2.34")]);
    let ttls: Vec<u32> = talk.answer().answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [600, 9]);
}

#[test]
fn a_chain_of_names_is_kept() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![cname("www.example.", "cdn.example.")]);
    talk.has(vec![cname("www.example.", "cdn.example."), a("cdn.example.", 60, "192.0.2.33")]);
    let answer = talk.answer();
    assert_eq!(texts(&answer), ["cdn.example.", "64:ff9b::c000:221"]);
    assert_eq!(answer.answers[1].name, name("cdn.example."));
}

#[test]
fn a_name_that_has_aaaa_or_is_not_there_is_answered_as_it_is() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![aaaa("www.example.", "2001:db8::1")]);
    assert_eq!(texts(&talk.answer()), ["2001:db8::1"]);
    let mut talk = Talk::about(kind::AAAA);
    talk.reply(ResponseCode::NXDomain, vec![], vec![soa(300, 300)]);
    let answer = talk.answer();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(answer.authorities.len(), 1);
}

#[test]
fn a_name_without_any_address_has_none_and_its_soa() {
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        let mut talk = Talk::about(kind::AAAA);
        talk.reply(ResponseCode::NoError, vec![], vec![soa(300, 300)]);
        talk.reply(code, vec![], vec![soa(300, 300)]);
        let answer = talk.answer();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "AAAA was NODATA");
        assert_eq!((answer.answers.len(), answer.authorities.len()), (0, 1));
        assert_eq!(answer.queries[0].query_type, RecordType::AAAA);
    }
}

/// RFC 6147 5.1.2: what is broken for AAAA may be whole for A.
#[test]
fn an_error_is_as_if_there_were_no_aaaa_and_two_are_an_error() {
    let mut talk = Talk::about(kind::AAAA);
    talk.reply(ResponseCode::ServFail, vec![], vec![]);
    talk.reply(ResponseCode::NotImp, vec![], vec![]);
    assert_eq!(talk.question().1, RecordType::A);
    talk.reply(ResponseCode::ServFail, vec![], vec![]);
    talk.has(vec![a("www.example.", 3600, "192.0.2.33")]);
    assert_eq!(texts(&talk.answer()), ["64:ff9b::c000:221"]);
    assert_eq!(talk.answer().answers[0].ttl, 600);
    let mut talk = Talk::about(kind::AAAA);
    for _ in 0..4 {
        talk.reply(ResponseCode::ServFail, vec![], vec![]);
    }
    assert_eq!(talk.answer().metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn both_lookups_together_have_the_time_of_one() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![]);
    let mut now = Duration::ZERO;
    while let Some(at) = talk.resolver.poll_timeout() {
        now = at.max(now);
        talk.resolver.handle_timeout(now);
        talk.settle();
    }
    assert_eq!(now, LIFETIME);
    assert_eq!(talk.answer().metadata.response_code, ResponseCode::ServFail);
}

/// RFC 6147 5.1.3: some servers answer A alone.
#[test]
fn silence_is_as_if_there_were_no_aaaa_after_half_of_the_time() {
    let mut talk = Talk::about(kind::AAAA);
    let mut now = Duration::ZERO;
    while Message::from_vec(&talk.asked[0].2).unwrap().queries[0].query_type == RecordType::AAAA {
        now = talk.resolver.poll_timeout().expect("it has an end").max(now);
        talk.resolver.handle_timeout(now);
        talk.settle();
    }
    assert_eq!(now, LIFETIME / 2);
    assert_eq!(talk.question().1, RecordType::A, "and nothing else any more");
    talk.has(vec![a("www.example.", 60, "192.0.2.33")]);
    assert_eq!(texts(&talk.answer()), ["64:ff9b::c000:221"]);
}

#[test]
fn ipv4_in_disguise_is_no_address_of_ipv6() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![aaaa("www.example.", "::ffff:192.0.2.1"), aaaa("www.example.", "2001:db8::1")]);
    assert_eq!(texts(&talk.answer()), ["2001:db8::1"]);
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![aaaa("www.example.", "::ffff:192.0.2.1")]);
    assert_eq!(talk.question().1, RecordType::A);
    talk.has(vec![a("www.example.", 60, "192.0.2.33")]);
    assert_eq!(texts(&talk.answer()), ["64:ff9b::c000:221"]);
}

#[test]
fn what_points_inside_is_made_no_address_of_either() {
    for inside in ["127.0.0.1", "0.0.0.0", "169.254.169.254", "100.100.100.200", "10.88.0.2"] {
        let mut talk = Talk::about(kind::AAAA);
        // The hostile one tries the prefix itself first.
        let embedded = crate::dns64::embed(inside.parse().unwrap()).to_string();
        talk.has(vec![aaaa("www.example.", &embedded)]);
        assert_eq!(talk.question().1, RecordType::A, "{inside}");
        talk.has(vec![a("www.example.", 60, inside), a("www.example.", 60, "192.0.2.33")]);
        assert_eq!(texts(&talk.answer()), ["64:ff9b::c000:221"], "{inside}");
        let mut talk = Talk::about(kind::AAAA);
        talk.has(vec![]);
        talk.has(vec![a("www.example.", 60, inside)]);
        assert_eq!(texts(&talk.answer()), [""; 0], "{inside}");
    }
}

#[test]
fn another_names_address_and_what_stands_beside_the_answer_are_left_out() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![]);
    talk.reply(
        ResponseCode::NoError,
        vec![
            a("www.example.", 60, "192.0.2.33"),
            a("victim.example.", 60, "192.0.2.66"),
            aaaa("www.example.", "2001:db8::1"),
        ],
        vec![soa(300, 300)],
    );
    let answer = talk.answer();
    assert_eq!(texts(&answer), ["64:ff9b::c000:221"], "A was asked");
    assert_eq!((answer.authorities.len(), answer.additionals.len()), (0, 0));
}

#[test]
fn a_reply_to_the_first_question_does_not_answer_the_second() {
    let mut talk = Talk::about(kind::AAAA);
    let (first, _, asked) = talk.asked[0].clone();
    talk.has(vec![]);
    let mut late = asked;
    late[2] |= 0x80;
    for exchange in [first, talk.asked[0].0] {
        let reply = Reply::Message(&late);
        talk.resolver.handle_reply(Duration::ZERO, exchange, reply, &mut |_| false);
        talk.settle();
    }
    assert!(talk.answers.is_empty());
    assert_eq!(talk.question().1, RecordType::A, "still waited for");
}

#[test]
fn a_long_answer_is_asked_for_over_tcp_and_cut_for_who_takes_no_more() {
    let mut talk = Talk::about(kind::AAAA);
    talk.has(vec![]);
    let (exchange, _, mut cut) = talk.asked[0].clone();
    cut[2] |= 0x82;
    talk.resolver.handle_reply(Duration::ZERO, exchange, Reply::Message(&cut), &mut |_| false);
    talk.settle();
    assert_eq!(talk.asked[0].1, Via::Tcp);
    // As many as fit one message of A are too many for one of AAAA.
    let many = (0..4000_u32).map(|host| {
        let ip = Ipv4Addr::from_bits(0xc633_6400 + host);
        Record::from_rdata(name("www.example."), 60, RData::A(A(ip)))
    });
    talk.has(many.collect());
    let answer = talk.answer();
    assert!(talk.answers[0].len() <= 512);
    assert!(answer.metadata.truncation && answer.answers.is_empty());
}

#[test]
fn who_validates_is_told_what_is_signed() {
    for (disabled, dnssec_ok, second) in
        [(true, true, false), (true, false, true), (false, true, true)]
    {
        let mut message = query_with_edns("www.example", kind::AAAA, 1232, 0);
        message[1] = 7;
        message[3] |= if disabled { 0x10 } else { 0 };
        let flags = message.len() - 4;
        message[flags] |= if dnssec_ok { 0x80 } else { 0 };
        let edns = Question::parse(&message).unwrap().edns.unwrap();
        assert_eq!(edns.dnssec_ok, dnssec_ok);
        let mut talk = Talk::begin(&NAT64, &message);
        talk.has(vec![]);
        assert_eq!(talk.answers.is_empty(), second, "CD {disabled}, DO {dnssec_ok}");
        if second {
            let asked = Message::from_vec(&talk.asked[0].2).unwrap();
            assert_eq!(asked.edns.as_ref().map(Edns::max_payload), Some(1232), "all else is kept");
            assert_eq!(asked.metadata.checking_disabled, disabled);
        }
    }
}

#[test]
fn without_nat64_nothing_is_made_up_and_neither_is_for_the_same_question_of_another_network() {
    let message = query(7, "www.example", kind::AAAA);
    let mut talk = Talk::begin(&OPEN, &message);
    talk.resolver.handle_query(Duration::ZERO, 2, &NAT64, Via::Udp, &message);
    talk.settle();
    assert_eq!(talk.asked.len(), 2, "they do not share an exchange");
    talk.has(vec![]);
    assert_eq!(texts(&Message::from_vec(&talk.answers[0]).unwrap()), [""; 0]);
    talk.has(vec![]);
    assert_eq!(talk.question().1, RecordType::A);
    let mut talk = Talk::about(kind::A);
    talk.has(vec![a("www.example.", 3600, "192.0.2.33")]);
    assert_eq!(texts(&talk.answer()), ["192.0.2.33"]);
}

#[test]
fn names_of_ours_are_what_they_were() {
    for (asked, answer) in [("web", vec!["fd00:0:0:58::2"]), ("www", vec![]), ("nobody", vec![])] {
        let talk = Talk::begin(&NAT64, &query(7, asked, kind::AAAA));
        assert_eq!(texts(&talk.answer()), answer, "{asked}");
    }
}

/// RFC 7050, RFC 8880.
#[test]
fn the_name_by_which_the_prefix_is_found_out_is_answered_here() {
    let ask = |asked: &str, kind| Talk::begin(&NAT64, &query(7, asked, kind)).answer();
    let answer = ask("IPv4Only.arpa", kind::AAAA);
    assert_eq!(texts(&answer), ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]);
    assert_eq!(texts(&ask("ipv4only.arpa", kind::A)), ["192.0.0.170", "192.0.0.171"]);
    let nothing = ask("ipv4only.arpa", 2);
    assert_eq!((nothing.answers.len(), nothing.authorities.len()), (0, 1));
    let below = ask("x.ipv4only.arpa", kind::AAAA);
    assert_eq!(below.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(texts(&ask("170.0.0.192.in-addr.arpa", kind::PTR)), ["ipv4only.arpa."]);
    let elsewhere = Talk::begin(&OPEN, &query(7, "ipv4only.arpa", kind::AAAA));
    assert_eq!(elsewhere.asked.len(), 1, "the Internet's business");
}

/// The name of an address.
fn backwards(ip: &str) -> String {
    let address: Ipv6Addr = ip.parse().unwrap();
    let digits = format!("{:032x}", address.to_bits());
    let labels: Vec<String> = digits.chars().rev().map(String::from).collect();
    format!("{}.ip6.arpa", labels.join("."))
}

#[test]
fn the_name_of_an_address_under_the_prefix_is_that_of_the_one_of_ipv4() {
    let asked = backwards("64:ff9b::192.0.2.33");
    let other = "33.2.0.192.in-addr.arpa.";
    let mut talk = Talk::begin(&NAT64, &query(7, &asked, kind::PTR));
    assert_eq!(talk.question(), (other.into(), RecordType::PTR));
    let pointer = RData::PTR(PTR(name("www.example.")));
    talk.has(vec![Record::from_rdata(name(other), 60, pointer)]);
    let answer = talk.answer();
    assert_eq!(texts(&answer), [other, "www.example."]);
    assert_eq!(answer.answers[0].name.to_string(), format!("{asked}."));
    assert_eq!(answer.queries[0].name.to_string(), format!("{asked}."));
    assert_eq!(answer.answers[0].ttl, 60);
    let mut talk = Talk::begin(&NAT64, &query(7, &asked, kind::PTR));
    talk.reply(ResponseCode::NXDomain, vec![], vec![soa(300, 300)]);
    let answer = talk.answer();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!((texts(&answer), answer.authorities.len()), (vec![other.to_owned()], 1));
    // Ours, and the loopback, are asked of nobody.
    for (ip, named) in [
        ("64:ff9b::10.88.0.2", vec!["web.bridge.internal."]),
        ("64:ff9b::10.88.0.9", vec![]),
        ("64:ff9b::127.0.0.1", vec!["localhost."]),
        ("64:ff9b::192.0.0.171", vec!["ipv4only.arpa."]),
    ] {
        let talk = Talk::begin(&NAT64, &query(7, &backwards(ip), kind::PTR));
        assert_eq!(texts(&talk.answer()), named, "{ip}");
    }
    let talk = Talk::begin(&OPEN, &query(7, &asked, kind::PTR));
    assert_eq!(talk.question().0, format!("{asked}."), "without NAT64 it is just a name");
}

#[test]
fn no_mutation_of_a_reply_makes_a_panic_or_a_second_answer() {
    let pointer = backwards("64:ff9b::192.0.2.33");
    let mut answered = 0;
    for seed in 0..5000 {
        let mut chance = Secrets::new(seed);
        let (asked, kind) =
            if seed % 4 == 0 { (pointer.as_str(), kind::PTR) } else { ("www.example", kind::AAAA) };
        let mut talk = Talk::begin(&NAT64, &query(7, asked, kind));
        for _ in 0..6 {
            let Some((exchange, _, message)) = talk.asked.first().cloned() else { break };
            let mut reply = Message::from_vec(&message).unwrap();
            reply.metadata.message_type = MessageType::Response;
            let other = name("33.2.0.192.in-addr.arpa.");
            reply.answers = vec![
                cname("www.example.", "cdn.example."),
                a("cdn.example.", 60, "192.0.2.33"),
                aaaa("cdn.example.", "::ffff:192.0.2.1"),
                Record::from_rdata(other, 60, RData::PTR(PTR(name("www.example.")))),
            ];
            reply.authorities = vec![soa(300, 300)];
            let mut bytes = reply.to_vec().unwrap();
            // Id, question and their like must stay as they are for the rest to be looked at.
            let kept = if chance.next_u16().is_multiple_of(8) { 0 } else { message.len() };
            for _ in 0..chance.next_u16() % 4 {
                let at = kept + usize::from(chance.next_u16()) % (bytes.len() - kept);
                bytes[at] = chance.next_u16().to_be_bytes()[0];
            }
            let mut is_own = |_: IpAddr| false;
            let reply = Reply::Message(&bytes);
            talk.resolver.handle_reply(Duration::ZERO, exchange, reply, &mut is_own);
            talk.settle();
        }
        assert!(talk.answers.len() <= 1, "seed {seed}");
        answered += talk.answers.len();
    }
    assert!(answered > 2000, "most mutations leave a reply: {answered}");
}
