//! What a DHCP client of a guest gets: its own binding, and nothing else whatever it says.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lichen_netstack::command::Event;
use lichen_netstack::ids::{MacAddr, PortId};
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::chance::Chance;
use lichen_netstack::testing::dhcp::{Answer, Request};
use lichen_netstack::testing::frames::{Segment, ethernet, packet_with, udp};
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::wire::dhcp::MessageType;
use lichen_netstack::worker::WorkerEvent;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Sends a message from a client without an address; what comes back, and where to.
fn ask(lab: &mut Lab, message: &[u8]) -> Option<(Answer, Ipv4Addr)> {
    ask_from(lab, ANY, Ipv4Addr::BROADCAST, message)
}

fn ask_from(
    lab: &mut Lab,
    from: Ipv4Addr,
    to: Ipv4Addr,
    message: &[u8],
) -> Option<(Answer, Ipv4Addr)> {
    let packet = udp(SocketAddr::from((from, 68)), SocketAddr::from((to, 67)), message);
    let hardware = if to == GATEWAY { lab.gateway_mac(0) } else { MacAddr::BROADCAST };
    let frame = ethernet(lab.spec(0).mac, hardware, 0x0800, &packet);
    lab.send(0, frame);
    let mut received = lab.received(0);
    assert!(received.len() <= 1, "one answer at most");
    let frame = received.pop()?;
    let ip = frame.ipv4().expect("an answer");
    assert_eq!(ip.source, GATEWAY);
    assert_eq!(frame.headers.destination, lab.spec(0).mac);
    Some((Answer::read(frame.udp().expect("an answer")), ip.destination))
}

fn request(lab: &Lab, kind: MessageType) -> Request {
    Request::new(kind, lab.spec(0).mac)
}

fn kind(answer: Option<(Answer, Ipv4Addr)>) -> Option<MessageType> {
    answer.map(|(answer, _)| answer.kind)
}

#[test]
fn a_client_is_offered_its_binding_and_takes_it() {
    let mut lab = Lab::new(2);
    let wanted = [1, 3, 6, 12, 15, 26, 28, 42, 51, 54, 58, 59, 119, 121];
    let discover = request(&lab, MessageType::Discover).with(55, &wanted).with(61, &[1, 7]);
    let (offer, to) = ask(&mut lab, &discover.emit()).unwrap();
    assert_eq!((offer.kind, offer.yours, to), (MessageType::Offer, OWN, OWN));
    let taken = request(&lab, MessageType::Request)
        .with(55, &wanted)
        .with(50, &OWN.octets())
        .with(54, &GATEWAY.octets());
    let (ack, _) = ask(&mut lab, &taken.emit()).unwrap();
    assert_eq!((ack.kind, ack.yours), (MessageType::Ack, OWN));
    for (code, value) in [
        (1, &[255, 255, 0, 0][..]),
        (3, &GATEWAY.octets()),
        (6, &GATEWAY.octets()),
        (12, b"guest0"),
        (15, b"bridge.internal"),
        (26, &1500u16.to_be_bytes()),
        (28, &[10, 88, 255, 255]),
        (51, &3600u32.to_be_bytes()),
        (54, &GATEWAY.octets()),
        (58, &1800u32.to_be_bytes()),
        (59, &3150u32.to_be_bytes()),
        (119, b"\x06bridge\x08internal\0"),
        (121, &[0, 10, 88, 0, 1]),
    ] {
        assert_eq!(ack.option(code), Some(value), "option {code}");
    }
    assert_eq!(ack.option(42), None, "there is no time server to name");
    assert_eq!(offer.option(61), Some(&[1, 7][..]), "RFC 6842");
    assert!(lab.received(1).is_empty(), "neighbours hear nothing of it");
}

#[test]
fn an_internal_network_has_no_router() {
    let mut lab = Lab::new(1);
    lab.change_network(1, |network| network.internal = true);
    let discover = request(&lab, MessageType::Discover).with(55, &[1, 3, 6, 121]);
    let (offer, _) = ask(&mut lab, &discover.emit()).unwrap();
    assert_eq!((offer.option(3), offer.option(121)), (None, None));
    assert_eq!(offer.option(6), Some(&GATEWAY.octets()[..]));
}

