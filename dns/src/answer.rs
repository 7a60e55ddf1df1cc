//! Answers that we give ourselves, without asking anyone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::catalog::Catalog;
use crate::dns64::{IPV4_ONLY, embed, embedded};
use crate::question::{CLASS_IN, Code, HEADER_LEN, Question, kind};
use crate::reverse;

/// Seconds that an answer of ours may be kept: workloads come and go.
const TTL: u32 = 5;
/// Addresses in one answer.
const MAX_ADDRESSES: usize = 8;
/// RFC 7050.
const IPV4_ONLY_ZONE: &str = "ipv4only.arpa.";

/// Why a name is not answered, told to whoever reads Extended DNS Errors (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// 18: the network is internal.
    Prohibited,
    /// 22: no resolver of the host has answered.
    NoReachableAuthority,
    /// 14: the host has no resolver.
    NotReady,
}

impl Why {
    fn code_and_text(self) -> (u16, &'static str) {
        match self {
            Self::Prohibited => (18, "this network is internal: it has no way out"),
            Self::NoReachableAuthority => (22, "no resolver of the host has answered"),
            Self::NotReady => (14, "the host has no resolver configured"),
        }
    }
}

/// What we know of a question.
pub(crate) enum Local {
    /// The answer.
    Answer(Box<Message>),
    /// It is for others to answer.
    Foreign,
}

/// Answers a question from the catalog where it is ours to answer.
pub(crate) fn answer(question: &Question, catalog: &impl Catalog) -> Local {
    if question.edns.is_some_and(|edns| edns.version > 0) {
        return reply(question, Code::BadVers);
    }
    if question.class != CLASS_IN || matches!(question.kind, kind::AXFR | kind::IXFR) {
        return reply(question, Code::Refused);
    }
    let zone = match question.labels() {
        Some(labels) => find(&labels, question.kind, catalog),
        None => Found::Foreign,
    };
    match zone {
        Found::Foreign if catalog.is_internal() => {
            Local::Answer(Box::new(refuse(question, Code::Refused, Some(Why::Prohibited))))
        }
        Found::Foreign => Local::Foreign,
        // RFC 8482: nobody needs ANY, and amplifiers love it.
        _ if question.kind == kind::ANY => reply(question, Code::Refused),
        Found::Ours { zone, what } => Local::Answer(Box::new(compose(question, &zone, what))),
    }
}

/// A name's place among our own.
enum Found {
    /// Not ours.
    Foreign,
    /// Ours, in that zone.
    Ours { zone: String, what: What },
}

enum What {
    Addresses(Vec<Ipv4Addr>, Vec<Ipv6Addr>),
    Loopback,
    Name(String),
    /// It exists, with nothing of any type.
    Empty,
    Unknown,
}

fn find(labels: &[String], kind: u16, catalog: &impl Catalog) -> Found {
    let network = catalog.network().to_ascii_lowercase();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let ours = |zone: &str, what| Found::Ours { zone: zone.to_owned(), what };
    let zone = format!("{network}.internal.");
    match labels.as_slice() {
        [.., "localhost"] => ours("localhost.", What::Loopback),
        [.., "local"] => ours("local.", What::Unknown),
        ["hypr"] => ours("hypr.", What::Empty),
        ["host", "lichen", "internal"] => ours("lichen.internal.", gateway(catalog)),
        ["lichen", "internal"] => ours("lichen.internal.", What::Empty),
        [.., "lichen", "internal"] => ours("lichen.internal.", What::Unknown),
        [label, "hypr"] => ours("hypr.", workload(label, catalog)),
        [.., "hypr"] => ours("hypr.", What::Unknown),
        [net, "internal"] if *net == network => ours(&zone, What::Empty),
        ["gateway", net, "internal"] if *net == network => ours(&zone, gateway(catalog)),
        [label, net, "internal"] if *net == network => ours(&zone, workload(label, catalog)),
        [.., net, "internal"] if *net == network => ours(&zone, What::Unknown),
        // Another network of ours: none of the host's resolvers' business, and none of this guest's.
        [.., net, "internal"] if catalog.is_network(net) => {
            ours(&format!("{net}.internal."), What::Unknown)
        }
        ["ipv4only", "arpa"] if catalog.has_nat64() => ours(IPV4_ONLY_ZONE, ipv4_only()),
        [.., "ipv4only", "arpa"] if catalog.has_nat64() => ours(IPV4_ONLY_ZONE, What::Unknown),
        [d, c, b, a, "in-addr", "arpa"] => reverse([a, b, c, d], &zone, catalog),
        [nibbles @ .., "ip6", "arpa"] => reverse6(nibbles, &zone, catalog),
        [label] => match workload(label, catalog) {
            // A top-level domain's own records are the Internet's business; its addresses are not.
            What::Unknown if !matches!(kind, kind::A | kind::AAAA | kind::ANY) => Found::Foreign,
            what => ours(".", what),
        },
        _ => Found::Foreign,
    }
}

fn workload(label: &str, catalog: &impl Catalog) -> What {
    match (catalog.addresses_of(label), catalog.addresses6_of(label)) {
        (v4, v6) if v4.is_empty() && v6.is_empty() => What::Unknown,
        (v4, v6) => What::Addresses(v4, v6),
    }
}

fn gateway(catalog: &impl Catalog) -> What {
    What::Addresses(vec![catalog.gateway()], catalog.gateway6().into_iter().collect())
}

fn reverse(octets: [&str; 4], zone: &str, catalog: &impl Catalog) -> Found {
    let Ok(address) = octets.join(".").parse::<Ipv4Addr>() else { return Found::Foreign };
    reversed(address.into(), &format!("{}.in-addr.arpa.", octets[0]), zone, catalog)
}

