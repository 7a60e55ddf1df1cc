//! What shows the datapath at work: metrics, flows, captures, and why frames are dropped.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use lichen_api::{
    CaptureRequest, CapturedFlow, ClientError, CreateNetwork, CreateWorkload, ErrorCode,
    FlowProtocol, FlowState, WorkloadKind,
};
use lichen_netstack::command::{self, CaptureScope, CaptureSpec, FlowRow};
use lichen_netstack::counters::DropReason;
use lichen_netstack::ids::{NetworkId, PortId};

use crate::http::Served;
use crate::lifecycle::{eventually, run_request};

fn vm(name: &str, network: Option<&str>) -> CreateWorkload {
    let network = network.map(str::to_owned);
    CreateWorkload { kind: WorkloadKind::Vm, network, ..run_request(name) }
}

/// A daemon with `db` on the default network and `cache` on another.
fn served(name: &str) -> Served {
    let served = Served::start(name);
    let client = served.client();
    served.control.block_on(async {
        let network = CreateNetwork { name: "mynet".into(), ..CreateNetwork::default() };
        client.create_network(&network).await.unwrap();
        client.create_workload(&vm("db", None)).await.unwrap();
        client.create_workload(&vm("cache", Some("mynet"))).await.unwrap();
    });
    served
}

fn refused(error: ClientError) -> ErrorCode {
    match error {
        ClientError::Refused { code, .. } => code,
        other => panic!("{other}"),
    }
}

#[test]
fn every_reason_to_drop_a_frame_is_explained_and_no_other() {
    let mut explained: Vec<String> =
        lichen_api::drop_explanations().into_iter().map(|it| it.reason).collect();
    let mut counted: Vec<String> =
        DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    explained.sort();
    counted.sort();
    assert_eq!(explained, counted, "docs/drops.md and netstack/src/counters.rs");
}

#[test]
fn metrics_are_in_the_form_of_prometheus() {
    let served = served("metrics");
    let text = served.control.block_on(served.client().metrics()).unwrap();
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} is told once");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let name = sample.split('{').next().unwrap();
            assert!(families.contains(name), "{line} comes after its TYPE");
        }
    }
    assert!(
        text.contains("lichen_workloads 2\n") && text.contains("lichen_networks 2\n"),
        "{text}"
    );
    assert!(text.contains("lichen_datapath_up 1\n"), "{text}");
    let answer = served.raw(b"GET /v1/metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
}

#[test]
fn flows_are_shown_with_the_names_of_their_workloads() {
    let served = served("flows");
    let row = |port, remote: &str| FlowRow {
        port,
        protocol: command::FlowProtocol::Tcp,
        guest: "10.88.0.2:40000".parse().unwrap(),
        remote: remote.parse().unwrap(),
        state: command::FlowState::Established,
        idle: 3,
        from_guest: 10,
        to_guest: 20,
    };
    // The last one's workload has just ended.
    served.datapath.set_flows(vec![
        row(1, "192.0.2.1:80"),
        row(2, "[2001:db8::1]:80"),
        row(9, "192.0.2.1:1"),
    ]);
    let client = served.client();
    let all = served.control.block_on(client.flows(None)).unwrap();
    let named: Vec<(&str, &str)> =
        all.flows.iter().map(|it| (it.workload.as_str(), it.network.as_str())).collect();
    assert_eq!((named, all.left_out), (vec![("db", "bridge"), ("cache", "mynet")], 7));
    let first = &all.flows[0];
    assert_eq!((first.protocol, first.state), (FlowProtocol::Tcp, FlowState::Established));
    assert_eq!((first.idle_seconds, first.bytes_from_guest, first.bytes_to_guest), (3, 10, 20));
    let one = served.control.block_on(client.flows(Some("cache"))).unwrap();
    assert_eq!((one.flows.len(), one.flows[0].workload.as_str()), (1, "cache"));
    let unknown = served.control.block_on(client.flows(Some("nobody"))).unwrap_err();
    assert_eq!(refused(unknown), ErrorCode::NotFound);
}

#[test]
fn a_capture_is_of_whom_was_asked_for_and_ends_with_its_reader() {
    let served = served("capture");
    let client = served.client();
    let begin = |request: CaptureRequest| served.control.block_on(client.capture(&request));
    let workload =
        |name: &str| CaptureRequest { workload: Some(name.into()), ..Default::default() };
    let network = |name: &str| CaptureRequest { network: Some(name.into()), ..Default::default() };
    let end = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (guest, remote) = (end("10.88.0.2:4000"), end("192.0.2.1:443"));
    let flow_of_both = CapturedFlow { protocol: FlowProtocol::Tcp, guest, remote };
    let cut = CaptureRequest { flow: Some(flow_of_both), segment: true, ..network("bridge") };
    let (scope, large) = (CaptureScope::Network(NetworkId(1)), command::LargeFrames::Whole);
    let whole = CaptureSpec { scope, snaplen: 65_549, flow: None, large };
    let flow = command::CapturedFlow { protocol: command::FlowProtocol::Tcp, guest, remote };
    let asked_for = CaptureSpec { flow: Some(flow), large: command::LargeFrames::Cut, ..whole };
    for (request, spec) in [
        (CaptureRequest::default(), CaptureSpec { scope: CaptureScope::All, ..whole }),
        (workload("cache"), CaptureSpec { scope: CaptureScope::Port(PortId(2)), ..whole }),
        (network("bridge"), whole),
        (cut, asked_for),
    ] {
        let mut capture = begin(request).unwrap();
        let (asked, mut pipe) = served.datapath.take_captures().remove(0);
        assert_eq!(asked, spec);
        pipe.write_all(b"a block").unwrap();
        let piece = served.control.block_on(capture.next()).unwrap();
        assert_eq!(piece.as_deref(), Some(&b"a block"[..]), "as it comes, not at the end");
        drop(capture);
        eventually("the pipe is closed", || (&pipe).write_all(b"more").is_err());
    }
    let mut capture = begin(workload("db")).unwrap();
    drop(served.datapath.take_captures());
    let ended = served.control.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), capture.next()).await.unwrap()
    });
    assert_eq!(ended.unwrap(), None, "the datapath has gone");

    assert_eq!(refused(begin(workload("nobody")).unwrap_err()), ErrorCode::NotFound);
    assert_eq!(refused(begin(network("nobody")).unwrap_err()), ErrorCode::NotFound);
    for snaplen in [0, 13, 65_550, u32::MAX] {
        let request = CaptureRequest { snaplen: Some(snaplen), ..Default::default() };
        assert_eq!(refused(begin(request).unwrap_err()), ErrorCode::BadRequest, "{snaplen}");
    }
    let elsewhere = CaptureRequest { network: Some("bridge".into()), ..workload("cache") };
    assert_eq!(refused(begin(elsewhere).unwrap_err()), ErrorCode::NotFound);
    let flow = Some(CapturedFlow { remote: end("[2001:db8::1]:443"), ..flow_of_both });
    let mixed = CaptureRequest { flow, ..Default::default() };
    assert_eq!(refused(begin(mixed).unwrap_err()), ErrorCode::BadRequest);
    assert!(served.datapath.take_captures().is_empty());
}

#[test]
fn a_capture_of_nobody_is_refused() {
    let served = Served::start("capture-nobody");
    let begun = served.control.block_on(served.client().capture(&CaptureRequest::default()));
    assert_eq!(refused(begun.unwrap_err()), ErrorCode::NotFound);
}
