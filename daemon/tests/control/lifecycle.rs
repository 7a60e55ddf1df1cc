//! Control against a simulated datapath: what lives and dies, and what is made anew.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::simulated::{Control, Scratch, SimulatedDatapath, SimulatedNamespaces};
use lichen_api::{
    AddPort, AttachWorkload, CreateNetwork, CreateWorkload, Creation, ErrorCode, PortRange,
    PruneNetworks, Publish, Source, State, Transport, WorkloadKind, WorkloadState,
};
use lichen_daemon::app::{Refusal, Running};
use lichen_daemon::state::InUse;

/// A process that lives until it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    pub(crate) fn attach(&self) -> AttachWorkload {
        AttachWorkload { pid: self.pid(), start_time: None }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run_request(name: &str) -> CreateWorkload {
    CreateWorkload {
        uid: None,
        name: Some(name.to_owned()),
        network: None,
        kind: WorkloadKind::Run,
        address: None,
        mac: None,
        ports: Vec::new(),
        allow_host: Vec::new(),
        source: Source::Client,
        process: None,
        resolv_conf: false,
        attachment: None,
        queues: None,
    }
}

/// Makes a workload of a process, which it lives as long as.
fn run(control: &Control, request: CreateWorkload) -> Process {
    let process = Process::start();
    let name = control.block_on(control.app.create_workload(request)).unwrap().name;
    control.block_on(control.app.attach_workload(name, process.attach())).unwrap();
    process
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn publish(host: u16) -> Publish {
    Publish {
        host_ip: None,
        host: PortRange::one(host),
        target_ports: PortRange::one(80),
        protocol: Transport::Tcp,
    }
}

fn add_port(host: u16, target: &str) -> AddPort {
    AddPort {
        host_ip: None,
        host: PortRange::one(host),
        target: target.to_owned(),
        target_ports: PortRange::one(80),
        protocol: Transport::Tcp,
        source: Source::Client,
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> ErrorCode {
    result.unwrap_err().code
}

pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_workload_joins_is_shown_and_vanishes_with_its_process() {
    let (scratch, datapath) = (Scratch::new("joins"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let port = free_port();
    let mut request = run_request("web");
    request.ports.push(publish(port.port()));

    let lease = control.block_on(control.app.create_workload(request)).unwrap();
    assert_eq!(lease.address.to_string(), "10.88.0.2");
    assert_eq!(lease.search, "bridge.internal");
    assert_eq!(lease.ports[0].status, State::Pending);
    assert!(TcpStream::connect(port).is_err());

    let process = Process::start();
    let attach = process.attach();
    let workload = control.block_on(control.app.attach_workload("web".into(), attach)).unwrap();
    assert_eq!(workload.state, WorkloadState::Running);
    assert_eq!(workload.ports[0].status, State::Active);
    assert!(TcpStream::connect(port).is_ok());
    let again = control.block_on(control.app.attach_workload("web".into(), attach)).unwrap();
    assert_eq!(again, workload);

    let network = control.block_on(control.app.network("bridge".into())).unwrap();
    let (_, container) = network.containers.first_key_value().unwrap();
    assert_eq!(container.ipv4_address, "10.88.0.2/16");

    drop(process);
    eventually("the port goes", || datapath.inventory().ports.is_empty());
    eventually("the row goes", || control.block_on(control.app.workloads()).unwrap().is_empty());
    assert!(TcpStream::connect(port).is_err());
    assert!(control.block_on(control.app.ports()).unwrap().is_empty());
}

#[test]
fn a_port_published_for_a_workload_to_come_is_pending_then_active_then_pending() {
    let (scratch, datapath) = (Scratch::new("pending"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let host = free_port();
    let add = || control.block_on(control.app.add_port(add_port(host.port(), "web"))).unwrap();
    let status = || control.block_on(control.app.ports()).unwrap()[0].status.clone();

    let (creation, ports) = add();
    assert_eq!((creation, &ports[0].status), (Creation::New, &State::Pending));
    assert_eq!(add().0, Creation::Existing);
    control.block_on(control.app.create_workload(run_request("web"))).unwrap();
    assert_eq!(status(), State::Pending);
    let process = Process::start();
    control.block_on(control.app.attach_workload("web".into(), process.attach())).unwrap();
    assert_eq!(status(), State::Active);
    assert!(TcpStream::connect(host).is_ok());

    drop(process);
    eventually("pending again", || status() == State::Pending);
    eventually("refused again", || TcpStream::connect(host).is_err());
}

#[test]
fn control_may_die_and_its_successor_changes_nothing() {
    let (scratch, datapath) = (Scratch::new("successor"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let host = free_port();
    let mut request = run_request("web");
    request.ports.push(publish(host.port()));
    let process = run(&control, request);
    let before = datapath.inventory();

    control.kill();
    assert!(TcpStream::connect(host).is_ok(), "the datapath holds the listener");
    let commands = datapath.commands();
    let control = Control::start(&scratch, &datapath, &namespaces);
    assert_eq!(datapath.inventory(), before);
    assert_eq!(datapath.commands(), commands + 3, "a greeting, the inventory, and the listener");
    assert_eq!(datapath.starts(), 1);
    let workload = control.block_on(control.app.workload("web".into())).unwrap();
    assert_eq!(workload.state, WorkloadState::Running);
    assert_eq!(workload.ports[0].status, State::Active);

    // Now the adopted datapath dies too: control has taken the listener back, so nobody is refused.
    datapath.kill();
    assert!(TcpStream::connect(host).is_ok());
    eventually("made anew", || datapath.inventory() == before);
    assert!(TcpStream::connect(host).is_ok());
    drop(process);
    eventually("its end is seen", || datapath.inventory().ports.is_empty());
}

#[test]
fn a_dead_datapath_is_started_again_and_given_everything_while_clients_queue() {
    let (scratch, datapath) = (Scratch::new("respawn"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let host = free_port();
    let mut request = run_request("web");
    request.ports.push(publish(host.port()));
    let _process = run(&control, request);
    let before = datapath.inventory();
    for round in 2..6 {
        datapath.kill();
        assert!(TcpStream::connect(host).is_ok(), "control's copy takes clients meanwhile");
        eventually("made anew", || datapath.inventory() == before && datapath.starts() == round);
    }
    eventually("counted", || {
        control.block_on(control.app.status()).unwrap().datapath.restarts == 4
    });
}

#[test]
fn what_died_while_no_control_ran_is_gone_at_the_next_start() {
    let (scratch, datapath) = (Scratch::new("meanwhile"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let [dies, _lives] = ["dies", "lives"].map(|name| run(&control, run_request(name)));
    control.kill();
    drop(dies);
    let control = Control::start(&scratch, &datapath, &namespaces);
    let names = |control: &Control| -> Vec<String> {
        let workloads = control.block_on(control.app.workloads()).unwrap();
        workloads.into_iter().map(|workload| workload.name).collect()
    };
    assert_eq!(names(&control), ["lives"]);
    assert_eq!(datapath.inventory().ports.len(), 1);

    // After a reboot the same numbers may be another process's: nothing of before counts.
    control.kill();
    let control = Control::start_in_boot(&scratch, &datapath, &namespaces, "next boot");
    assert!(names(&control).is_empty());
    assert!(datapath.inventory().ports.is_empty());
}

#[test]
fn a_tap_that_cannot_be_opened_is_told_and_leaves_nothing() {
    let (scratch, datapath) = (Scratch::new("tap"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let process = Process::start();
    namespaces.refuse_tap(process.pid(), "there is no /dev/net/tun");
    control.block_on(control.app.create_workload(run_request("web"))).unwrap();
    let refusal =
        control.block_on(control.app.attach_workload("web".into(), process.attach())).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unprocessable);
    assert!(refusal.message.contains("/dev/net/tun"), "{}", refusal.message);
    assert!(control.block_on(control.app.workloads()).unwrap().is_empty());
}

#[test]
fn a_port_that_the_datapath_lost_is_made_again_once_it_can_be() {
    let (scratch, datapath) = (Scratch::new("lost"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let process = run(&control, run_request("web"));
    let id = datapath.inventory().ports[0].id.0;
    namespaces.refuse_tap(process.pid(), "busy");
    datapath.lose_port(id);
    let state = || control.block_on(control.app.workload("web".into())).unwrap().state;
    eventually("told", || state() == WorkloadState::Error { reason: "busy".into() });
    namespaces.allow_tap(process.pid());
    eventually("back", || state() == WorkloadState::Running);
}

#[test]
fn of_two_ports_that_cannot_both_be_bound_neither_is() {
    let (scratch, datapath) = (Scratch::new("both"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = free_port();
    let mut request = run_request("web");
    request.ports = vec![publish(free.port()), publish(taken.local_addr().unwrap().port())];
    assert_eq!(code(control.block_on(control.app.create_workload(request))), ErrorCode::Conflict);
    assert!(control.block_on(control.app.workloads()).unwrap().is_empty());
    assert!(control.block_on(control.app.ports()).unwrap().is_empty());
    TcpListener::bind(free).unwrap();
}

#[test]
fn of_fifty_requests_for_one_name_one_wins() {
    let (scratch, datapath) = (Scratch::new("fifty"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let host = free_port();
    let (mut workloads, mut networks, mut ports) = (0, 0, 0);
    control.block_on(async {
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let app = control.app.clone();
            tasks.push(tokio::spawn(async move {
                let network = CreateNetwork { name: "mynet".into(), ..CreateNetwork::default() };
                let network = app.create_network(network).await.unwrap().0 == Creation::New;
                let port = app.add_port(add_port(host.port(), "web")).await.unwrap().0;
                let workload = app.create_workload(run_request("web")).await.is_ok();
                (workload, network, port == Creation::New)
            }));
        }
        for task in tasks {
            let (workload, network, port) = task.await.unwrap();
            workloads += u32::from(workload);
            networks += u32::from(network);
            ports += u32::from(port);
        }
    });
    assert_eq!((workloads, networks, ports), (1, 1, 1));
    assert_eq!(datapath.inventory().networks.len(), 2);
}

#[test]
fn a_network_in_use_stays_unless_forced() {
    let (scratch, datapath) = (Scratch::new("in-use"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let network = CreateNetwork { name: "mynet".into(), ..CreateNetwork::default() };
    control.block_on(control.app.create_network(network)).unwrap();
    let request = CreateWorkload { network: Some("mynet".into()), ..run_request("web") };
    let _process = run(&control, request);
    let remove = |in_use| control.block_on(control.app.remove_network("mynet".into(), in_use));
    assert_eq!(code(remove(InUse::Refuse)), ErrorCode::Conflict);
    let unused = CreateNetwork { name: "unused".into(), ..CreateNetwork::default() };
    control.block_on(control.app.create_network(unused)).unwrap();
    let pruned = control.block_on(control.app.prune_networks(PruneNetworks::default())).unwrap();
    assert_eq!(pruned.networks_deleted, ["unused"], "and neither this one nor the default one");
    remove(InUse::Detach).unwrap();
    assert!(datapath.inventory().ports.is_empty());
    assert_eq!(datapath.inventory().networks.len(), 1);
}

#[test]
fn a_running_workload_is_ended_only_by_force() {
    let (scratch, datapath) = (Scratch::new("force"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let mut process = run(&control, run_request("web"));
    let remove = |running| control.block_on(control.app.remove_workload("web".into(), running));
    assert_eq!(code(remove(Running::Refuse)), ErrorCode::Conflict);
    remove(Running::Kill).unwrap();
    assert!(process.0.try_wait().unwrap().is_some());
    assert!(datapath.inventory().ports.is_empty());
    assert_eq!(code(remove(Running::Kill)), ErrorCode::NotFound);
}

#[test]
fn new_resolvers_reach_the_datapath() {
    let (scratch, datapath) = (Scratch::new("resolvers"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    assert_eq!(datapath.inventory().resolvers, ["192.0.2.53:53".parse().unwrap()]);
    let changed = vec!["127.0.0.53:53".parse().unwrap()];
    assert!(control.app.reconciler().set_resolvers(changed.clone()));
    eventually("told", || datapath.inventory().resolvers == changed);
}

#[test]
fn a_declined_address_is_replaced_in_the_state_and_in_the_datapath() {
    let (scratch, datapath) = (Scratch::new("declined"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let _process = run(&control, run_request("web"));
    let before = datapath.inventory().ports[0].clone();
    datapath.decline_address(before.id.0, before.address);
    datapath.decline_address(before.id.0, before.address);
    eventually("the port is sent again", || datapath.inventory().ports[0] != before);
    let after = datapath.inventory().ports[0].clone();
    assert_eq!((after.id, after.mac), (before.id, before.mac));
    let workload = control.block_on(control.app.workload("web".into())).unwrap();
    assert_eq!(workload.address, after.address);
    control.kill();
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    let workload = control.block_on(control.app.workload("web".into())).unwrap();
    assert_eq!((workload.address, datapath.inventory().ports), (after.address, vec![after]));
}

/// The daemon that made it died before it could say so.
#[test]
fn a_request_that_is_said_again_is_answered_by_what_was_made() {
    let (scratch, datapath) = (Scratch::new("again"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let uid = Some("0123456789abcdef".repeat(4));
    let first = Control::start(&scratch, &datapath, &namespaces);
    let request = CreateWorkload { uid: uid.clone(), ..run_request("web") };
    let lease = first.block_on(first.app.create_workload(request.clone())).unwrap();
    first.kill();
    let next = Control::start(&scratch, &datapath, &namespaces);
    let again = next.block_on(next.app.create_workload(request)).unwrap();
    assert_eq!((again.name, again.address), (lease.name, lease.address));
    let code = |request| code(next.block_on(next.app.create_workload(request)));
    assert_eq!(code(CreateWorkload { uid, ..run_request("db") }), ErrorCode::Conflict);
    let own = Some("f".repeat(64));
    assert_eq!(code(CreateWorkload { uid: own, ..run_request("web") }), ErrorCode::Conflict);
    for malformed in ["", "0123", &"F".repeat(64), &"g".repeat(64)] {
        let uid = Some(malformed.to_owned());
        assert_eq!(code(CreateWorkload { uid, ..run_request("x") }), ErrorCode::BadRequest);
    }
}

#[test]
fn a_tap_that_the_datapath_refuses_is_not_left_behind() {
    let (scratch, datapath) = (Scratch::new("refused-tap"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    control.block_on(control.app.create_workload(run_request("web"))).unwrap();
    datapath.fill();
    let process = Process::start();
    let refused = control.block_on(control.app.attach_workload("web".into(), process.attach()));
    assert!(refused.unwrap_err().message.contains("in use"));
    assert!(namespaces.discarded() > 0);
}
