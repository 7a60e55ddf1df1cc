//! Processes that die, of the product and of others.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::address::UPSTREAM;
use crate::lab::{Background, Dice, Lab, Role, eventually, run, run_within};
use crate::runner::scenarios;

scenarios![
    control_killed_under_load_costs_no_connection,
    a_datapath_killed_under_load_resets_its_flows_and_comes_back,
    a_workload_that_is_killed_is_gone_from_the_list,
    twenty_calls_at_once_start_one_daemon,
    a_published_port_survives_the_death_of_either_process,
];

/// How often the processes are killed, at times that differ from run to run.
const DEATHS: u32 = 5;

/// The longest pause before a death.
const PAUSE: Duration = Duration::from_secs(1);

/// A workload that sends for ten seconds, in the background.
fn load(lab: &Lab, name: &str) -> Background {
    let words = ["run", "--name", name, "--", "iperf3", "-c", UPSTREAM, "-t", "10", "-i", "0"];
    let load = Background::start(&mut lab.lichen(words), &lab.path("logs"));
    eventually("the load runs", || {
        lab.upstream().sh("busybox netstat -tn | grep -c ':5201.*ESTABLISHED' || true").trim()
            == "2"
    });
    load
}

fn control_killed_under_load_costs_no_connection(lab: &Lab) {
    let mut load = load(lab, "load");
    let datapath = lab.process(Role::Datapath).expect("a datapath");
    let mut dice = Dice::new();
    for _ in 0..DEATHS {
        thread::sleep(dice.pause(PAUSE));
        lab.process(Role::Control).expect("control").kill();
        // The next call repairs.
        let list = run(&mut lab.lichen(["ps"])).success();
        assert!(list.contains("load"), "{list}");
        assert_eq!(lab.process(Role::Datapath), Some(datapath), "it is adopted");
    }
    eventually("the load is over", || load.ended().is_some());
    assert_eq!(load.ended(), Some(0), "{}", load.printed());
}

fn a_datapath_killed_under_load_resets_its_flows_and_comes_back(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    let mut dice = Dice::new();
    for round in 0..DEATHS {
        let mut load = load(lab, &format!("load{round}"));
        thread::sleep(dice.pause(PAUSE));
        let control = lab.process(Role::Control).expect("control");
        let killed = Instant::now();
        lab.process(Role::Datapath).expect("a datapath").kill();

        eventually("the flow is reset, not silent", || load.ended().is_some());
        assert_ne!(load.ended(), Some(0), "it was not over yet");
        eventually("new connections work", || {
            let fetch = ["curl", "-sS", "-m", "1", "http://127.0.0.1:8080/"];
            run(&mut lab.person(&fetch)).out == "hello from a workload\n"
        });
        let took = killed.elapsed();
        println!("   back after {took:?}");
        assert_eq!(lab.process(Role::Control), Some(control), "control lives");
        assert_eq!(lab.in_workload("curl -sS http://web/"), "hello from a workload\n");
        lab.upstream()
            .sh("until ! busybox netstat -tn | grep -q ':5201.*ESTABLISHED'; do sleep 0.1; done");
    }
}

fn a_workload_that_is_killed_is_gone_from_the_list(lab: &Lab) {
    lab.web_server("web", &[]);
    assert!(run(&mut lab.lichen(["ps"])).success().contains("web"));
    lab.host().sh("for pid in $(pidof lichen-init || pgrep lichen-init); do kill -KILL $pid; done");
    eventually("the list is empty", || run(&mut lab.lichen(["ps"])).success().lines().count() == 1);
    // Its name and address are free for the next of that name.
    lab.web_server("web", &[]);
}

fn twenty_calls_at_once_start_one_daemon(lab: &Lab) {
    let calls: Vec<Background> =
        (0..20).map(|_| Background::start(&mut lab.lichen(["ps"]), &lab.path("logs"))).collect();
    for mut call in calls {
        eventually("the call is over", || call.ended().is_some());
        assert_eq!(call.ended(), Some(0), "{}", call.printed());
    }
    // Which asserts that there is only one of each.
    assert!(lab.process(Role::Control).is_some() && lab.process(Role::Datapath).is_some());
}

fn a_published_port_survives_the_death_of_either_process(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    let fetch = || {
        let words = ["curl", "-sS", "-m", "2", "http://127.0.0.1:8080/"];
        run(&mut lab.person(&words)).out == "hello from a workload\n"
    };
    lab.process(Role::Control).expect("control").kill();
    assert!(fetch(), "while control is down");
    run(&mut lab.lichen(["ps"])).success();
    assert!(fetch(), "after control is back");
    lab.process(Role::Datapath).expect("a datapath").kill();
    eventually("the port is back", fetch);
    run_within(Duration::from_secs(10), &mut lab.lichen(["daemon", "stop"])).success();
}
