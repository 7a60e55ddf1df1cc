//! Workloads whose interface has several queues.

use lichen_api::{CreateWorkload, ErrorCode, WorkloadKind};
use lichen_netstack::command::Attachment;

use crate::lifecycle::{Process, eventually, run_request};
use crate::simulated::{Control, Scratch, SimulatedDatapath, SimulatedNamespaces};

#[test]
fn an_interface_has_the_queues_that_were_asked_for_through_every_restart() {
    let (scratch, datapath) = (Scratch::new("queues"), SimulatedDatapath::default());
    let namespaces = SimulatedNamespaces::default();
    let control = Control::start(&scratch, &datapath, &namespaces);
    let mut processes = Vec::new();
    for (name, queues) in [("plain", None), ("wide", Some(3))] {
        let request = CreateWorkload { queues, ..run_request(name) };
        control.block_on(control.app.create_workload(request)).unwrap();
        let process = Process::start();
        let attached = control.app.attach_workload(name.to_owned(), process.attach());
        control.block_on(attached).unwrap();
        processes.push(process);
    }

    let is_right = |control: &Control| {
        let there: Vec<Attachment> =
            datapath.inventory().ports.iter().map(|port| port.attachment).collect();
        let shown =
            |name: &str| control.block_on(control.app.workload(name.to_owned())).unwrap().queues;
        there == [1, 3].map(|queues| Attachment::Tap { queues })
            && (shown("plain"), shown("wide")) == (Some(1), Some(3))
    };
    assert!(is_right(&control));
    control.kill();
    let control = Control::start(&scratch, &datapath, &namespaces);
    assert!(is_right(&control));
    datapath.kill();
    // Which asserts that each tap comes with all its queues.
    eventually("a new datapath has them", || is_right(&control));
    assert_eq!(datapath.starts(), 2);
}

#[test]
fn queues_that_cannot_be_had_are_refused_with_the_limits() {
    let (scratch, datapath) = (Scratch::new("no-queues"), SimulatedDatapath::default());
    let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
    for (kind, queues, said) in [
        (WorkloadKind::Run, 0, "1 to 4"),
        (WorkloadKind::Run, 5, "1 to 4"),
        (WorkloadKind::Run, u16::MAX, "1 to 4"),
        (WorkloadKind::Vm, 2, "its monitor is told"),
        (WorkloadKind::Vm, 1, "its monitor is told"),
    ] {
        let queues = Some(queues);
        let request = CreateWorkload { kind, queues, ..run_request("web") };
        let refused = control.block_on(control.app.create_workload(request)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::BadRequest);
        assert!(refused.message.contains(said), "{}", refused.message);
    }
    assert!(control.block_on(control.app.workloads()).unwrap().is_empty());
}