/// The zone is the network's /64. What stands for an IPv4 address has the same names.
fn reverse6(nibbles: &[&str], zone: &str, catalog: &impl Catalog) -> Found {
    let Some(address) = reverse::address6(nibbles) else { return Found::Foreign };
    let own = format!("{}.ip6.arpa.", nibbles[16..].join("."));
    match embedded(address).filter(|_| catalog.has_nat64()) {
        Some(address) => reversed(address.into(), &own, zone, catalog),
        None => reversed(address.into(), &own, zone, catalog),
    }
}

/// By which a guest finds out the prefix, answered by whoever synthesizes and never by others (RFC 8880 7.1).
fn ipv4_only() -> What {
    What::Addresses(IPV4_ONLY.to_vec(), IPV4_ONLY.map(embed).to_vec())
}

fn reversed(address: IpAddr, own: &str, zone: &str, catalog: &impl Catalog) -> Found {
    let ours = |what| Found::Ours { zone: own.to_owned(), what };
    if address.is_loopback() {
        return ours(What::Name("localhost.".to_owned()));
    }
    if catalog.has_nat64() && IPV4_ONLY.map(IpAddr::V4).contains(&address) {
        return ours(What::Name(IPV4_ONLY_ZONE.to_owned()));
    }
    let gateways = [Some(catalog.gateway().into()), catalog.gateway6().map(IpAddr::V6)];
    if gateways.contains(&Some(address)) {
        return ours(What::Name(format!("gateway.{zone}")));
    }
    match catalog.name_of(address) {
        Some(name) if catalog.contains(address) => ours(What::Name(format!("{name}.{zone}"))),
        _ if catalog.is_ours(address) => ours(What::Unknown),
        _ => Found::Foreign,
    }
}

fn compose(question: &Question, zone: &str, what: What) -> Message {
    let mut message = skeleton(question, Code::NoError);
    message.metadata.authoritative = true;
    let mut add = |data| {
        if let Some(query) = message.queries.first() {
            let record = Record::from_rdata(query.name.clone(), TTL, data);
            message.answers.push(record);
        }
    };
    match (&what, question.kind) {
        (What::Addresses(addresses, _), kind::A) => {
            addresses.iter().take(MAX_ADDRESSES).for_each(|ip| add(RData::A(A(*ip))));
        }
        (What::Addresses(_, addresses), kind::AAAA) => {
            addresses.iter().take(MAX_ADDRESSES).for_each(|ip| add(RData::AAAA(AAAA(*ip))));
        }
        (What::Loopback, kind::A) => add(RData::A(A(Ipv4Addr::LOCALHOST))),
        (What::Loopback, kind::AAAA) => add(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        (What::Name(name), kind::PTR) => {
            if let Ok(name) = Name::from_ascii(name) {
                add(RData::PTR(PTR(name)));
            }
        }
        (What::Empty, kind::SOA) => {
            if let Some(soa) = start_of_authority(zone) {
                add(soa.data);
            }
        }
        _ => {}
    }
    if message.answers.is_empty() {
        message.authorities.extend(start_of_authority(zone));
    }
    if matches!(what, What::Unknown) {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    message
}

fn start_of_authority(zone: &str) -> Option<Record> {
    let owner = Name::from_ascii(zone).ok()?;
    let server = Name::from_ascii("gateway.lichen.internal.").ok()?;
    let contact = Name::from_ascii("nobody.invalid.").ok()?;
    let soa = SOA::new(server, contact, 1, 3600, 600, 86_400, TTL);
    Some(Record::from_rdata(owner, TTL, RData::SOA(soa)))
}

fn reply(question: &Question, code: Code) -> Local {
    Local::Answer(Box::new(refuse(question, code, None)))
}

/// An answer without data, with the reason where the asker can read it.
pub(crate) fn refuse(question: &Question, code: Code, why: Option<Why>) -> Message {
    let mut message = skeleton(question, code);
    if let (Some(why), Some(edns)) = (why, &mut message.edns) {
        let (number, text) = why.code_and_text();
        let mut option = number.to_be_bytes().to_vec();
        option.extend_from_slice(text.as_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(15, option));
    }
    message
}

fn skeleton(question: &Question, code: Code) -> Message {
    let mut message = Message::response(question.id, OpCode::Query);
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = match code {
        Code::NoError => ResponseCode::NoError,
        Code::FormErr => ResponseCode::FormErr,
        Code::ServFail => ResponseCode::ServFail,
        Code::NotImp => ResponseCode::NotImp,
        Code::Refused => ResponseCode::Refused,
        Code::BadVers => ResponseCode::BADVERS,
    };
    message.queries.extend(query_of(question));
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.edns = Some(edns);
    }
    message
}

/// The question as an answer repeats it.
pub(crate) fn query_of(question: &Question) -> Option<Query> {
    let mut query = Query::query(decode(&question.name)?, RecordType::from(question.kind));
    query.set_query_class(DNSClass::from(question.class));
    Some(query)
}

fn decode(name: &[u8]) -> Option<Name> {
    let mut labels = Vec::new();
    let mut rest = name;
    while let [len @ 1..=63, tail @ ..] = rest {
        let (label, after) = tail.split_at(usize::from(*len));
        labels.push(label);
        rest = after;
    }
    let mut name = Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Encodes an answer for an asker that takes `limit` bytes, truncated (RFC 2181, 9) where it is longer.
pub(crate) fn encode(message: &Message, limit: usize) -> Vec<u8> {
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => bytes,
        _ => message.truncate().to_vec().unwrap_or_default(),
    }
}

/// The answer to what is no question: a header alone.
pub(crate) fn header_only(id: u16, opcode: u8, code: Code) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes[2] = 0x80 | opcode << 3;
    bytes[3] = code as u8 & 0xf;
    bytes
}