#[test]
fn every_state_of_a_client_is_answered() {
    let mut lab = Lab::new(2);
    let asks = |lab: &Lab| request(lab, MessageType::Request);
    let rebooted = asks(&lab).with(50, &OWN.octets());
    assert_eq!(kind(ask(&mut lab, &rebooted.emit())), Some(MessageType::Ack));
    let elsewhere = asks(&lab).with(50, &[192, 168, 1, 9]);
    let (nak, to) = ask(&mut lab, &elsewhere.emit()).unwrap();
    assert_eq!((nak.kind, nak.yours, to), (MessageType::Nak, ANY, Ipv4Addr::BROADCAST));
    assert_eq!((nak.option(51), nak.option(1)), (None, None));
    let renewing = asks(&lab).having(OWN).emit();
    let (ack, to) = ask_from(&mut lab, OWN, GATEWAY, &renewing).unwrap();
    assert_eq!((ack.kind, to), (MessageType::Ack, OWN));
    let rebound = ask_from(&mut lab, OWN, Ipv4Addr::BROADCAST, &renewing);
    assert_eq!(kind(rebound), Some(MessageType::Ack));
    let directed = ask_from(&mut lab, OWN, Ipv4Addr::new(10, 88, 255, 255), &renewing);
    assert_eq!(kind(directed), Some(MessageType::Ack));
    let inform = request(&lab, MessageType::Inform).having(OWN).emit();
    let (ack, _) = ask_from(&mut lab, OWN, GATEWAY, &inform).unwrap();
    assert_eq!((ack.kind, ack.yours, ack.option(51)), (MessageType::Ack, ANY, None));
    let release = request(&lab, MessageType::Release).having(OWN).emit();
    assert_eq!(ask_from(&mut lab, OWN, GATEWAY, &release), None);
    assert!(lab.statistics(0).drops.is_empty());
    let flagged = request(&lab, MessageType::Discover).broadcast();
    assert_eq!(ask(&mut lab, &flagged.emit()).unwrap().1, Ipv4Addr::BROADCAST);
}

#[test]
fn another_ports_lease_is_out_of_reach() {
    let mut lab = Lab::new(2);
    let of_other = request(&lab, MessageType::Request).with(50, &OTHER.octets());
    assert_eq!(kind(ask(&mut lab, &of_other.emit())), Some(MessageType::Nak));
    let selecting = of_other.with(54, &GATEWAY.octets());
    assert_eq!(kind(ask(&mut lab, &selecting.emit())), Some(MessageType::Nak));
    for (nth, message) in [
        request(&lab, MessageType::Release).having(OTHER),
        request(&lab, MessageType::Inform).having(OTHER),
        request(&lab, MessageType::Decline).with(50, &OTHER.octets()).with(54, &GATEWAY.octets()),
        Request::new(MessageType::Discover, lab.spec(1).mac),
        request(&lab, MessageType::Request).with(50, &OWN.octets()).with(54, &OTHER.octets()),
        request(&lab, MessageType::Offer),
        request(&lab, MessageType::Ack),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(ask(&mut lab, &message.emit()), None, "message {nth}");
        assert_eq!(lab.dropped(0, "dhcp_guard"), nth as u64 + 1, "message {nth}");
    }
    assert!(!lab.events.iter().any(|event| matches!(event, WorkerEvent::Event(_))));
}

#[test]
fn relays_and_replies_and_servers_are_guarded_against() {
    let mut lab = Lab::new(2);
    let discover = request(&lab, MessageType::Discover);
    assert_eq!(ask(&mut lab, &discover.changed(|bytes| bytes[24] = 10)), None);
    assert_eq!(ask(&mut lab, &discover.changed(|bytes| bytes[0] = 2)), None);
    let rogue = udp(SocketAddr::from((OWN, 67)), SocketAddr::from((OTHER, 68)), &discover.emit());
    let frame = ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x0800, &rogue);
    lab.send(0, frame);
    assert_eq!(lab.dropped(0, "dhcp_guard"), 3);
    assert!(lab.received(1).is_empty());
    // Nor in fragments: without the first, which is dropped, the rest is nothing.
    for (more, at) in [(0x20, 0), (0, 64)] {
        let piece = packet_with(OWN, OTHER, 17, &rogue[20 + at..20 + at + 64], |packet| {
            packet[6] = more;
            packet[7] = (at / 8) as u8;
        });
        let frame = ethernet(lab.spec(0).mac, lab.spec(1).mac, 0x0800, &piece);
        lab.send(0, frame);
    }
    assert_eq!(lab.dropped(0, "dhcp_guard"), 4);
    let got = lab.received(1);
    assert!(got.iter().all(|frame| frame.ipv4().unwrap().fragment_offset > 0), "{got:?}");
}

