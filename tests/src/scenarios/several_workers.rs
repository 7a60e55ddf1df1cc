//! Two workers: who is on which must make no difference to anybody.

use std::thread;
use std::time::Duration;

use super::virtual_machines::{guest, received};
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    containers_on_two_workers_talk_by_name_and_every_byte_arrives,
    a_virtual_machine_and_a_container_on_two_workers_talk_both_ways,
    a_datapath_of_two_workers_killed_under_load_comes_back_with_as_many,
    a_number_of_workers_that_is_none_is_refused_with_what_to_do,
    a_busy_workers_port_moves_and_its_connections_go_on,
    workers_that_look_on_before_they_sleep_carry_everything_and_are_shown,
];

/// Calls the product with that many workers said; whatever the call starts inherits that.
fn with_workers(lab: &Lab, workers: &str) -> crate::lab::Outcome {
    with(lab, &[&format!("LICHEN_WORKERS={workers}")])
}

/// The same with any words of the environment.
fn with(lab: &Lab, said: &[&str]) -> crate::lab::Outcome {
    let program = lab.path("bin/lichen").display().to_string();
    run(&mut lab.person(&[&["env"], said, &[&program, "status"]].concat()))
}

/// Starts the daemon with two workers. Ports are spread, so of two that follow each other one is on each.
#[track_caller]
fn start_two(lab: &Lab) {
    let status = with_workers(lab, "2").success();
    assert!(status.contains("workers 2"), "{status}");
    let json = run(&mut lab.lichen(["status", "-o", "json"])).success();
    assert!(json.replace(' ', "").contains("\"workers\":2"), "{json}");
    assert_workers(lab, 2);
}

/// As many threads of that name as there are workers.
#[track_caller]
fn assert_workers(lab: &Lab, count: usize) {
    let threads = lab.process(Role::Datapath).expect("a datapath").threads();
    let workers = threads.iter().filter(|name| name.starts_with("worker-")).count();
    assert_eq!(workers, count, "{threads:?}");
}

fn containers_on_two_workers_talk_by_name_and_every_byte_arrives(lab: &Lab) {
    start_two(lab);
    lab.web_server("web", &["-p", "8080:80"]);
    lab.web_server("other", &[]);
    // Each time on the worker that has fewer, so on both.
    for name in ["web", "other", "web", "other"] {
        let hold = ["run", "-d", "--", "sleep", "600"];
        run(&mut lab.lichen(hold)).success();
        let script = format!("ping -c2 -i0.2 -W2 {name} && curl -sS http://{name}/");
        let said = lab.in_workload(&script);
        assert!(said.contains("2 received") && said.ends_with("hello from a workload\n"), "{said}");
        assert_eq!(lab.in_workload("curl -sS http://outside.example/"), "hello from outside\n");
    }
    let fetch = ["curl", "-sS", "-m", "2", "http://127.0.0.1:8080/"];
    assert_eq!(run(&mut lab.person(&fetch)).success(), "hello from a workload\n");

    let bytes = "head -c 300000000 /dev/zero | tr '\\0' x";
    let sent = lab.in_workload(&format!("{bytes} | sha256sum"));
    for name in ["one", "two"] {
        // It stays: what was sent last is still on its way when its sender has ended.
        let serve = format!("{bytes} | nc -l -p 7000 -q 0; sleep 600");
        run(&mut lab.lichen(["run", "-d", "--name", name, "--", "sh", "-c", &serve])).success();
    }
    // Of two servers that follow each other one is across.
    for name in ["one", "two"] {
        assert_eq!(lab.in_workload(&format!("sleep 0.5; nc -d {name} 7000 | sha256sum")), sent);
    }
    for name in ["three", "four"] {
        run(&mut lab.lichen(["run", "-d", "--name", name, "--", "iperf3", "-s"])).success();
    }
    for name in ["three", "four"] {
        let printed = lab.in_workload(&format!("sleep 0.5; iperf3 -c {name} -t 3 -i 0"));
        println!("   to {name}: {:.2} Gbit/s", received(&printed));
        assert!(received(&printed) > 0.1, "{printed}");
    }
    let status = run(&mut lab.lichen(["status", "-o", "json"])).success();
    assert!(status.contains("\"web\"") && status.contains("\"four\""), "all are counted: {status}");
}

