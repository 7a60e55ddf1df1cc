//! What a DHCPv6 client of a guest gets: its own address, and nothing else whatever it says.

use std::net::{Ipv6Addr, SocketAddr};

use lichen_netstack::ids::MacAddr;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::wire::dhcp6::{ALL_SERVERS, Dhcp6Message, MessageType};

const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 9, 9, 9, 9, 9];
const OWN: &str = "fd00:0:0:58::2";

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap();
    [&code.to_be_bytes()[..], &len.to_be_bytes(), value].concat()
}

fn association(id: u8, addresses: &[&str]) -> Vec<u8> {
    let mut value = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
    for address in addresses {
        let address: Ipv6Addr = address.parse().unwrap();
        value.extend(option(5, &[&address.octets()[..], &[0; 8]].concat()));
    }
    option(3, &value)
}

fn server(lab: &Lab) -> Vec<u8> {
    option(2, &[&[0, 3, 0, 1][..], &lab.gateway_mac(0).0].concat())
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    [&[kind, 1, 2, 3][..], &option(1, &CLIENT), &option(6, &[0, 23, 0, 24]), &options.concat()]
        .concat()
}

/// Sends a message as clients do; what comes back.
fn ask(lab: &mut Lab, message: &[u8]) -> Option<Vec<u8>> {
    let from = lab.spec(0).mac.link_local();
    let packet = udp(SocketAddr::from((from, 546)), SocketAddr::from((ALL_SERVERS, 547)), message);
    let group = MacAddr::for_ipv6_multicast(ALL_SERVERS);
    lab.send(0, ethernet(lab.spec(0).mac, group, 0x86dd, &packet));
    let mut received = lab.received(0);
    assert!(received.len() <= 1, "one answer at most");
    let answer = received.pop()?;
    let ip = *answer.ipv6().unwrap();
    assert_eq!((ip.source.to_string().as_str(), ip.destination), ("fe80::1", from));
    Some(answer.udp().unwrap().to_vec())
}

fn addresses(answer: &[u8]) -> Vec<Vec<String>> {
    let answer = Dhcp6Message::parse(answer).unwrap();
    assert_eq!(answer.client_id, Some(&CLIENT[..]));
    let texts = |addresses: &[Ipv6Addr]| addresses.iter().map(Ipv6Addr::to_string).collect();
    answer.associations.iter().map(|ia| texts(&ia.addresses)).collect()
}

fn kind(answer: &[u8]) -> MessageType {
    Dhcp6Message::parse(answer).unwrap().kind
}

#[test]
fn a_client_is_given_the_fixed_address_its_resolver_and_its_domain() {
    let mut lab = Lab::new(1);
    let offer = ask(&mut lab, &message(1, &[association(7, &[])])).unwrap();
    assert_eq!((kind(&offer), addresses(&offer)), (MessageType::Advertise, vec![vec![OWN.into()]]));
    let request = message(3, &[server(&lab), association(7, &[OWN])]);
    let lease = ask(&mut lab, &request).unwrap();
    assert_eq!((kind(&lease), addresses(&lease)), (MessageType::Reply, vec![vec![OWN.into()]]));
    let gateway: Ipv6Addr = "fd00:0:0:58::1".parse().unwrap();
    let resolver = option(23, &gateway.octets());
    let domain = option(24, b"\x06bridge\x08internal\0");
    for part in [resolver, domain] {
        assert!(lease.windows(part.len()).any(|window| window == part));
    }
    let rapid = ask(&mut lab, &message(1, &[association(7, &[]), option(14, &[])])).unwrap();
    assert_eq!((kind(&rapid), addresses(&rapid)), (MessageType::Reply, vec![vec![OWN.into()]]));
}

#[test]
fn a_second_association_and_anothers_address_are_not_given() {
    let mut lab = Lab::new(1);
    let both = message(1, &[association(1, &[]), association(2, &["fd00:0:0:58::3"])]);
    assert_eq!(addresses(&ask(&mut lab, &both).unwrap()), [vec![OWN.to_owned()], vec![]]);
    let renew = message(5, &[server(&lab), association(1, &["fd00:0:0:58::3"])]);
    let answer = ask(&mut lab, &renew).unwrap();
    assert_eq!(addresses(&answer), [[OWN, "fd00:0:0:58::3"]]);
    let theirs: Ipv6Addr = "fd00:0:0:58::3".parse().unwrap();
    let taken_away = option(5, &[&theirs.octets()[..], &[0; 8]].concat());
    assert!(answer.windows(taken_away.len()).any(|window| window == taken_away));
}

#[test]
fn who_has_addresses_is_told_the_rest_and_whether_they_are_right_here() {
    let mut lab = Lab::new(1);
    let answer = ask(&mut lab, &message(11, &[])).unwrap();
    assert_eq!((kind(&answer), addresses(&answer)), (MessageType::Reply, vec![]));
    for (address, status) in [(OWN, 0), ("2001:db8::9", 4)] {
        let answer = ask(&mut lab, &message(4, &[association(1, &[address])])).unwrap();
        let status = option(13, &[0, status]);
        assert!(answer.windows(status.len()).any(|window| window == status), "{address}");
    }
    assert_eq!(ask(&mut lab, &message(4, &[association(1, &[])])), None);
    for released in [8, 9] {
        let gone = message(released, &[server(&lab), association(1, &[OWN])]);
        assert_eq!(kind(&ask(&mut lab, &gone).unwrap()), MessageType::Reply);
    }
}

#[test]
fn what_only_servers_say_and_what_is_for_another_is_guarded_against() {
    let mut lab = Lab::new(2);
    let stranger = option(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    for (message, reason) in [
        (message(2, &[server(&lab)]), "dhcp_guard"),
        (message(7, &[server(&lab)]), "dhcp_guard"),
        (message(12, &[]), "dhcp_guard"),
        (message(3, &[stranger, association(1, &[OWN])]), "dhcp_guard"),
        (message(3, &[association(1, &[OWN])]), "dhcp_malformed"),
        (message(1, &[server(&lab)]), "dhcp_malformed"),
        (vec![1, 0, 0, 0], "dhcp_malformed"),
        (vec![1, 0, 0], "dhcp_malformed"),
    ] {
        let before = lab.dropped(0, reason);
        assert_eq!(ask(&mut lab, &message), None);
        assert_eq!(lab.dropped(0, reason), before + 1, "{message:?}");
    }
    let flood = message(1, &[association(1, &[])]);
    let answered = (0..100).filter(|_| ask(&mut lab, &flood).is_some()).count();
    assert!(answered <= 20, "{answered}");
    assert!(lab.dropped(0, "dhcp_budget") >= 80);
    assert!(lab.received(1).is_empty());
}
