//! What is the host's own is closed to workloads (security rows H01 to H04).

use std::fs;
use std::time::Duration;

use crate::lab::address::{GATEWAY, HOST};
use crate::lab::{Lab, run};
use crate::runner::scenarios;

scenarios![
    the_hosts_loopback_is_refused_at_the_gateway,
    every_address_of_the_host_is_refused,
    an_address_that_the_host_gets_later_is_refused_too,
    metadata_addresses_are_refused,
    the_control_socket_is_hidden_and_no_tcp_api_exists,
    allow_host_opens_one_port_and_no_other,
];

/// Fetches a page in a workload; a refusal comes at once, not by time-out.
#[track_caller]
fn is_refused(lab: &Lab, url: &str) {
    let outcome = run(&mut lab.lichen(["run", "--", "curl", "-gsS", "-m", "20", url]));
    // 7: refused or unreachable.
    let outcome = outcome.exits(7);
    assert!(outcome.took < Duration::from_secs(10), "a refusal, not silence: {outcome:?}");
}

fn the_hosts_loopback_is_refused_at_the_gateway(lab: &Lab) {
    for port in [8099, 8098, 80, 22] {
        is_refused(lab, &format!("http://{GATEWAY}:{port}/"));
    }
    is_refused(lab, "http://host.lichen.internal:8099/");
}

fn every_address_of_the_host_is_refused(lab: &Lab) {
    for host in [HOST, "127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"] {
        is_refused(lab, &format!("http://{host}:8099/"));
    }
    let page = run(&mut lab.person(&["curl", "-sS", &format!("http://{HOST}:8098/")])).success();
    assert_eq!(page, "the host's canary\n", "it is there");
    is_refused(lab, &format!("http://{HOST}:8098/"));
}

fn an_address_that_the_host_gets_later_is_refused_too(lab: &Lab) {
    run(&mut lab.lichen(["run", "--", "true"])).success();
    lab.host().sh("ip address add 192.0.2.77/24 dev uplink; ip address add 203.0.113.9/32 dev lo
         for at in 192.0.2.77 203.0.113.9; do busybox httpd -p $at:8097 -h /; done");
    for address in ["192.0.2.77", "203.0.113.9"] {
        is_refused(lab, &format!("http://{address}:8097/"));
    }
}

fn metadata_addresses_are_refused(lab: &Lab) {
    // Outside is what would answer there.
    lab.upstream().sh(
        "for at in 169.254.169.254 100.100.100.200 168.63.129.16; do ip address add $at/32 dev lo; done",
    );
    lab.host().sh("curl -sS -m 5 http://168.63.129.16/ >/dev/null");
    for address in ["169.254.169.254", "100.100.100.200", "168.63.129.16"] {
        is_refused(lab, &format!("http://{address}/"));
    }
}

fn the_control_socket_is_hidden_and_no_tcp_api_exists(lab: &Lab) {
    let socket = lab.path("run/lichen/control.sock");
    run(&mut lab.lichen(["ps"])).success();
    assert!(fs::symlink_metadata(&socket).is_ok(), "it is there, outside");
    let socket = socket.display();
    let script = format!(
        "ls -A $(dirname {socket}) && umount $(dirname {socket}) 2>/dev/null; test ! -e {socket} && echo hidden"
    );
    assert_eq!(lab.in_workload(&script), "hidden\n");
    let listening = lab.host().sh("busybox netstat -ltnp | grep lichen || true");
    assert_eq!(listening, "", "no TCP socket of ours");
}

fn allow_host_opens_one_port_and_no_other(lab: &Lab) {
    let fetch = |url: &str| {
        run(&mut lab.lichen(["run", "--allow-host", "8099", "--", "curl", "-sS", "-m", "20", url]))
    };
    let page = fetch("http://host.lichen.internal:8099/").success();
    assert_eq!(page, "the host's canary\n");
    assert_eq!(fetch(&format!("http://{GATEWAY}:8099/")).code, Some(0));
    assert_eq!(fetch(&format!("http://{GATEWAY}:8098/")).code, Some(7));
    assert_eq!(fetch(&format!("http://{HOST}:8099/")).code, Some(7));
    is_refused(lab, "http://host.lichen.internal:8099/");
}
