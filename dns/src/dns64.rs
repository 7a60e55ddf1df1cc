//! DNS64 (RFC 6147): on a network with NAT64, a name that has addresses of IPv4 alone is answered with what stands for
//! them under the well-known prefix (RFC 6052).
//!
//! A [`Lookup`] says what is asked in a question's place. All that is kept between the two questions of one is how long
//! the answer may be good. What is made here is made of replies that [`rebinding`](crate::rebinding) has cleaned.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};

use crate::question::{HEADER_LEN, Question, kind};
use crate::reverse;

/// Seconds that an answer of ours is good at most when nobody says how long a name has no AAAA (RFC 6147 5.1.7).
const TTL: u32 = 600;
/// The well-known prefix, 64:ff9b::/96 (RFC 6052 2.1).
const WELL_KNOWN: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
/// What `ipv4only.arpa` means by itself (RFC 7050 8.2).
pub(crate) const IPV4_ONLY: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The address that stands for one of IPv4.
pub(crate) fn embed(ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(WELL_KNOWN.to_bits() | u128::from(ip.to_bits()))
}

/// The IPv4 address that one under the prefix stands for.
pub(crate) fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = ip.octets();
    let ip4 = Ipv4Addr::new(a, b, c, d);
    (embed(ip4) == ip).then_some(ip4)
}

/// What is asked of the host's resolvers in the place of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// The question, whose reply is the answer.
    Plain,
    /// The question, for AAAA. When there is none, `Ipv4` follows.
    Ipv6,
    /// The same name's A, of which AAAA are made; they are good for `longest` seconds at most.
    Ipv4 {
        /// Seconds.
        longest: u32,
    },
    /// The name of this IPv4 address, for which the question's stands.
    Pointer(Ipv4Addr),
}

/// What a reply means.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is the answer.
    AsItIs,
    /// This is.
    Answer(Message),
    /// Another lookup is to follow.
    Next(Lookup),
}

impl Lookup {
    /// What a question of a guest on a network with NAT64 begins with. Who wants to validate by itself is told nothing
    /// but what the zone has signed (RFC 6147 5.5).
    pub(crate) fn of(question: &Question) -> Self {
        let validates = question.edns.is_some_and(|edns| edns.dnssec_ok);
        match question.kind {
            _ if validates && question.checking_disabled => Self::Plain,
            kind::AAAA => Self::Ipv6,
            kind::PTR => embedded_in(question).map_or(Self::Plain, Self::Pointer),
            _ => Self::Plain,
        }
    }

    /// What follows when nobody has answered.
    pub(crate) fn after_failure(self) -> Option<Self> {
        // RFC 6147 5.1.2, 5.1.3: any error but NXDOMAIN, and silence, are as if there were no AAAA.
        (self == Self::Ipv6).then_some(Self::Ipv4 { longest: TTL })
    }

    /// The message that asks so, out of an asker's.
    pub(crate) fn message(self, message: &[u8], question: &Question) -> Vec<u8> {
        match self {
            Self::Plain | Self::Ipv6 => message.to_vec(),
            Self::Ipv4 { .. } => with_question(message, question, &question.name, kind::A),
            Self::Pointer(ip) => {
                with_question(message, question, &reverse::encoded4(ip), kind::PTR)
            }
        }
    }

    /// What a reply means for who has asked `query`.
    pub(crate) fn judge(self, reply: &Message, query: Query) -> Outcome {
        match self {
            Self::Plain => Outcome::AsItIs,
            Self::Ipv6 => judge_ipv6(reply),
            Self::Ipv4 { longest } => Outcome::Answer(synthesized(reply, longest, query)),
            Self::Pointer(ip) => Outcome::Answer(pointed(reply, ip, query)),
        }
    }
}

