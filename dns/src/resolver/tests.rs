//! Questions that are answered at once.

mod dns64;
mod forwarding;

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, ResponseCode};

use super::*;
use crate::question::tests::{query, query_with_edns};
use crate::question::{HEADER_LEN, kind};

/// The network `bridge`, 10.88.0.0/16, with one workload `web` at .2 whose alias is `www`.
struct Bridge {
    internal: bool,
    nat64: bool,
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

    fn has_nat64(&self) -> bool {
        self.nat64
    }
}

const OPEN: Bridge = Bridge { internal: false, nat64: false };

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
    for name in ["web", "WEB", "www", "web.hypr", "web.bridge.internal", "Web.Bridge.Internal"] {
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
    let internal = Bridge { internal: true, ..OPEN };
    let message = query_with_edns("example.com", kind::A, 1232, 0);
    resolver.handle_query(Duration::ZERO, 1, &internal, Via::Udp, &message);
    let Some(Action::Answer { message, .. }) = resolver.poll_action() else {
        panic!("not answered")
    };
    assert_eq!(Message::from_vec(&message).unwrap().metadata.response_code, ResponseCode::Refused);
    assert!(String::from_utf8_lossy(&message).contains("internal"));
    assert_eq!(resolver.poll_action(), None);
}
