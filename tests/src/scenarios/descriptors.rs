//! Few file descriptors, and none (security row A12).

use std::thread;
use std::time::Duration;

use crate::lab::address::UPSTREAM;
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    with_sixty_four_descriptors_a_network_works_and_with_less_the_number_needed_is_told,
    with_256_descriptors_a_crowd_is_cut_to_its_share_and_its_neighbour_is_served,
    without_a_free_descriptor_the_datapath_rests_and_serves_who_waited_afterwards,
    without_a_free_descriptor_control_rests_and_answers_afterwards,
];

/// A call of the product that may have so many descriptors, as may the daemon that it starts.
fn limited(lab: &Lab, limit: u32, words: &[&str]) -> std::process::Command {
    let program = lab.path("bin/lichen").display().to_string();
    let limit = format!("--nofile={limit}:{limit}");
    lab.person(&[&["prlimit", &limit, &program], words].concat())
}

fn with_sixty_four_descriptors_a_network_works_and_with_less_the_number_needed_is_told(lab: &Lab) {
    let refused = run(&mut limited(lab, 40, &["run", "--", "true"])).exits(125);
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
    assert!(
        refused.err.contains("only 40 files") && refused.err.contains("at least 64"),
        "{refused:?}"
    );

    run(&mut limited(lab, 64, &["ps"])).success();
    for role in [Role::Control, Role::Datapath] {
        let process = lab.process(role).expect("it runs");
        assert_eq!(process.open_files_limit(), 64, "{role:?}");
    }
    lab.web_server("web", &["-p", "8080:80"]);
    let page = run(&mut lab.person(&["curl", "-sS", "-m", "10", "http://127.0.0.1:8080/"]));
    assert_eq!(page.success(), "hello from a workload\n");
    assert_eq!(lab.in_workload("curl -sS http://outside.example/"), "hello from outside\n");
}

fn with_256_descriptors_a_crowd_is_cut_to_its_share_and_its_neighbour_is_served(lab: &Lab) {
    run(&mut limited(lab, 256, &["ps"])).success();
    let program = lab.path("bin/lichen-lab").display().to_string();
    let gather = [&program, "peer", "gather", "7003", "1000"];
    let _gathering = lab.upstream().start_in_background(&gather);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7003; do sleep 0.05; done");
    lab.web_server("web", &["-p", "8080:80"]);

    let hold = ["run", "--name", "crowd", "--", &program, "peer", "hold"];
    let far = format!("{UPSTREAM}:7003");
    let words = [&hold[..], &[far.as_str(), "400"]].concat();
    let crowd = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    eventually("the crowd is there", || !crowd.printed().is_empty());

    let open = crowd.printed();
    let open: u32 = open.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    println!("   {open} of 400 connections with 256 descriptors");
    assert!((20..=128).contains(&open), "half is for flows, and the crowd's share less: {open}");
    assert_eq!(
        lab.in_workload(&format!("curl -sS -m 10 http://{UPSTREAM}/")),
        "hello from outside\n"
    );
    let page = run(&mut lab.person(&["curl", "-sS", "-m", "10", "http://127.0.0.1:8080/"]));
    assert_eq!(page.success(), "hello from a workload\n");
}

/// The numbers below are in use: standard input, output and error.
const NONE_FREE: u64 = 3;

/// Long enough for a loop that spins to be told from one that rests.
const WATCHED: Duration = Duration::from_secs(3);

/// Ten times the ticks of 10 ms that thirty vain attempts may take, and a tenth of what a spinning loop takes.
const RESTING: u64 = 30;

fn without_a_free_descriptor_the_datapath_rests_and_serves_who_waited_afterwards(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    run(&mut lab.lichen(["vm", "add", "db"])).success();
    let datapath = lab.process(Role::Datapath).expect("it runs");
    let limit = datapath.open_files_limit();
    lab.limit_open_files(datapath, NONE_FREE);

    let fetch = ["curl", "-sS", "-m", "60", "http://127.0.0.1:8080/"];
    let mut client = Background::start(&mut lab.person(&fetch), &lab.path("logs"));
    let socket = lab.path("run/lichen/vm/db.sock").display().to_string();
    let monitor = ["nc", "-U", &socket];
    let _monitor = Background::start(&mut lab.person(&monitor), &lab.path("logs"));
    eventually("both wait", || {
        let waiting = "busybox netstat -tn | grep -q '127.0.0.1:8080 .*ESTABLISHED'";
        run(&mut lab.host().command(&["sh", "-c", waiting])).code == Some(0)
    });
    let before = datapath.ticks();
    thread::sleep(WATCHED);
    let used = datapath.ticks() - before;
    println!("   {used} ticks in {WATCHED:?}");
    assert!(used <= RESTING, "it spins: {used} ticks in {WATCHED:?}");
    assert_eq!(client.ended(), None, "it cannot have been accepted");

    lab.limit_open_files(datapath, limit);
    eventually("who waited is served", || client.ended().is_some());
    assert_eq!(client.printed(), "hello from a workload\n");
    eventually("the monitor is heard of", || {
        // It says nothing, which is told.
        run(&mut lab.lichen(["ps"])).success().contains("did not speak vhost-user")
    });
    assert_eq!(lab.process(Role::Datapath), Some(datapath), "it lives");
}

fn without_a_free_descriptor_control_rests_and_answers_afterwards(lab: &Lab) {
    run(&mut lab.lichen(["ps"])).success();
    let control = lab.process(Role::Control).expect("it runs");
    let limit = control.open_files_limit();
    lab.limit_open_files(control, NONE_FREE);
    let mut call = Background::start(&mut lab.lichen(["network", "ls"]), &lab.path("logs"));
    let before = control.ticks();
    thread::sleep(WATCHED);
    let used = control.ticks() - before;
    println!("   {used} ticks in {WATCHED:?}");
    assert!(used <= RESTING, "it spins: {used} ticks in {WATCHED:?}");
    assert_eq!(call.ended(), None, "it cannot have been accepted");
    lab.limit_open_files(control, limit);
    eventually("who waited is answered", || call.ended().is_some());
    assert!(call.printed().contains("bridge"), "{}", call.printed());
}
