//! Virtual machines whose monitors have one end of a pair of sockets, and whose runtime passes the other.

use super::virtual_machines::{every_byte_arrives, lease, state_of};
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    a_virtual_machine_whose_stream_was_passed_is_a_member_of_its_network_like_any_other,
    a_virtual_machine_whose_datagrams_were_passed_is_a_member_of_its_network_like_any_other,
    a_monitor_sees_the_end_of_its_datapath_and_the_next_one_is_plugged,
    a_descriptor_that_is_not_there_or_carries_no_frames_is_named,
];

/// A runtime that makes a pair, plugs one end at the place `db`, and becomes a monitor with the other.
fn runtime(lab: &Lab, kind: &str) -> Vec<String> {
    let at = |name: &str| lab.path(name).display().to_string();
    let (lab, lichen) = (at("bin/lichen-lab"), at("bin/lichen"));
    let words = [&lab, "peer", "pair", kind, &lichen, "vm", "plug", "db", "--fd", "FD", "--"];
    words.map(str::to_owned).to_vec()
}

/// QEMU at the place `db`, with its end.
#[track_caller]
fn plugged(lab: &Lab, kind: &str) -> Guest {
    let list = run(&mut lab.lichen(["vm", "ls"])).success();
    let mac = list.split_whitespace().find(|word| word.starts_with("02:4c:")).expect("its MAC");
    let backend = match kind {
        "stream" => "stream,id=net0,addr.type=fd,addr.str=FD",
        _ => "dgram,id=net0,local.type=fd,local.str=FD",
    };
    let device = format!("virtio-net-device,netdev=net0,mac={mac}");
    let modern = "virtio-mmio.force-legacy=false";
    let words = ["-netdev", backend, "-device", &device, "-global", modern];
    Guest::start_by_runtime(lab, "db", &runtime(lab, kind), &words)
}

/// Lease, names both ways, every byte as it was sent; one at a time, and another after it.
fn is_a_member(lab: &Lab, kind: &str) {
    lab.web_server("web", &[]);
    run(&mut lab.lichen(["vm", "add", "db", "--attach", kind, "-p", "8090:80"])).success();
    let mut db = plugged(lab, kind);
    let leased = lease(&mut db);
    assert!(leased.contains("mtu=1500") && leased.contains("hostname=db"), "{leased}");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
    assert!(db.sh("ping -c 3 -W 2 web").contains("3 packets received"));
    let pinged = lab.in_workload("ping -c3 -i0.2 -W2 db.bridge.internal");
    assert!(pinged.contains("3 received"), "{pinged}");
    assert_eq!(db.sh("wget -qO- http://outside.example/"), "hello from outside\n");
    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8090/"])).success();
    assert_eq!(page, "hello from a guest\n");
    every_byte_arrives(lab, &mut db);

    let words = [runtime(lab, kind), vec!["true".to_owned()]].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let busy = run(&mut lab.person(&words)).exits(1);
    assert!(busy.err.contains("is connected to `db` already; end it first"), "{}", busy.err);
    // Control's end is not noticed.
    lab.process(Role::Control).expect("control").kill();
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));

    // With the datapath it is over, for this monitor.
    lab.process(Role::Datapath).expect("a datapath").kill();
    eventually("it waits again", || state_of(lab, "db").contains("waiting"));
    drop(db);
    let mut db = plugged(lab, kind);
    lease(&mut db);
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    drop(db);
    eventually("it waits again", || state_of(lab, "db").contains("waiting"));
}

fn a_virtual_machine_whose_stream_was_passed_is_a_member_of_its_network_like_any_other(lab: &Lab) {
    is_a_member(lab, "stream");
}

fn a_virtual_machine_whose_datagrams_were_passed_is_a_member_of_its_network_like_any_other(
    lab: &Lab,
) {
    is_a_member(lab, "dgram");
}

fn a_monitor_sees_the_end_of_its_datapath_and_the_next_one_is_plugged(lab: &Lab) {
    run(&mut lab.lichen(["vm", "add", "db", "--attach", "stream"])).success();
    // A monitor that only reads until the end.
    let words = ["bash", "-c", "cat <&FD >/dev/null; echo it has ended"].map(str::to_owned);
    let words = [runtime(lab, "stream"), words.to_vec()].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let start = || Background::start(&mut lab.person(&words), &lab.path("logs"));
    let is_running = || state_of(lab, "db").contains("running");

    let mut first = start();
    eventually("it is plugged", is_running);
    assert_eq!(first.printed(), "db\n");
    let datapath = lab.process(Role::Datapath).expect("a datapath");
    lab.process(Role::Control).expect("control").kill();
    assert!(is_running(), "{}", state_of(lab, "db"));
    assert_eq!(lab.process(Role::Datapath), Some(datapath), "it is adopted");
    assert_eq!(first.ended(), None);

    // Nobody else holds the end that was passed: not control, and not who passed it.
    datapath.kill();
    eventually("the monitor sees its end", || first.ended() == Some(0));
    assert_eq!(first.printed(), "db\nit has ended\n");
    eventually("the place waits", || state_of(lab, "db").contains("waiting"));
    let mut second = start();
    eventually("the next one is plugged", is_running);
    // A place that is taken away lets go of its monitor.
    run(&mut lab.lichen(["vm", "rm", "db"])).exits(1);
    run(&mut lab.lichen(["vm", "rm", "-f", "db"])).success();
    eventually("the monitor sees its end", || second.ended() == Some(0));
}

fn a_descriptor_that_is_not_there_or_carries_no_frames_is_named(lab: &Lab) {
    run(&mut lab.lichen(["vm", "add", "db", "--attach", "dgram"])).success();
    run(&mut lab.lichen(["vm", "add", "rings"])).success();
    let program = lab.path("bin/lichen").display().to_string();
    let plug = |redirection: &str, name: &str, number: &str| {
        let script = format!("exec {redirection}; exec \"$@\"");
        let words = ["sh", "-c", &script, "sh", &program, "vm", "plug", name, "--fd", number];
        run(&mut lab.person(&words))
    };
    // These are numbers that the program itself uses later.
    for number in ["3", "4", "5", "9"] {
        let refused = plug("9>&-", "db", number).exits(1);
        let said = format!("descriptor {number} is not open here");
        assert!(refused.err.contains(&said), "{}", refused.err);
    }
    let refused = plug("9>&-", "db", "1").exits(2);
    assert!(refused.err.contains("standard input, output and error"), "{}", refused.err);
    let refused = plug("9>held", "db", "9").exits(1);
    assert!(refused.err.contains("descriptor 9 is not a socket"), "{}", refused.err);
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);

    let pass = |kind: &str, name: &str| {
        let words = runtime(lab, kind);
        let words = words.iter().map(|word| if word == "db" { name } else { word });
        run(&mut lab.person(&words.chain(["true"]).collect::<Vec<_>>())).exits(1).err
    };
    let other = pass("stream", "db");
    assert!(other.contains("takes SOCK_DGRAM") && other.contains("--attach stream"), "{other}");
    assert!(pass("stream", "rings").contains("takes vhost-user"));
    assert!(pass("dgram", "nowhere").contains("nowhere"));
    assert!(state_of(lab, "db").contains("waiting"), "{}", state_of(lab, "db"));

    let mut words = runtime(lab, "dgram");
    let at = words.iter().position(|word| word == "vm").expect("a call of the product");
    words.insert(at, "--output=json".to_owned());
    words.push("true".to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = run(&mut lab.person(&words)).success();
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said, serde_json::json!({ "plugged": "db", "attachment": "dgram" }));
}