/// RFC 6147 5.1.1 to 5.1.4.
fn judge_ipv6(reply: &Message) -> Outcome {
    if reply.metadata.response_code == ResponseCode::NXDomain {
        return Outcome::AsItIs;
    }
    let has_address = reply
        .answers
        .iter()
        .any(|record| matches!(record.data, RData::AAAA(_)) && !is_excluded(record));
    if !has_address {
        return Outcome::Next(Lookup::Ipv4 { longest: negative_ttl(reply).unwrap_or(TTL) });
    }
    if !reply.answers.iter().any(is_excluded) {
        return Outcome::AsItIs;
    }
    let mut answer = reply.clone();
    answer.answers.retain(|record| !is_excluded(record));
    Outcome::Answer(answer)
}

/// ::ffff:0:0/96 is IPv4 in disguise, where no packet goes (RFC 6147 5.1.4).
fn is_excluded(record: &Record) -> bool {
    matches!(&record.data, RData::AAAA(address) if address.0.to_ipv4_mapped().is_some())
}

/// How long it is good that there is nothing (RFC 2308 5).
fn negative_ttl(reply: &Message) -> Option<u32> {
    reply.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}

/// The answer for AAAA that a reply for A makes (RFC 6147 5.1.7, 5.4): its chain of names, and addresses. Where there
/// are none, it says so of AAAA.
fn synthesized(reply: &Message, longest: u32, query: Query) -> Message {
    let mut answer = reply.clone();
    answer.queries = vec![query];
    answer.metadata.authentic_data = false;
    answer.metadata.authoritative = false;
    // Somebody has said that the name is there, or could not say anything.
    answer.metadata.response_code = ResponseCode::NoError;
    answer.answers.retain_mut(|record| match &record.data {
        RData::A(address) => {
            record.data = RData::AAAA(AAAA(embed(address.0)));
            record.ttl = record.ttl.min(longest);
            true
        }
        RData::CNAME(_) => true,
        // Signatures of what is no longer there, and DNAMEs, for which CNAMEs stand.
        _ => false,
    });
    let has_address = answer.answers.iter().any(|record| matches!(record.data, RData::AAAA(_)));
    if has_address {
        answer.authorities.clear();
    }
    answer.additionals.clear();
    answer
}

/// The answer for a name under ip6.arpa: it is another one for that under in-addr.arpa, whose reply this is (RFC 6147
/// 5.3.1).
fn pointed(reply: &Message, ip: Ipv4Addr, query: Query) -> Message {
    let other = Name::from_ascii(reverse::name4(ip)).expect("digits, letters and dots");
    let ttl = reply.answers.iter().map(|record| record.ttl).min().unwrap_or(TTL).min(TTL);
    let link = Record::from_rdata(query.name.clone(), ttl, RData::CNAME(CNAME(other)));
    let mut answer = reply.clone();
    answer.queries = vec![query];
    answer.metadata.authentic_data = false;
    answer.metadata.authoritative = false;
    answer.answers.insert(0, link);
    answer
}

/// The IPv4 address that the address which a question is about stands for.
fn embedded_in(question: &Question) -> Option<Ipv4Addr> {
    let labels = question.labels()?;
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [nibbles @ .., "ip6", "arpa"] => embedded(reverse::address6(nibbles)?),
        _ => None,
    }
}

/// A message with another name and type in its question.
fn with_question(message: &[u8], question: &Question, name: &[u8], kind: u16) -> Vec<u8> {
    let (header, rest) = message.split_at(HEADER_LEN);
    let after_kind = &rest[question.name.len() + 2..];
    [header, name, &kind.to_be_bytes(), after_kind].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6052 2.4.
    #[test]
    fn an_address_stands_for_one_of_ipv4_under_the_prefix_alone() {
        let ip = Ipv4Addr::new(192, 0, 2, 33);
        assert_eq!(embed(ip).to_string(), "64:ff9b::c000:221");
        assert_eq!(embedded(embed(ip)), Some(ip));
        for other in ["64:ff9b:1::c000:221", "64:ff9b::1:c000:221", "::ffff:192.0.2.33"] {
            assert_eq!(embedded(other.parse().unwrap()), None, "{other}");
        }
    }
}
