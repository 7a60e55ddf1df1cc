//! Places for virtual machines: they are there before a monitor is, and outlive it, control and the host.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};

use lichen_api::{
    AttachWorkload, CreateWorkload, ErrorCode, PortRange, Publish, State, Transport, VmAttachment,
    WorkloadKind, WorkloadState,
};
use lichen_daemon::app::Running;
use lichen_netstack::command::{Attachment, LinkState};

use crate::lifecycle::{eventually, run_request};
use crate::simulated::{Control, Scratch, SimulatedDatapath, SimulatedNamespaces};

fn request(name: &str) -> CreateWorkload {
    CreateWorkload { kind: WorkloadKind::Vm, ..run_request(name) }
}

fn add(control: &Control, request: CreateWorkload) -> PathBuf {
    let name = control.block_on(control.app.create_workload(request)).unwrap().name;
    let vm = control.block_on(control.app.workload(name)).unwrap();
    PathBuf::from(vm.socket.unwrap())
}

fn state(control: &Control, name: &str) -> WorkloadState {
    control.block_on(control.app.workload(name.to_owned())).unwrap().state
}

#[test]
fn a_place_waits_for_its_guest_and_tells_of_trouble() {
    let (scratch, datapath) = (Scratch::new("vm-waits"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let published = Publish {
        host_ip: None,
        host: PortRange::one(host.port()),
        target_ports: PortRange::one(80),
        protocol: Transport::Tcp,
    };
    let socket = add(&control, CreateWorkload { ports: vec![published], ..request("db") });
    let status = || control.block_on(control.app.ports()).unwrap()[0].status.clone();
    assert!(socket.ends_with("vm/db.sock"), "{}", socket.display());
    UnixStream::connect(&socket).unwrap();
    assert_eq!(state(&control, "db"), WorkloadState::Waiting);
    assert_eq!(status(), State::Pending);
    assert!(TcpStream::connect(host).is_err(), "a client is refused rather than kept waiting");

    datapath.set_link(1, LinkState::Connected);
    eventually("connected", || state(&control, "db") == WorkloadState::Running);
    eventually("published", || status() == State::Active);
    assert!(TcpStream::connect(host).is_ok());
    let removed = control.app.remove_workload("db".into(), Running::Refuse);
    assert_eq!(control.block_on(removed).unwrap_err().code, ErrorCode::Conflict);

    datapath.set_link(1, LinkState::Trouble { reason: "memory is not shared".into() });
    let trouble = WorkloadState::Error { reason: "memory is not shared".into() };
    eventually("trouble", || state(&control, "db") == trouble);
    eventually("pending", || status() == State::Pending);
    control.block_on(control.app.remove_workload("db".into(), Running::Refuse)).unwrap();
    assert!(!socket.exists());
    assert!(datapath.inventory().ports.is_empty());
}

#[test]
fn a_place_outlives_control_datapath_and_boot() {
    let (scratch, datapath) = (Scratch::new("vm-lives"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let socket = add(&control, request("db"));
    datapath.set_link(1, LinkState::Connected);
    eventually("connected", || state(&control, "db") == WorkloadState::Running);

    control.kill();
    UnixStream::connect(&socket).unwrap();
    let control = Control::start(&scratch, &datapath, &namespaces);
    assert_eq!(state(&control, "db"), WorkloadState::Running, "the link's state was asked for");
    UnixStream::connect(&socket).unwrap();

    datapath.kill();
    eventually("a new datapath has it", || datapath.inventory().ports.len() == 1);
    eventually("waiting", || state(&control, "db") == WorkloadState::Waiting);
    UnixStream::connect(&socket).unwrap();

    control.kill();
    datapath.kill();
    let control = Control::start_in_boot(&scratch, &datapath, &namespaces, "the next boot");
    let vm = control.block_on(control.app.workload("db".into())).unwrap();
    assert_eq!((vm.address.to_string().as_str(), vm.state), ("10.88.0.2", WorkloadState::Waiting));
    UnixStream::connect(&socket).unwrap();
}

#[test]
fn a_place_is_reached_as_was_asked_for_through_every_restart() {
    let (scratch, datapath) = (Scratch::new("vm-attach"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let attached = |name, attachment| CreateWorkload { attachment, ..request(name) };
    let rings = add(&control, attached("rings", None));
    let stream = add(&control, attached("stream", Some(VmAttachment::Stream)));
    let dgram = add(&control, attached("dgram", Some(VmAttachment::Dgram)));
    let wrong = CreateWorkload { attachment: Some(VmAttachment::Dgram), ..run_request("web") };
    let refused = control.block_on(control.app.create_workload(wrong)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::BadRequest);

    let is_right = |control: &Control| {
        let kinds: Vec<Attachment> =
            datapath.inventory().ports.iter().map(|port| port.attachment).collect();
        let wanted = [Attachment::VhostUser, Attachment::UnixStream, Attachment::UnixDatagram];
        let shown = control.block_on(control.app.workload("dgram".into())).unwrap().attachment;
        let client = UnixDatagram::unbound().unwrap();
        kinds == wanted
            && shown == Some(VmAttachment::Dgram)
            && UnixStream::connect(&rings).is_ok()
            && UnixStream::connect(&stream).is_ok()
            && client.send_to(&[0; 60], &dgram).is_ok()
    };
    assert!(is_right(&control));
    control.kill();
    let control = Control::start(&scratch, &datapath, &namespaces);
    assert!(is_right(&control));
    control.kill();
    datapath.kill();
    let control = Control::start(&scratch, &datapath, &namespaces);
    eventually("a new datapath has them", || is_right(&control));
}

/// A monitor that lives until it is dropped.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_place_with_a_monitor_ends_with_it() {
    let (scratch, datapath) = (Scratch::new("vm-monitor"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let monitor = Monitor(Command::new("sleep").arg("1000").spawn().unwrap());
    let pid = i32::try_from(monitor.0.id()).unwrap();
    let process = Some(AttachWorkload { pid, start_time: None });
    let socket = add(&control, CreateWorkload { process, ..request("db") });
    assert_eq!(control.block_on(control.app.workload("db".into())).unwrap().pid, Some(pid));
    let removed = control.app.remove_workload("db".into(), Running::Refuse);
    assert_eq!(control.block_on(removed).unwrap_err().code, ErrorCode::Conflict);
    drop(monitor);
    eventually("the row goes", || control.block_on(control.app.workloads()).unwrap().is_empty());
    eventually("the socket goes", || !socket.exists());
}

#[test]
fn an_address_and_a_mac_are_as_asked_for_or_refused() {
    let (scratch, datapath) = (Scratch::new("vm-asked"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let address = Some("10.88.0.9".parse().unwrap());
    let mac = Some("52:54:00:00:00:09".to_owned());
    add(&control, CreateWorkload { address, mac: mac.clone(), ..request("db") });
    let port = &datapath.inventory().ports[0];
    assert_eq!((Some(port.address), Some(port.mac.to_string())), (address, mac.clone()));
    let code = |request| control.block_on(control.app.create_workload(request)).unwrap_err().code;
    assert_eq!(code(CreateWorkload { address, ..request("x") }), ErrorCode::Conflict);
    assert_eq!(code(CreateWorkload { mac, ..request("x") }), ErrorCode::Conflict);
    let outside = Some("192.0.2.1".parse().unwrap());
    assert_eq!(code(CreateWorkload { address: outside, ..request("x") }), ErrorCode::BadRequest);
    let nonsense = Some("02:00".to_owned());
    assert_eq!(code(CreateWorkload { mac: nonsense, ..request("x") }), ErrorCode::BadRequest);
}
