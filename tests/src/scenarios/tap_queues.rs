//! Workloads whose interface has several queues.

use std::thread;
use std::time::Duration;

use super::virtual_machines::received;
use crate::lab::address::UPSTREAM;
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    an_interface_has_the_queues_that_were_asked_for_and_one_unless_said,
    several_queues_carry_streams_both_ways_through_the_death_of_either_process,
    a_namespace_is_attached_again_with_another_number_of_queues,
    a_workload_that_meddles_with_its_own_queues_costs_nobody_else,
];

/// Lists the queues of the interface from within.
const LIST: &str = "ls /sys/class/net/eth0/queues | xargs echo";
const ONE: &str = "rx-0 tx-0\n";
const TWO: &str = "rx-0 rx-1 tx-0 tx-1\n";
const FOUR: &str = "rx-0 rx-1 rx-2 rx-3 tx-0 tx-1 tx-2 tx-3\n";

/// Runs a script in a workload with that many queues.
#[track_caller]
fn with_queues(lab: &Lab, queues: &str, script: &str) -> String {
    run(&mut lab.lichen(["run", "--queues", queues, "--", "sh", "-c", script])).success()
}

fn an_interface_has_the_queues_that_were_asked_for_and_one_unless_said(lab: &Lab) {
    for words in [["run", "--queues", "5", "--", "true"], ["run", "--queues", "0", "--", "true"]] {
        let refused = run(&mut lab.lichen(words));
        assert!(refused.code != Some(0) && refused.err.contains("1 to 4"), "{}", refused.err);
    }
    assert_eq!(lab.in_workload(LIST), ONE);
    for (queues, listed) in [("1", ONE), ("2", TWO), ("4", FOUR)] {
        assert_eq!(with_queues(lab, queues, LIST), listed);
    }
}

/// How many streams of an iperf3 have arrived, their sum included.
fn arrived(printed: &str) -> usize {
    printed.lines().filter(|line| line.contains("receiver")).count()
}

fn several_queues_carry_streams_both_ways_through_the_death_of_either_process(lab: &Lab) {
    lab.web_server("web", &["--queues", "2", "-p", "8080:80"]);
    let serve = ["run", "-d", "--name", "server", "--queues", "2", "--", "iperf3", "-s"];
    run(&mut lab.lichen(serve)).success();
    let shown = || run(&mut lab.lichen(["ps", "-o", "json"])).success().replace(' ', "");
    assert_eq!(shown().matches("\"queues\":2").count(), 2, "{}", shown());
    let columns = run(&mut lab.lichen(["ps"])).success();
    let carry = |when: &str| {
        for (way, reverse) in [("from the workload", ""), ("to the workload", "-R")] {
            for (peer, words) in [("server", "-P 4"), (UPSTREAM, "-P 4")] {
                let script = format!("iperf3 -c {peer} {words} -t 2 -i 0 {reverse}");
                let printed = with_queues(lab, "2", &script);
                println!("   {when}, {way}, {peer}: {:.2} Gbit/s in one", received(&printed));
                assert_eq!(arrived(&printed), 5, "four and their sum: {printed}");
            }
        }
        let many = "seq 40 | xargs -P 8 -I{} curl -sS http://web/ | sort | uniq -c | xargs echo";
        assert_eq!(with_queues(lab, "4", many), "40 hello from a workload\n");
        let fetch = ["curl", "-sS", "-m", "2", "http://127.0.0.1:8080/"];
        assert_eq!(run(&mut lab.person(&fetch)).success(), "hello from a workload\n");
    };
    carry("at first");

    // Control dies while streams run: none of them ends.
    let words = ["-c", "server", "-P", "4", "-t", "4", "-i", "0"];
    let words = [&["run", "--name", "load", "--queues", "2", "--", "iperf3"][..], &words].concat();
    let mut load = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    eventually("the load is there", || shown().contains("\"load\""));
    thread::sleep(Duration::from_millis(700));
    let datapath = lab.process(Role::Datapath).expect("a datapath");
    lab.process(Role::Control).expect("control").kill();
    assert!(shown().contains("\"load\""), "{}", shown());
    assert_eq!(lab.process(Role::Datapath), Some(datapath), "it is adopted");
    eventually("the load is over", || load.ended().is_some());
    assert_eq!(load.ended(), Some(0), "{}", load.printed());
    assert_eq!(arrived(&load.printed()), 5, "{}", load.printed());

    // The datapath dies: the next one is given every queue of every tap, which are those that were there.
    lab.process(Role::Datapath).expect("a datapath").kill();
    eventually("new connections work", || {
        let fetch = ["curl", "-sS", "-m", "1", "http://127.0.0.1:8080/"];
        run(&mut lab.person(&fetch)).out == "hello from a workload\n"
    });
    carry("with the next datapath");
    assert_eq!(shown().matches("\"queues\":2").count(), 2, "{}", shown());
    assert_eq!(run(&mut lab.lichen(["ps"])).success(), columns);
}