#[test]
fn ten_thousand_discovers_of_strangers_cost_nobody_a_lease() {
    let mut lab = Lab::new(2);
    for nth in 0..10_000_u32 {
        let [_, a, b, c] = nth.to_be_bytes();
        let stranger = Request::new(MessageType::Discover, MacAddr([2, 9, 9, a, b, c]));
        assert_eq!(ask(&mut lab, &stranger.emit()), None);
    }
    let drops = lab.statistics(0).drops;
    let sum: u64 = ["dhcp_guard", "dhcp_budget", "storm_limit"].iter().map(|r| drops[*r]).sum();
    assert_eq!((sum, drops["dhcp_guard"]), (10_000, 20));
    let spec = lab.spec(1).clone();
    let discover = Request::new(MessageType::Discover, spec.mac).emit();
    let packet = udp(SocketAddr::from((ANY, 68)), "255.255.255.255:67".parse().unwrap(), &discover);
    lab.send(1, ethernet(spec.mac, MacAddr::BROADCAST, 0x0800, &packet));
    assert_eq!(Answer::read(lab.received(1)[0].udp().unwrap()).yours, OTHER);
    lab.advance(Duration::from_secs(2));
    let own = request(&lab, MessageType::Discover).emit();
    assert_eq!(ask(&mut lab, &own).unwrap().0.yours, OWN);
}

#[test]
fn a_declined_address_is_told_and_replaced_and_never_too_often() {
    let mut lab = Lab::new(2);
    lab.world.serve("192.0.2.9:80", Behaviour::Accept);
    lab.send_ip(
        0,
        &Segment::syn(1).emit(SocketAddr::from((OWN, 4000)), "192.0.2.9:80".parse().unwrap()),
    );
    lab.received(0);
    assert_eq!(lab.used(0, "tcp_flows"), 1);
    let decline = |lab: &Lab, address: Ipv4Addr| {
        let message = request(lab, MessageType::Decline);
        message.with(50, &address.octets()).with(54, &GATEWAY.octets()).emit()
    };
    let message = decline(&lab, OWN);
    assert_eq!(ask(&mut lab, &message), None);
    let told = Event::AddressDeclined { port: PortId(1), address: OWN };
    assert!(lab.events.contains(&WorkerEvent::Event(told)), "{:?}", lab.events);
    let fresh = Ipv4Addr::new(10, 88, 0, 9);
    lab.readdress(0, fresh);
    lab.received(0);
    assert_eq!(lab.used(0, "tcp_flows"), 0, "flows of the old address are gone");
    let discover = request(&lab, MessageType::Discover).emit();
    assert_eq!(ask(&mut lab, &discover).unwrap().0.yours, fresh);
    let old = request(&lab, MessageType::Request).with(50, &OWN.octets()).emit();
    assert_eq!(kind(ask(&mut lab, &old)), Some(MessageType::Nak));
    let message = decline(&lab, fresh);
    for _ in 0..9 {
        ask(&mut lab, &message);
        lab.advance(Duration::from_secs(1));
    }
    assert_eq!(lab.dropped(0, "dhcp_budget"), 2, "eight in an hour");
    lab.advance(Duration::from_secs(3600));
    ask(&mut lab, &message);
    assert_eq!(lab.dropped(0, "dhcp_budget"), 2);
}

#[test]
fn whatever_is_sent_a_port_is_given_its_own_binding_or_nothing() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::new(2);
    let mut answers = 0;
    for _ in 0..20_000 {
        let kind = MessageType::Other(u8::try_from(chance.below(10)).unwrap());
        let mut message = request(&lab, kind).with(55, &[1, 3, 121]);
        for code in [50, 54] {
            if chance.is(50) {
                message = message.with(code, &[10, 88, 0, u8::try_from(chance.below(5)).unwrap()]);
            }
        }
        let (at, value) = (chance.below(240), chance.byte());
        let bytes = message.changed(|bytes| bytes[at] = value);
        let (from, to) = [(ANY, Ipv4Addr::BROADCAST), (OWN, GATEWAY)][chance.below(2)];
        lab.advance(Duration::from_millis(120));
        let Some((answer, _)) = ask_from(&mut lab, from, to, &bytes) else { continue };
        answers += 1;
        assert!([OWN, ANY].contains(&answer.yours), "{bytes:?}");
        assert_eq!(answer.option(54), Some(&GATEWAY.octets()[..]));
        assert!(lab.received(1).is_empty());
    }
    assert!(answers > 1000, "{answers}");
}