fn a_virtual_machine_and_a_container_on_two_workers_talk_both_ways(lab: &Lab) {
    // Its rings are looked into for a while after each frame, so that it is not heard of by kicks alone.
    let status = with(lab, &["LICHEN_WORKERS=2", "LICHEN_BUSY_POLL_US=100"]).success();
    assert!(status.contains("workers 2, busy-poll 100 µs"), "{status}");
    assert_workers(lab, 2);
    for name in ["web", "other"] {
        lab.web_server(name, &[]);
    }
    let mut db = guest(lab, "db", &["-p", "8090:80"]);
    for name in ["web", "other"] {
        assert_eq!(db.sh(&format!("wget -qO- http://{name}/")), "hello from a workload\n");
        assert!(db.sh(&format!("ping -c 3 -W 2 {name}")).contains("3 packets received"));
    }
    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8090/"])).success();
    assert_eq!(page, "hello from a guest\n");
    db.sh("iperf3 -s -D");
    for reverse in ["", "-R"] {
        // The second runs while the first holds its place, so it is on the other worker.
        run(&mut lab.lichen(["run", "-d", "--", "sleep", "600"])).success();
        let printed = lab.in_workload(&format!("iperf3 -c db -t 3 -i 0 {reverse}"));
        println!("   {:.2} Gbit/s {reverse}", received(&printed));
        assert!(received(&printed) > 0.0, "{printed}");
    }
}

fn a_datapath_of_two_workers_killed_under_load_comes_back_with_as_many(lab: &Lab) {
    start_two(lab);
    lab.web_server("web", &["-p", "8080:80"]);
    run(&mut lab.lichen(["run", "-d", "--name", "server", "--", "iperf3", "-s"])).success();
    for round in 0..3 {
        let name = format!("load{round}");
        let words = ["run", "--name", &name, "--", "iperf3", "-c", "server", "-t", "20", "-i", "0"];
        let mut load = Background::start(&mut lab.lichen(words), &lab.path("logs"));
        eventually("the load runs", || {
            let flows = run(&mut lab.lichen(["ps"])).success();
            flows.contains(&name)
        });
        thread::sleep(Duration::from_millis(700));
        lab.process(Role::Datapath).expect("a datapath").kill();
        eventually("new connections work", || {
            let fetch = ["curl", "-sS", "-m", "1", "http://127.0.0.1:8080/"];
            run(&mut lab.person(&fetch)).out == "hello from a workload\n"
        });
        assert_workers(lab, 2);
        assert_eq!(lab.in_workload("curl -sS http://web/"), "hello from a workload\n");
        // Between two workloads a connection lives on: nobody in between ends it.
        run(&mut lab.lichen(["rm", "-f", &name])).success();
        eventually("the load is over", || load.ended().is_some());
    }
}

fn a_number_of_workers_that_is_none_is_refused_with_what_to_do(lab: &Lab) {
    for wrong in ["0", "many", "17"] {
        let refused = with_workers(lab, wrong);
        assert_ne!(refused.code, Some(0), "{wrong}");
        assert!(
            refused.err.contains("LICHEN_WORKERS") && refused.err.contains("1 to 16"),
            "{}",
            refused.err
        );
    }
    assert_eq!(lab.process(Role::Datapath), None);
    with_workers(lab, "2").success();
    assert_workers(lab, 2);
}

/// Three ports that follow each other: the first and the third are on one worker, and talk.
fn a_busy_workers_port_moves_and_its_connections_go_on(lab: &Lab) {
    start_two(lab);
    let serve = ["run", "-d", "--name", "server", "--", "iperf3", "-s"];
    run(&mut lab.lichen(serve)).success();
    run(&mut lab.lichen(["run", "-d", "--name", "between", "--", "sleep", "600"])).success();
    let moves = || lab.logs().matches("a port moves to another worker").count();
    // As many datagrams as the sender can make, which is more than a worker carries; a connection beside
    // them tells in the end what came.
    let flood = "sleep 0.5; until iperf3 -c server -u -b 0 -t 12 -i 0; do sleep 0.2; done";
    let printed = lab.in_workload(flood);
    println!("   {} moves, {:.2} Gbit/s of datagrams", moves(), received(&printed));
    assert!(moves() > 0, "{printed}{}", lab.logs());
    // It is served where it is now.
    let pinged = lab.in_workload("ping -c2 -i0.2 -W2 server");
    assert!(pinged.contains("2 received"), "{pinged}");
}

fn workers_that_look_on_before_they_sleep_carry_everything_and_are_shown(lab: &Lab) {
    for wrong in ["1001", "-1", "50us"] {
        let refused = with(lab, &[&format!("LICHEN_BUSY_POLL_US={wrong}")]);
        assert_ne!(refused.code, Some(0), "{wrong}");
        let said = &refused.err;
        assert!(said.contains("LICHEN_BUSY_POLL_US") && said.contains("0 to 1000"), "{said}");
    }
    let status = with(lab, &["LICHEN_WORKERS=2", "LICHEN_BUSY_POLL_US=200"]).success();
    assert!(status.contains("workers 2, busy-poll 200 µs"), "{status}");
    lab.web_server("web", &[]);
    assert_eq!(lab.in_workload("curl -sS http://web/"), "hello from a workload\n");
    assert_eq!(lab.in_workload("curl -sS http://outside.example/"), "hello from outside\n");
    let pinged = lab.in_workload("ping -c3 -i0.2 -W2 web");
    assert!(pinged.contains("3 received"), "{pinged}");
}
