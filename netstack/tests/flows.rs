//! Flows as they are shown: what lives, where it stands, what it has carried, and no more than a message holds.

use std::time::Duration;

use lichen_netstack::command::{
    FlowProtocol, FlowRow, FlowState, Flows, MAX_FLOW_ROWS, SourceRule,
};
use lichen_netstack::host::Peer;
use lichen_netstack::ids::PortId;
use lichen_netstack::testing::Lab;
use lichen_netstack::testing::frames::{echo_request, udp};
use lichen_netstack::testing::guest::TcpGuest;
use lichen_netstack::testing::host::Behaviour;
use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::worker::{WorkerCommand, WorkerEvent};
use smoltcp::socket::tcp::State;

const GOOD: Impairment = Impairment { loss: 0, duplicate: 0, reorder: 0 };

fn flows(lab: &mut Lab, port: Option<u32>) -> Flows {
    lab.command(WorkerCommand::Flows { port: port.map(PortId) });
    lab.settle();
    let flows = lab.events.iter().rev().map_while(|event| match event {
        WorkerEvent::Flows(flows) => Some(flows.clone()),
        _ => None,
    });
    Flows::joined(flows.take(lab.workers()).collect::<Vec<_>>().into_iter().rev())
}

fn row(
    (protocol, state): (FlowProtocol, FlowState),
    (guest, remote): (&str, &str),
    idle: u64,
    (from_guest, to_guest): (u64, u64),
) -> FlowRow {
    let (guest, remote) = (guest.parse().unwrap(), remote.parse().unwrap());
    FlowRow { port: 1, protocol, guest, remote, state, idle, from_guest, to_guest }
}

#[test]
fn datagram_flows_are_shown_with_what_they_carried() {
    let mut lab = Lab::new(2);
    let ask = udp("10.88.0.2:5000".parse().unwrap(), "192.0.2.1:9".parse().unwrap(), b"ask");
    lab.send_ip(0, &ask);
    lab.send_ip(0, &ask);
    let id = lab.world.datagram_sockets("192.0.2.1:9")[0];
    lab.world.datagram_reply(id, Ok(b"answer".to_vec()));
    lab.settle();
    lab.advance(Duration::from_secs(7));
    let published = lab.publish_udp(0, 53, SourceRule::Client);
    let client =
        Peer { address: "203.0.113.9:4000".parse().unwrap(), local: Some([192, 0, 2, 254].into()) };
    lab.world.client_sends(published, client, b"abcdef", 3);
    lab.settle();
    let to_client = udp("10.88.0.2:53".parse().unwrap(), "203.0.113.9:4000".parse().unwrap(), b"x");
    lab.send_ip(0, &to_client);
    let ping = echo_request([10, 88, 0, 2].into(), [192, 0, 2, 1].into(), 1, &[0; 24]);
    lab.send_ip(0, &ping);

    let shown = flows(&mut lab, None);
    let open = |protocol| (protocol, FlowState::Open);
    let (udp, icmp) = (FlowProtocol::Udp, FlowProtocol::Icmp);
    assert_eq!(shown.rows[0], row(open(udp), ("10.88.0.2:5000", "192.0.2.1:9"), 7, (6, 6)));
    assert_eq!(shown.rows[1], row(open(udp), ("10.88.0.2:53", "203.0.113.9:4000"), 0, (1, 6)));
    assert_eq!((shown.rows[2].protocol, shown.rows[2].from_guest), (icmp, 32));
    assert_eq!((shown.rows.len(), shown.left_out), (3, 0));
    assert_eq!(flows(&mut lab, Some(1)), shown);
    assert_eq!(flows(&mut lab, Some(2)), Flows::default());
    assert_eq!(flows(&mut lab, Some(99)), Flows::default());
}

#[test]
fn a_tcp_flow_is_shown_in_each_of_its_states_with_its_bytes() {
    let mut lab = Lab::new(1);
    lab.world.serve("192.0.2.1:80", Behaviour::Accept);
    let mut guest = TcpGuest::new(&lab, 0, GOOD, 1);
    guest.connect(&lab, 40_000, "192.0.2.1:80");
    while guest.state() != State::Established {
        guest.step(&mut lab);
    }
    let ends = ("10.88.0.2:40000", "192.0.2.1:80");
    let tcp = |state| (FlowProtocol::Tcp, state);
    let one = |lab: &mut Lab| flows(lab, None).rows.pop().expect("a flow");
    for _ in 0..50 {
        guest.step(&mut lab);
    }
    assert_eq!(one(&mut lab), row(tcp(FlowState::Established), ends, 0, (0, 0)));

    let peer = lab.world.connections("192.0.2.1:80")[0];
    let mut sent = 0;
    while sent < 100_000 {
        sent += guest.socket().send_slice(&vec![1; 100_000 - sent]).unwrap();
        guest.step(&mut lab);
        lab.world.peer_receive(peer);
    }
    let mut back = 0;
    while back < 70_000 {
        back += lab.world.peer_send(peer, &vec![2; 70_000 - back]);
        guest.step(&mut lab);
        let socket = guest.socket();
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), ())).unwrap();
        }
    }
    for _ in 0..500 {
        guest.step(&mut lab);
        lab.world.peer_receive(peer);
        let socket = guest.socket();
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), ())).unwrap();
        }
    }
    let carried = one(&mut lab);
    assert_eq!((carried.from_guest, carried.to_guest), (100_000, 70_000));
    guest.socket().close();
    for _ in 0..50 {
        guest.step(&mut lab);
    }
    assert_eq!(one(&mut lab).state, FlowState::Closing);
}

#[test]
fn there_are_no_more_rows_than_a_message_holds_and_the_rest_is_counted() {
    let mut lab = Lab::new(2);
    for guest in 0..2 {
        for port in 0..3000 {
            let from = format!("10.88.0.{}:{}", guest + 2, 10_000 + port).parse().unwrap();
            lab.send_ip(guest, &udp(from, "192.0.2.1:9".parse().unwrap(), b"x"));
        }
    }
    let shown = flows(&mut lab, None);
    assert_eq!((shown.rows.len(), shown.left_out), (MAX_FLOW_ROWS, 6000 - MAX_FLOW_ROWS as u64));
    let longest = FlowRow {
        port: u32::MAX,
        protocol: FlowProtocol::Icmp,
        guest: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
        remote: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
        state: FlowState::Established,
        idle: 300,
        from_guest: 1 << 50,
        to_guest: 1 << 50,
    };
    let bytes = serde_json::to_vec(&longest).unwrap().len();
    assert!((bytes + 1) * MAX_FLOW_ROWS < 1 << 20, "{bytes} bytes a row");
}
