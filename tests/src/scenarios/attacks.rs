//! One workload means harm; its neighbour, and the host's published port, must not notice.

use std::time::{Duration, Instant};

use crate::lab::address::UPSTREAM;
use crate::lab::{Lab, Role, run, run_within};
use crate::runner::scenarios;

scenarios![
    a_broadcast_storm_costs_nobody_else,
    frames_to_nobody_cost_nobody_else,
    a_flood_of_syns_costs_nobody_else,
    a_flood_of_datagrams_costs_nobody_else,
    a_flood_of_names_costs_nobody_else,
    garbage_costs_nobody_else,
    who_plays_router_and_neighbour_costs_nobody_else,
    garbage_over_ipv6_costs_nobody_else,
];

fn a_broadcast_storm_costs_nobody_else(lab: &Lab) {
    attacked(lab, "broadcast", UPSTREAM, &["broadcast", "storm_limit"]);
}

fn frames_to_nobody_cost_nobody_else(lab: &Lab) {
    attacked(lab, "unknown", UPSTREAM, &["unknown_unicast"]);
}

fn a_flood_of_syns_costs_nobody_else(lab: &Lab) {
    attacked(lab, "syn", UPSTREAM, &["half_open_budget", "tcp_no_flow", "tcp_budget"]);
}

fn a_flood_of_datagrams_costs_nobody_else(lab: &Lab) {
    attacked(lab, "udp", UPSTREAM, &["udp_budget"]);
}

fn a_flood_of_names_costs_nobody_else(lab: &Lab) {
    attacked(lab, "names", "10.88.0.1", &["dns_budget"]);
}

fn garbage_costs_nobody_else(lab: &Lab) {
    attacked(lab, "garbage", UPSTREAM, &["ip_header", "csum"]);
}

/// Security rows L06 and, by its flood of addresses, L04.
fn who_plays_router_and_neighbour_costs_nobody_else(lab: &Lab) {
    attacked(lab, "neighbours", UPSTREAM, &["router_guard", "ndp_spoof", "dhcp_guard"]);
    let routes = lab.in_workload("ip -6 route show default; ip -6 neigh show dev eth0");
    assert_eq!(routes.matches("default via").count(), 1, "{routes}");
}

fn garbage_over_ipv6_costs_nobody_else(lab: &Lab) {
    attacked(lab, "garbage6", UPSTREAM, &["ip_header", "ip_options", "csum", "tcp_header"]);
}

/// Attacks from one workload while another pings and fetches. `reasons` are counters of which at least one
/// must have moved.
fn attacked(lab: &Lab, kind: &str, target: &str, reasons: &[&str]) {
    lab.web_server("web", &["-p", "8080:80"]);
    let attacker = ["run", "-d", "--name", "attacker", "--", "sleep", "60"];
    run(&mut lab.lichen(attacker)).success();
    run(&mut lab.lichen(["rm", "-f", "attacker"])).success();
    let before = (lab.process(Role::Control), lab.process(Role::Datapath));
    let memory = resident_kib(lab);

    let program = lab.path("bin/lichen-lab").display().to_string();
    let script = format!("{program} peer attack {kind} {target} && sleep 30");
    let attacker = ["run", "-d", "--name", "attacker", "--", "sh", "-c", &script];
    run(&mut lab.lichen(attacker)).success();
    // Ten pings a second to the outside and to a neighbour while it lasts.
    let innocent = format!(
        "ping -q -i0.1 -c30 -W1 {UPSTREAM} & ping -4 -q -i0.1 -c30 -W1 web & \
         ping -6 -q -i0.1 -c30 -W1 web & wait; \
         curl -sS -m 5 -o /dev/null -w '%{{http_code}}\\n' http://{UPSTREAM}/"
    );
    let limit = Duration::from_secs(60);
    let seen = run_within(limit, &mut lab.lichen(["run", "--", "sh", "-c", &innocent])).success();
    let lost = seen.matches(" 0% packet loss").count();
    assert_eq!(lost, 3, "the neighbour lost pings:\n{seen}");
    assert!(seen.ends_with("200\n"), "{seen}");
    let page = run(&mut lab.person(&["curl", "-sS", "-m", "5", "http://127.0.0.1:8080/"]));
    assert_eq!(page.code, Some(0), "{page:?}");

    let after = (lab.process(Role::Control), lab.process(Role::Datapath));
    assert_eq!(before, after, "both processes live");
    // On a slow machine the flood takes longer than the pings.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let counters = counters_of(lab, "attacker");
        let moved = |reason: &&str| counters["drops"][*reason].as_u64().is_some_and(|n| n > 0);
        if reasons.iter().any(moved) {
            break;
        }
        assert!(Instant::now() < deadline, "none of {reasons:?} moved: {counters}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The attacker itself works again, and what it took is given back when it goes.
    run(&mut lab.lichen(["rm", "-f", "attacker"])).success();
    let deadline = Instant::now() + Duration::from_secs(20);
    while resident_kib(lab) > memory + 16 * 1024 {
        let now = resident_kib(lab);
        assert!(Instant::now() < deadline, "{now} KiB resident, {memory} KiB before");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lab.in_workload(&format!("curl -sS http://{UPSTREAM}/")), "hello from outside\n");
}

fn counters_of(lab: &Lab, workload: &str) -> serde_json::Value {
    let status = run(&mut lab.lichen(["status", "-o", "json"])).success();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let counters = status["counters"].as_array().expect("counters").clone();
    let own = counters.into_iter().find(|counters| counters["workload"] == workload);
    own.expect("the attacker's counters")
}

fn resident_kib(lab: &Lab) -> u64 {
    let datapath = lab.process(Role::Datapath).expect("it runs");
    let line = datapath.status("VmRSS");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}