fn a_namespace_is_attached_again_with_another_number_of_queues(lab: &Lab) {
    lab.web_server("web", &[]);
    // Its /sys shows its own network.
    let script = "mount -t sysfs sysfs /sys && echo $$ && exec sleep 600";
    let words = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script];
    let target = Background::start(&mut lab.person(&words), &lab.path("logs"));
    eventually("the target is there", || target.printed().ends_with('\n'));
    let pid = target.printed().trim().to_owned();
    let inside = |script: &str| {
        lab.host().sh(&format!("nsenter --net --mount --target {pid} sh -c '{script}'"))
    };
    for (queues, listed) in [("2", TWO), ("1", ONE), ("4", FOUR), ("2", TWO)] {
        let attach = ["attach", "--pid", &pid, "--name", "db", "--queues", queues];
        let attach = [&attach[..], &["--no-resolv-conf"]].concat();
        run(&mut lab.lichen_with(&attach)).success();
        assert_eq!(inside(LIST), listed);
        assert!(lab.in_workload("ping -c2 -i0.2 -W2 db").contains("2 received"));
        run(&mut lab.lichen(["rm", "db"])).success();
    }
}

/// Its root has the right to: the tap is in its namespace.
fn a_workload_that_meddles_with_its_own_queues_costs_nobody_else(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    let before = (lab.process(Role::Control), lab.process(Role::Datapath));
    let program = lab.path("bin/lichen-lab").display().to_string();
    let script = format!("{program} peer meddle && echo it has tried all && sleep 600");
    let words = ["run", "-d", "--name", "attacker", "--queues", "2", "--", "sh", "-c", &script];
    run(&mut lab.lichen(words)).success();
    let has_tried =
        || run(&mut lab.lichen(["logs", "attacker"])).success().contains("it has tried all");
    let innocent = format!(
        "ping -q -i0.1 -c30 -W1 {UPSTREAM} & ping -q -i0.1 -c30 -W1 web & wait; \
         curl -sS -m 5 http://{UPSTREAM}/"
    );
    let mut rounds = 0;
    while rounds == 0 || !has_tried() {
        let seen = lab.in_workload(&innocent);
        assert_eq!(seen.matches(" 0% packet loss").count(), 2, "{seen}");
        assert!(seen.ends_with("hello from outside\n"), "{seen}");
        let page = run(&mut lab.person(&["curl", "-sS", "-m", "5", "http://127.0.0.1:8080/"]));
        assert_eq!(page.success(), "hello from a workload\n");
        rounds += 1;
        assert!(rounds < 20, "it does not end");
    }
    assert_eq!(before, (lab.process(Role::Control), lab.process(Role::Datapath)), "both live");
    // Its headers are ours again, and nobody else holds its tap: it is served as before.
    let own = || {
        let pinged = lab.in_workload("ping -c1 -W1 attacker || true");
        pinged.contains("1 received")
    };
    eventually("the meddler is back on its network", own);
}
