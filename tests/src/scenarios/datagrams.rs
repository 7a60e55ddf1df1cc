//! UDP: published ports, errors in both directions, traceroute.

use crate::lab::address::{HOST, UPSTREAM};
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    a_published_udp_port_answers_on_the_host_and_nowhere_else,
    a_udp_port_published_everywhere_shows_the_clients_address,
    a_udp_port_is_refused_until_its_workload_is_there,
    one_number_is_published_for_both_transports,
    a_published_udp_port_survives_the_death_of_either_process,
    a_closed_udp_port_is_refused_in_both_directions,
    traceroute_shows_the_gateway_and_every_router,
    many_large_datagrams_pass_both_ways,
];

/// Starts a workload that answers datagrams on port 5300.
fn teller(lab: &Lab, options: &[&str]) {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let words =
        [&["run", "-d", "--name", "teller"], options, &["--", &program, "peer", "tell", "5300"]];
    run(&mut lab.lichen_with(&words.concat())).success();
    eventually("the teller answers inside of the network", || {
        run(&mut lab.lichen(["run", "--", &program, "peer", "say", "teller:5300", "x"]))
            .out
            .ends_with(" x\n")
    });
}

/// What somebody on the host is answered.
fn say(lab: &Lab, address: &str, text: &str) -> String {
    let program = lab.path("bin/lichen-lab").display().to_string();
    run(&mut lab.person(&[&program, "peer", "say", address, text])).success()
}

/// What somebody outside is answered.
fn say_from_outside(lab: &Lab, address: &str, text: &str) -> String {
    let program = lab.path("bin/lichen-lab").display().to_string();
    run(&mut lab.upstream().command(&[&program, "peer", "say", address, text])).success()
}

fn a_published_udp_port_answers_on_the_host_and_nowhere_else(lab: &Lab) {
    teller(lab, &["-p", "5301:5300/udp"]);
    let told = say(lab, "127.0.0.1:5301", "hello");
    assert!(told.starts_with("10.88.0.1:") && told.ends_with(" hello\n"), "{told}");
    assert_eq!(say_from_outside(lab, &format!("{HOST}:5301"), "hello"), "refused\n");
    let ports = run(&mut lab.lichen(["port", "ls"])).success();
    let row = ports.lines().find(|line| line.contains("5301")).expect("its row");
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns, ["5301", "teller", "5300", "udp", "active"], "{ports}");
    // A datagram as large as they come, in many fragments on the network.
    let long = "x".repeat(60_000);
    assert!(say(lab, "127.0.0.1:5301", &long).ends_with(&format!(" {long}\n")));
}

fn a_udp_port_published_everywhere_shows_the_clients_address(lab: &Lab) {
    teller(lab, &["-p", "0.0.0.0:5301:5300/udp"]);
    let told = say_from_outside(lab, &format!("{HOST}:5301"), "hello");
    assert!(told.starts_with(&format!("{UPSTREAM}:")) && told.ends_with(" hello\n"), "{told}");
    // Each is answered from the address that it asked, else its kernel would not take the answer.
    for address in ["127.0.0.1:5301", "127.0.0.9:5301", "192.0.2.2:5301"] {
        let told = say(lab, address, "hello");
        assert!(told.starts_with("10.88.0.1:") || told.starts_with(HOST), "{address}: {told}");
    }
    let snat =
        ["port", "add", "--host-port", "5302", "--target", "teller", "--target-port", "5300"];
    let everywhere = ["--proto", "udp", "--host-ip", "0.0.0.0", "--snat"];
    run(&mut lab.lichen_with(&[&snat[..], &everywhere].concat())).success();
    let told = say_from_outside(lab, &format!("{HOST}:5302"), "hello");
    assert!(told.starts_with("10.88.0.1:"), "{told}");
}

fn a_udp_port_is_refused_until_its_workload_is_there(lab: &Lab) {
    let add = ["port", "add", "--host-port", "5303", "--target", "teller", "--target-port", "5300"];
    run(&mut lab.lichen_with(&[&add[..], &["--proto", "udp"]].concat())).success();
    let ports = run(&mut lab.lichen(["port", "ls"])).success();
    assert!(ports.trim_end().ends_with("pending"), "{ports}");
    assert_eq!(say(lab, "127.0.0.1:5303", "hello"), "refused\n");
    teller(lab, &[]);
    assert!(say(lab, "127.0.0.1:5303", "hello").ends_with(" hello\n"));
    run(&mut lab.lichen(["rm", "-f", "teller"])).success();
    eventually("the port is refused again", || say(lab, "127.0.0.1:5303", "x") == "refused\n");

    // Nobody holds it meanwhile, and whoever takes it is told.
    let program = lab.path("bin/lichen-lab").display().to_string();
    let taken =
        Background::start(&mut lab.person(&[&program, "peer", "tell", "5303"]), &lab.path("logs"));
    eventually("the other program has it", || say(lab, "127.0.0.1:5303", "x").ends_with(" x\n"));
    teller(lab, &[]);
    let ports = run(&mut lab.lichen(["port", "ls"])).success();
    assert!(ports.contains("in use by another program"), "{ports}");
    drop(taken);
    eventually("the port is taken when it is free", || {
        run(&mut lab.lichen(["port", "ls"])).success().contains("active")
    });
    let wrong = run(&mut lab.lichen(["port", "rm", "5303"]));
    assert!(wrong.code != Some(0) && wrong.err.contains("lichen port rm 5303/udp"), "{wrong:?}");
    run(&mut lab.lichen(["port", "rm", "5303/udp"])).success();
    assert_eq!(say(lab, "127.0.0.1:5303", "x"), "refused\n");
}

