//! Answers from outside that point inside (DNS rebinding): they are stripped of the addresses that are
//! the host's, ours, or a metadata service's. Private ranges stay: a company's VPN lives there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record};

use crate::dns64;

const METADATA: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];

/// The same over IPv6, by their first 32 bits: fd00:ec2::/32 of one cloud, fd20:ce::/32 of another.
const METADATA6: [[u16; 2]; 2] = [[0xfd00, 0x0ec2], [0xfd20, 0x00ce]];

/// The IPv4 address that a translator (RFC 6052) or a relay (RFC 3056) would make of one.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.octets() {
        [0x20, 2, a, b, c, d, ..] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => dns64::embedded(ip),
    }
}

/// What is left of a reply from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleaned {
    /// All of it: the bytes may be passed on as they are.
    Untouched,
    /// Less.
    Changed,
}

/// Removes answers that are not of the question's chain of names, and addresses that point inside.
///
/// `is_own` says of an address whether it is the host's or a network's of ours.
pub(crate) fn clean(message: &mut Message, is_own: &mut impl FnMut(IpAddr) -> bool) -> Cleaned {
    let before = message.answers.len();
    let mut chain: Vec<Name> = message.queries.iter().map(|query| query.name.clone()).collect();
    // CNAME and DNAME links stand in order in every answer that is worth following.
    message.answers.retain(|record| {
        let belongs = chain.iter().any(|name| name == &record.name || record.name.zone_of(name));
        if let (true, RData::CNAME(target)) = (belongs, &record.data) {
            chain.push(target.0.clone());
        }
        belongs && !points_inside(record, is_own)
    });
    if message.answers.len() != before {
        message.authorities.clear();
        message.additionals.clear();
        return Cleaned::Changed;
    }
    // Some clients use what stands beside the answer.
    let beside = message.additionals.len() + message.authorities.len();
    message.additionals.retain(|record| !points_inside(record, is_own));
    message.authorities.retain(|record| !points_inside(record, is_own));
    if message.additionals.len() + message.authorities.len() == beside {
        Cleaned::Untouched
    } else {
        Cleaned::Changed
    }
}

fn points_inside(record: &Record, is_own: &mut impl FnMut(IpAddr) -> bool) -> bool {
    match &record.data {
        RData::A(address) => is_inside(IpAddr::V4(address.0), is_own),
        RData::AAAA(address) => is_inside(IpAddr::V6(address.0), is_own),
        RData::SVCB(service) => hints_inside(service, is_own),
        RData::HTTPS(service) => hints_inside(&service.0, is_own),
        _ => false,
    }
}

/// Whether the hints of a service binding (RFC 9460 7.3), which clients connect to unasked, point inside.
fn hints_inside(service: &SVCB, is_own: &mut impl FnMut(IpAddr) -> bool) -> bool {
    service.svc_params.iter().any(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|a| is_inside(a.0.into(), is_own)),
        SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|a| is_inside(a.0.into(), is_own)),
        _ => false,
    })
}

fn is_inside(address: IpAddr, is_own: &mut impl FnMut(IpAddr) -> bool) -> bool {
    match address {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.octets()[0] == 0
                || ip.is_link_local()
                || METADATA.contains(&ip)
                || is_own(IpAddr::V4(ip))
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_inside(IpAddr::V4(ip), is_own),
            None => {
                ip.is_loopback()
                    || ip.is_unspecified()
                    || ip.is_unicast_link_local()
                    || METADATA6.contains(&[ip.segments()[0], ip.segments()[1]])
                    || embedded(ip).is_some_and(|ip| is_inside(IpAddr::V4(ip), is_own))
                    || is_own(IpAddr::V6(ip))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::RecordType;
    use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn reply(answers: &[(&str, RData)]) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name("a.example."), RecordType::A));
        for (owner, data) in answers {
            message.add_answer(Record::from_rdata(name(owner), 60, data.clone()));
        }
        message
    }

    fn left(answers: &[(&str, RData)]) -> usize {
        let mut is_own = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, 88],
            IpAddr::V6(ip) => ip.segments()[..4] == [0xfd00, 0, 0, 0x58],
        };
        let mut message = reply(answers);
        let cleaned = clean(&mut message, &mut is_own);
        assert_eq!(cleaned == Cleaned::Untouched, message.answers.len() == answers.len());
        message.answers.len()
    }

    #[test]
    fn addresses_that_point_inside_are_stripped() {
        for ip in
            ["127.0.0.1", "0.0.0.0", "169.254.169.254", "10.88.0.1", "100.100.100.200", "127.9.9.9"]
        {
            let address = RData::A(A(ip.parse().unwrap()));
            assert_eq!(left(&[("a.example.", address)]), 0, "{ip}");
        }
        for ip in [
            "::1",
            "::",
            "fe80::1",
            "::ffff:127.0.0.1",
            "fd00:ec2::254",
            "64:ff9b::a9fe:a9fe",
            "fd00:0:0:58::2",
        ] {
            let address = RData::AAAA(AAAA(ip.parse().unwrap()));
            assert_eq!(left(&[("a.example.", address)]), 0, "{ip}");
        }
        for ip in ["2001:db8::1", "fd00:0:0:59::2", "64:ff9b::c000:201"] {
            let address = RData::AAAA(AAAA(ip.parse().unwrap()));
            assert_eq!(left(&[("a.example.", address)]), 1, "{ip}");
        }
        for ip in ["192.0.2.1", "10.0.0.1", "192.168.1.1"] {
            let address = RData::A(A(ip.parse().unwrap()));
            assert_eq!(left(&[("a.example.", address)]), 1, "{ip}");
        }
    }

    #[test]
    fn hints_and_what_stands_beside_the_answer_point_nowhere_inside_either() {
        let hint = |ip: &str| {
            let value = match ip.parse().unwrap() {
                IpAddr::V4(ip) => {
                    (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A(ip)])))
                }
                IpAddr::V6(ip) => {
                    (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![AAAA(ip)])))
                }
            };
            SVCB::new(1, Name::root(), vec![value])
        };
        for (ip, kept) in [("192.0.2.1", 1), ("127.0.0.1", 0), ("10.88.0.1", 0), ("::1", 0)] {
            assert_eq!(left(&[("a.example.", RData::HTTPS(HTTPS(hint(ip))))]), kept, "{ip}");
            assert_eq!(left(&[("a.example.", RData::SVCB(hint(ip)))]), kept, "{ip}");
        }
        let mut message = reply(&[("a.example.", RData::A(A(Ipv4Addr::new(192, 0, 2, 1))))]);
        for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 2)] {
            message.add_additional(Record::from_rdata(name("b.example."), 60, RData::A(A(ip))));
        }
        assert_eq!(
            clean(&mut message, &mut |_| false),
            Cleaned::Changed,
            "the loopback is taken out"
        );
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 1));
    }

    #[test]
    fn only_the_chain_of_the_question_is_kept() {
        let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        let alias = RData::CNAME(CNAME(name("b.example.")));
        let chain = [("a.example.", alias), ("b.example.", address.clone())];
        assert_eq!(left(&chain), 2);
        let mut with_sibling = chain.to_vec();
        with_sibling.push(("victim.example.", address));
        assert_eq!(left(&with_sibling), 2);
    }
}
