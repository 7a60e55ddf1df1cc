//! From a workload to the outside.

use std::process::Command;
use std::time::Duration;

use crate::lab::address::{FAR, UPSTREAM};
use crate::lab::{Lab, run, run_within};
use crate::runner::scenarios;

scenarios![
    a_workload_fetches_a_page_from_outside,
    a_workload_pings_the_outside_and_the_gateway,
    a_closed_port_outside_is_refused_at_once,
    a_datagram_comes_back_to_the_workload,
    a_half_closed_connection_still_brings_the_answer,
    a_gibibyte_arrives_whole_in_both_directions,
    two_hundred_connections_at_once_are_all_answered,
];

fn a_workload_fetches_a_page_from_outside(lab: &Lab) {
    for address in [UPSTREAM, FAR] {
        let page = lab.in_workload(&format!("curl -sS http://{address}/"));
        assert_eq!(page, "hello from outside\n");
    }
}

fn a_workload_pings_the_outside_and_the_gateway(lab: &Lab) {
    let pinged =
        lab.in_workload(&format!("ping -c2 -i0.2 -W2 10.88.0.1; ping -c2 -i0.2 -W2 {UPSTREAM}"));
    assert_eq!(pinged.matches("2 received").count(), 2, "{pinged}");
}

fn a_closed_port_outside_is_refused_at_once(lab: &Lab) {
    let url = format!("http://{UPSTREAM}:81/");
    let refused = run(&mut lab.lichen(["run", "--", "curl", "-sS", "-m", "10", &url])).exits(7);
    assert!(refused.took < Duration::from_secs(5), "{refused:?}");
}

fn a_datagram_comes_back_to_the_workload(lab: &Lab) {
    let answer = lab.in_workload(&format!("dig +short @{UPSTREAM} outside.example"));
    assert_eq!(answer, format!("{UPSTREAM}\n"));
}

/// A server outside that counts the bytes of a connection and answers when it has seen the end.
fn a_half_closed_connection_still_brings_the_answer(lab: &Lab) {
    let _counter = lab
        .upstream()
        .start_in_background(&["busybox", "nc", "-ll", "-p", "7000", "-e", "wc", "-c"]);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7000; do sleep 0.05; done");
    let counted = lab.in_workload(&format!("seq 1 100000 | nc -N {UPSTREAM} 7000"));
    assert_eq!(counted.trim(), "588895");
}

fn a_gibibyte_arrives_whole_in_both_directions(lab: &Lab) {
    // No two of its parts are alike, and none is as long as a buffer.
    let part = lab.path("part");
    lab.host().sh(&format!("seq 8000000 >{0} && chmod 644 {0}", part.display()));
    let bytes = format!("for i in $(seq 18); do echo part $i; cat {}; done", part.display());
    let limit = Duration::from_secs(180);
    bytes_arrive_whole(lab, &bytes, UPSTREAM, |script| {
        run_within(limit, &mut lab.lichen(["run", "--", "sh", "-c", script])).success()
    });
}

/// What the script `bytes` prints arrives whole outside and from there, `inside` a workload that finds the upstream as
/// `server`.
#[track_caller]
pub(super) fn bytes_arrive_whole(
    lab: &Lab,
    bytes: &str,
    server: &str,
    inside: impl Fn(&str) -> String,
) {
    let mut hash = Command::new("sh");
    hash.args(["-c", &format!("({bytes}) | md5sum")]);
    let expected = run_within(Duration::from_secs(180), &mut hash).success();
    let _hasher =
        lab.upstream().start_in_background(&["busybox", "nc", "-l", "-p", "7001", "-e", "md5sum"]);
    let source = ["busybox", "nc", "-l", "-p", "7002", "-e", "sh", "-c", bytes];
    let _source = lab.upstream().start_in_background(&source);
    for port in [7001, 7002] {
        let listens = format!("busybox netstat -ltn | grep -q :{port}");
        lab.upstream().sh(&format!("until {listens}; do sleep 0.05; done"));
    }
    let up = inside(&format!("({bytes}) | nc -N {server} 7001"));
    let down = inside(&format!("nc -d {server} 7002 | md5sum"));
    assert_eq!((up, down), (expected.clone(), expected));
}

/// Each is answered only once all are open.
fn two_hundred_connections_at_once_are_all_answered(lab: &Lab) {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let gather = [&program, "peer", "gather", "7003", "200"];
    let _gathering = lab.upstream().start_in_background(&gather);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7003; do sleep 0.05; done");
    let crowd = ["run", "--", &program, "peer", "crowd", &format!("{UPSTREAM}:7003"), "200"];
    assert_eq!(run(&mut lab.lichen(crowd)).success(), "200 of 200 answered\n");
}
