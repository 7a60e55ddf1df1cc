//! As many flows at once as descriptors allow, with real sockets. `netstack/tests/many_flows.rs` has a hundred
//! thousand of them in simulation.

use crate::lab::address::UPSTREAM;
use crate::lab::{Background, Lab, Role, eventually, run, within};
use crate::runner::scenarios;

scenarios![fifteen_thousand_connections_live_on_four_ports_and_a_fifth_does_not_notice];

const PORTS: u64 = 4;
const FLOWS: u64 = 3750;
/// Resident bytes of the datapath for each.
const MOST_BYTES: u64 = 8192;

fn fifteen_thousand_connections_live_on_four_ports_and_a_fifth_does_not_notice(lab: &Lab) {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let keep = [&program, "peer", "keep", "0.0.0.0:7300"];
    let _keeper = lab.upstream().start_in_background(&keep);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7300; do sleep 0.05; done");
    lab.web_server("web", &["-p", "8080:80"]);
    let datapath = lab.process(Role::Datapath).expect("it runs");
    let resident = || {
        let text = datapath.status("VmRSS");
        text.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).expect("kB") * 1024
    };
    let (files, before) = (datapath.files().len(), resident());

    let hold = format!("{program} peer hold {UPSTREAM}:7300 {FLOWS}");
    let crowds: Vec<Background> = (0..PORTS)
        .map(|_| {
            let words = ["run", "--", "sh", "-c", &hold];
            Background::start(&mut lab.lichen_with(&words), &lab.path("logs"))
        })
        .collect();
    let open = format!("{FLOWS} of {FLOWS} open");
    let all = within(60, || crowds.iter().all(|crowd| crowd.printed().contains(&open)));
    let printed: Vec<String> = crowds.iter().map(Background::printed).collect();
    assert!(all, "{printed:?}");
    let sockets = datapath.files().len() - files;
    assert!(sockets as u64 >= PORTS * FLOWS, "{sockets} sockets");
    let bytes = resident().saturating_sub(before) / (PORTS * FLOWS);
    println!("   {sockets} sockets, {bytes} resident bytes a flow");
    assert!(bytes <= MOST_BYTES, "{bytes} resident bytes a flow");

    // The fifth goes on in both directions.
    let page = run(&mut lab.person(&["curl", "-sS", "-m", "10", "http://127.0.0.1:8080/"]));
    assert_eq!(page.success(), "hello from a workload\n");
    let page = run(&mut lab.lichen(["run", "--", "curl", "-sS", "-m", "10", "http://web/"]));
    assert_eq!(page.success(), "hello from a workload\n");

    drop(crowds);
    for workload in run(&mut lab.lichen(["ps"])).success().lines().skip(1) {
        let name = workload.split_whitespace().next().expect("a name");
        if name != "web" {
            run(&mut lab.lichen(["rm", "-f", name]));
        }
    }
    eventually("nothing is left of them", || datapath.files().len() <= files);
    let after = resident().saturating_sub(before);
    println!("   {} KiB stay resident afterwards", after / 1024);
}
