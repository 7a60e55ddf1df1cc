//! Virtual machines whose monitors hand over whole frames: over a stream, and as datagrams.

use std::thread;
use std::time::{Duration, Instant};

use super::virtual_machines::{every_byte_arrives, guest, lease, received, state_of};
use crate::lab::address::UPSTREAM;
use crate::lab::{Lab, Role, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    a_virtual_machine_over_a_stream_is_a_member_of_its_network_like_any_other,
    a_virtual_machine_over_datagrams_is_a_member_of_its_network_like_any_other,
    a_virtual_machine_over_datagrams_comes_back_after_each_process_was_killed,
    a_stream_outlives_control_and_ends_with_its_monitor,
];

/// Lease, names both ways, the outside, a published port, every byte as it was sent.
fn is_a_member(lab: &Lab, attach: &str) {
    lab.web_server("web", &[]);
    let mut db = Guest::start(lab, "db", &["--attach", attach, "-p", "8090:80"]);
    let lease = lease(&mut db);
    assert!(lease.contains("mtu=1500") && lease.contains("hostname=db"), "{lease}");
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(db.sh("ping -c 3 -W 2 web").contains("3 packets received"));
    assert_eq!(db.sh("wget -qO- http://outside.example/"), "hello from outside\n");
    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    assert_eq!(lab.in_workload("curl -sS http://db/"), "hello from a guest\n");
    let pinged = lab.in_workload("ping -c3 -i0.2 -W2 db.bridge.internal");
    assert!(pinged.contains("3 received"), "{pinged}");
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8090/"])).success();
    assert_eq!(page, "hello from a guest\n");

    db.sh("iperf3 -s -D");
    for (way, reverse) in [("to the guest", ""), ("from the guest", "-R")] {
        let printed = lab.in_workload(&format!("iperf3 -c db -t 3 -i 0 {reverse}"));
        let rate = received(&printed);
        println!("   {way}: {rate:.3} Gbit/s");
        assert!(rate > 0.0, "{printed}");
    }
    let printed = db.sh(&format!("iperf3 -c {UPSTREAM} -t 3 -i 0 -R"));
    println!("   from outside: {:.3} Gbit/s", received(&printed));
    every_byte_arrives(lab, &mut db);
    let list = run(&mut lab.lichen(["vm", "ls"])).success();
    assert!(list.contains(attach) && list.contains("running"), "{list}");
    assert!(state_of(lab, "db").contains(&format!("vm/{attach}")), "{}", state_of(lab, "db"));
}

fn a_virtual_machine_over_a_stream_is_a_member_of_its_network_like_any_other(lab: &Lab) {
    is_a_member(lab, "stream");
}

fn a_virtual_machine_over_datagrams_is_a_member_of_its_network_like_any_other(lab: &Lab) {
    is_a_member(lab, "dgram");
}

fn a_virtual_machine_over_datagrams_comes_back_after_each_process_was_killed(lab: &Lab) {
    lab.web_server("web", &[]);
    let added = run(&mut lab.lichen(["vm", "add", "db", "--attach", "dgram"])).success();
    assert!(added.contains("remote.path=") && added.contains("unixSocketPath="), "{added}");
    assert!(!added.contains("memory-backend"), "{added}");
    assert!(state_of(lab, "db").contains("waiting"), "{}", state_of(lab, "db"));
    let mut db = guest(lab, "db", &[]);
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));

    let killed = Instant::now();
    lab.process(Role::Datapath).expect("a datapath").kill();
    eventually("the guest reaches the container", || {
        db.run("timeout 3 wget -qO- http://web/").1 == "hello from a workload\n"
    });
    println!("   back after {:?}", killed.elapsed());
    eventually("it is connected", || state_of(lab, "db").contains("running"));

    lab.process(Role::Control).expect("control").kill();
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
    // Both at once: the next control binds the path anew.
    lab.process(Role::Control).expect("control").kill();
    lab.process(Role::Datapath).expect("a datapath").kill();
    run(&mut lab.lichen(["ps"])).success();
    eventually("the guest reaches the container", || {
        db.run("timeout 3 wget -qO- http://web/").1 == "hello from a workload\n"
    });

    assert!(db.runs());
    drop(db);
    eventually("it waits again", || state_of(lab, "db").contains("waiting"));
    // The next one sends from the same place.
    let mut db = guest(lab, "db", &[]);
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
}

fn a_stream_outlives_control_and_ends_with_its_monitor(lab: &Lab) {
    lab.web_server("web", &[]);
    run(&mut lab.lichen(["vm", "add", "db", "--attach", "stream"])).success();
    let mut db = guest(lab, "db", &[]);
    lab.process(Role::Control).expect("control").kill();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));

    // A second monitor is turned away and the first does not notice.
    let socket = lab.path("run/lichen/vm/db.sock").display().to_string();
    let second = run(&mut lab.person(&["timeout", "5", "nc", "-U", &socket]));
    assert_eq!((second.code, second.out.as_str()), (Some(0), ""), "it is hung up on");
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");

    drop(db);
    eventually("it waits again", || state_of(lab, "db").contains("waiting"));
    // What is not frames is told with the remedy.
    let words = format!("echo GET / HTTP/1.1 | timeout 5 nc -U {socket}");
    run(&mut lab.person(&["sh", "-c", &words]));
    eventually("the wrong words are told", || state_of(lab, "db").contains("most significant"));
    let mut db = guest(lab, "db", &[]);
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
}