fn one_number_is_published_for_both_transports(lab: &Lab) {
    lab.web_server("web", &["-p", "5304:80"]);
    teller(lab, &["-p", "5304-5305:5300-5301/udp"]);
    assert!(say(lab, "127.0.0.1:5304", "hello").ends_with(" hello\n"));
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:5304/"])).success();
    assert_eq!(page, "hello from a workload\n");
    // Of the range, the second leads to a port on which nobody listens. The host's socket is there, so
    // it cannot be told to the client.
    let listed = run(&mut lab.lichen(["port", "ls", "-o", "json"])).success();
    assert_eq!(listed.matches("\"udp\"").count(), 2, "{listed}");
}

fn a_published_udp_port_survives_the_death_of_either_process(lab: &Lab) {
    teller(lab, &["-p", "5306:5300/udp"]);
    lab.process(Role::Control).expect("control").kill();
    assert!(say(lab, "127.0.0.1:5306", "without control").ends_with(" without control\n"));
    run(&mut lab.lichen(["ps"])).success();
    // The next datapath is given the socket that this control has taken back.
    lab.process(Role::Datapath).expect("a datapath").kill();
    eventually("a new datapath answers", || {
        say(lab, "127.0.0.1:5306", "again").ends_with(" again\n")
    });
}

fn a_closed_udp_port_is_refused_in_both_directions(lab: &Lab) {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let closed = format!("{UPSTREAM}:5399");
    let refused = run(&mut lab.lichen(["run", "--", &program, "peer", "say", &closed, "x"]));
    assert_eq!(refused.success(), "refused\n");
    // A workload that closes its socket while it is spoken to.
    let mut pesterer = lab.upstream().start_in_background(&[&program, "peer", "pester", "5398"]);
    lab.upstream().sh("until busybox netstat -lun | grep -q :5398; do sleep 0.05; done");
    let script = format!("{program} peer say {UPSTREAM}:5398 x; sleep 12");
    let _asker =
        Background::start(&mut lab.lichen(["run", "--", "sh", "-c", &script]), &lab.path("logs"));
    eventually("the other side is told", || pesterer.ended().is_some());
    assert_eq!(pesterer.printed(), "refused\n");
}

/// A third machine behind the upstream, so that there is a router in between.
fn traceroute_shows_the_gateway_and_every_router(lab: &Lab) {
    let behind = put_a_machine_behind(lab);
    for kind in ["", "-I"] {
        let script = format!("busybox traceroute -n -q 1 -w 3 -m 6 {kind} {behind}");
        let shown = lab.in_workload(&script);
        let hops: Vec<&str> =
            shown.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(hops, ["10.88.0.1", UPSTREAM, behind], "{kind}\n{shown}");
    }
}

/// Puts a machine behind the upstream, which becomes its router, and answers its address.
pub(super) fn put_a_machine_behind(lab: &Lab) -> &'static str {
    let behind = "203.0.113.2";
    lab.upstream().sh(&format!(
        "unshare --net sleep 600 </dev/null >/dev/null 2>&1 & pid=$!
         until [ \"$(readlink /proc/$pid/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do sleep 0.05; done
         echo 1 >/proc/sys/net/ipv4/ip_forward
         ip link add behind type veth peer name eth0 netns $pid
         ip address add 203.0.113.1/24 dev behind
         ip link set behind up
         nsenter --net --target $pid sh -c '
             ip link set lo up
             ip address add {behind}/24 dev eth0
             ip link set eth0 up
             ip route add default via 203.0.113.1'"
    ));
    behind
}

/// More than one call carries them; all but a few arrive.
fn many_large_datagrams_pass_both_ways(lab: &Lab) {
    for direction in [&[][..], &["-R"]] {
        let client = ["iperf3", "-c", UPSTREAM, "-u", "-b", "100M", "-l", "1400", "-t", "2", "-J"];
        let words = [&["run", "--"], &client[..], direction].concat();
        let report = run(&mut lab.lichen_with(&words)).success();
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        let sum = &report["end"]["sum"];
        let lost = sum["lost_percent"].as_f64().expect("a figure");
        assert!(lost < 50.0 && sum["packets"].as_f64() > Some(1000.0), "{sum}");
    }
}
